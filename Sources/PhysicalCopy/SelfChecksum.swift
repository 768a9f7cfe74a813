import Blocks
import Foundation

/// A JSON object with a member `crc32c` that sums up the object's own bytes: CRC-32C of all of them, with the eight
/// digits themselves taken as zeros. So any changed byte is found.
enum SelfChecksum {
    /// What the member is before the sum is known.
    static let blank = "00000000"
    private static let key = Array(#""crc32c" : ""#.utf8)

    /// The object's bytes, keys sorted, spaces behind it up to `length`, a line's end.
    /// - Precondition: its member `crc32c` is ``blank``, and everything in it can stand in JSON.
    static func encode(_ object: some Encodable, paddedTo length: Int = 0) -> [UInt8] {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
        let data: Data
        do { data = try encoder.encode(object) } catch { preconditionFailure("JSON: \(error)") }
        var bytes = Array(data)
        bytes += [UInt8](repeating: UInt8(ascii: " "), count: max(0, length - bytes.count - 1))
        bytes.append(UInt8(ascii: "\n"))
        return summed(bytes)
    }

    /// The same with the sum in its place, whatever stood there.
    static func summed(_ bytes: [UInt8]) -> [UInt8] {
        guard let place = place(in: bytes) else { preconditionFailure("no member crc32c") }
        var bytes = bytes
        bytes.replaceSubrange(place, with: blank.utf8)
        bytes.replaceSubrange(place, with: hexadecimal(CRC32C.checksum(bytes)).utf8)
        return bytes
    }

    /// Whether the sum fits; nil: there is none.
    static func fits(_ bytes: [UInt8]) -> Bool? {
        guard let place = place(in: bytes) else { return nil }
        var blank = bytes
        blank.replaceSubrange(place, with: Self.blank.utf8)
        return Array(hexadecimal(CRC32C.checksum(blank)).utf8) == Array(bytes[place])
    }

    /// Where the eight digits stand.
    private static func place(in bytes: [UInt8]) -> Range<Int>? {
        // Within a JSON string a quote is escaped, so the key cannot occur in one.
        guard let found = bytes.firstRange(of: key) else { return nil }
        let place = found.upperBound..<found.upperBound + blank.utf8.count
        return place.upperBound <= bytes.count ? place : nil
    }
}

/// Eight lower-case hexadecimal digits.
func hexadecimal(_ value: UInt32) -> String {
    let digits = String(value, radix: 16)
    return String(repeating: "0", count: 8 - digits.count) + digits
}
