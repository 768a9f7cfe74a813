import Blocks
import OriginalImage

/// Where the bytes of the volume as of the instant lie in a copy's data location: in the data portion, and in the
/// original images over it, which win. Nowhere else is this decided: a ``RestorePlan`` makes its runs by it, the
/// ``MergedReader`` resolves what is read by it, and integrate finds by it what is to be written where.
public final class VolumeMap: Sendable {
    /// Bytes of the volume that lie one behind the other.
    public struct Part: Hashable, Sendable {
        public var volume: ByteRange
        public var place: Place
    }

    public enum Place: Hashable, Sendable {
        /// In the data portion; from the start of the data location, bytes.
        case data(UInt64)
        /// In an original image; from the start of the data location, bytes.
        case original(LogEntry, UInt64)
        /// Nowhere: the original image was all zeros.
        case zeros(LogEntry)
    }

    private struct Originals {
        var geometry: ChunkGeometry
        var base: UInt64
        /// Of the entries: for each group of 2^`shift` chunks the number of the first that is not before it.
        var starts: [UInt32]
        var shift: UInt64
    }

    /// Where the data portion begins in the data location, bytes.
    private let data: UInt64
    private let originals: Originals?
    /// The original images, by their chunks.
    public let entries: [LogEntry]

    /// Of a copy that is consistent as it stands (FIG. 7B).
    /// - Parameter data: where the data portion begins in the data location, bytes.
    public init(data: UInt64 = 0) {
        self.data = data
        originals = nil
        entries = []
    }

    /// Of a copy with original images (FIG. 7A). Memory: about 40 bytes for each.
    /// - Parameters:
    ///   - entries: of the log, in any order, no two of one chunk.
    ///   - base: where the log begins in the data location, bytes.
    public init(
        data: UInt64 = 0, originals entries: [LogEntry], geometry: ChunkGeometry, base: UInt64
    ) {
        self.data = data
        let sorted = entries.sorted { $0.chunk < $1.chunk }
        // About as many groups as entries: then there are few to be looked at in each.
        var shift: UInt64 = 0
        while geometry.chunkCount >> shift > UInt64(max(sorted.count, 1)) { shift += 1 }
        var starts: [UInt32] = [0]
        for (number, entry) in sorted.enumerated() {
            while UInt64(starts.count) <= entry.chunk >> shift { starts.append(UInt32(number)) }
        }
        while UInt64(starts.count) <= geometry.chunkCount >> shift + 1 { starts.append(UInt32(sorted.count)) }
        self.entries = sorted
        originals = Originals(geometry: geometry, base: base, starts: starts, shift: shift)
    }

    /// Where the data portion has the byte at `offset` of the volume, in the data location.
    func dataPlace(of offset: UInt64) -> UInt64 { data + offset }

    /// All of a range of the volume, in its order, without a gap.
    func parts(of range: ByteRange) -> Parts { Parts(self, range, isOriginalsOnly: false) }

    /// The original images over a range of the volume, by their chunks: of each what it has of the range.
    func originals(over range: ByteRange) -> Parts { Parts(self, range, isOriginalsOnly: true) }

    struct Parts: Sequence, IteratorProtocol {
        private let map: VolumeMap
        private var rest: ByteRange
        private var number: Int
        private let isOriginalsOnly: Bool

        init(_ map: VolumeMap, _ range: ByteRange, isOriginalsOnly: Bool) {
            self.map = map
            self.isOriginalsOnly = isOriginalsOnly
            rest = range
            number = range.isEmpty ? map.entries.count : map.firstEntry(from: range.offset)
        }

        mutating func next() -> Part? {
            guard !rest.isEmpty else { return nil }
            var part = rest
            let original = map.original(number, over: rest)
            if let original {
                if isOriginalsOnly || original.volume.offset == rest.offset {
                    number += 1
                    rest = ByteRange(offset: original.volume.end, count: rest.end - original.volume.end)
                    return original
                }
                part = ByteRange(offset: rest.offset, count: original.volume.offset - rest.offset)
            }
            rest = ByteRange(offset: part.end, count: rest.end - part.end)
            return isOriginalsOnly ? nil : Part(volume: part, place: .data(map.dataPlace(of: part.offset)))
        }
    }

    /// The number of the first entry whose chunk does not end before `offset`.
    private func firstEntry(from offset: UInt64) -> Int {
        guard let originals else { return entries.count }
        let chunk = originals.geometry.chunk(at: offset)
        let group = Int(chunk >> originals.shift)
        var (low, high) = (Int(originals.starts[group]), Int(originals.starts[group + 1]))
        while low < high {
            let middle = (low + high) / 2
            if entries[middle].chunk < chunk { low = middle + 1 } else { high = middle }
        }
        return low
    }

    private func original(_ number: Int, over range: ByteRange) -> Part? {
        guard number < entries.count, let originals else { return nil }
        let entry = entries[number]
        let chunk = originals.geometry.range(of: entry.chunk)
        guard let part = chunk.intersection(range) else { return nil }
        if entry.isZero { return Part(volume: part, place: .zeros(entry)) }
        let source = originals.base + entry.position + (part.offset - chunk.offset)
        return Part(volume: part, place: .original(entry, source))
    }
}
