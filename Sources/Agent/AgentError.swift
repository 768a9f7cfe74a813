import HostControl
import SCSI

/// Why something that the agent did for somebody failed: what was being done, to what, why it failed, what to
/// do next, and the exit status that tells a script the same (design §7).
public struct AgentError: Error, Hashable, Sendable, CustomStringConvertible {
    /// sysexits(3), as far as they are used.
    public enum ExitStatus: Int32, Sendable {
        case usage = 64
        /// A copy, cache or table of contents does not verify.
        case corrupt = 65
        case inputMissing = 66
        /// Host or bridge unreachable.
        case unavailable = 69
        /// A bug, here or in the peer.
        case software = 70
        case cannotCreate = 73
        case io = 74
        /// Abandoned; may be tried again.
        case tryAgain = 75
        case notPermitted = 77
    }

    /// What lies behind it, for code that decides by it.
    public enum Cause: Hashable, Sendable {
        /// The host answered so.
        case control(ControlError.Code)
        /// The unit answered CHECK CONDITION.
        case sense(SenseData)
        /// The unit answered with this other status.
        case scsiStatus(UInt8)
        /// The peer is not there, or no more.
        case disconnected
        /// The peer was silent for too long.
        case timedOut
        /// Nothing more can be written there.
        case noSpace
        /// The caller asked to stop.
        case interrupted
        /// The host has begun anew with another epoch, whose instant is later.
        case restarted
    }

    /// Whether a disk was full, here or under a bridge's unit.
    var isNoSpace: Bool {
        if case .sense(let sense) = cause { return sense.code == .spaceAllocationFailedWriteProtect }
        return cause == .noSpace
    }

    public var status: ExitStatus
    /// What was being done: `connecting to the bridge`.
    public var doing: String
    /// To what: a path, an address, a logical unit.
    public var subject: String
    public var reason: String
    /// What to do next, a sentence without its full stop.
    public var advice: String?
    public var cause: Cause?

    public init(
        _ status: ExitStatus, doing: String, to subject: String, because reason: String,
        advice: String? = nil, cause: Cause? = nil
    ) {
        self.status = status
        self.doing = doing
        self.subject = subject
        self.reason = reason
        self.advice = advice
        self.cause = cause
    }

    /// `doing subject: reason; advice`.
    public var description: String {
        "\(place): \(reason)" + (advice.map { "; \($0)" } ?? "")
    }

    private var place: String { subject.isEmpty ? doing : "\(doing) \(subject)" }

    /// The same failure of something larger. An interruption stays what it is.
    public func doing(_ outer: String, to subject: String) -> AgentError {
        if cause == .interrupted { return self }
        return AgentError(
            status, doing: outer, to: subject, because: "\(place): \(reason)", advice: advice, cause: cause)
    }
}
