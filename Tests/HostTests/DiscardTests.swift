import Blocks
import Foundation
import HostControl
import TestSupport
import Testing

@testable import Host

/// Trims while an epoch is open: they cost no cache and corrupt nothing.
@Suite struct DiscardTests {
    private static let chunks = 64
    private static let size = chunks * 4096 + 1536
    private let before = seededBytes(size, seed: 5)

    private func volume(
        hook: CheckpointHook? = nil
    ) throws -> (CopyOnWriteVolume, FaultyStore) {
        let source = FaultyStore(before)
        return (
            try CopyOnWriteVolume(
                source: source, cache: FaultyStore(size: 1 << 20), settings: Fixture.settings(), defects: [],
                hook: hook), source
        )
    }

    private func used(_ volume: CopyOnWriteVolume) -> UInt64 {
        volume.status(of: HostDescriptor(source: "/s", cache: "/c", uris: [], socket: "/n")).cacheUsed
    }

    private var whole: ByteRange { ByteRange(offset: 0, count: UInt64(Self.size)) }

    @Test func aTrimOfTheWholeVolumeCostsNoByte() throws {
        let (volume, source) = try volume()
        _ = try volume.begin()
        for _ in 0..<3 { try volume.trim(whole, durable: true) }
        #expect(used(volume) == 8192 && volume.log.head.entries == 0)
        #expect(try source.bytes(at: 0, count: Self.size) == before)
        #expect(try volume.snapshot?.bytes(at: 0, count: Self.size) == before)
        // What is preserved is trimmed, up to the last chunk, which is short.
        try volume.write([1], at: 7 * 4096 + 5)
        try volume.write([1], at: UInt64(Self.size) - 1)
        let full = used(volume)
        try volume.trim(whole, durable: false)
        #expect(used(volume) == full)
        var expected = before
        for range in [7 * 4096..<8 * 4096, Self.chunks * 4096..<Self.size] {
            expected.replaceSubrange(range, with: repeatElement(0, count: range.count))
        }
        #expect(try source.bytes(at: 0, count: Self.size) == expected)
        #expect(try volume.snapshot?.bytes(at: 0, count: Self.size) == before)
    }

    /// Only the part that was asked for, of preserved chunks only.
    @Test func aTrimOfParts() throws {
        let (volume, source) = try volume()
        _ = try volume.begin()
        try volume.write([1], at: 2 * 4096)
        try volume.write([1], at: 4 * 4096)
        let full = used(volume)
        var expected = before
        (expected[2 * 4096], expected[4 * 4096]) = (1, 1)
        // From the middle of chunk 1 to the middle of chunk 4.
        try volume.trim(ByteRange(offset: 4096 + 100, count: 3 * 4096), durable: false)
        for range in [2 * 4096..<3 * 4096, 4 * 4096..<4 * 4096 + 100] {
            expected.replaceSubrange(range, with: repeatElement(0, count: range.count))
        }
        #expect(try source.bytes(at: 0, count: Self.size) == expected && used(volume) == full)
        #expect(try volume.snapshot?.bytes(at: 0, count: Self.size) == before)
    }

    /// A chunk that was passed and not yet overwritten is as one that is not preserved: a trim is advice.
    @Test func aTrimBehindTheWatermark() throws {
        let (volume, source) = try volume()
        let epoch = try #require(UUID(uuidString: try volume.begin(holder: EpochHolder()).uuid))
        try volume.passed([VolumeExtent(offset: 0, count: UInt64(Self.size))], epoch: epoch)
        try volume.trim(whole, durable: false)
        #expect(try source.bytes(at: 0, count: Self.size) == before && used(volume) == 8192)
        #expect(try volume.snapshot?.bytes(at: 0, count: Self.size) == before)
        try volume.write([1], at: 0)
        try volume.trim(whole, durable: false)
        #expect(try source.bytes(at: 0, count: 4096) == [UInt8](repeating: 0, count: 4096))
        #expect(used(volume) == 8192)
    }

    /// A write of zeros is a write, whether it may give space back or not: what was there is preserved, and costs no
    /// bytes but its entry where that was zeros already.
    @Test(arguments: [ZeroOptions.keepAllocated, []]) func zerosAreWritten(options: ZeroOptions) throws {
        let (volume, _) = try volume()
        _ = try volume.begin()
        let range = ByteRange(offset: 4096 + 100, count: 2 * 4096)
        try volume.writeZeroes(range, options: options)
        #expect(volume.log.head.entries == 3)
        #expect(try volume.bytes(at: range.offset, count: 8192) == [UInt8](repeating: 0, count: 8192))
        #expect(try volume.snapshot?.bytes(at: 0, count: Self.size) == before)
        let empty = try CopyOnWriteVolume(
            source: FaultyStore(size: 1 << 22), cache: FaultyStore(size: 1 << 20),
            settings: Fixture.settings(), defects: [])
        _ = try empty.begin()
        try empty.writeZeroes(ByteRange(offset: 0, count: 1 << 22), options: options)
        #expect(empty.log.head.entries == 1024)
        // Headers only: five batches of 250 entries at most.
        #expect(used(empty) == 8192 + 5 * 4096)
    }

    /// Trims, writes and zeros at random from two threads, many seeds: the snapshot stays what it was, and the cache
    /// holds nothing but what writes and zeros have touched.
    @Test func trimsAmongWrites() throws {
        for seed: UInt64 in 0..<12 {
            let (volume, _) = try volume(hook: { _ in sched_yield() })
            _ = try volume.begin()
            let touched = Monitor(Set<UInt64>())
            let threads = (0..<2).map { thread in
                Worker {
                    var random = SeededGenerator(seed: seed * 2 + UInt64(thread))
                    for _ in 0..<40 {
                        let offset = UInt64.random(in: 0..<UInt64(Self.size), using: &random)
                        let range = ByteRange(
                            offset: offset,
                            count: UInt64.random(
                                in: 1...min(9000, UInt64(Self.size) - offset), using: &random))
                        let kind = Int.random(in: 0..<4, using: &random)
                        if kind >= 2 {
                            try volume.trim(range, durable: kind == 3)
                            continue
                        }
                        touched.withLock { $0.formUnion(volume.geometry.chunks(touching: range)) }
                        if kind == 0 {
                            try volume.write([UInt8](repeating: 7, count: Int(range.count)), at: range.offset)
                        } else {
                            try volume.writeZeroes(range, options: [])
                        }
                    }
                }
            }
            for thread in threads { thread.join() }
            #expect(try volume.snapshot?.bytes(at: 0, count: Self.size) == before, "seed \(seed)")
            #expect(volume.log.head.entries == UInt64(touched.withLock { $0.count }), "seed \(seed)")
        }
    }
}
