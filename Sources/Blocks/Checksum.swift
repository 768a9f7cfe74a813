import CChecksum

/// CRC-32C (Castagnoli, RFC 3720 appendix B.4): iSCSI digests, the original image log, checksums of copies.
public struct CRC32C: Hashable, Sendable {
    /// The checksum of all bytes given so far; of none, 0.
    public private(set) var value: UInt32

    public init(continuing value: UInt32 = 0) { self.value = value }

    /// The checksum of `bytes` alone.
    public static func checksum(_ bytes: UnsafeRawBufferPointer) -> UInt32 {
        outboard_crc32c(0, bytes.baseAddress, bytes.count)
    }

    /// The checksum of `bytes` alone.
    public static func checksum(_ bytes: some Collection<UInt8>) -> UInt32 {
        var crc = CRC32C()
        crc.update(bytes)
        return crc.value
    }

    public mutating func update(_ bytes: UnsafeRawBufferPointer) {
        value = outboard_crc32c(value, bytes.baseAddress, bytes.count)
    }

    public mutating func update(_ bytes: some Collection<UInt8>) {
        let contiguous: Void? = bytes.withContiguousStorageIfAvailable { update(UnsafeRawBufferPointer($0)) }
        if contiguous == nil { Array(bytes).withUnsafeBytes { update($0) } }
    }
}
