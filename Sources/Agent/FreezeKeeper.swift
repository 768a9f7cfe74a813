import Blocks

/// Renews a freeze again and again on a thread of its own, however long what is done meanwhile takes. A renewal that
/// fails is the last: whoever relies on the freeze must look at ``failure``.
final class FreezeKeeper: Sendable {
    private struct State {
        var isStopping = false
        var hasEnded = false
        var failure: AgentError?
    }
    private let state = Monitor(State())

    /// - Parameter nanoseconds: between two renewals.
    init(
        every nanoseconds: UInt64, _ renew: @escaping @Sendable () throws(AgentError) -> Void
    ) throws(AgentError) {
        let started = BlockingThread.start { [state] in
            while state.wait(nanoseconds: nanoseconds, until: { $0.isStopping ? true : nil }) == nil {
                do throws(AgentError) { try renew() } catch {
                    state.withLock { $0.failure = error }
                    break
                }
            }
            state.withLockAndNotify { $0.hasEnded = true }
        }
        guard started else {
            throw AgentError(
                .io, doing: "keeping a freeze", to: "", because: "the system has no thread to give")
        }
    }

    /// Why the freeze is not kept any more.
    var failure: AgentError? { state.withLock { $0.failure } }

    /// Returns when nothing is renewed any more.
    func stop() {
        state.withLockAndNotify { $0.isStopping = true }
        state.wait { $0.hasEnded ? () : nil }
    }
}
