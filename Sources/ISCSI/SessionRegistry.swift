import Blocks
import SCSI

/// One session as others see it: for reinstatement and for resets that concern all sessions.
protocol RegisteredSession: AnyObject, Sendable {
    /// Ends the session as soon as it can; does not wait for it.
    func terminate(why: String)
    /// Aborts its tasks on these units, and calls `done` when they have ended; on any thread.
    func abortTasks(on units: [LogicalUnitNumber], done: @escaping @Sendable () -> Void)
}

/// The sessions of one target, by whichever of its portals they came: all are of one portal group.
final class SessionRegistry: Sendable {
    struct Key: Hashable {
        var initiatorName: String
        var isid: UInt64
    }

    private struct Entry {
        var tsih: UInt16
        var connectionID: UInt16
        var session: any RegisteredSession
    }

    private struct Claim: Equatable {
        var number: UInt64
        /// The handle that it keeps; 0: none.
        var tsih: UInt16
    }

    private struct State {
        var sessions: [Key: Entry] = [:]
        /// The latest login of each name that waits for an old session to end.
        var claims: [Key: Claim] = [:]
        var lastClaim: UInt64 = 0
        var lastTSIH: UInt16 = 0
        var isClosed = false

        mutating func newTSIH() -> UInt16 {
            let taken = Set(sessions.values.map(\.tsih) + claims.values.map(\.tsih))
            repeat { lastTSIH &+= 1 } while lastTSIH == 0 || taken.contains(lastTSIH)
            return lastTSIH
        }
    }

    /// Time for other sessions' tasks to end once they are aborted, nanoseconds.
    private static let abortNanoseconds: UInt64 = 60_000_000_000

    private let state = Monitor(State())
    private let patience: UInt64

    /// - Parameter patience: what the end of an old session may take.
    init(patience: Duration = .seconds(ISCSILimits.reinstatementSeconds)) {
        self.patience = Liveness.nanoseconds(patience)
    }

    /// Enters a session; one of the same initiator name and ISID is ended first (RFC 7143 §6.3.5). Of several
    /// logins that wait for that, the latest gets in and the others are refused: whoever logs in again has given up
    /// what it began before. Blocks.
    /// - Parameters:
    ///   - tsih: 0 for a new session. With another one the connection of that session is reinstated (§6.3.4): at
    ///     error recovery level 0 all its tasks end, and so does the nexus, but the handle stays.
    /// - Returns: its TSIH, or why there is no session.
    func enter(
        _ key: Key, tsih: UInt16 = 0, connectionID: UInt16 = 0, _ session: any RegisteredSession
    ) -> Result<UInt16, Refusal> {
        let (claim, old, refusal) = state.withLockAndNotify { state -> (Claim, Entry?, LoginStatus?) in
            let nothing = Claim(number: 0, tsih: 0)
            let old = state.sessions[key]
            if tsih != 0 {
                guard let old, old.tsih == tsih else { return (nothing, nil, .sessionDoesNotExist) }
                // One connection a session.
                guard old.connectionID == connectionID else { return (nothing, nil, .tooManyConnections) }
            }
            state.lastClaim += 1
            let claim = Claim(number: state.lastClaim, tsih: tsih)
            state.claims[key] = claim
            return (claim, old, nil)
        }
        if let refusal { return .failure(Refusal(refusal)) }
        // Once it is gone nobody but this claim or a later one enters, so that this one displaces one session.
        old?.session.terminate(why: "reinstated")
        let entered = state.wait(nanoseconds: patience) { state -> Result<UInt16, Refusal>? in
            guard state.claims[key] == claim else { return .failure(Refusal(.serviceUnavailable)) }
            if state.isClosed { return .failure(Refusal(.serviceUnavailable)) }
            guard state.sessions[key] == nil else { return nil }
            let handle = tsih == 0 ? state.newTSIH() : tsih
            state.sessions[key] = Entry(tsih: handle, connectionID: connectionID, session: session)
            state.claims[key] = nil
            return .success(handle)
        }
        if case .success = entered { return entered ?? .failure(Refusal(.outOfResources)) }
        state.withLock { if $0.claims[key] == claim { $0.claims[key] = nil } }
        return entered ?? .failure(Refusal(.outOfResources))
    }

    /// Why there is no session.
    struct Refusal: Error, Hashable {
        var status: LoginStatus
        init(_ status: LoginStatus) { self.status = status }
    }

    /// The session has ended, its nexus included.
    func leave(_ key: Key, _ session: any RegisteredSession) {
        state.withLockAndNotify { state in
            if state.sessions[key]?.session === session { state.sessions[key] = nil }
        }
    }

    /// Aborts the tasks on these units of all sessions but one, and waits until they have ended (bounded). Blocks.
    /// - Returns: false when some have not.
    func abortTasks(on units: [LogicalUnitNumber], except own: any RegisteredSession) -> Bool {
        let others = state.withLock { $0.sessions.values.map(\.session).filter { $0 !== own } }
        let left = Monitor(others.count)
        for session in others {
            session.abortTasks(on: units) { left.withLockAndNotify { $0 -= 1 } }
        }
        return left.wait(nanoseconds: Self.abortNanoseconds) { $0 == 0 ? true : nil } ?? false
    }

    /// No more sessions from now on.
    func close() { state.withLockAndNotify { $0.isClosed = true } }
}
