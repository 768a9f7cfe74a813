import Blocks
import Foundation
import HostControl
import TestSupport
import Testing

@testable import Host

/// Who takes over an epoch whose holder is gone.
@Suite struct AdoptTests {
    private let source = FaultyStore([UInt8](repeating: 1, count: 100_000))
    private let cache = FaultyStore(size: 8192 + 8192)

    private func volume(_ policy: CacheFullPolicy = .abandon) throws -> CopyOnWriteVolume {
        try CopyOnWriteVolume(
            source: source, cache: cache, settings: Fixture.settings(policy: policy), defects: [])
    }

    private func expect(
        _ code: ControlError.Code, sourceLocation: SourceLocation = #_sourceLocation,
        _ body: () throws -> Void
    ) {
        #expect(sourceLocation: sourceLocation) { try body() } throws: {
            ($0 as? ControlError)?.code == code
        }
    }

    @Test func anEpochWhoseHolderIsGoneIsHeldAgain() throws {
        let volume = try volume()
        let (first, second, third) = (EpochHolder(), EpochHolder(), EpochHolder())
        let epoch = try #require(UUID(uuidString: try volume.begin(holder: first).uuid))
        expect(.epochHeld) { _ = try volume.adopt(epoch: epoch, holder: second) }
        volume.disconnect(first)
        #expect(volume.epochStatus?.isHeld == false)
        expect(.noSuchEpoch) { _ = try volume.adopt(epoch: UUID(), holder: second) }
        let status = try volume.adopt(epoch: epoch, holder: second)
        #expect(status.isHeld && status.uuid == epoch.uuidString)
        expect(.epochHeld) { _ = try volume.adopt(epoch: epoch, holder: third) }
        // The first one's end, told late, takes nothing from the second.
        volume.disconnect(first)
        #expect(volume.epochStatus?.isHeld == true)
        volume.disconnect(second)
        #expect(try volume.adopt(epoch: epoch, holder: third).isHeld)
        _ = try volume.end(epoch: epoch)
        volume.disconnect(third)
        expect(.noSuchEpoch) { _ = try volume.adopt(epoch: epoch, holder: EpochHolder()) }
    }

    @Test func aVoidEpochIsNotAdopted() throws {
        let volume = try volume()
        let epoch = try #require(UUID(uuidString: try volume.begin().uuid))
        for chunk: UInt64 in 0..<3 { try volume.write([2], at: chunk * 4096) }
        expect(.epochVoid) { _ = try volume.adopt(epoch: epoch, holder: EpochHolder()) }
    }

    /// What was written past the host while none ran, nobody knows.
    @Test func anEpochThatWasFoundInTheCacheIsNotAdopted() throws {
        let epoch = try #require(UUID(uuidString: try volume().begin().uuid))
        let volume = try volume()
        #expect(volume.epochStatus?.state == .open && volume.epochStatus?.isHeld == false)
        expect(.noSuchEpoch) { _ = try volume.adopt(epoch: epoch, holder: EpochHolder()) }
        #expect(volume.epochStatus?.isHeld == false)
    }

    /// The cache is full and the epoch adopted: a write waits for the one who holds it now, and for nobody else.
    @Test func aWriteWaitsForTheAdopter() throws {
        let volume = try volume(.block)
        let (first, second) = (EpochHolder(), EpochHolder())
        let epoch = try #require(UUID(uuidString: try volume.begin(holder: first).uuid))
        try volume.write([2], at: 0)
        volume.disconnect(first)
        _ = try volume.adopt(epoch: epoch, holder: second)
        let writer = Worker { try volume.write([2], at: 8192) }
        while volume.isPrompt, !writer.isDone { sched_yield() }
        #expect(!writer.isDone && volume.epochStatus?.state == .open)
        volume.disconnect(second)
        writer.join()
        #expect(volume.epochStatus?.state == .void)
    }
}
