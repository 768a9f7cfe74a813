import Blocks

/// Sees to it that nobody is told "flushed" of data that are lost. The system tells a failed write-back once, to
/// whoever asks first, and forgets it: so it is remembered here, and every later flush fails likewise until the
/// file is opened again. Flushes that come while one runs wait for it and share the next.
final class FlushQueue: Sendable {
    private struct State {
        /// Flushes asked for, and of those from the first, how many are done.
        var asked: UInt64 = 0
        var done: UInt64 = 0
        var isRunning = false
        var lost: Errno?
    }

    private enum Turn {
        case done
        case failed(Errno)
        /// Flush for all up to this one.
        case lead(UInt64)
    }

    private let state = Monitor(State())

    /// Flushes by `call`, or by that of another.
    /// - Returns: nil when all that was written before is on stable storage.
    func flush(_ call: () -> Result<Int, Errno>) -> Errno? {
        let own = state.withLock { state in
            state.asked += 1
            return state.asked
        }
        while true {
            switch state.wait(until: { state in Self.turn(of: own, &state) }) {
            case .done: return nil
            case .failed(let error): return error
            case .lead(let last):
                let outcome = call()
                state.withLockAndNotify { state in
                    state.isRunning = false
                    switch outcome {
                    case .success: state.done = last
                    case .failure(let error): state.lost = state.lost ?? error
                    }
                }
            }
        }
    }

    private static func turn(of own: UInt64, _ state: inout State) -> Turn? {
        if let lost = state.lost { return .failed(lost) }
        if state.done >= own { return .done }
        if state.isRunning { return nil }
        state.isRunning = true
        return .lead(state.asked)
    }

    var hasLost: Bool { state.withLock { $0.lost != nil } }

    /// What was lost is nobody's any more.
    func forget() { state.withLockAndNotify { $0.lost = nil } }

    /// Something else than a flush has heard that data were lost.
    func lose(_ error: Errno) {
        state.withLockAndNotify { state in state.lost = state.lost ?? error }
    }
}
