import Blocks
import SCSI

/// A SCSI initiator over iSCSI, for the agent: one session with one target. Calls block; many threads may call
/// at once, and as many commands are then in flight in the one I_T nexus.
///
/// Nothing reconnects by itself: once the session is lost every call fails with 69.
public final class Initiator: Sendable {
    /// How long to wait for one command, and what makes the wait end early.
    public struct Patience: Sendable {
        /// Seconds; nil: as long as the target answers NOPs.
        public var seconds: Double?
        /// Asked every 50 ms while a command runs; true aborts it.
        public var isCancelled: @Sendable () -> Bool

        public init(
            seconds: Double? = ClientLimits.commandSeconds,
            isCancelled: @escaping @Sendable () -> Bool = { false }
        ) {
            self.seconds = seconds
            self.isCancelled = isCancelled
        }
        /// For commands that take what they take, as EXTENDED COPY.
        public static func unlimited(isCancelled: @escaping @Sendable () -> Bool = { false }) -> Patience {
            Patience(seconds: nil, isCancelled: isCancelled)
        }
    }

    /// The initiator's iSCSI name; sessions differ in their ISID.
    public static let name = "iqn.2026-01.net.outboard:agent"

    public let address: BridgeAddress
    private let connection: any InitiatorTransport

    /// Connects and logs in.
    /// - Throws: 69 when the target is not reachable, 77 when it refuses the login, 66 when it has no target
    ///   of that name, 75 when cancelled.
    public init(
        _ address: BridgeAddress, timeout: Double = ClientLimits.loginSeconds,
        isCancelled: () -> Bool = { false }
    ) throws(AgentError) {
        self.address = address
        do throws(InitiatorConnection.Loss) {
            let session = try InitiatorConnection(address: address, initiatorName: Self.name)
            try session.open(timeout: timeout, isCancelled: isCancelled)
            connection = session
        } catch {
            throw Self.error(error, doing: "logging in to the bridge", address.description)
        }
    }

    /// Over a session that stands already.
    package init(_ address: BridgeAddress, over transport: any InitiatorTransport) {
        self.address = address
        connection = transport
    }

    deinit { connection.drop(.closed) }

    /// Drops the connection; commands in flight end.
    public func close() { connection.drop(.closed) }

    /// Whether the session stands, as far as is known.
    public var isConnected: Bool { connection.loss == nil }

    /// Sends one command and waits for its end; sends it again on UNIT ATTENTION, which says that it was not
    /// done, and on BUSY and TASK SET FULL.
    /// - Returns: bytes of the data phase that were moved.
    @discardableResult
    func perform(
        _ command: Command, lun: Int, data: InitiatorTask.DataPhase = .none, patience: Patience = Patience(),
        doing: String
    ) throws(AgentError) -> Int {
        let subject = "unit \(lun) of \(address)"
        let cdb = command.encoded()
        guard let address = LogicalUnitNumber(lun) else {
            throw AgentError(.usage, doing: doing, to: subject, because: "a unit's number is 0 to 16383")
        }
        var attempt = 0
        while true {
            let task = InitiatorTask(lun: Int32(address.rawValue >> 48), cdb: cdb, data: data)
            switch run(task, patience) {
            case .status(0x00, _, let moved), .status(0x04, _, let moved): return moved
            case .status(let status, let bytes, _):
                let sense = status == 0x02 ? SenseData(decoding: bytes) : nil
                attempt += 1
                if attempt <= ClientLimits.commandRetries {
                    if status == 0x02, sense?.key == .unitAttention { continue }
                    if status == 0x08 || status == 0x28 {
                        pause()
                        continue
                    }
                }
                throw Self.refused(status, sense, doing: doing, subject)
            case .aborted: throw Self.error(.interrupted, doing: doing, subject)
            case .lost(let loss): throw Self.error(loss, doing: doing, subject)
            }
        }
    }

    /// A target that is busy is left alone for a little, longer than its queue needs to move.
    private func pause() {
        let nothing = Monitor(())
        _ = nothing.wait(nanoseconds: 100_000_000) { _ -> Void? in nil }
    }

