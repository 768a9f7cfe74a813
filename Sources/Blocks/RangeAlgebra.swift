/// Sets of bytes as lists of ranges: each of these takes time and memory of the order of the ranges of both.
extension RangeList {
    /// No bytes.
    public static let empty = RangeList([])

    /// All bytes up to `size`.
    public static func whole(_ size: UInt64) -> RangeList {
        size == 0 ? .empty : RangeList([ByteRange(offset: 0, count: size)])
    }

    public var isEmpty: Bool { total == 0 }

    /// The bytes of ranges in any order, which may overlap; what touches becomes one range.
    public init(merging ranges: [ByteRange]) {
        let isSorted = zip(ranges, ranges.dropFirst()).allSatisfy { $0.offset <= $1.offset }
        var builder = Builder()
        for range in isSorted ? ranges : ranges.sorted(by: { $0.offset < $1.offset }) { builder.add(range) }
        self.init(builder.ranges)
    }

    /// Bytes of the one or the other; what touches becomes one range.
    public func union(_ other: RangeList) -> RangeList {
        if isEmpty { return other }
        if other.isEmpty { return self }
        var builder = Builder()
        var (mine, theirs) = (ranges[...], other.ranges[...])
        while let first = mine.first {
            guard let second = theirs.first, second.offset < first.offset else {
                builder.add(mine.removeFirst())
                continue
            }
            builder.add(theirs.removeFirst())
        }
        for range in theirs { builder.add(range) }
        return RangeList(builder.ranges)
    }

    /// Bytes of this one that are not of the other.
    public func subtracting(_ other: RangeList) -> RangeList {
        guard !isEmpty, !other.isEmpty else { return self }
        var result: [ByteRange] = []
        var taken = other.ranges[...]
        for range in ranges {
            var start = range.offset
            while let next = taken.first, next.end <= start { taken.removeFirst() }
            for next in taken {
                guard next.offset < range.end else { break }
                if next.offset > start { result.append(ByteRange(offset: start, count: next.offset - start)) }
                start = max(start, next.end)
            }
            if start < range.end { result.append(ByteRange(offset: start, count: range.end - start)) }
        }
        return RangeList(result)
    }

    /// Bytes of both.
    public func intersection(_ other: RangeList) -> RangeList {
        var result: [ByteRange] = []
        var (mine, theirs) = (ranges[...], other.ranges[...])
        while let first = mine.first, let second = theirs.first {
            if let both = first.intersection(second) { result.append(both) }
            if first.end < second.end { mine.removeFirst() } else { theirs.removeFirst() }
        }
        return RangeList(result)
    }

    /// The whole blocks of `alignment` bytes, a power of two, that lie in it. What ends at `end` ends with a block.
    public func wholeBlocks(of alignment: UInt64, upTo end: UInt64) -> RangeList {
        RangeList(
            merging: ranges.compactMap { range in
                let start = range.offset.roundedUp(to: alignment)
                let stop = range.end == end ? end : range.end.roundedDown(to: alignment)
                return start < stop ? ByteRange(offset: start, count: stop - start) : nil
            })
    }

    /// The blocks of `alignment` bytes, a power of two, that it touches, as far as they lie before `end`.
    public func touchedBlocks(of alignment: UInt64, upTo end: UInt64) -> RangeList {
        RangeList(
            merging: ranges.compactMap { range in
                let start = range.offset.roundedDown(to: alignment)
                let stop = min(range.end.roundedUp(to: alignment), end)
                return range.isEmpty || start >= stop ? nil : ByteRange(offset: start, count: stop - start)
            })
    }

    /// Puts ranges together that come sorted by where they begin.
    private struct Builder {
        var ranges: [ByteRange] = []

        mutating func add(_ range: ByteRange) {
            guard !range.isEmpty else { return }
            guard let last = ranges.last, last.end >= range.offset else { return ranges.append(range) }
            let end = max(last.end, range.end)
            ranges[ranges.count - 1] = ByteRange(offset: last.offset, count: end - last.offset)
        }
    }
}
