import Blocks

/// CRC-32C of a portion, slice after slice, so that a damage can be told where it is. In the manifest the slices are large
/// (``CopyLimits/smallestSlice``), in a file beside it they are small (``CopyLimits/smallestChunk``); they are compared,
/// derived and told by the same means.
public struct SliceChecksums: Codable, Hashable, Sendable {
    /// Bytes of each slice but the last, a power of two.
    public let sliceSize: UInt64
    /// One for each slice.
    public var values: [UInt32]

    public init(sliceSize: UInt64, values: [UInt32]) {
        self.sliceSize = sliceSize
        self.values = values
    }

    /// The slice size in a manifest for a portion of `length` bytes: a power of two, at least
    /// ``CopyLimits/smallestSlice``, so that there are at most ``CopyLimits/slices``.
    public static func sliceSize(forLength length: UInt64) -> UInt64 {
        size(forLength: length, least: CopyLimits.smallestSlice, most: CopyLimits.slices)
    }

    /// The same in a file: at least ``CopyLimits/smallestChunk``, at most ``CopyLimits/checksumChunks``.
    public static func chunkSize(forLength length: UInt64) -> UInt64 {
        size(forLength: length, least: CopyLimits.smallestChunk, most: CopyLimits.checksumChunks)
    }

    private static func size(forLength length: UInt64, least: UInt64, most: UInt64) -> UInt64 {
        var size = least
        while count(length, size) > most { size <<= 1 }
        return size
    }

    static func count(_ length: UInt64, _ size: UInt64) -> UInt64 {
        length / size + (length % size == 0 ? 0 : 1)
    }

    static func isSize(_ size: UInt64, least: UInt64) -> Bool {
        size >= least && size <= CopyLimits.volumeBytes && size & (size - 1) == 0
    }

    /// Whether these are as many slices, of a size that is legal in a manifest, as `length` bytes need.
    func covers(length: UInt64) -> Bool {
        Self.isSize(sliceSize, least: CopyLimits.smallestSlice)
            && UInt64(values.count) == Self.count(length, sliceSize)
            && UInt64(values.count) <= CopyLimits.slices
    }

    /// The bytes of slice `index` within a portion of `length` bytes, from the portion's start.
    func range(ofSlice index: Int, length: UInt64) -> ByteRange {
        let offset = UInt64(index) * sliceSize
        return ByteRange(offset: offset, count: min(sliceSize, length - offset))
    }

    /// Reads `range` of `store` and sums it up.
    /// - Parameters:
    ///   - sliceSize: nil: that of a manifest.
    ///   - progress: told the bytes read since it was told last; may throw to stop.
    public static func compute(
        of range: ByteRange, in store: any BlockStore, sliceSize: UInt64? = nil,
        progress: (UInt64) throws(CopyError) -> Void
    ) throws(CopyError) -> SliceChecksums {
        let sliceSize = sliceSize ?? Self.sliceSize(forLength: range.count)
        var result = SliceChecksums(sliceSize: sliceSize, values: [])
        try SliceReader(store, range, sliceSize: sliceSize).read(progress: progress) {
            _, value throws(CopyError) in result.values.append(value)
        }
        return result
    }

    // On disk: the slice size, and the values as one string of eight hexadecimal digits each.

    private enum CodingKeys: String, CodingKey { case sliceSize, crc32cs }

    public init(from decoder: any Decoder) throws {
        let container = try decoder.container(keyedBy: CodingKeys.self)
        sliceSize = try container.decode(UInt64.self, forKey: .sliceSize)
        let digits = Array(try container.decode(String.self, forKey: .crc32cs).utf8)
        func malformed() -> DecodingError {
            .dataCorruptedError(
                forKey: .crc32cs, in: container, debugDescription: "not eight hexadecimal digits a slice")
        }
        guard digits.count % 8 == 0, digits.count / 8 <= CopyLimits.slices else { throw malformed() }
        values = []
        values.reserveCapacity(digits.count / 8)
        for start in stride(from: 0, to: digits.count, by: 8) {
            var value: UInt32 = 0
            for digit in digits[start..<start + 8] {
                switch digit {
                case UInt8(ascii: "0")...UInt8(ascii: "9"): value = value << 4 | UInt32(digit - 48)
                case UInt8(ascii: "a")...UInt8(ascii: "f"): value = value << 4 | UInt32(digit - 87)
                default: throw malformed()
                }
            }
            values.append(value)
        }
    }

