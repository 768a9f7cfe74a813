import Blocks
import TestSupport
import Testing

@Suite struct ChunkBitmapRunsTests {
    private func bitmap(_ count: UInt64, _ chunks: Set<UInt64>) -> ChunkBitmap {
        let bitmap = ChunkBitmap(count: count)
        for chunk in chunks { bitmap.insert(chunk) }
        return bitmap
    }

    @Test func rangesAreSetAsChunksAre() {
        var random = SeededGenerator(seed: 1)
        for _ in 0..<200 {
            let count = UInt64.random(in: 1...400, using: &random)
            let ranges = (0..<4).map { _ in
                let start = UInt64.random(in: 0...count, using: &random)
                return start..<UInt64.random(in: start...count, using: &random)
            }
            let (whole, single) = (ChunkBitmap(count: count), ChunkBitmap(count: count))
            for range in ranges {
                whole.insert(range)
                for chunk in range { single.insert(chunk) }
            }
            #expect((0..<count).allSatisfy { whole.contains($0) == single.contains($0) })
            #expect(whole.population == single.population)
        }
    }

    @Test func runsAreThoseOfTheUnion() {
        var random = SeededGenerator(seed: 2)
        for round in 0..<40 {
            let count = UInt64.random(in: 1...300, using: &random)
            let sets = (0..<Int.random(in: 1...3, using: &random)).map { _ in
                Set((0..<count).filter { _ in Int.random(in: 0..<(2 + round % 40), using: &random) == 0 })
            }
            let union = sets.reduce(Set()) { $0.union($1) }
            let bitmaps = sets.map { bitmap(count, $0) }
            let limit = Int.random(in: 1...20, using: &random)
            var (found, runs): (Set<UInt64>, [Range<UInt64>]) = ([], [])
            var next: UInt64? = 0
            while let from = next {
                let part = ChunkBitmap.runs(inAnyOf: bitmaps, from: from, limit: limit)
                #expect(part.runs.count <= limit && (part.next == nil || part.runs.count == limit))
                runs += part.runs
                next = part.next
            }
            for run in runs { found.formUnion(run) }
            #expect(found == union, "round \(round)")
            // In order, and none touches the next: they are as long as can be.
            #expect(zip(runs, runs.dropFirst()).allSatisfy { $0.upperBound < $1.lowerBound })
            let from = UInt64.random(in: 0...count, using: &random)
            let rest = ChunkBitmap.runs(inAnyOf: bitmaps, from: from, limit: 1000)
            #expect(Set(rest.runs.flatMap { Array($0) }) == union.filter { $0 >= from } && rest.next == nil)
        }
    }

    @Test func nothingOfNothing() {
        #expect(ChunkBitmap.runs(inAnyOf: [], from: 0, limit: 1).runs.isEmpty)
        let all = bitmap(200, Set(0..<200))
        let part = ChunkBitmap.runs(inAnyOf: [all], from: 70, limit: 1)
        #expect(part.runs == [70..<200] && part.next == nil)
    }
}
