import ArgumentParser
import Foundation
import Glibc

/// Many lines of results, some at a time.
final class ResultWriter {
    private static let bufferBytes = 64 << 10
    private var buffer: [UInt8] = []

    init() { buffer.reserveCapacity(Self.bufferBytes + 4096) }

    /// - Throws: 74 when it cannot be written; a plain end when nobody reads it any more.
    func put(_ bytes: some Sequence<UInt8>) throws {
        buffer.append(contentsOf: bytes)
        if buffer.count >= Self.bufferBytes { try flush() }
    }

    func line(_ text: String) throws {
        try put(text.utf8)
        try put(CollectionOfOne(UInt8(ascii: "\n")))
    }

    func flush() throws {
        var rest = buffer[...]
        while !rest.isEmpty {
            let count = rest.withUnsafeBytes { write(STDOUT_FILENO, $0.baseAddress, $0.count) }
            if count > 0 {
                rest = rest.dropFirst(count)
            } else if errno != EINTR && errno != EAGAIN {
                // Whoever has seen enough (head, less) has closed it.
                if errno == EPIPE { throw ExitCode.success }
                throw Failure(.io, "cannot write to standard output: \(String(cString: strerror(errno)))")
            }
        }
        buffer.removeAll(keepingCapacity: true)
    }
}

/// One JSON object on standard output with an array that may be long: its elements are written as they come.
struct JSONListWriter {
    private let output: ResultWriter
    private let encoder = JSONEncoder()
    private var isFirst = true

    /// - Parameters:
    ///   - head: the object's other members, which come first.
    ///   - list: the array's name.
    init(_ head: some Encodable, list: String, to output: ResultWriter) throws {
        self.output = output
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        let object = try encoder.encode(head).dropLast()
        try output.put(object)
        try output.put("\(object.count > 1 ? "," : "")\"\(list)\":[".utf8)
    }

    mutating func put(_ element: some Encodable) throws {
        if !isFirst { try output.put(",".utf8) }
        isFirst = false
        try output.put(try encoder.encode(element))
    }

    /// - Parameter tail: more members, known only now.
    func finish(_ tail: some Encodable) throws {
        let object = try encoder.encode(tail)
        try output.put("]".utf8)
        try output.put(object.count > 2 ? Data(",".utf8) + object.dropFirst() : object.dropFirst())
        try output.put("\n".utf8)
        try output.flush()
    }
}
