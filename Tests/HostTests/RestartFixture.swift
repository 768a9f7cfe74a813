import Blocks
import Foundation
import HostControl
import OriginalImage
import Testing

@testable import Host

/// A volume under the policy `restart-from` whose cache is small, and what an agent asks of it.
struct RestartFixture {
    let source = FaultyStore([UInt8](repeating: 1, count: 100_000))
    let turnstile = Turnstile()
    let holder = EpochHolder()
    /// - Parameter chunks: so many originals the cache takes, each in a batch of its own.
    func volume(
        _ chunks: Int = 1, drainSeconds: Double = 60
    ) throws -> (CopyOnWriteVolume, FaultyStore) {
        var settings = Fixture.settings(policy: .restartFrom)
        settings.drainSeconds = drainSeconds
        let cache = FaultyStore(size: 8192 + chunks * 8192, room: 1 << 20)
        let volume = try CopyOnWriteVolume(
            source: source, cache: cache, settings: settings, defects: [],
            hook: { [turnstile] in turnstile.pass($0) })
        return (volume, cache)
    }

    func begin(_ volume: CopyOnWriteVolume) throws -> UUID {
        try #require(UUID(uuidString: try volume.begin(holder: holder).uuid))
    }

    func write(_ volume: CopyOnWriteVolume, _ chunks: UInt64...) throws {
        for chunk in chunks { try volume.write([2], at: chunk * 4096) }
    }

    /// Waits for the epoch in the place of `old`.
    func next(
        _ volume: CopyOnWriteVolume, after old: UUID, sourceLocation: SourceLocation = #_sourceLocation
    ) throws -> UUID {
        while volume.epochStatus?.uuid == old.uuidString, volume.epochStatus?.state == .open { sched_yield() }
        let status = try #require(volume.epochStatus, sourceLocation: sourceLocation)
        #expect(status.state == .open, "\(status.voidReason ?? "")", sourceLocation: sourceLocation)
        return try #require(UUID(uuidString: status.uuid))
    }

    func current(_ volume: CopyOnWriteVolume) throws -> UUID {
        let status = try #require(volume.epochStatus)
        return try #require(UUID(uuidString: status.uuid))
    }

    /// Waits until the epoch is void.
    func waitUntilVoid(_ volume: CopyOnWriteVolume) -> String {
        while volume.epochStatus?.state != .void { sched_yield() }
        return volume.epochStatus?.voidReason ?? ""
    }

    func changed(_ volume: CopyOnWriteVolume, _ epoch: UUID) throws -> [UInt64] {
        try volume.changes(before: epoch, from: 0).extents.flatMap { extent in
            (extent.offset / 4096)..<((extent.offset + extent.count + 4095) / 4096)
        }
    }

    func expect(
        _ code: ControlError.Code, saying text: String = "",
        sourceLocation: SourceLocation = #_sourceLocation, _ body: () throws -> Void
    ) {
        #expect(sourceLocation: sourceLocation) { try body() } throws: {
            guard let error = $0 as? ControlError else { return false }
            return error.code == code && (text.isEmpty || error.message.contains(text))
        }
    }
}
