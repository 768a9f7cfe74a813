import Blocks

/// A parameter data answer of a foreign device that cannot be what it claims to be.
public struct MalformedParameterData: Error, Hashable, Sendable {
    /// Which data, e.g. `VPD page 83h`.
    public var what: String
    /// The offset that was wrong, bytes.
    public var offset: Int

    init(_ what: String, at offset: Int) {
        self.what = what
        self.offset = offset
    }
}

extension [UInt8] {
    /// The big-endian integer at `offset`; the caller has checked the length.
    func bigEndian<T: FixedWidthInteger>(at offset: Int, as: T.Type = T.self) -> T {
        precondition(offset >= 0 && offset + MemoryLayout<T>.size <= count, "a field beyond the bytes")
        var value: T = 0
        for byte in self[offset..<offset + MemoryLayout<T>.size] {
            value = T(truncatingIfNeeded: UInt64(truncatingIfNeeded: value) << 8 | UInt64(byte))
        }
        return value
    }
}

extension BigEndianWriter {
    /// `text` as left-aligned ASCII in `width` bytes, filled with spaces; whatever is not graphic ASCII
    /// becomes a `?` (SPC-4 §4.3.1).
    mutating func ascii(_ text: String, width: Int) {
        let field = text.utf8.prefix(width).map { (0x20...0x7E).contains($0) ? $0 : UInt8(ascii: "?") }
        append(field)
        append(repeatElement(UInt8(ascii: " "), count: width - field.count))
    }
}

/// Graphic ASCII without the spaces that fill it up; other bytes become `?`.
func trimmedASCII(_ bytes: some Sequence<UInt8>) -> String {
    let characters = bytes.map { (0x20...0x7E).contains($0) ? Character(UnicodeScalar($0)) : "?" }
    var text = String(characters)
    while text.last == " " { text.removeLast() }
    return text
}
