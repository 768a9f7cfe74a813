import Blocks

/// Threads for work that blocks; as many as are busy, up to a limit, started when they are needed.
final class WorkerPool: Sendable {
    private struct State {
        var jobs: [@Sendable () -> Void] = []
        var threads = 0
        var idle = 0
        var isStopped = false
    }

    private enum Next {
        case run(@Sendable () -> Void)
        case stop
    }

    private let limit: Int
    private let state = Monitor(State())

    init(limit: Int) { self.limit = limit }

    /// Has `job` run by one of the threads.
    /// - Returns: false, and `job` never runs, when the pool is stopped or the system has no thread to give.
    func submit(_ job: @escaping @Sendable () -> Void) -> Bool {
        let (accepted, starts) = state.withLockAndNotify { state -> (Bool, Bool) in
            if state.isStopped { return (false, false) }
            state.jobs.append(job)
            guard state.jobs.count > state.idle, state.threads < limit else { return (true, false) }
            state.threads += 1
            return (true, true)
        }
        guard starts, !BlockingThread.start({ [self] in work() }) else { return accepted }
        return state.withLockAndNotify { state in
            state.threads -= 1
            // Other threads will come to it; without any, the job is taken back.
            if state.threads > 0 { return true }
            state.jobs.removeAll()
            return false
        }
    }

    /// The threads end when they are done with what has been submitted.
    func stop() { state.withLockAndNotify { $0.isStopped = true } }

    /// Waits until they have; after ``stop()``.
    func waitUntilEnded() {
        _ = state.wait { $0.threads == 0 ? true : nil }
    }

    private func work() {
        while true {
            state.withLock { $0.idle += 1 }
            let next = state.wait { state -> Next? in
                if !state.jobs.isEmpty {
                    state.idle -= 1
                    return .run(state.jobs.removeFirst())
                }
                if state.isStopped {
                    state.idle -= 1
                    return .stop
                }
                return nil
            }
            switch next {
            case .run(let job): job()
            case .stop:
                state.withLockAndNotify { $0.threads -= 1 }
                return
            }
        }
    }
}
