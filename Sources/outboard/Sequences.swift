import Agent
import AsyncIO
import Blocks
import Foundation

/// Runs the agent's sequences: the world they need, signals, and progress.
enum Sequences {
    /// Runs `body` on a thread of its own; the first signal asks it to stop in order, the third ends the
    /// process, but not while anything stands still on its behalf.
    static func run<Outcome: Sendable>(
        _ name: String,
        _ body:
            @escaping @Sendable (Collaborators, CancellationToken, any SequenceObserver) throws(AgentError) ->
            Outcome
    ) async throws -> Outcome {
        let cancellation = CancellationToken()
        let observer = TerminalObserver(name)
        StopSignals.handle { _, count in
            if count > 2 {
                let isFree = cancellation.whenNothingStandsStill { hardExit(.tryAgain) }
                if !isFree { observer.notice("applications are stopped; ending as soon as they go on") }
            }
            if count == 1 { observer.notice("stopping; a third signal ends at once") }
            cancellation.cancel()
        }
        let world = world(notice: observer.notice)
        defer { observer.finish() }
        return try await onBlockingThread { try body(world, cancellation, observer) }
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

/// Progress as a bar, notices as lines.
private final class TerminalObserver: SequenceObserver {
    private let name: String
    private let bar = ProgressBar()

    init(_ name: String) { self.name = name }

    func progress(_ progress: SequenceProgress) {
        bar.update(
            phase: progress.phase, done: progress.done, total: progress.total, cacheFill: progress.cacheFill)
    }

    func notice(_ text: String) {
        bar.clear()
        Console.complain("outboard \(name): \(text)")
    }

    func finish() { bar.clear() }
}
