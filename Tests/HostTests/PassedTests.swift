import Blocks
import Foundation
import HostControl
import OriginalImage
import TestSupport
import Testing

@testable import Host

/// The watermark: what the copy has needs no original any more.
@Suite struct PassedTests {
    private static let chunks: UInt64 = 10
    /// The last chunk is short.
    private let source = FaultyStore([UInt8](repeating: 1, count: 9 * 4096 + 512))
    private let cache = FaultyStore(size: 1 << 20)
    private let turnstile = Turnstile()

    private func volume(_ defects: Defects = []) throws -> CopyOnWriteVolume {
        try CopyOnWriteVolume(
            source: source, cache: cache, settings: Fixture.settings(), defects: defects,
            hook: { [turnstile] in turnstile.pass($0) })
    }

    private func begin(_ volume: CopyOnWriteVolume) throws -> UUID {
        try #require(UUID(uuidString: try volume.begin(holder: EpochHolder()).uuid))
    }

    private func extent(_ offset: UInt64, _ count: UInt64) -> VolumeExtent {
        VolumeExtent(offset: offset, count: count)
    }

    private func spared(_ volume: CopyOnWriteVolume) -> UInt64? {
        volume.status(of: HostDescriptor(source: "/s", cache: "/c", uris: [], socket: "/n")).counters
            .chunksSpared
    }

    @Test func onlyWholeChunksArePassed() throws {
        let volume = try volume()
        let epoch = try begin(volume)
        try volume.passed(
            [
                extent(1, 3 * 4096),  // chunks 1 and 2, and parts of 0 and 3
                extent(5 * 4096, 4095), extent(6 * 4096 + 1, 4095),
                extent(7 * 4096, 2000), extent(7 * 4096 + 2000, 2096),  // one after the other: chunk 7
                extent(9 * 4096, 512), extent(9 * 4096, 0), extent(100, 0),
            ], epoch: epoch)
        let passed = try #require(volume.epoch).passed
        #expect((0..<Self.chunks).filter { passed.contains($0) } == [1, 2, 7, 9])
        // Said again it changes nothing.
        try volume.passed([extent(4096, 4096)], epoch: epoch)
        #expect(passed.population == 4)
        for chunk in 0..<Self.chunks { try volume.write([2], at: chunk * 4096) }
        #expect(volume.log.head.entries == 6 && spared(volume) == 4)
        #expect((0..<Self.chunks).filter { volume.log.contains($0) } == [0, 3, 4, 5, 6, 8])
        #expect(try volume.bytes(at: 4096, count: 2) == [2, 1])
        let marker = try volume.end(epoch: epoch)
        #expect(marker.entries == 6)
        #expect(try LogReader(cache, wantsBothSuperblocks: true).epoch.flags == .passed)
    }

