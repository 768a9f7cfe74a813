import Agent
import AsyncIO
import Blocks
import Foundation
import HostControl
import Logging

/// Runs the agent's sequences: the world they need, signals, and progress.
enum Sequences {
    /// Runs `body` on a thread of its own; the first signal asks it to stop in order, the third ends the
    /// process, but not while anything stands still on its behalf.
    /// - Parameter teller: who tells others of it: gets it before it begins, and hears how it ends.
    static func run<Outcome: Sendable>(
        _ name: String,
        tellingBy teller: (SequenceRecord, Logger) -> (any SequenceTeller)? = { _, _ in nil },
        _ body:
            @escaping @Sendable (Collaborators, CancellationToken, any SequenceObserver) throws(AgentError) ->
            Outcome
    ) async throws -> Outcome {
        let cancellation = CancellationToken()
        let logger = Console.logger(name)
        let terminal = TerminalObserver(logger)
        let observer = SequenceRecord(tellingAlso: terminal)
        StopSignals.handle { _, count in
            if count > 2 {
                let isFree = cancellation.whenNothingStandsStill { hardExit(.tryAgain) }
                if !isFree { observer.notice("applications are stopped; ending as soon as they go on") }
            }
            if count == 1 { observer.notice("stopping; a third signal ends at once") }
            cancellation.cancel()
        }
        let world = world(notice: observer.notice).logged(by: logger)
        defer { terminal.finish() }
        let telling = teller(observer, logger)
        do {
            let outcome = try await onBlockingThread { try body(world, cancellation, observer) }
            await telling?.ended(.done)
            return outcome
        } catch {
            await telling?.ended(Failure(error).status)
            throw error
        }
    }

    /// What the sequences need.
    static func world(notice: @escaping @Sendable (String) -> Void) -> Collaborators {
        var world = Collaborators(executable: executable, notice: notice) {
            path, writable throws(AgentError) in
            try open(path, writable)
        }
        world.fileMover = { data, cancellation throws(AgentError) in
            guard let path = data.path else { return StoreFileMover(data) }
            return try EngineFileMover(data, at: path, cancellation)
        }
        return world
    }

    /// This program, whose commands `bridge` and `read-file-systems` are children of others.
    static var executable: String {
        var buffer = [CChar](repeating: 0, count: Int(PATH_MAX) + 1)
        let count = readlink("/proc/self/exe", &buffer, buffer.count - 1)
        guard count > 0 else { return CommandLine.arguments[0] }
        return String(decoding: buffer[..<count].map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    private static func open(_ path: String, _ writable: Bool) throws(AgentError) -> any BlockStore {
        do throws(StorageError) {
            return try StorageFile.open(
                path, access: writable ? .readWrite : .readOnly, mode: .pageCache, lock: .none)
        } catch { throw agentError(error, path) }
    }

    /// A file's or device's failure as the agent's.
    static func agentError(_ error: StorageError, _ path: String) -> AgentError {
        let status: AgentError.ExitStatus =
            switch error.kind {
            case .missing, .unsuitable: .inputMissing
            case .notPermitted: .notPermitted
            case .locked: .tryAgain
            case .tooSmall, .exists, .exhausted: .cannotCreate
            case .system: .io
            }
        return AgentError(status, doing: error.operation, to: path, because: error.reason)
    }
}

/// Tells others of a sequence while it runs.
protocol SequenceTeller: Sendable {
    func ended(_ status: ExitStatus) async
}

extension Collaborators {
    /// The same, with what is asked of hosts and bridges in the log, at the level debug.
    fileprivate func logged(by logger: Logger) -> Collaborators {
        guard logger.logLevel <= .debug else { return self }
        var world = self
        world.connectHost = { [connectHost] path throws(AgentError) in
            LoggedHostLine(try connectHost(path), logger)
        }
        world.startPrivateBridge = { [startPrivateBridge] units, cancellation throws(AgentError) in
            try logger.timing("a private bridge", [:]) { () throws(AgentError) in
                try startPrivateBridge(units, cancellation)
            }
        }
        world.connectBridge = { [connectBridge] address, cancellation throws(AgentError) in
            try logger.timing("a session with a bridge", ["bridge": "\(address)"]) {
                () throws(AgentError) in try connectBridge(address, cancellation)
            }
        }
        return world
    }
}

extension Logger {
    /// Logs what was done, how long it took, and why it failed if it did.
    fileprivate func timing<Result>(
        _ what: String, _ metadata: Metadata, _ body: () throws(AgentError) -> Result
    ) throws(AgentError) -> Result {
        let begun = MonotonicClock.now
        var metadata = metadata
        func end() { metadata["ms"] = .stringConvertible((MonotonicClock.now &- begun) / 1_000_000) }
        do throws(AgentError) {
            let result = try body()
            end()
            debug("\(what)", metadata: metadata)
            return result
        } catch {
            end()
            metadata["error"] = "\(error)"
            debug("\(what) failed", metadata: metadata)
            throw error
        }
    }
}

/// A line to a host of which each call is logged.
private final class LoggedHostLine: HostLine {
    private let line: any HostLine
    private let logger: Logger
    var path: String { line.path }

    init(_ line: any HostLine, _ logger: Logger) {
        self.line = line
        self.logger = logger
    }

    func call<M: ControlMethod>(
        _ method: M.Type, _ parameters: M.Parameters, timeout: Double
    ) throws(AgentError) -> M.Result {
        try logger.timing("asked the host", ["method": "\(M.name)", "control": "\(path)"]) {
            () throws(AgentError) in try line.call(method, parameters, timeout: timeout)
        }
    }

    func close() { line.close() }
}

/// Progress as a bar, phases and notices as lines of the log.
private final class TerminalObserver: SequenceObserver {
    private let logger: Logger
    private let bar = ProgressBar(isActive: Console.errorIsTerminal && Console.logIsText)
    private let phase = Monitor<(name: String, since: UInt64)>(("", MonotonicClock.now))

    init(_ logger: Logger) { self.logger = logger }

    func progress(_ progress: SequenceProgress) {
        enter(progress.phaseName)
        bar.update(
            phase: progress.phase, done: progress.done, total: progress.total, cacheFill: progress.cacheFill,
            secondsToFull: progress.secondsToFull)
    }

    private func enter(_ name: String) {
        let (last, nanoseconds) = phase.withLock { phase -> (String, UInt64) in
            guard phase.name != name else { return ("", 0) }
            defer { phase = (name, MonotonicClock.now) }
            return (phase.name, MonotonicClock.now &- phase.since)
        }
        guard logger.logLevel <= .info, !last.isEmpty || nanoseconds > 0 else { return }
        bar.clear()
        if !last.isEmpty {
            logger.info(
                "phase over",
                metadata: ["phase": "\(last)", "ms": .stringConvertible(nanoseconds / 1_000_000)])
        }
        if !name.isEmpty { logger.info("phase begins", metadata: ["phase": "\(name)"]) }
    }

    func notice(_ text: String) {
        bar.clear()
        logger.notice("\(text)")
    }

    func finish() {
        enter("")
        bar.clear()
    }
}
