/// 128 bits that depend on every byte and its place. Quick also on an emulated processor, on which a cryptographic sum
/// would take most of a test's time; nobody here makes contents that collide on purpose.
///
/// Two sums of eight bytes at a time: each word is mixed in by exclusive or, a multiplication by an odd number and a
/// rotation, all of which can be undone, so that two contents that differ in one word only never have the same sum.
struct ContentHash {
    private var first: UInt64 = 0x243F_6A88_85A3_08D3
    private var second: UInt64 = 0x1319_8A2E_0370_7344
    private var count: UInt64 = 0

    mutating func update(_ bytes: UnsafeRawBufferPointer) {
        count += UInt64(bytes.count)
        let words = bytes.count / 8
        for index in 0..<words { mix(bytes.loadUnaligned(fromByteOffset: index * 8, as: UInt64.self)) }
        var rest: UInt64 = 0
        for byte in bytes[(words * 8)...] { rest = rest << 8 | UInt64(byte) }
        mix(rest ^ UInt64(bytes.count & 7) << 56)
    }

    mutating func update(_ bytes: [UInt8]) { bytes.withUnsafeBytes { update($0) } }

    private mutating func mix(_ word: UInt64) {
        first = (first ^ word) &* 0x9E37_79B9_7F4A_7C15
        first = first << 29 | first >> 35
        second = (second ^ word) &* 0xD6E8_FEB8_6659_FD93
        second = second << 47 | second >> 17
    }

    mutating func finish() -> String {
        for _ in 0..<4 {
            mix(count)
            first ^= second >> 32
            second ^= first >> 32
        }
        return hexadecimal(
            [first, second].flatMap { word in (0..<8).map { UInt8(truncatingIfNeeded: word >> (8 * $0)) } })
    }
}

func hexadecimal(_ bytes: [UInt8]) -> String {
    let digits = Array("0123456789abcdef".utf8)
    return String(decoding: bytes.flatMap { [digits[Int($0 >> 4)], digits[Int($0 & 15)]] }, as: UTF8.self)
}
