import Foundation

/// Cuts a stream of bytes into lines, for both ends of the control socket.
public struct ControlLines: Sendable {
    /// A line passed ``Limits/lineBytes``; where the next one starts is not known any more.
    public struct TooLong: Error, Hashable { public init() {} }

    private var partial: [UInt8] = []

    public init() {}

    /// Bytes of a line whose end has not come.
    public var pendingBytes: Int { partial.count }

    /// Takes more bytes.
    /// - Returns: the lines that they complete, without their ends; empty ones are left out.
    public mutating func feed(_ bytes: some Sequence<UInt8>) throws(TooLong) -> [[UInt8]] {
        var lines: [[UInt8]] = []
        for byte in bytes {
            if byte == UInt8(ascii: "\n") {
                if partial.last == UInt8(ascii: "\r") { partial.removeLast() }
                if !partial.isEmpty { lines.append(partial) }
                partial = []
            } else {
                guard partial.count + 1 < Limits.lineBytes else { throw TooLong() }
                partial.append(byte)
            }
        }
        return lines
    }
}

/// The codec of one line.
public enum ControlCodec {
    /// The value as one line with its end.
    public static func line(of value: some Encodable) throws -> [UInt8] {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        return Array(try encoder.encode(value)) + [UInt8(ascii: "\n")]
    }

    public static func decode<Value: Decodable>(_: Value.Type = Value.self, from line: [UInt8]) throws
        -> Value
    {
        try JSONDecoder().decode(Value.self, from: Data(line))
    }
}
