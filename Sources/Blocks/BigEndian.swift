import Glibc

/// Reads big-endian fields from foreign bytes, one after another; throws where they end too early.
///
/// Inlinable, like what else is generic here: unspecialized it took an eighth of the time of a table of contents.
public struct BigEndianReader {
    /// The bytes ended before the field did.
    public struct Truncated: Error, Hashable { public init() {} }

    @usableFromInline let bytes: UnsafeRawBufferPointer
    @usableFromInline var place = 0

    /// Bytes read so far.
    @inlinable public var position: Int { place }

    /// - Parameter bytes: must outlive the reader.
    @inlinable public init(_ bytes: UnsafeRawBufferPointer) { self.bytes = bytes }

    @inlinable public var remaining: Int { bytes.count - place }

    @inlinable public mutating func integer<T: FixedWidthInteger>(_: T.Type = T.self) throws(Truncated) -> T {
        guard remaining >= MemoryLayout<T>.size else { throw Truncated() }
        defer { place += MemoryLayout<T>.size }
        return T(bigEndian: bytes.loadUnaligned(fromByteOffset: place, as: T.self))
    }

    @inlinable public mutating func bytes(_ count: Int) throws(Truncated) -> UnsafeRawBufferPointer {
        guard count >= 0, remaining >= count else { throw Truncated() }
        defer { place += count }
        return UnsafeRawBufferPointer(rebasing: bytes[place..<place + count])
    }

    @inlinable public mutating func skip(_ count: Int) throws(Truncated) { _ = try bytes(count) }
}

/// Appends big-endian fields.
public struct BigEndianWriter {
    public private(set) var bytes: [UInt8] = []

    public init(reserving count: Int = 0) { bytes.reserveCapacity(count) }

    public mutating func integer<T: FixedWidthInteger>(_ value: T) {
        withUnsafeBytes(of: value.bigEndian) { bytes.append(contentsOf: $0) }
    }

    public mutating func append(_ more: some Collection<UInt8>) { bytes.append(contentsOf: more) }

    public mutating func zeros(_ count: Int) { bytes += [UInt8](repeating: 0, count: count) }

    /// Writes `value` over bytes that are already there, from `offset`.
    public mutating func set<T: FixedWidthInteger>(_ value: T, at offset: Int) {
        withUnsafeBytes(of: value.bigEndian) { field in
            for (i, byte) in field.enumerated() { bytes[offset + i] = byte }
        }
    }
}

extension UnsafeRawBufferPointer {
    /// The big-endian integer at `offset`. Traps beyond the end.
    @inlinable public func bigEndian<T: FixedWidthInteger>(at offset: Int, as: T.Type = T.self) -> T {
        T(bigEndian: loadUnaligned(fromByteOffset: offset, as: T.self))
    }

    /// Whether every byte is 0.
    public var isAllZeros: Bool {
        guard let baseAddress, count > 0 else { return true }
        // The first is, and each is as the one before it.
        return self[0] == 0 && memcmp(baseAddress, baseAddress + 1, count - 1) == 0
    }
}

extension UnsafeMutableRawBufferPointer {
    /// Stores `value` big-endian at `offset`. Traps beyond the end.
    @inlinable public func storeBigEndian<T: FixedWidthInteger>(_ value: T, at offset: Int) {
        storeBytes(of: value.bigEndian, toByteOffset: offset, as: T.self)
    }
}
