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

    /// As if `count` zero bytes had been given: a hole is summed up in a time that does not grow with it.
    public mutating func update(zeros count: UInt64) {
        var sum = ~value
        var rest = count
        var power = 0
        while rest != 0 {
            if rest & 1 != 0 { sum = Self.multiply(sum, Self.zeroPowers[power]) }
            rest >>= 1
            power += 1
        }
        value = ~sum
    }

    /// What a sum is multiplied by for 2^index zero bytes: x^(8 · 2^index).
    private static let zeroPowers: [UInt32] = {
        var powers: [UInt32] = [1 << 23]  // x^8, bit-reflected
        while powers.count < 64 {
            powers.append(multiply(powers[powers.count - 1], powers[powers.count - 1]))
        }
        return powers
    }()

    /// The product of two polynomials over GF(2), bit-reflected, modulo Castagnoli's.
    private static func multiply(_ a: UInt32, _ b: UInt32) -> UInt32 {
        var (product, shifted): (UInt32, UInt32) = (0, b)
        var mask: UInt32 = 1 << 31
        while mask != 0 {
            if a & mask != 0 { product ^= shifted }
            shifted = (shifted >> 1) ^ (shifted & 1 != 0 ? 0x82F6_3B78 : 0)
            mask >>= 1
        }
        return product
    }
}
