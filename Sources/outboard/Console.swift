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
    static func print(_ text: String) { result(text.visible) }

    private static func result(_ text: String) {
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
    static func complain(_ text: String) { write(text.visible + "\n", to: STDERR_FILENO) }

    /// One JSON object on standard output, its keys sorted.
    static func print(json value: some Encodable) throws {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        result(String(decoding: try encoder.encode(value), as: UTF8.self))
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

    // MARK: The log

    private struct LogSettings {
        var level = Logger.Level.notice
        var format = LogLine.Format.text
        var prefix = LogLine.Prefix.nothing
    }
    private static let logSettings = Mutex(LogSettings())

    /// From now on the log is written so.
    /// - Parameter notesTime: a line of text begins with the time, unless it goes to a terminal, or to the journal,
    ///   which notes that itself.
    static func log(as options: LogOptions, notesTime: Bool) {
        let isJournal = isJournal(STDERR_FILENO)
        logSettings.withLock { settings in
            settings.level = options.logLevel.level
            settings.format = options.logFormat
            settings.prefix = isJournal ? .priority : notesTime && !errorIsTerminal ? .time : .nothing
        }
    }

    /// Whether people read the log: else no bar is drawn between its lines.
    static var logIsText: Bool { logSettings.withLock { $0.format == .text } }

    /// The logger of one command: lines on standard error.
    static func logger(_ part: String) -> Logger {
        let level = logSettings.withLock { $0.level }
        return Logger(label: part) { StandardErrorLog(part: $0, logLevel: level) }
    }

    fileprivate static func write(_ line: LogLine) {
        let settings = logSettings.withLock { $0 }
        complain(settings.format == .json ? line.json : line.text(settings.prefix))
    }

    /// The last words of a command that failed.
    static func fail(_ failure: Failure) {
        guard !logIsText else { return complain("outboard: \(failure.description)") }
        write(
            LogLine(
                part: "outboard", module: "outboard", level: .error, message: failure.description,
                metadata: ["status": .stringConvertible(failure.status.rawValue)],
                time: Date().timeIntervalSince1970))
    }

    /// Whether the journal listens there (`JOURNAL_STREAM` of systemd.exec(5)).
    private static func isJournal(_ descriptor: Int32) -> Bool {
        guard let stream = getenv("JOURNAL_STREAM") else { return false }
        var status = stat()
        return fstat(descriptor, &status) == 0
            && String(cString: stream) == "\(status.st_dev):\(status.st_ino)"
    }
}

/// Lines on standard error, as the settings of ``Console`` say.
private struct StandardErrorLog: LogHandler {
    let part: String
    var metadata: Logger.Metadata = [:]
    var logLevel: Logger.Level

    init(part: String, logLevel: Logger.Level) {
        self.part = part
        self.logLevel = logLevel
    }

    subscript(metadataKey key: String) -> Logger.Metadata.Value? {
        get { metadata[key] }
        set { metadata[key] = newValue }
    }

    func log(event: LogEvent) {
        Console.write(
            LogLine(
                part: part, module: event.source, level: event.level, message: "\(event.message)",
                metadata: metadata.merging(event.metadata ?? [:]) { $1 }, time: Date().timeIntervalSince1970))
    }
}
