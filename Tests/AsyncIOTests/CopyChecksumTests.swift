import Blocks
import CAllocationCount
import Testing

@testable import AsyncIO

/// The copy engine sums up what passes.
@Suite struct CopyChecksumTests {
    private static let chunk: UInt64 = 64 << 10

    private func pair(
        _ scratch: ScratchDirectory, size: Int, _ mode: StorageMode = .direct
    ) throws -> (StorageFile, StorageFile) {
        let source = scratch.file("source", size: size, seed: 9)
        let target = scratch.file("target", size: size)
        return (
            try .open(source, access: .readOnly, mode: mode, lock: .none),
            try .open(target, access: .readWrite, mode: mode, lock: .none)
        )
    }

    private func keeper(length: UInt64) -> (ChecksumKeeper, ChunkChecksums) {
        let (keeper, table) = (ChecksumKeeper(), ChunkChecksums(length: length, chunkSize: Self.chunk))
        keeper.keep(table)
        return (keeper, table)
    }

    private func segment(
        _ files: (StorageFile, StorageFile), _ source: UInt64, _ target: UInt64, _ length: UInt64,
        _ keeper: ChecksumKeeper
    ) -> CopySegment {
        CopySegment(
            source: files.0, sourceOffset: source, target: files.1, targetOffset: target, length: length,
            targetChecksums: keeper)
    }

    /// Every known checksum is that of what lies in the target.
    private func compare(_ table: ChunkChecksums, _ target: StorageFile) throws -> [Int] {
        try (0..<table.count).filter { chunk in
            guard case .known(let value) = table[chunk] else { return false }
            let range = table.range(of: chunk)
            let bytes = try target.bytes(at: range.offset, count: Int(range.count))
            #expect(value == CRC32C.checksum(bytes), "chunk \(chunk)")
            return true
        }
    }

    /// Wherever a segment begins and ends, and however large the engine's pieces are: each chunk that it covers is known.
    @Test(arguments: scratchParents, [64 << 10, 1 << 20])
    func chunksThatASegmentCoversAreKnown(parent: String, pieces: Int) throws {
        let size: UInt64 = 3 << 20 + 4096
        for (start, end) in [
            (UInt64(0), size), (4096, size), (4096, 2 << 20), (512, (1 << 20) + 8192), (77, (2 << 20) - 1),
        ] {
            let scratch = ScratchDirectory(under: parent)
            let files = try pair(scratch, size: Int(size))
            let (keeper, table) = keeper(length: size)
            let engine = try CopyEngine(depth: 8, chunkSize: pieces)
            try engine.run([segment(files, start, start, end - start, keeper)], flush: true)
            let covered = (0..<table.count).filter {
                start <= table.range(of: $0).offset && table.range(of: $0).end <= end
            }
            #expect(covered.count > 10)
            #expect(try compare(table, files.1) == covered, "from \(start) to \(end)")
            #expect(table.count == 49)
        }
    }

    /// A last chunk that is shorter, and shorter than the last block: what is behind the length does not count.
    @Test func theLastChunkEndsWhereTheLengthDoes() throws {
        let scratch = ScratchDirectory()
        let files = try pair(scratch, size: 256 << 10)
        let (keeper, table) = keeper(length: 200_000)
        try CopyEngine(depth: 4, chunkSize: 64 << 10)
            .run([segment(files, 0, 0, 256 << 10, keeper)], flush: false)
        #expect(try compare(table, files.1) == [0, 1, 2, 3])
    }

    /// Pieces that are smaller than a chunk have none of them whole.
    @Test func smallerPiecesKnowNothing() throws {
        let scratch = ScratchDirectory()
        let files = try pair(scratch, size: 256 << 10)
        let (keeper, table) = keeper(length: 256 << 10)
        try CopyEngine(depth: 4, chunkSize: 32 << 10)
            .run([segment(files, 0, 0, 256 << 10, keeper)], flush: false)
        #expect((0..<4).allSatisfy { table[$0] == .unknown })
    }

    /// Random segments that overlap: what is known is there, and it is not nothing.
    @Test(arguments: [StorageMode.direct, .pageCache])
    func whatIsKnownIsThere(mode: StorageMode) throws {
        var known = 0
        for seed in UInt64(1)...12 {
            var random = SplitMix(seed)
            let size = 1 << 20
            let scratch = ScratchDirectory()
            let files = try pair(scratch, size: size, mode)
            let (keeper, table) = keeper(length: UInt64(size))
            let unit = [1, 512, 4096][Int(seed % 3)]
            let segments = (0..<20).map { _ in
                let length = Int.random(in: 1...400_000, using: &random) / unit * unit
                let source = Int.random(in: 0...size - length, using: &random) / unit * unit
                let target = Int.random(in: 0...size - length, using: &random) / unit * unit
                // Within the target also, where a segment may overlap itself.
                let from = seed % 2 == 0 ? files : (files.1, files.1)
                return segment(from, UInt64(source), UInt64(target), UInt64(length), keeper)
            }
            try CopyEngine(depth: 8, chunkSize: 128 << 10).run(segments, flush: false)
            known += try compare(table, files.1).count
        }
        #expect(known > 20)
    }

    /// A write fails: nothing is known of the chunks that it was to write; of others it is.
    @Test func aFailedWriteIsNotKnown() throws {
        let scratch = ScratchDirectory()
        let files = try pair(scratch, size: 1 << 20)
        let (keeper, table) = keeper(length: 1 << 20)
        var system = SystemCalls.live
        let live = SystemCalls.live
        let fd = files.1.descriptor
        system.ioSubmit = { context, count, blocks in
            let block = blocks[0]!.pointee
            if block.aio_fildes == fd, block.u.c.offset == Int64(5 * Self.chunk) {
                return .failure(Errno(5))
            }
            return live.ioSubmit(context, 1, blocks)
        }
        let engine = try CopyEngine(depth: 1, chunkSize: Int(Self.chunk), system: system)
        #expect(throws: CopyFailure.self) {
            try engine.run([segment(files, 0, 0, 1 << 20, keeper)], flush: false)
        }
        #expect(try compare(table, files.1) == [0, 1, 2, 3, 4])
        #expect(table[5] == .unknown && table[6] == .untouched)
    }

    /// Summing up allocates nothing: a plan of many pieces costs the same with and without.
    @Test(
        .enabled(
            if: outboard_counts_allocations() == 1,
            "LEFT OUT under a sanitizer, which has the allocator that is counted"))
    func allocatesNothing() throws {
        let scratch = ScratchDirectory()
        let files = try pair(scratch, size: 8 << 20)
        let (keeper, table) = keeper(length: 8 << 20)
        let engine = try CopyEngine(depth: 8, chunkSize: Int(Self.chunk))
        func allocations(_ keeper: ChecksumKeeper) throws -> Int {
            let plan = [segment(files, 0, 0, 8 << 20, keeper)]
            let before = outboard_thread_allocations()
            try engine.run(plan, flush: false)
            return Int(outboard_thread_allocations() - before)
        }
        let off = ChecksumKeeper()
        _ = try allocations(keeper)
        _ = try allocations(off)
        let (without, with) = (try allocations(off), try allocations(keeper))
        // Not built for speed, the engine allocates some for each of the 128 pieces in either case.
        #expect(with <= without + 64, "\(with) and \(without) without")
        #expect(try compare(table, files.1).count == 128)
    }
}
