import Blocks
import Synchronization

/// Asks a sequence to stop: set by the command line on SIGINT and SIGTERM, looked at everywhere.
public final class CancellationToken: Sendable {
    private let cancelled = Atomic(false)
    private struct Watches {
        var next = 0
        var bodies: [Int: @Sendable () -> Void] = [:]
    }
    private let waiting = Monitor(Watches())
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
        let bodies = waiting.withLockAndNotify { Array($0.bodies.values) }
        for body in bodies { body() }
    }

    /// Calls `body` when it is asked to stop; at once, where it was before. Wakes who waits for something else, too.
    /// - Returns: what ``forget(_:)`` takes.
    func watch(_ body: @escaping @Sendable () -> Void) -> Int {
        let watch = waiting.withLock { state in
            state.next += 1
            state.bodies[state.next] = body
            return state.next
        }
        if isCancelled { body() }
        return watch
    }

    func forget(_ watch: Int) { waiting.withLock { _ = $0.bodies.removeValue(forKey: watch) } }

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
