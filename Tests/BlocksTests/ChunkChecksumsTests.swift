import Blocks
import Dispatch
import TestSupport
import Testing

@Suite struct ChunkChecksumsTests {
    private static let chunk = 4_096

    /// Three chunks and a half.
    private func table() -> ChunkChecksums {
        ChunkChecksums(length: UInt64(Self.chunk * 7 / 2), chunkSize: UInt64(Self.chunk))
    }

    private func begin(
        _ table: ChunkChecksums, _ offset: Int, _ count: Int, seed: UInt64
    ) -> (ChunkChecksums.Write, [UInt8]) {
        let bytes = seededBytes(count, seed: seed)
        let range = ByteRange(offset: UInt64(offset), count: UInt64(count))
        return (bytes.withUnsafeBytes { table.begin(range, .bytes($0)) }, bytes)
    }

    private func entries(_ table: ChunkChecksums) -> [ChunkChecksums.Entry] {
        (0..<table.count).map { table[$0] }
    }

    private func sum(_ bytes: [UInt8], _ range: Range<Int>) -> ChunkChecksums.Entry {
        .known(CRC32C.checksum(bytes[range]))
    }

    @Test func aWholeChunkIsKnownWhenItsWriteIsOver() {
        let table = table()
        #expect(entries(table) == [.untouched, .untouched, .untouched, .untouched])
        // From within the first to behind the last, which is short.
        let (write, bytes) = begin(table, 100, 4 * Self.chunk, seed: 1)
        #expect(entries(table) == [.unknown, .unknown, .unknown, .unknown])
        table.end(write, isDone: true)
        func own(_ chunk: Int, _ count: Int) -> ChunkChecksums.Entry {
            let start = chunk * Self.chunk - 100
            return sum(bytes, start..<start + count)
        }
        #expect(
            entries(table)
                == [.unknown, own(1, Self.chunk), own(2, Self.chunk), own(3, Self.chunk / 2)])
    }

    @Test func aPartOfAChunkAndUnsummedBytesMakeItUnknown() {
        let table = table()
        for (offset, count) in [(0, Self.chunk - 1), (1, Self.chunk), (Self.chunk, 1), (0, 4 * Self.chunk)] {
            let (whole, _) = begin(table, 0, 4 * Self.chunk, seed: 2)
            table.end(whole, isDone: true)
            let range = ByteRange(offset: UInt64(offset), count: UInt64(count))
            let isOther = count > Self.chunk
            let bytes = seededBytes(count, seed: 3)
            let write = bytes.withUnsafeBytes { table.begin(range, isOther ? .other : .bytes($0)) }
            table.end(write, isDone: true)
            for chunk in 0..<4 {
                let isTouched = range.overlaps(table.range(of: chunk))
                #expect((table[chunk] == .unknown) == isTouched, "\(offset) \(count) \(chunk)")
            }
        }
    }

    @Test func zerosAreKnown() {
        let table = table()
        let zeros = [UInt8](repeating: 0, count: Self.chunk)
        let write = table.begin(ByteRange(offset: 1, count: UInt64(4 * Self.chunk)), .zeros)
        table.end(write, isDone: true)
        let whole = sum(zeros, 0..<Self.chunk)
        #expect(entries(table) == [.unknown, whole, whole, sum(zeros, 0..<Self.chunk / 2)])
        let short = ChunkChecksums(length: 5, chunkSize: 1 << 40)
        short.end(short.begin(ByteRange(offset: 0, count: 5), .zeros), isDone: true)
        #expect(short.count == 1 && short[0] == sum(zeros, 0..<5))
    }

    @Test func aWriteThatFailedLeavesNothingKnown() {
        let table = table()
        let (first, _) = begin(table, 0, Self.chunk, seed: 4)
        table.end(first, isDone: true)
        let (second, _) = begin(table, 0, Self.chunk, seed: 5)
        table.end(second, isDone: false)
        #expect(table[0] == .unknown)
    }

    /// Two writes to a chunk in every order of their beginnings and ends.
    @Test(arguments: ["a A b B", "a b A B", "a b B A"], [true, false])
    func nobodyKnowsWhatTwoAtOnceLeave(order: String, isSummed: Bool) {
        let table = table()
        var writes: [Character: ChunkChecksums.Write] = [:]
        let second = seededBytes(Self.chunk, seed: 7)
        for step in order where step != " " {
            switch step {
            case "a": writes["a"] = begin(table, 0, Self.chunk, seed: 6).0
            case "b":
                let range = ByteRange(offset: 0, count: UInt64(Self.chunk))
                writes["b"] = second.withUnsafeBytes { table.begin(range, isSummed ? .bytes($0) : .other) }
            default: table.end(writes[Character(step.lowercased())]!, isDone: true)
            }
        }
        let isApart = order == "a A b B"
        #expect(table[0] == (isApart && isSummed ? sum(second, 0..<Self.chunk) : .unknown))
    }

    /// Many threads write the same chunks, each write in one go but any two in any order: what is known at the end is what
    /// is there.
    @Test func whatIsKnownIsThere() {
        var known = 0
        for round in 0..<50 {
            let table = table()
            let count = Int(table.length)
            let contents = Monitor([UInt8](repeating: 0, count: count))
            DispatchQueue.concurrentPerform(iterations: 4) { thread in
                var generator = SeededGenerator(seed: UInt64(round * 4 + thread))
                for _ in 0..<20 {
                    let start = Int(generator.next() % UInt64(count) & ~1023)
                    let length = min(count - start, Int(generator.next() % 16 + 1) * 1024)
                    let bytes = seededBytes(length, seed: generator.next())
                    let range = ByteRange(offset: UInt64(start), count: UInt64(length))
                    let write = bytes.withUnsafeBytes { table.begin(range, .bytes($0)) }
                    contents.withLock { $0.replaceSubrange(start..<start + length, with: bytes) }
                    table.end(write, isDone: true)
                }
            }
            let left = contents.withLock { $0 }
            for chunk in 0..<table.count {
                guard case .known(let value) = table[chunk] else { continue }
                known += 1
                let range = table.range(of: chunk)
                #expect(value == CRC32C.checksum(left[Int(range.offset)..<Int(range.end)]), "round \(round)")
            }
        }
        #expect(known > 0)
    }
}