    private func run(_ task: InitiatorTask, _ patience: Patience) -> InitiatorTask.Completion {
        connection.submit(task)
        let begin = MonotonicClock.now
        let deadline = patience.seconds.map { begin + UInt64($0 * 1_000_000_000) }
        var abortDeadline: UInt64?
        var hasDropped = false
        while true {
            let completion = task.completion.wait(
                nanoseconds: ClientLimits.cancellationPollNanoseconds
            ) { $0 }
            if let completion { return completion }
            let now = MonotonicClock.now
            if hasDropped { continue }
            if let abortDeadline {
                if now > abortDeadline {
                    hasDropped = true
                    connection.drop(.interrupted)
                }
            } else if patience.isCancelled() {
                abortDeadline = now + UInt64(ClientLimits.abortSeconds * 1_000_000_000)
                connection.abort(task)
            } else if let deadline, now > deadline {
                hasDropped = true
                connection.drop(.timedOut("it did not complete a command in \(Int(patience.seconds ?? 0)) s"))
            }
        }
    }
}

extension Initiator {
    static func error(
        _ loss: InitiatorConnection.Loss, doing: String, _ subject: String
    ) -> AgentError {
        let check = "check that the bridge runs, its address and its log"
        switch loss {
        case .unreachable(let why):
            return AgentError(
                .unavailable, doing: doing, to: subject, because: why, advice: check, cause: .disconnected)
        case .loginRefused(let code, let text):
            switch code {
            case 0x0201, 0x0202:
                return AgentError(
                    .notPermitted, doing: doing, to: subject,
                    because: "the bridge refused the login: \(text)",
                    advice: "check CHAP name and secret", cause: .disconnected)
            case 0x0203:
                return AgentError(
                    .inputMissing, doing: doing, to: subject, because: "there is no target of this name",
                    advice: "use the name that the bridge printed when it was ready", cause: .disconnected)
            default:
                return AgentError(
                    .unavailable, doing: doing, to: subject, because: text, advice: check,
                    cause: .disconnected)
            }
        case .dropped(let why):
            return AgentError(
                .unavailable, doing: doing, to: subject, because: "the bridge is gone: \(why)", advice: check,
                cause: .disconnected)
        case .interrupted:
            return CancellationToken.interrupted
        case .timedOut(let why):
            return AgentError(
                .unavailable, doing: doing, to: subject, because: "the bridge hangs: \(why)", advice: check,
                cause: .timedOut)
        case .closed:
            return AgentError(
                .unavailable, doing: doing, to: subject, because: "the connection was closed here",
                cause: .disconnected)
        }
    }

    static func refused(
        _ status: UInt8, _ sense: SenseData?, doing: String, _ subject: String
    ) -> AgentError {
        guard status == 0x02 else {
            let name =
                switch status {
                case 0x08: "BUSY"
                case 0x18: "RESERVATION CONFLICT"
                case 0x28: "TASK SET FULL"
                case 0x30: "ACA ACTIVE"
                case 0x40: "TASK ABORTED"
                default: "status \(String(status, radix: 16))h"
                }
            return AgentError(
                .tryAgain, doing: doing, to: subject, because: "the unit answered \(name)",
                advice: "see who else uses the unit", cause: .scsiStatus(status))
        }
        guard let sense else {
            return AgentError(
                .io, doing: doing, to: subject, because: "CHECK CONDITION without readable sense data",
                cause: .scsiStatus(status))
        }
        let exit: AgentError.ExitStatus
        let advice: String
        switch (sense.key, sense.code) {
        case (_, .logicalUnitNotSupported):
            exit = .inputMissing
            advice = "name a unit that the bridge has"
        case (_, .spaceAllocationFailedWriteProtect):
            return AgentError(
                .cannotCreate, doing: doing, to: subject, because: "no space left: \(sense.text)",
                advice: "free some space under the unit and try again", cause: .sense(sense))
        case (.dataProtect, _):
            exit = .notPermitted
            advice = "use a writable unit"
        default:
            exit = .io
            advice = "see the bridge's log"
        }
        return AgentError(
            exit, doing: doing, to: subject, because: sense.text, advice: advice, cause: .sense(sense))
    }
}