    @Test func theSnapshotLacksOnlyWhatWasOverwrittenBehindTheWatermark() throws {
        let volume = try volume()
        let epoch = try begin(volume)
        let snapshot = try #require(volume.snapshot)
        try volume.write([2], at: 0)
        try volume.passed([extent(0, 3 * 4096)], epoch: epoch)
        // Preserved before it was passed, passed and not overwritten, not passed.
        #expect(try snapshot.bytes(at: 0, count: 9 * 4096) == [UInt8](repeating: 1, count: 9 * 4096))
        try volume.write([3], at: 4096)
        try volume.write([3], at: 5 * 4096)
        #expect(throws: StoreError(.gone)) { try snapshot.bytes(at: 4096, count: 1) }
        #expect(throws: StoreError(.gone)) { try snapshot.bytes(at: 0, count: 3 * 4096) }
        #expect(try snapshot.bytes(at: 0, count: 4096) == [UInt8](repeating: 1, count: 4096))
        #expect(
            try snapshot.bytes(at: 2 * 4096, count: 7 * 4096) == [UInt8](repeating: 1, count: 7 * 4096))
        #expect(volume.epochStatus?.state == .open && volume.snapshot != nil)
    }

    /// writer: has claimed the chunk, held │ agent: passes it │ writer: preserves it nevertheless, which harms nobody.
    @Test func aChunkThatIsPassedWhileItIsPreserved() throws {
        let volume = try volume()
        let epoch = try begin(volume)
        turnstile.hold(at: .claimed)
        let writer = Worker { try volume.write([2], at: 0) }
        turnstile.waitForArrival()
        try volume.passed([extent(0, 4096)], epoch: epoch)
        turnstile.open()
        writer.join()
        #expect(volume.log.contains(0))
        #expect(try volume.snapshot?.bytes(at: 0, count: 2) == [1, 1])
    }

    /// reader: has read the source, held │ agent: passes the chunk │ writer: overwrites it │ reader: looks again, and
    /// must not believe what it has read.
    @Test func aSnapshotReadThatIsOvertaken() throws {
        let volume = try volume()
        let epoch = try begin(volume)
        let snapshot = try #require(volume.snapshot)
        turnstile.hold(at: .readSource)
        let reader = Worker {
            #expect(throws: StoreError(.gone)) { try snapshot.bytes(at: 0, count: 8192) }
        }
        turnstile.waitForArrival()
        try volume.passed([extent(0, 4096)], epoch: epoch)
        try volume.write([UInt8](repeating: 2, count: 4096), at: 0)
        turnstile.open()
        reader.join()
    }

    /// writer A: has claimed the chunk, held │ agent: passes it │ writer B, same chunk: waits for A all the same.
    @Test func aSecondWriterStillWaitsForTheClaim() throws {
        let volume = try volume()
        let epoch = try begin(volume)
        turnstile.hold(at: .readOriginals)
        let first = Worker { try volume.write([2], at: 0) }
        turnstile.waitForArrival()
        try volume.passed([extent(0, 4096)], epoch: epoch)
        let second = Worker { try volume.write([3], at: 1) }
        for _ in 0..<100 { sched_yield() }
        #expect(!second.isDone && !first.isDone)
        #expect(try volume.bytes(at: 0, count: 2) == [1, 1])
        turnstile.open()
        first.join()
        second.join()
        #expect(try volume.bytes(at: 0, count: 2) == [2, 3])
        #expect(try volume.snapshot?.bytes(at: 0, count: 2) == [1, 1])
    }

    /// The cache knows before the first chunk is spared; if it cannot be told, none is.
    @Test func nothingIsPassedThatTheCacheDoesNotKnow() throws {
        let volume = try volume()
        let epoch = try begin(volume)
        cache.failsWrites.store(true, ordering: .relaxed)
        #expect { try volume.passed([extent(0, 4096)], epoch: epoch) } throws: {
            ($0 as? ControlError)?.code == .io
        }
        #expect(volume.epoch?.passed.population == 0)
        cache.failsWrites.store(false, ordering: .relaxed)
        // An extent without a whole chunk is nothing to tell.
        try volume.passed([extent(1, 4096)], epoch: epoch)
        #expect(try LogSuperblock.read(from: cache)[0].epoch?.flags == [])
        try volume.passed([extent(0, 4096)], epoch: epoch)
        #expect(try LogSuperblock.read(from: cache)[0].epoch?.flags == .passed)
        let found = try self.volume()
        #expect(found.epochStatus?.state == .void && found.snapshot == nil)
        #expect(found.epochStatus?.voidReason?.contains("passed") == true)
    }

    @Test func whatIsRefused() throws {
        let volume = try volume()
        let epoch = try begin(volume)
        func expect(
            _ code: ControlError.Code, _ extents: [VolumeExtent], _ epoch: UUID,
            sourceLocation: SourceLocation = #_sourceLocation
        ) {
            #expect(sourceLocation: sourceLocation) { try volume.passed(extents, epoch: epoch) } throws: {
                ($0 as? ControlError)?.code == code
            }
        }
        let size = volume.size
        expect(.noSuchEpoch, [extent(0, 4096)], UUID())
        for wrong in [
            extent(0, size + 1), extent(size, 1), extent(.max, 1), extent(1, .max), extent(size + 1, 0),
        ] { expect(.invalidParameters, [wrong], epoch) }
        try volume.passed([extent(size, 0)], epoch: epoch)
        #expect(volume.epoch?.passed.population == 0)
        let most = [VolumeExtent](repeating: extent(0, 4096), count: Limits.extents)
        try volume.passed(most, epoch: epoch)
        expect(.invalidParameters, most + [extent(0, 4096)], epoch)
        _ = try volume.end(epoch: epoch)
        expect(.noSuchEpoch, [extent(0, 4096)], epoch)
        try volume.release(epoch: epoch)
        let next = try begin(volume)
        expect(.noSuchEpoch, [extent(0, 4096)], epoch)
        #expect(volume.epoch?.passed.population == 0)
        volume.abandon(try #require(volume.epoch), "a test")
        expect(.epochVoid, [extent(0, 4096)], next)
    }

    /// Each of many chunks at random, for some seeds: exactly what is passed and then overwritten is gone.
    @Test(arguments: [Defects.readsPassedFromSource, []]) func theSnapshotAgainstAModel(defects: Defects)
        throws
    {
        var wrong = 0
        for seed: UInt64 in 0..<20 {
            var random = SeededGenerator(seed: seed)
            let source = FaultyStore(seededBytes(64 * 4096, seed: seed))
            let before = try source.bytes(at: 0, count: 64 * 4096)
            let volume = try CopyOnWriteVolume(
                source: source, cache: FaultyStore(size: 1 << 20), settings: Fixture.settings(),
                defects: defects)
            let epoch = try begin(volume)
            var (passed, written, kept) = (Set<UInt64>(), Set<UInt64>(), Set<UInt64>())
            for _ in 0..<60 {
                let chunk = UInt64.random(in: 0..<64, using: &random)
                if Bool.random(using: &random) {
                    try volume.passed([extent(chunk * 4096, 4096)], epoch: epoch)
                    passed.insert(chunk)
                } else {
                    if !passed.contains(chunk), !written.contains(chunk) { kept.insert(chunk) }
                    written.insert(chunk)
                    try volume.write([UInt8.random(in: 0...255, using: &random)], at: chunk * 4096 + 7)
                }
            }
            let snapshot = try #require(volume.snapshot)
            for chunk: UInt64 in 0..<64 {
                let isGone = written.contains(chunk) && !kept.contains(chunk)
                let found = Result { try snapshot.bytes(at: chunk * 4096, count: 4096) }
                switch found {
                case .success(let bytes):
                    let range = Int(chunk) * 4096..<Int(chunk + 1) * 4096
                    if isGone || bytes != Array(before[range]) { wrong += 1 }
                case .failure(let error):
                    if !isGone || (error as? StoreError)?.code != .gone { wrong += 1 }
                }
            }
            #expect(volume.log.head.entries == UInt64(kept.count))
        }
        #expect(defects.isEmpty ? wrong == 0 : wrong > 0)
    }
}
