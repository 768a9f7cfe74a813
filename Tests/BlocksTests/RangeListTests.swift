import Blocks
import Testing

@Suite struct RangeListTests {
    /// Against a byte model.
    @Test func randomLists() {
        var random = SystemRandomNumberGenerator()
        for _ in 0..<300 {
            var model = [Bool](repeating: false, count: 400)
            var ranges: [ByteRange] = []
            var position = 0
            while true {
                let start = position + Int.random(in: 0...20, using: &random)
                let end = start + Int.random(in: 1...20, using: &random)
                guard end <= model.count else { break }
                ranges.append(ByteRange(offset: UInt64(start), count: UInt64(end - start)))
                for byte in start..<end { model[byte] = true }
                position = end
            }
            let list = RangeList(ranges)
            #expect(list.total == UInt64(model.count { $0 }))
            let start = Int.random(in: 0..<400, using: &random)
            let end = Int.random(in: start...400, using: &random)
            let asked = ByteRange(offset: UInt64(start), count: UInt64(end - start))
            let parts = list.parts(of: asked).flatMap { Int($0.offset)..<Int($0.end) }
            #expect(parts == (start..<end).filter { model[$0] })
            #expect(list.overlaps(asked) == !parts.isEmpty)
            let rest = list.complement(upTo: 400).flatMap { Int($0.offset)..<Int($0.end) }
            #expect(rest == model.indices.filter { !model[$0] })
        }
    }

    /// Sets of bytes against sets of numbers; lists that touch themselves, and ranges without bytes, among them.
    @Test func algebra() {
        var random = SystemRandomNumberGenerator()
        func some() -> [ByteRange] {
            (0..<Int.random(in: 0...12, using: &random)).map { _ in
                let start = UInt64.random(in: 0...100, using: &random)
                return ByteRange(
                    offset: start, count: UInt64.random(in: 0...min(9, 100 - start), using: &random))
            }
        }
        func bytes(_ ranges: [ByteRange]) -> Set<UInt64> { Set(ranges.flatMap { $0.offset..<$0.end }) }
        for _ in 0..<2_000 {
            let (one, two) = (some(), some())
            let (a, b) = (RangeList(merging: one), RangeList(merging: two))
            let (mine, theirs) = (bytes(one), bytes(two))
            #expect(bytes(a.ranges) == mine && a.total == UInt64(mine.count) && a.isEmpty == mine.isEmpty)
            let union = a.union(b)
            #expect(bytes(union.ranges) == mine.union(theirs))
            #expect(union == RangeList(merging: one + two), "coalesced")
            #expect(zip(union.ranges, union.ranges.dropFirst()).allSatisfy { $0.end < $1.offset })
            #expect(bytes(a.subtracting(b).ranges) == mine.subtracting(theirs))
            #expect(bytes(a.intersection(b).ranges) == mine.intersection(theirs))
            #expect(a.subtracting(b).ranges.allSatisfy { !$0.isEmpty })
            for alignment: UInt64 in [1, 8] {
                let blocks = stride(from: 0, to: 100, by: Int(alignment)).map {
                    Set(UInt64($0)..<min(UInt64($0) + alignment, 100))
                }
                let whole = blocks.filter { $0.isSubset(of: mine) }.reduce(into: Set()) { $0.formUnion($1) }
                #expect(bytes(a.wholeBlocks(of: alignment, upTo: 100).ranges) == whole)
                let touched = blocks.filter { !$0.isDisjoint(with: mine) }.reduce(into: Set()) {
                    $0.formUnion($1)
                }
                #expect(bytes(a.touchedBlocks(of: alignment, upTo: 100).ranges) == touched)
            }
        }
        #expect(RangeList.whole(0).isEmpty && RangeList.whole(7).total == 7)
    }
}
