/// One key=value pair of a login or text PDU (RFC 7143 §6.1).
struct TextKey: Hashable {
    var key: String
    var value: String

    init(_ key: String, _ value: String) {
        self.key = key
        self.value = value
    }
}

enum TextKeys {
    /// Reads `key=value` pairs, each ended by a zero byte.
    /// - Parameter limit: the most keys; what an initiator may send, unless said.
    /// - Throws: when there are too many, one is too long, a key has letters it may not have, a value is no
    ///   UTF-8, or a key comes twice.
    static func parse(
        _ bytes: some Collection<UInt8>, limit: Int = ISCSILimits.textKeys
    ) throws(ProtocolViolation) -> [TextKey] {
        var result: [TextKey] = []
        var seen: Set<String> = []
        for pair in bytes.split(separator: 0) {
            guard result.count < limit else { throw ProtocolViolation("too many keys") }
            guard let equals = pair.firstIndex(of: UInt8(ascii: "=")) else {
                throw ProtocolViolation("text without an equals sign")
            }
            let name = pair[..<equals]
            let value = pair[pair.index(after: equals)...]
            guard (1...ISCSILimits.keyName).contains(name.count), name.allSatisfy(isKeyCharacter) else {
                throw ProtocolViolation("not a key name")
            }
            guard value.count <= ISCSILimits.value, let text = String(validating: value, as: UTF8.self) else {
                throw ProtocolViolation("a value that is too long or no UTF-8")
            }
            let key = String(decoding: name, as: UTF8.self)
            guard seen.insert(key).inserted else { throw ProtocolViolation("the key \(key) twice") }
            result.append(TextKey(key, text))
        }
        return result
    }

    static func encode(_ keys: [TextKey]) -> [UInt8] {
        keys.flatMap { Array($0.key.utf8) + [UInt8(ascii: "=")] + Array($0.value.utf8) + [0] }
    }

    /// RFC 7143 §6.1: letters, digits, `.`, `-`, `+`, `@`, `_`; extension keys may hold more of them (`#`, `:`).
    private static func isKeyCharacter(_ byte: UInt8) -> Bool {
        switch byte {
        case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
            UInt8(ascii: "0")...UInt8(ascii: "9"):
            true
        default: ".-+@_#:".utf8.contains(byte)
        }
    }

    /// A numerical value: decimal or `0x` hexadecimal (RFC 7143 §6.1), without sign, at most 32 bits.
    static func number(_ text: String) -> UInt32? {
        let digits = text.utf8
        if text.hasPrefix("0x") || text.hasPrefix("0X") {
            let hex = text.dropFirst(2)
            guard hex.utf8.first != UInt8(ascii: "+"), hex.utf8.first != UInt8(ascii: "-") else { return nil }
            return UInt32(hex, radix: 16)
        }
        guard !digits.isEmpty, digits.allSatisfy({ (0x30...0x39).contains($0) }) else { return nil }
        return UInt32(text)
    }

    /// A binary value: `0x` hexadecimal or `0b` base64 (RFC 7143 §6.1), at most `limit` bytes.
    static func binary(_ text: String, limit: Int) -> [UInt8]? {
        let body = Array(text.utf8.dropFirst(2))
        switch text.prefix(2).lowercased() {
        case "0x": return hexadecimal(body, limit: limit)
        case "0b": return base64(body, limit: limit)
        default: return nil
        }
    }

    private static func hexadecimal(_ digits: [UInt8], limit: Int) -> [UInt8]? {
        guard !digits.isEmpty, (digits.count + 1) / 2 <= limit else { return nil }
        var nibbles: [UInt8] = digits.count % 2 == 1 ? [0] : []
        for digit in digits {
            switch digit {
            case 0x30...0x39: nibbles.append(digit - 0x30)
            case 0x41...0x46: nibbles.append(digit - 0x41 + 10)
            case 0x61...0x66: nibbles.append(digit - 0x61 + 10)
            default: return nil
            }
        }
        return stride(from: 0, to: nibbles.count, by: 2).map { nibbles[$0] << 4 | nibbles[$0 + 1] }
    }

    private static func base64(_ text: [UInt8], limit: Int) -> [UInt8]? {
        guard !text.isEmpty, text.count % 4 == 0, text.count / 4 * 3 <= limit + 2 else { return nil }
        let padding = text.suffix(2).reversed().prefix { $0 == UInt8(ascii: "=") }.count
        var result: [UInt8] = []
        var bits: UInt32 = 0
        for (index, character) in text.dropLast(padding).enumerated() {
            guard let value = sextet(character) else { return nil }
            bits = bits << 6 | UInt32(value)
            if index % 4 != 0 { result.append(UInt8(truncatingIfNeeded: bits >> (6 - 2 * (index % 4)))) }
        }
        return result.count <= limit ? result : nil
    }

    private static func sextet(_ character: UInt8) -> UInt8? {
        switch character {
        case UInt8(ascii: "A")...UInt8(ascii: "Z"): character - UInt8(ascii: "A")
        case UInt8(ascii: "a")...UInt8(ascii: "z"): character - UInt8(ascii: "a") + 26
        case UInt8(ascii: "0")...UInt8(ascii: "9"): character - UInt8(ascii: "0") + 52
        case UInt8(ascii: "+"): 62
        case UInt8(ascii: "/"): 63
        default: nil
        }
    }

    static func hexadecimal(_ bytes: some Sequence<UInt8>) -> String {
        let digits = Array("0123456789abcdef")
        return "0x" + bytes.reduce(into: "") { $0 += [digits[Int($1 >> 4)], digits[Int($1 & 15)]] }
    }
}
