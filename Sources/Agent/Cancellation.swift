import Blocks
import Synchronization

/// Asks a sequence to stop: set by the command line on SIGINT and SIGTERM, looked at everywhere.
public final class CancellationToken: Sendable {
    private let cancelled = Atomic(false)
    private let waiting = Monitor(())
    private struct Standstill {
        var depth = 0
        var afterwards: (@Sendable () -> Void)?
    }
    private let standstill = Monitor(Standstill())

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

    /// From now on something stands still that must go on before the process may end.
    func beginStandstill() { standstill.withLock { $0.depth += 1 } }

    /// It goes on again. What was to be done afterwards is done now.
    func endStandstill() {
        let body = standstill.withLock { state in
            state.depth -= 1
            return state.depth == 0 ? state.afterwards : nil
        }
        body?()
    }

    /// Calls `body` when nothing stands still on behalf of the sequence: at once, or as soon as all goes on. This is
    /// the way to end the process without waiting for the rest.
    /// - Returns: false when it has to wait.
    @discardableResult
    public func whenNothingStandsStill(_ body: @escaping @Sendable () -> Void) -> Bool {
        let isFree = standstill.withLock { state in
            if state.depth > 0 { state.afterwards = body }
            return state.depth == 0
        }
        if isFree { body() }
        return isFree
    }

    static let interrupted = AgentError(
        .tryAgain, doing: "interrupted", to: "", because: "it was asked to stop",
        advice: "nothing half made was left; run it again", cause: .interrupted)
}
