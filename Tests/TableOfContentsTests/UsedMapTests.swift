import Blocks
import Testing

@testable import TableOfContents

@Suite struct UsedMapTests {
    private static let mebi: UInt64 = 1 << 20

    private func map(_ size: UInt64, gap: UInt64 = 4096, _ records: [VolumeRecord]) throws -> UsedMap {
        let map = UsedMap(size: size, gap: gap)
        for record in records { try map.put(record) }
        return map
    }

    private func system(_ offset: UInt64, _ count: UInt64, knowsUse: Bool = true) -> VolumeRecord {
        .fileSystem(
            FileSystemDescription(
                index: 0, kind: .ext4, range: ByteRange(offset: offset, count: count), isListed: true,
                knowsUse: knowsUse))
    }

    private func range(_ offset: UInt64, _ count: UInt64) -> ByteRange {
        ByteRange(offset: offset, count: count)
    }

    @Test func whatNoFileSystemCoversIsCopied() throws {
        let records: [VolumeRecord] = [
            system(Self.mebi, 4 * Self.mebi), .used([range(2 * Self.mebi, 8192)]), .end,
        ]
        #expect(
            try map(8 * Self.mebi, records).ranges(alignment: 4096) == [
                range(0, Self.mebi), range(2 * Self.mebi, 8192), range(5 * Self.mebi, 3 * Self.mebi),
            ])
    }

    @Test func inDoubtEverythingIsInUse() throws {
        let all = [range(0, 4 * Self.mebi)]
        let used = VolumeRecord.used([range(0, 4096)])
        let doubtful: [(isTold: Bool, records: [VolumeRecord])] = [
            (false, []),
            (true, [system(0, 4 * Self.mebi, knowsUse: false), used, .end]),
            (false, [system(0, 4 * Self.mebi), used]),  // it never came to its end
            (true, [system(0, 4 * Self.mebi), used, .problem(ReadProblem(reason: "a bad bitmap")), .end]),
            // not in order
            (true, [system(0, 4 * Self.mebi), .used([range(4096, 4096), range(0, 4096)]), .end]),
            (true, [system(0, 2 * Self.mebi), .used([range(0, 3 * Self.mebi)]), .end]),  // not its own
            (true, [system(0, 8 * Self.mebi), used, .end]),  // larger than the volume
            // overlap
            (false, [system(0, 3 * Self.mebi), used, .end, system(2 * Self.mebi, 2 * Self.mebi), .end]),
        ]
        for (isTold, records) in doubtful {
            let map = try map(4 * Self.mebi, records)
            #expect(map.ranges(alignment: 4096) == all, "\(records)")
            #expect(map.doubts.isEmpty != isTold, "\(records)")
        }
    }

    @Test func endsAreAligned() throws {
        let size: UInt64 = 1_000_000  // no multiple of anything
        let records: [VolumeRecord] = [
            system(0, size), .used([range(5000, 100), range(500_000, 1), range(999_500, 500)]), .end,
        ]
        #expect(
            try map(size, records).ranges(alignment: 4096) == [
                range(4096, 4096), range(499_712, 4096), range(999_424, size - 999_424),
            ])
    }

    /// Against a byte model: never less than what was told, and no gap below the least one.
    @Test func randomMaps() throws {
        var random = SystemRandomNumberGenerator()
        for _ in 0..<40 {
            let size = UInt64.random(in: 1...60_000, using: &random)
            var model = [Bool](repeating: true, count: Int(size))
            var records: [VolumeRecord] = []
            var position: UInt64 = 0
            while position < size {
                let start = UInt64.random(in: position...size, using: &random)
                let end = UInt64.random(in: start...size, using: &random)
                records.append(system(start, end - start))
                for byte in start..<end { model[Int(byte)] = false }
                var cursor = start
                while cursor < end {
                    let from = UInt64.random(in: cursor...end, using: &random)
                    let to = UInt64.random(in: from...min(end, from + 9000), using: &random)
                    records.append(.used([range(from, to - from)]))
                    for byte in from..<to { model[Int(byte)] = true }
                    cursor = max(to, cursor + 1)
                }
                records.append(.end)
                position = end + 1
            }
            let found = try map(size, gap: 8192, records).ranges(alignment: 512)
            var covered = [Bool](repeating: false, count: Int(size))
            for piece in found { for byte in piece.offset..<piece.end { covered[Int(byte)] = true } }
            #expect(zip(model, covered).allSatisfy { !$0 || $1 })
            for (a, b) in zip(found, found.dropFirst()) { #expect(b.offset >= a.end + 8192) }
        }
    }

    @Test func manyRangesStayBounded() throws {
        let map = UsedMap(size: 1 << 50, gap: 4096)
        try map.put(system(0, 1 << 50))
        for index in 0..<UInt64(TocLimits.usedRanges + 1000) {
            try map.put(.used([range(index * 8192, 4096)]))
        }
        try map.put(.end)
        let found = map.ranges(alignment: 4096)
        #expect(found.count <= TocLimits.usedRanges)
        #expect(found.last?.end == UInt64(TocLimits.usedRanges + 999) * 8192 + 4096)
    }
}
