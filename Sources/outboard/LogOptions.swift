import ArgumentParser
import Logging

/// How a command's log is written. Any command may log; those that run long have these options.
struct LogOptions: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "What is logged on standard error: all from this level on. Default: notice.",
            valueName: "trace|debug|info|notice|warning|error|critical"))
    var logLevel = LogLevel.notice

    @Option(
        help: ArgumentHelp(
            "One line for each event: `text` for people and journals, `key=value` behind it; or `json`, an object.",
            valueName: "text|json"))
    var logFormat = LogLine.Format.text
}

/// A command whose log can be set up.
protocol LoggingCommand {
    var log: LogOptions { get }
    /// Whether it runs on by itself, so that its log is read later.
    var isService: Bool { get }
}

extension LoggingCommand {
    var isService: Bool { false }
}

/// The levels of swift-log by their names.
enum LogLevel: String, CaseIterable, ExpressibleByArgument {
    case trace, debug, info, notice, warning, error, critical

    var level: Logger.Level {
        guard let level = Logger.Level(rawValue: rawValue) else { preconditionFailure("no level \(self)") }
        return level
    }
}

extension LogLine.Format: ExpressibleByArgument {}
