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
}
