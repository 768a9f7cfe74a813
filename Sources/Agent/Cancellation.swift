import Blocks
import Synchronization

/// Asks a sequence to stop: set by the command line on SIGINT and SIGTERM, looked at everywhere.
public final class CancellationToken: Sendable {
    private let cancelled = Atomic(false)
    private let waiting = Monitor(())

    public init() {}

    public var isCancelled: Bool { cancelled.load(ordering: .acquiring) }

    /// Asks to stop. Not for use in a signal handler itself.
    public func cancel() {
        cancelled.store(true, ordering: .releasing)
        waiting.withLockAndNotify { _ in }
    }

    /// - Throws: status 75 when asked to stop.
    public func check() throws(AgentError) {
        if isCancelled { throw Self.interrupted }
    }

    /// Waits that long, or less when asked to stop.
    func pause(nanoseconds: UInt64) throws(AgentError) {
        _ = waiting.wait(nanoseconds: nanoseconds) { [self] _ in isCancelled ? true : nil }
        try check()
    }

    static let interrupted = AgentError(
        .tryAgain, doing: "interrupted", to: "", because: "it was asked to stop",
        advice: "nothing half made was left; run it again", cause: .interrupted)
}
