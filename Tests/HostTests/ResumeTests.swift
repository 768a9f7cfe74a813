import Blocks
import Foundation
import HostControl
import OriginalImage
import TestSupport
import Testing

@testable import Host

/// A host that starts with what another one left.
@Suite struct ResumeTests {
    /// A source and a cache with an open epoch, in which chunks 0, 1 and 2 were overwritten one by one.
    private func left() throws -> (source: FaultyStore, cache: FaultyStore) {
        let source = FaultyStore([UInt8](repeating: 1, count: 40_960))
        let cache = FaultyStore(size: 1 << 20)
        let volume = try CopyOnWriteVolume(
            source: source, cache: cache, settings: Fixture.settings(), defects: [])
        _ = try volume.begin()
        for chunk: UInt64 in 0..<3 { try volume.write([2], at: chunk * 4096) }
        return (source, cache)
    }

    @Test func anOpenEpochGoesOn() throws {
        let (source, cache) = try left()
        let volume = try CopyOnWriteVolume(
            source: source, cache: cache, settings: Fixture.settings(), defects: [])
        #expect(volume.epochStatus?.state == .open && volume.epochStatus?.isHeld == false)
        #expect(try volume.snapshot?.bytes(at: 0, count: 12_288) == [UInt8](repeating: 1, count: 12_288))
    }

    @Test func anEpochThatCannotBeTrustedHasNoSnapshotAndHarmsNoWrite() throws {
        let (source, cache) = try left()
        try cache.write([0xFF], at: 8192 + 50)
        let volume = try CopyOnWriteVolume(
            source: source, cache: cache, settings: Fixture.settings(), defects: [])
        let status = try #require(volume.epochStatus)
        #expect(status.state == .void && status.voidReason?.contains("damaged") == true)
        #expect(volume.snapshot == nil)
        try volume.write([3], at: 9 * 4096)
        #expect(try volume.bytes(at: 9 * 4096, count: 2) == [3, 1])
        #expect(volume.log.head.entries == 0)
        try volume.release(epoch: #require(UUID(uuidString: status.uuid)))
        #expect(try volume.begin().number == 2)
        #expect(try volume.snapshot?.bytes(at: 9 * 4096, count: 2) == [3, 1])
    }
}
