/// A name as the database has it: as text, and as the bytes where they are no text.
struct StoredName {
    /// The name itself; or, where it is not UTF-8, ``TocPath/escaped(_:)``.
    let text: [UInt8]
    /// The bytes where `text` is not the name.
    let raw: [UInt8]?

    init(_ name: [UInt8]) {
        if Self.isText(name) {
            text = name
            raw = nil
        } else {
            text = Array(TocPath.escaped(name).utf8)
            raw = name
        }
    }

    /// Whether it is UTF-8 without a zero byte.
    static func isText(_ bytes: [UInt8]) -> Bool {
        var all: UInt8 = 0
        for byte in bytes {
            if byte == 0 { return false }
            all |= byte
        }
        return all < 0x80 || String(validating: bytes, as: UTF8.self) != nil
    }
}

/// Paths of a volume, as they are given and shown.
///
/// Components are separated by `/`. In a component `\\` stands for a backslash and `\xHH` for the byte of those two
/// hexadecimal digits; so every name can be told, also one that is not UTF-8, or has a slash or a line's end in it. A
/// backslash before anything else stands for itself.
public enum TocPath {
    /// A name for people and scripts, on one line: what is not UTF-8, control characters, slashes and backslashes
    /// escaped.
    public static func escaped(_ name: some Collection<UInt8>) -> String {
        var result = ""
        var rest = Array(name)[...]
        while let byte = rest.first {
            if byte == UInt8(ascii: "\\") {
                result += "\\\\"
                rest = rest.dropFirst()
            } else if (0x20..<0x7F).contains(byte), byte != UInt8(ascii: "/") {
                result.unicodeScalars.append(Unicode.Scalar(byte))
                rest = rest.dropFirst()
            } else if let scalar = firstScalar(rest) {
                result.unicodeScalars.append(scalar)
                rest = rest.dropFirst(UTF8.width(scalar))
            } else {
                result += "\\x" + hexadecimal(byte)
                rest = rest.dropFirst()
            }
        }
        return result
    }

    /// A symbolic link's target: its slashes are slashes.
    public static func escaped(target: some Collection<UInt8>) -> String {
        target.split(separator: UInt8(ascii: "/"), omittingEmptySubsequences: false).map { escaped($0) }
            .joined(separator: "/")
    }

    /// A path of several names, `/` before each; `/` alone for none.
    public static func escaped(_ names: [[UInt8]]) -> String {
        names.isEmpty ? "/" : names.reduce(into: "") { $0 += "/" + escaped($1) }
    }

    /// The names of a path as it was given. Empty components and `.` are left out.
    public static func components(_ path: String) -> [[UInt8]] {
        path.utf8.split(separator: UInt8(ascii: "/")).filter { !$0.elementsEqual(".".utf8) }.map(unescaped)
    }

    private static func unescaped(_ text: some Collection<UInt8>) -> [UInt8] {
        var result: [UInt8] = []
        var rest = Array(text)[...]
        while let byte = rest.popFirst() {
            guard byte == UInt8(ascii: "\\") else {
                result.append(byte)
                continue
            }
            if rest.first == byte {
                result.append(byte)
                rest = rest.dropFirst()
            } else if rest.first == UInt8(ascii: "x"), let value = value(rest.dropFirst().prefix(2)) {
                result.append(value)
                rest = rest.dropFirst(3)
            } else {
                result.append(byte)
            }
        }
        return result
    }

    private static func value(_ digits: ArraySlice<UInt8>) -> UInt8? {
        guard digits.count == 2, digits.allSatisfy({ $0 != UInt8(ascii: "+") && $0 != UInt8(ascii: "-") })
        else { return nil }
        return UInt8(String(decoding: digits, as: UTF8.self), radix: 16)
    }

    /// The well-formed scalar that the bytes begin with, unless it controls a terminal (C1) or separates lines.
    private static func firstScalar(_ bytes: ArraySlice<UInt8>) -> Unicode.Scalar? {
        guard let first = bytes.first, first >= 0xC2 else { return nil }
        let count = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4
        guard bytes.count >= count,
            let text = String(validating: bytes.prefix(count), as: UTF8.self),
            let scalar = text.unicodeScalars.first, text.unicodeScalars.count == 1
        else { return nil }
        switch scalar.value {
        case 0x80..<0xA0, 0x2028, 0x2029, 0x202A...0x202E, 0x2066...0x2069: return nil
        default: return scalar
        }
    }

    private static func hexadecimal(_ byte: UInt8) -> String {
        (byte < 16 ? "0" : "") + String(byte, radix: 16, uppercase: true)
    }
}
