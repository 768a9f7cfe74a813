import Foundation
import Glibc
import Logging

/// One event as one line. Whatever a peer, a file's name or a device made it say, it stays one line, and what it says
/// cannot pass for another key.
struct LogLine {
    enum Format: String, CaseIterable, Sendable {
        case text, json
    }

    /// What stands before a line of text, besides who says it.
    enum Prefix: Sendable {
        case nothing
        /// The time, where nobody else notes it.
        case time
        /// `<4>`, by which the journal knows how grave it is (sd-daemon(3)).
        case priority
    }

    /// Of the program: `host`, `bridge`, `copy`.
    var part: String
    /// The module whose words they are.
    var module: String
    var level: Logger.Level
    var message: String
    var metadata: Logger.Metadata
    /// Seconds since 1970.
    var time: Double

    private var fields: [(key: String, value: Logger.Metadata.Value)] {
        metadata.sorted { $0.key < $1.key }.map { ($0.key, $0.value) }
    }

    /// `outboard host: warning: message key=value key="another value"`; a notice, which is what people should know
    /// anyway, has no level.
    func text(_ prefix: Prefix) -> String {
        var line =
            switch prefix {
            case .nothing: ""
            case .time: timestamp + " "
            case .priority: "<\(priority)>"
            }
        line += "outboard \(part): "
        if level != .notice { line += "\(level.rawValue): " }
        line += Self.escaped(message)
        for (key, value) in fields { line += " \(Self.word(key))=\(Self.word("\(value)"))" }
        return line
    }

    /// An object with `time`, `level`, `part`, `module`, `message` and one member for each key, numbers as numbers.
    var json: String {
        var line = "{\"time\":\"\(timestamp)\",\"level\":\"\(level.rawValue)\""
        line += ",\"part\":\(Self.quoted(part)),\"module\":\(Self.quoted(module))"
        line += ",\"message\":\(Self.quoted(message))"
        for (key, value) in fields {
            let name = Self.ownMembers.contains(key) ? "_" + key : key
            line += ",\(Self.quoted(name)):\(Self.json(value))"
        }
        return line + "}"
    }

    private static let ownMembers: Set = ["time", "level", "part", "module", "message"]

    private var timestamp: String {
        Date(timeIntervalSince1970: time).formatted(Date.ISO8601FormatStyle(includingFractionalSeconds: true))
    }

    /// Of syslog(3).
    private var priority: Int32 {
        switch level {
        case .trace, .debug: LOG_DEBUG
        case .info: LOG_INFO
        case .notice: LOG_NOTICE
        case .warning: LOG_WARNING
        case .error: LOG_ERR
        case .critical: LOG_CRIT
        }
    }

    private static func json(_ value: Logger.Metadata.Value) -> String {
        switch value {
        case .string(let text): quoted(text)
        case .stringConvertible(let number as any BinaryInteger): "\(number)"
        case .stringConvertible(let number as Double) where number.isFinite: "\(number)"
        case .stringConvertible(let flag as Bool): "\(flag)"
        case .stringConvertible(let other): quoted("\(other)")
        case .array(let values): "[" + values.map(json).joined(separator: ",") + "]"
        case .dictionary(let members):
            "{"
                + members.sorted { $0.key < $1.key }.map { "\(quoted($0.key)):\(json($0.value))" }
                .joined(separator: ",") + "}"
        }
    }

    /// A string of JSON (RFC 8259 §7).
    private static func quoted(_ text: String) -> String { "\"" + escaped(text, quotes: true) + "\"" }

    /// As it stands where it can be told from what is around it, else in quotes.
    private static func word(_ text: String) -> String {
        let isPlain =
            !text.isEmpty
            && text.unicodeScalars.allSatisfy { scalar in
                scalar.value > 0x20 && !scalar.isControl && !"\"=\\".unicodeScalars.contains(scalar)
            }
        return isPlain ? text : quoted(text)
    }

    private static func escaped(_ text: String, quotes: Bool = false) -> String {
        var result = ""
        result.reserveCapacity(text.utf8.count)
        for scalar in text.unicodeScalars {
            switch scalar {
            case "\"" where quotes, "\\" where quotes:
                result += "\\"
                result.unicodeScalars.append(scalar)
            case "\n": result += "\\n"
            case "\r": result += "\\r"
            case "\t": result += "\\t"
            case _ where scalar.isControl: result += scalar.escape
            default: result.unicodeScalars.append(scalar)
            }
        }
        return result
    }
}
