import Blocks
import SCSI

/// One session as others see it: for reinstatement and for resets that concern all sessions.
protocol RegisteredSession: AnyObject, Sendable {
    /// Ends the session as soon as it can; does not wait for it.
    func terminate(why: String)
    /// Aborts its tasks, and calls `done` when they have ended; on any thread.
    func abortTasks(_ scope: ResetScope, done: @escaping @Sendable () -> Void)
}

/// The sessions of one target.
final class SessionRegistry: Sendable {
    struct Key: Hashable {
        var initiatorName: String
        var isid: UInt64
    }

    private struct Entry {
        var tsih: UInt16
        var session: any RegisteredSession
    }

    private struct State {
        var sessions: [Key: Entry] = [:]
        var lastTSIH: UInt16 = 0
        var isClosed = false
    }

    /// Time for an old session of the same name to end, nanoseconds.
    private static let reinstatementNanoseconds: UInt64 = 10_000_000_000

    /// Time for other sessions' tasks to end once they are aborted, nanoseconds.
    private static let abortNanoseconds: UInt64 = 60_000_000_000

    private let state = Monitor(State())

    /// Enters a session; one of the same initiator name and ISID is ended first (RFC 7143 §6.3.5). Blocks.
    /// - Returns: its TSIH; nil when the old one does not end, or the target shuts down.
    func enter(_ key: Key, _ session: any RegisteredSession) -> UInt16? {
        let old = state.withLock { $0.sessions[key]?.session }
        old?.terminate(why: "reinstated")
        let tsih = state.wait(nanoseconds: Self.reinstatementNanoseconds) { state -> UInt16?? in
            if state.isClosed { return .some(nil) }
            guard state.sessions[key] == nil else { return nil }
            let taken = Set(state.sessions.values.map(\.tsih))
            repeat { state.lastTSIH &+= 1 } while state.lastTSIH == 0 || taken.contains(state.lastTSIH)
            state.sessions[key] = Entry(tsih: state.lastTSIH, session: session)
            return .some(state.lastTSIH)
        }
        return tsih ?? nil
    }

    /// The session has ended, its nexus included.
    func leave(_ key: Key, _ session: any RegisteredSession) {
        state.withLockAndNotify { state in
            if state.sessions[key]?.session === session { state.sessions[key] = nil }
        }
    }

    /// Aborts tasks of all sessions but one, and waits until they have ended (bounded). Blocks.
    /// - Returns: false when some have not.
    func abortTasks(_ scope: ResetScope, except own: any RegisteredSession) -> Bool {
        let others = state.withLock { $0.sessions.values.map(\.session).filter { $0 !== own } }
        let left = Monitor(others.count)
        for session in others {
            session.abortTasks(scope) { left.withLockAndNotify { $0 -= 1 } }
        }
        return left.wait(nanoseconds: Self.abortNanoseconds) { $0 == 0 ? true : nil } ?? false
    }

    /// No more sessions from now on.
    func close() { state.withLockAndNotify { $0.isClosed = true } }

    /// Waits until no session is left. Blocks.
    func waitUntilEmpty(nanoseconds: UInt64) -> Bool {
        state.wait(nanoseconds: nanoseconds) { $0.sessions.isEmpty ? true : nil } ?? false
    }
}