    public func encode(to encoder: any Encoder) throws {
        var container = encoder.container(keyedBy: CodingKeys.self)
        try container.encode(sliceSize, forKey: .sliceSize)
        try container.encode(values.map(hexadecimal).joined(), forKey: .crc32cs)
    }
}

/// Reads a portion's slices and sums them up; neighbours that are small at once.
struct SliceReader {
    private let store: any BlockStore
    /// From the start of the store.
    private let portion: ByteRange
    private let sliceSize: UInt64
    private let buffer = TransferBuffer()

    init(_ store: any BlockStore, _ portion: ByteRange, sliceSize: UInt64) {
        (self.store, self.portion, self.sliceSize) = (store, portion, sliceSize)
    }

    /// - Parameters:
    ///   - isWanted: which slices are read.
    ///   - progress: told the bytes read since it was told last; may throw to stop.
    ///   - take: takes each slice's number and sum, in their order.
    func read(
        only isWanted: (Int) -> Bool = { _ in true }, progress: (UInt64) throws(CopyError) -> Void,
        to take: (Int, UInt32) throws(CopyError) -> Void
    ) throws(CopyError) {
        let count = Int(SliceChecksums.count(portion.count, sliceSize))
        var first = 0
        while first < count {
            guard isWanted(first) else {
                first += 1
                continue
            }
            var end = first + 1
            while end < count, UInt64(end - first) < CopyLimits.slicesAtOnce, isWanted(end) { end += 1 }
            try read(first..<end, progress, take)
            first = end
        }
    }

    private func read(
        _ slices: Range<Int>, _ progress: (UInt64) throws(CopyError) -> Void,
        _ take: (Int, UInt32) throws(CopyError) -> Void
    ) throws(CopyError) {
        let start = portion.offset + UInt64(slices.lowerBound) * sliceSize
        let end = min(portion.end, portion.offset + UInt64(slices.upperBound) * sliceSize)
        var sums = StreamChecksums(sliceSize: sliceSize)
        var (offset, next) = (start, slices.lowerBound)
        /// How far the last answer of the store reaches, and whether there are zeros up to there.
        var known: (end: UInt64, isZero: Bool) = (start, false)
        while offset < end {
            let before = offset
            do throws(StoreError) {
                // Holes need not be read to be known.
                if known.end <= offset {
                    let rest = ByteRange(offset: offset, count: end - offset)
                    guard let first = try store.allocation(of: rest, limit: 1).first else {
                        preconditionFailure("a store that says nothing of its bytes")
                    }
                    known = (offset + first.count, first.readsAsZeros)
                }
                var count = min(known.end, end) - offset
                if known.isZero {
                    sums.update(zeros: count)
                } else {
                    count = min(count, UInt64(CopyLimits.transferBytes))
                    let part = buffer.prefix(count)
                    try store.read(at: offset, into: part)
                    sums.update(UnsafeRawBufferPointer(part))
                }
                offset += count
            } catch { throw .store(error, "read the copy's data at \(offset)") }
            if offset == end { sums.close() }
            for value in sums.take() {
                try take(next, value)
                next += 1
            }
            try progress(offset - before)
        }
    }
}

/// Page-aligned memory of ``CopyLimits/transferBytes``, fit for direct I/O. Used by one thread at a time.
final class TransferBuffer {
    private let memory = ZeroedMemory(count: CopyLimits.transferBytes)

    /// The first `count` bytes.
    func prefix(_ count: UInt64) -> UnsafeMutableRawBufferPointer {
        UnsafeMutableRawBufferPointer(rebasing: memory.buffer.prefix(Int(count)))
    }
}
