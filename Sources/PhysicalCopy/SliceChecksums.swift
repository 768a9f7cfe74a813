import Blocks

/// CRC-32C of a portion, slice after slice, so that a damage can be told where it is.
public struct SliceChecksums: Codable, Hashable, Sendable {
    /// Bytes of each slice but the last, a power of two.
    public let sliceSize: UInt64
    /// One for each slice.
    public var values: [UInt32]

    public init(sliceSize: UInt64, values: [UInt32]) {
        self.sliceSize = sliceSize
        self.values = values
    }

    /// The slice size for a portion of `length` bytes: a power of two, at least ``CopyLimits/smallestSlice``,
    /// so that there are at most ``CopyLimits/slices``.
    public static func sliceSize(forLength length: UInt64) -> UInt64 {
        var size = CopyLimits.smallestSlice
        while count(length, size) > CopyLimits.slices { size <<= 1 }
        return size
    }

    private static func count(_ length: UInt64, _ size: UInt64) -> UInt64 {
        length / size + (length % size == 0 ? 0 : 1)
    }

    /// Whether these are as many slices, of a legal size, as `length` bytes need.
    func covers(length: UInt64) -> Bool {
        sliceSize >= CopyLimits.smallestSlice && sliceSize & (sliceSize - 1) == 0
            && UInt64(values.count) == Self.count(length, sliceSize)
            && UInt64(values.count) <= CopyLimits.slices
    }

    /// The bytes of slice `index` within a portion of `length` bytes, from the portion's start.
    func range(ofSlice index: Int, length: UInt64) -> ByteRange {
        let offset = UInt64(index) * sliceSize
        return ByteRange(offset: offset, count: min(sliceSize, length - offset))
    }

    /// Reads `range` of `store` and sums it up.
    /// - Parameter progress: told the bytes read since it was told last; may throw to stop.
    public static func compute(
        of range: ByteRange, in store: any BlockStore, progress: (UInt64) throws(CopyError) -> Void
    ) throws(CopyError) -> SliceChecksums {
        let sliceSize = sliceSize(forLength: range.count)
        var result = SliceChecksums(sliceSize: sliceSize, values: [])
        let buffer = TransferBuffer()
        for index in 0..<Int(count(range.count, sliceSize)) {
            let slice = result.range(ofSlice: index, length: range.count)
            let place = ByteRange(offset: range.offset + slice.offset, count: slice.count)
            result.values.append(try checksum(of: place, in: store, buffer, progress: progress))
        }
        return result
    }

    /// The CRC-32C of `range` of `store`.
    static func checksum(
        of range: ByteRange, in store: any BlockStore, _ buffer: TransferBuffer,
        progress: (UInt64) throws(CopyError) -> Void
    ) throws(CopyError) -> UInt32 {
        var crc = CRC32C()
        var offset = range.offset
        while offset < range.end {
            let rest = ByteRange(offset: offset, count: range.end - offset)
            do throws(StoreError) {
                // Holes need not be read to be known.
                guard let first = try store.allocation(of: rest, limit: 1).first else {
                    preconditionFailure()
                }
                var count = min(first.count, rest.count)
                if first.readsAsZeros {
                    crc.update(zeros: count)
                } else {
                    count = min(count, UInt64(CopyLimits.transferBytes))
                    let part = buffer.prefix(count)
                    try store.read(at: offset, into: part)
                    crc.update(UnsafeRawBufferPointer(part))
                }
                offset += count
            } catch { throw .store(error, "read the copy's data at \(offset)") }
            try progress(offset - rest.offset)
        }
        return crc.value
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

/// Page-aligned memory of ``CopyLimits/transferBytes``, fit for direct I/O. Used by one thread at a time.
final class TransferBuffer {
    private let memory = ZeroedMemory(count: CopyLimits.transferBytes)

    /// The first `count` bytes.
    func prefix(_ count: UInt64) -> UnsafeMutableRawBufferPointer {
        UnsafeMutableRawBufferPointer(rebasing: memory.buffer.prefix(Int(count)))
    }
}
