/// Ranges in order, none touching another's bytes.
public struct RangeList: Hashable, Sendable {
    public let ranges: [ByteRange]
    /// Bytes of all together.
    public let total: UInt64

    /// - Precondition: `ranges` are sorted and do not overlap.
    public init(_ ranges: [ByteRange]) {
        for (range, next) in zip(ranges, ranges.dropFirst()) { precondition(range.end <= next.offset) }
        self.ranges = ranges
        total = ranges.reduce(0) { $0 + $1.count }
    }

    /// The parts of it that lie in `range`, in order.
    public func parts(of range: ByteRange) -> some Sequence<ByteRange> {
        ranges[firstIndex(endingBehind: range.offset)...].lazy
            .prefix { $0.offset < range.end }.compactMap { $0.intersection(range) }
    }

    public func overlaps(_ range: ByteRange) -> Bool {
        let index = firstIndex(endingBehind: range.offset)
        return !range.isEmpty && index < ranges.count && ranges[index].overlaps(range)
    }

    /// What lies between them up to `size`.
    public func complement(upTo size: UInt64) -> [ByteRange] {
        var result: [ByteRange] = []
        var position: UInt64 = 0
        for range in ranges {
            if range.offset > position {
                result.append(ByteRange(offset: position, count: range.offset - position))
            }
            position = range.end
        }
        if position < size { result.append(ByteRange(offset: position, count: size - position)) }
        return result
    }

    private func firstIndex(endingBehind offset: UInt64) -> Int {
        var (low, high) = (0, ranges.count)
        while low < high {
            let middle = (low + high) / 2
            if ranges[middle].end > offset { high = middle } else { low = middle + 1 }
        }
        return low
    }
}
