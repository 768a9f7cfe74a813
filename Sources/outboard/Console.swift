import Foundation
import Glibc
import Logging
import Synchronization

/// This program's version, as manifests name it.
let toolVersion = "0.1.0"

/// The first error number with which a result could not be printed; 0 while none.
private let lostResult = Atomic<Int32>(0)

/// Results on standard output, everything else on standard error.
enum Console {
    /// One line of result.
    static func print(_ text: String) {
        let number = write(text + "\n", to: STDOUT_FILENO)
        if number != 0 {
            _ = lostResult.compareExchange(expected: 0, desired: number, ordering: .relaxed)
        }
    }

    /// - Throws: 74 when a result could not be printed: what was done is done, but nobody has been told.
    static func requireThatAllIsTold() throws {
        let number = lostResult.load(ordering: .relaxed)
        guard number != 0 else { return }
        throw Failure(
            .io,
            "cannot write to standard output: \(String(cString: strerror(number))); it was done nevertheless")
    }

    /// One line for people.
    static func complain(_ text: String) { write(text + "\n", to: STDERR_FILENO) }

    /// One JSON object on standard output, its keys sorted.
    static func print(json value: some Encodable) throws {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        print(String(decoding: try encoder.encode(value), as: UTF8.self))
    }

    static var errorIsTerminal: Bool { isatty(STDERR_FILENO) == 1 }

    /// Unbuffered, so that lines of several threads do not mix. A reader that went away has lost nothing but
    /// our words: that is no reason to stop.
    /// - Returns: the number of any other error; 0 for none.
    @discardableResult
    static func write(_ text: String, to descriptor: Int32) -> Int32 {
        var bytes = Array(text.utf8)[...]
        while !bytes.isEmpty {
            let count = bytes.withUnsafeBytes { Glibc.write(descriptor, $0.baseAddress, $0.count) }
            if count > 0 {
                bytes = bytes.dropFirst(count)
            } else if errno != EINTR && errno != EAGAIN {
                return errno == EPIPE ? 0 : errno
            }
        }
        return 0
    }

    /// The logger of one command: lines on standard error.
    static func logger(_ label: String) -> Logger {
        Logger(label: label) { StderrLog(label: $0) }
    }
}

/// `outboard host: warning: text (key=value …)`, one line each.
private struct StderrLog: LogHandler {
    let label: String
    var metadata: Logger.Metadata = [:]
    var logLevel = Logger.Level.notice

    init(label: String) { self.label = label }

    subscript(metadataKey key: String) -> Logger.Metadata.Value? {
        get { metadata[key] }
        set { metadata[key] = newValue }
    }

    func log(event: LogEvent) {
        let all = metadata.merging(event.metadata ?? [:]) { $1 }.sorted { $0.key < $1.key }
        let details =
            all.isEmpty ? "" : " (" + all.map { "\($0.key)=\($0.value)" }.joined(separator: " ") + ")"
        let level = event.level <= .notice ? "" : "\(event.level): "
        Console.complain("outboard \(label): \(level)\(event.message)\(details)")
    }
}
