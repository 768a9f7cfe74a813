import Blocks

/// Byte ranges, merged where they meet, in ascending order: says whether a range touches one of them in
/// the logarithm of their number.
struct RangeSet {
    private var ranges: [ByteRange] = []

    /// The first range that ends behind `offset`.
    private func firstIndex(endingAfter offset: UInt64) -> Int {
        var low = 0
        var high = ranges.count
        while low < high {
            let middle = (low + high) / 2
            if ranges[middle].end > offset { high = middle } else { low = middle + 1 }
        }
        return low
    }

    func overlaps(_ range: ByteRange) -> Bool {
        let index = firstIndex(endingAfter: range.offset)
        return index < ranges.count && ranges[index].overlaps(range)
    }

    mutating func insert(_ range: ByteRange) {
        guard !range.isEmpty else { return }
        // One that ends just where this begins merges, too.
        let first = range.offset == 0 ? 0 : firstIndex(endingAfter: range.offset - 1)
        var last = first
        var start = range.offset
        var end = range.end
        while last < ranges.count, ranges[last].offset <= range.end {
            start = min(start, ranges[last].offset)
            end = max(end, ranges[last].end)
            last += 1
        }
        ranges.replaceSubrange(first..<last, with: [ByteRange(offset: start, count: end - start)])
    }
}
