import Blocks

/// What of a volume must be copied: all but what its file systems say is free. In doubt it is in use.
///
/// A file system's free space counts as such only if it ``FileSystemDescription/knowsUse``, was read to its end
/// without a problem, overlaps no other, and told its ranges in order and within its own.
public final class UsedMap: RecordSink {
    private struct Reading {
        var name: String
        var range: ByteRange
        var isTrusted = true
        var used: [ByteRange] = []
    }

    private let size: UInt64
    private var reading: Reading?
    private var finished: [Reading] = []
    /// Ranges that lie nearer to each other than this are one.
    private var gap: UInt64
    private var count = 0
    /// What had to be taken for used, and why; for people.
    public private(set) var doubts: [String] = []

    /// - Parameters:
    ///   - size: of the volume, bytes.
    ///   - gap: bytes; free space shorter than this is copied along, since it costs less than a segment more. A power of
    ///     two; it grows when there would be more than ``TocLimits/usedRanges``.
    public init(size: UInt64, gap: UInt64 = TocLimits.smallestGap) {
        self.size = size
        self.gap = gap
    }

    public func put(_ record: VolumeRecord) throws(TocError) {
        switch record {
        case .fileSystem(let description):
            if reading != nil { doubt("it was not read to its end") }
            reading = Reading(
                name: "\(description.kind.rawValue) at \(description.range.offset)",
                range: description.range)
            if !description.knowsUse { doubt(description.remark) }
            if description.range.end > size { doubt("it reaches beyond the volume") }
        case .used(let ranges):
            for range in ranges { add(range) }
        case .problem(let problem): doubt(problem.reason)
        case .end:
            if let reading, reading.isTrusted { finished.append(reading) }
            reading = nil
        case .node, .name, .stream, .extents, .attribute: break
        }
    }

    private func doubt(_ reason: String) {
        guard let reading, reading.isTrusted else { return }
        self.reading?.isTrusted = false
        if doubts.count < TocLimits.fileSystems {
            doubts.append("\(reading.name) is copied" + (reason.isEmpty ? "" : ": \(reason)"))
        }
    }

    private func add(_ range: ByteRange) {
        guard var current = reading, current.isTrusted else { return }
        guard range.offset >= current.range.offset, range.end <= current.range.end,
            range.offset >= current.used.last?.end ?? 0
        else { return doubt("what it says is in use is out of order, or not its own") }
        reading = nil  // so that the array below is not copied
        defer { reading = current }
        guard !range.isEmpty else { return }
        if let last = current.used.last, range.offset - last.end < gap {
            current.used[current.used.count - 1] = last.joined(to: range)
            return
        }
        current.used.append(range)
        count += 1
        guard count > TocLimits.usedRanges else { return }
        gap *= 2
        Self.join(&current.used, gap)
        for index in finished.indices { Self.join(&finished[index].used, gap) }
        count = current.used.count + finished.reduce(0) { $0 + $1.used.count }
    }

    private static func join(_ ranges: inout [ByteRange], _ gap: UInt64) {
        var joined: [ByteRange] = []
        for range in ranges {
            if let last = joined.last, range.offset - last.end < gap {
                joined[joined.count - 1] = last.joined(to: range)
            } else {
                joined.append(range)
            }
        }
        ranges = joined
    }

    /// What must be copied, sorted, apart from each other; ends are multiples of `alignment` or the volume's end.
    /// - Parameter alignment: bytes, a power of two.
    public func ranges(alignment: UInt64) -> [ByteRange] {
        var result: [ByteRange] = []
        func add(_ start: UInt64, _ end: UInt64) {
            guard start < end else { return }
            let start = start.roundedDown(to: alignment)
            let end = size - end < alignment ? size : end.roundedUp(to: alignment)
            if let last = result.last, start <= last.end || start - last.end < gap {
                result[result.count - 1] = ByteRange(
                    offset: last.offset, count: Swift.max(end, last.end) - last.offset)
            } else {
                result.append(ByteRange(offset: start, count: end - start))
            }
        }
        var position: UInt64 = 0
        for reading in apart() {
            add(position, reading.range.offset)
            for range in reading.used { add(range.offset, range.end) }
            position = reading.range.end
        }
        add(position, size)
        return result
    }

    /// For questions about single ranges.
    public var answers: UseAnswers {
        UseAnswers(apart().map { (range: $0.range, used: RangeList($0.used)) })
    }

    /// Those that overlap no other, by offset.
    private func apart() -> [Reading] {
        let sorted = finished.sorted { $0.range.offset < $1.range.offset }
        var result: [Reading] = []
        var end: UInt64 = 0
        for (index, reading) in sorted.enumerated() {
            let next = index + 1 < sorted.count ? sorted[index + 1].range.offset : size
            if reading.range.offset >= end, reading.range.end <= next { result.append(reading) }
            end = Swift.max(end, reading.range.end)
        }
        return result
    }
}

/// What is known of which bytes of a volume are in use.
public struct UseAnswers: Sendable {
    /// File systems of which it is known, by offset, apart from each other.
    private let systems: [(range: ByteRange, used: RangeList)]

    fileprivate init(_ systems: [(range: ByteRange, used: RangeList)]) { self.systems = systems }

    /// Whether a byte of `range` is in use; nil: none that it is known of, but some of it lies in no file system whose free
    /// space is known.
    public func isInUse(_ range: ByteRange) -> Bool? {
        var known: UInt64 = 0
        for system in systems {
            guard let part = system.range.intersection(range) else { continue }
            if system.used.overlaps(part) { return true }
            known += part.count
        }
        return known == range.count ? false : nil
    }
}

extension ByteRange {
    fileprivate func joined(to later: ByteRange) -> ByteRange {
        ByteRange(offset: offset, count: later.end - offset)
    }
}
