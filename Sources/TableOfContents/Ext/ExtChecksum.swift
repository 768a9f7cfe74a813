import Blocks

/// The checksums of ext4 and its journal: CRC-32C and CRC-16 as the kernel computes them, which neither starts from a
/// value of its own nor inverts at the end.
enum ExtChecksum {
    static func crc32c(_ seed: UInt32, _ bytes: some Collection<UInt8>) -> UInt32 {
        var crc = CRC32C(continuing: ~seed)
        crc.update(bytes)
        return ~crc.value
    }

    static func crc32c(_ seed: UInt32, little value: UInt32) -> UInt32 {
        crc32c(seed, withUnsafeBytes(of: value.littleEndian) { [UInt8]($0) })
    }

    static func crc32c(_ seed: UInt32, big value: UInt32) -> UInt32 {
        crc32c(seed, withUnsafeBytes(of: value.bigEndian) { [UInt8]($0) })
    }

    /// CRC-16 with the polynomial 8005h, reflected (group descriptors without `metadata_csum`).
    static func crc16(_ seed: UInt16, _ bytes: some Collection<UInt8>) -> UInt16 {
        var crc = seed
        for byte in bytes {
            crc ^= UInt16(byte)
            for _ in 0..<8 { crc = crc & 1 != 0 ? crc >> 1 ^ 0xA001 : crc >> 1 }
        }
        return crc
    }

    /// CRC-32 with the polynomial 04C11DB7h, highest bit first (commits of journals with `checksum` v1).
    static func crc32(_ seed: UInt32, _ bytes: [UInt8]) -> UInt32 {
        var crc = seed
        for byte in bytes {
            crc = crc << 8 ^ crc32Table[Int(UInt8(truncatingIfNeeded: crc >> 24) ^ byte)]
        }
        return crc
    }

    private static let crc32Table: [UInt32] = (0..<256).map { index in
        var value = UInt32(index) << 24
        for _ in 0..<8 { value = value & 0x8000_0000 != 0 ? value << 1 ^ 0x04C1_1DB7 : value << 1 }
        return value
    }
}
