/// A number of bytes. Prints and parses with binary units: `64KiB`, `1.5GiB`, `4096`.
public struct ByteCount: Hashable, Comparable, Sendable, Codable {
    public var bytes: UInt64

    public init(_ bytes: UInt64) { self.bytes = bytes }
    public static func kibibytes(_ n: UInt64) -> ByteCount { ByteCount(n << 10) }
    public static func mebibytes(_ n: UInt64) -> ByteCount { ByteCount(n << 20) }
    public static func gibibytes(_ n: UInt64) -> ByteCount { ByteCount(n << 30) }

    public static func < (a: ByteCount, b: ByteCount) -> Bool { a.bytes < b.bytes }

    public init(from decoder: any Decoder) throws {
        bytes = try decoder.singleValueContainer().decode(UInt64.self)
    }

    public func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        try container.encode(bytes)
    }

    static let units: [(name: String, factor: UInt64)] = [
        ("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1),
    ]

    /// Reads `4096`, `64KiB`, `1.5GiB`, `2T` (upper or lower case, `iB` may be left out). Nil for anything
    /// else, for fractions of a byte, and for what does not fit 64 bits.
    public init?(parsing text: String) {
        let digits = text.prefix { $0.isASCII && ($0.isNumber || $0 == ".") }
        let suffix = text.dropFirst(digits.count).lowercased()
        let unit = Self.units.first { name, _ in
            let name = name.lowercased()
            return suffix == name || suffix == String(name.prefix(1))
        }
        guard !digits.isEmpty, let factor = suffix.isEmpty ? 1 : unit?.factor else { return nil }
        if let whole = UInt64(digits) {
            let (bytes, overflow) = whole.multipliedReportingOverflow(by: factor)
            if overflow { return nil }
            self.bytes = bytes
        } else {
            guard let value = Double(digits), value.isFinite else { return nil }
            let scaled = value * Double(factor)
            guard scaled < 0x1p63, scaled == scaled.rounded(.down) else { return nil }
            bytes = UInt64(scaled)
        }
    }
}

extension ByteCount: CustomStringConvertible {
    /// Whole in the largest unit that divides it, else with two decimals: `64KiB`, `1.50GiB`.
    public var description: String {
        guard bytes > 0 else { return "0B" }
        for (name, factor) in Self.units where bytes % factor == 0 { return "\(bytes / factor)\(name)" }
        return "\(bytes)B"
    }

    /// For people: at most two decimals in the largest unit that fits, `1.37GiB`.
    public var rounded: String {
        for (name, factor) in Self.units where bytes >= factor && factor > 1 {
            let hundredths = UInt64((Double(bytes) * 100 / Double(factor)).rounded())
            let fraction = hundredths % 100
            if fraction == 0 { return "\(hundredths / 100)\(name)" }
            return "\(hundredths / 100).\(fraction < 10 ? "0" : "")\(fraction)\(name)"
        }
        return "\(bytes)B"
    }
}

/// A logical block address of a logical unit (SBC-3), in that unit's blocks; not a byte offset.
public struct LBA: Hashable, Comparable, Sendable {
    public var value: UInt64
    public init(_ value: UInt64) { self.value = value }
    public static func < (a: LBA, b: LBA) -> Bool { a.value < b.value }
}

/// A number of a logical unit's blocks.
public struct BlockCount: Hashable, Comparable, Sendable {
    public var value: UInt64
    public init(_ value: UInt64) { self.value = value }
    public static func < (a: BlockCount, b: BlockCount) -> Bool { a.value < b.value }
}

/// `count` bytes from `offset`; `offset + count` never exceeds 2⁶⁴ − 1.
public struct ByteRange: Hashable, Sendable {
    public let offset: UInt64
    public let count: UInt64

    /// - Precondition: `offset + count` fits 64 bits; check foreign numbers with `init(checking:_:within:)`.
    public init(offset: UInt64, count: UInt64) {
        precondition(!offset.addingReportingOverflow(count).overflow, "byte range beyond 2^64")
        self.offset = offset
        self.count = count
    }

    /// Nil when the range would pass `size` (foreign numbers).
    public init?(checking offset: UInt64, _ count: UInt64, within size: UInt64) {
        guard count <= size, offset <= size - count else { return nil }
        self.offset = offset
        self.count = count
    }

    public var end: UInt64 { offset + count }
    public var isEmpty: Bool { count == 0 }

    public func overlaps(_ other: ByteRange) -> Bool {
        offset < other.end && other.offset < end
    }

    public func intersection(_ other: ByteRange) -> ByteRange? {
        let start = max(offset, other.offset)
        let stop = min(end, other.end)
        return start < stop ? ByteRange(offset: start, count: stop - start) : nil
    }
}

extension UInt64 {
    /// The least multiple of `alignment` (a power of two) not below self. Traps on overflow.
    @inlinable public func roundedUp(to alignment: UInt64) -> UInt64 {
        (self + (alignment - 1)) & ~(alignment - 1)
    }

    /// The greatest multiple of `alignment` (a power of two) not above self.
    @inlinable public func roundedDown(to alignment: UInt64) -> UInt64 { self & ~(alignment - 1) }
}
