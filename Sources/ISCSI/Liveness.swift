/// How long a target bears with a peer that says nothing. Tests give shorter times.
public struct ISCSITimes: Sendable, Hashable {
    /// From the connection to the end of login, however much is said.
    public var login: Duration
    /// Silence in full feature phase after which the peer is pinged with a NOP-In (RFC 7143 §11.19); as long
    /// again without a sign of life, and the connection ends.
    public var ping: Duration
    /// Silence, in whole requests, after which a discovery session ends.
    public var discovery: Duration
    /// What the end of an old session may take before the login that reinstates it is refused.
    public var reinstatement: Duration
    /// What sessions are given to log out at shutdown.
    public var logout: Duration

    public init(
        login: Duration = .seconds(ISCSILimits.loginSeconds),
        ping: Duration = .seconds(ISCSILimits.pingSeconds),
        discovery: Duration = .seconds(ISCSILimits.discoverySeconds),
        reinstatement: Duration = .seconds(ISCSILimits.reinstatementSeconds),
        logout: Duration = .seconds(ISCSILimits.shutdownSeconds)
    ) {
        self.login = login
        self.ping = ping
        self.discovery = discovery
        self.reinstatement = reinstatement
        self.logout = logout
    }
}

/// Tells from what was heard of a peer, and when, whether it is still there. Times are nanoseconds of a clock
/// that only goes forward; the owner asks at the time it was told to.
struct Liveness {
    enum Verdict: Hashable {
        case alive
        /// Ask the peer for a sign of life.
        case ping
        case dead(why: String)
    }

    private enum Phase: Hashable {
        case login
        case discovery
        case normal
    }

    private let times: ISCSITimes
    private var phase = Phase.login
    /// When the phase began, or the peer was last heard of.
    private var last: UInt64
    private var isPinged = false

    init(_ times: ISCSITimes, now: UInt64) {
        self.times = times
        last = now
    }

    /// Login is over.
    mutating func loggedIn(isDiscovery: Bool, now: UInt64) {
        phase = isDiscovery ? .discovery : .normal
        last = now
    }

    /// Bytes came, or the peer took some of those that waited for it.
    /// - Parameter isRequest: a request has become whole with them.
    mutating func heard(isRequest: Bool, now: UInt64) {
        switch phase {
        // What is said in login does not prolong it.
        case .login: break
        // Nor do drops make a request.
        case .discovery: if isRequest { last = now }
        case .normal:
            last = now
            isPinged = false
        }
    }

    /// - Parameter canPing: nothing holds the peer back; otherwise it is only waited for.
    /// - Returns: the verdict, and in how many nanoseconds to look again.
    mutating func look(now: UInt64, canPing: Bool) -> (Verdict, next: UInt64) {
        let silence = now - last
        switch phase {
        case .login: return verdict(silence, times.login, "login took too long")
        case .discovery: return verdict(silence, times.discovery, "an idle discovery session")
        case .normal:
            let ping = Self.nanoseconds(times.ping)
            let (dead, left) = verdict(silence, times.ping * 2, "the peer gives no sign of life")
            if dead != .alive { return (dead, 0) }
            guard silence >= ping else { return (.alive, ping - silence) }
            guard canPing, !isPinged else { return (.alive, left) }
            isPinged = true
            return (.ping, left)
        }
    }

    private func verdict(_ silence: UInt64, _ bound: Duration, _ why: String) -> (Verdict, next: UInt64) {
        let bound = Self.nanoseconds(bound)
        return silence >= bound ? (.dead(why: why), 0) : (.alive, bound - silence)
    }

    /// Zero for less, a bound of centuries for more than can be told.
    static func nanoseconds(_ duration: Duration) -> UInt64 {
        let parts = duration.components
        guard parts.seconds >= 0 else { return 0 }
        return UInt64(clamping: min(parts.seconds, 1 << 32)) * 1_000_000_000
            + UInt64(clamping: parts.attoseconds / 1_000_000_000)
    }
}
