import Blocks
import SCSI

/// One connection of an initiator, and the one session on it, without I/O: bytes and events go in, actions
/// come out. Not thread-safe; its owner calls it from one thread (the event loop).
struct TargetConnection {
    enum Action {
        /// Write it, then call ``written(bytes:cost:)`` with what came with it.
        case send(PDU, Digests, bytes: Int, cost: Int)
        /// Make the session (end one of the same name and ISID first), then call ``established(_:tsih:)``.
        case establish(LoginResult)
        /// Execute on another thread, then call ``completed(_:_:)``.
        case execute(tag: UInt32, SCSITask)
        /// Have the device reset on another thread, then call ``resetDone(_:)``.
        case reset(tag: UInt32, ResetScope)
        /// Tell the operator that a login was refused, and of whom, if it had said.
        case report(refusal: String, initiator: String?)
        /// End the other sessions that see no more than this one.
        case endSessions
        /// Have the device end the nexus on another thread, then call ``nexusEnded()``.
        case endNexus
        /// Close when all that was sent is written.
        case close(why: String)
    }

    /// A text negotiation under way.
    struct TextExchange {
        /// Text that has come and is not whole.
        var question: [UInt8] = []
        /// What of the answer is still to be sent.
        var answer: ArraySlice<UInt8> = []
        /// The initiator goes on under the transfer tag that it was given.
        var isOpen = false
    }

    enum Phase {
        case login(LoginPhase)
        /// Login is over; the session is being made.
        case establishing(PDU, LoginResult)
        case fullFeature
        /// Nothing is read any more.
        case closing
    }

    let target: TargetIdentity
    /// What SendTargets tells: ADDRESS:PORT of each.
    let portals: @Sendable () -> [String]
    private(set) var phase: Phase
    let budget: DataBudget
    private var decoder = PDUDecoder()
    /// Nothing that was sent is written any more.
    private var isDisconnected = false
    /// Goes out when the nexus has ended.
    private var logoutResponse: PDU?
    var actions: [Action] = []

    // The session; meaningful in full feature phase.
    var login: LoginResult?
    var nexus: Nexus?
    var tsih: UInt16 = 0
    var statSN: UInt32 = 0
    var expCmdSN: UInt32 = 0
    var tasks: [UInt32: SessionTask] = [:]
    /// Tags of tasks in the order of their turn that are still to be let through.
    var queue: [UInt32] = []
    /// What arrived ahead of its turn: by CmdSN, the PDU (for a command only its tag counts).
    var early: [UInt32: PDU] = [:]
    var functions: [UInt32: TaskManagement] = [:]
    var nextTransferTag: UInt32 = 1
    var heldBytes = 0 {
        didSet { budget.change(by: heldBytes - oldValue) }
    }
    var outboundBytes = 0
    /// Whole PDUs that came.
    private(set) var requests: UInt64 = 0
    var text = TextExchange()
    /// Places of the command window that are taken.
    var windowUse = 0

    init(
        target: TargetIdentity, portals: @escaping @Sendable () -> [String], budget: DataBudget = DataBudget()
    ) {
        self.target = target
        self.budget = budget
        self.portals = portals
        phase = .login(LoginPhase(target: target))
    }

    var parameters: NegotiatedParameters { login?.parameters ?? NegotiatedParameters() }
    /// False while the peer has too much to take first.
    var wantsInput: Bool {
        if case .closing = phase { return false }
        return outboundBytes < ISCSILimits.outboundHighWater
    }
    var isLoggedIn: Bool { if case .fullFeature = phase { true } else { false } }

    /// Takes what was received.
    mutating func receive(_ bytes: UnsafeRawBufferPointer) -> [Action] {
        var input = bytes
        do throws(ProtocolViolation) {
            while !input.isEmpty {
                if case .closing = phase { break }
                guard let pdu = try decoder.next(&input) else { break }
                requests &+= 1
                try handle(pdu)
            }
        } catch {
            fail(error, nil)
        }
        return takeActions()
    }

    mutating func receive(_ bytes: [UInt8]) -> [Action] { bytes.withUnsafeBytes { receive($0) } }

    mutating func takeActions() -> [Action] {
        defer { actions = [] }
        return actions
    }

    private mutating func handle(_ pdu: PDU) throws(ProtocolViolation) {
        switch phase {
        case .login(var login):
            let step = login.handle(pdu)
            phase = .login(login)
            switch step {
            case .reply(let response): put(response)
            case .fail(let response, let why):
                put(response)
                actions.append(.report(refusal: why, initiator: login.initiatorName))
                close(why)
            case .finish(let response, let result):
                phase = .establishing(response, result)
                actions.append(.establish(result))
            }
        case .establishing: throw ProtocolViolation("a request before login's last response")
        case .fullFeature:
            do throws(ProtocolViolation) { try handleFullFeature(pdu) } catch {
                fail(error, pdu)
            }
        case .closing: break
        }
    }

    /// The session is there: the last login response goes out and full feature phase begins.
    mutating func established(_ nexus: Nexus, tsih: UInt16) -> [Action] {
        guard case .establishing(var response, let result) = phase else { return [] }
        response[half: 14] = tsih
        login = result
        self.nexus = nexus
        self.tsih = tsih
        expCmdSN = result.expCmdSN
        statSN = response.statSN &+ 1
        phase = .fullFeature
        // The digests begin with full feature phase: this response still goes without (RFC 7143 §7.1).
        response.expCmdSN = expCmdSN
        response.maxCmdSN = maxCmdSN
        put(response, digests: Digests())
        decoder.digests = result.parameters.digests
        decoder.maximumDataSegment = ISCSILimits.receiveDataSegment
        return takeActions()
    }

    /// The session could not be made.
    mutating func refused(_ status: LoginStatus) -> [Action] {
        guard case .establishing(var response, _) = phase else { return [] }
        response.flags = 0
        response.data = []
        response[half: 36] = status.rawValue
        put(response, digests: Digests())
        close("no session: \(status)")
        return takeActions()
    }

    /// A breach of the protocol ends the connection (error recovery level 0). In full feature phase a Reject
    /// says why.
    private mutating func fail(_ violation: ProtocolViolation, _ pdu: PDU?) {
        if isLoggedIn, let pdu { reject(pdu, violation.reason) }
        close(violation.what)
    }

    /// The initiator logs out. Its tasks end, and it is told when the device has given up what the nexus held: what it
    /// does next, on another session, must not find that reserved.
    mutating func logOut(_ response: PDU) {
        phase = .closing
        logoutResponse = response
        for task in tasks.values { task.command?.abort() }
        actions.append(.endNexus)
    }

    /// The device has ended the nexus.
    mutating func nexusEnded() -> [Action] {
        guard !isDisconnected, var response = logoutResponse else { return [] }
        logoutResponse = nil
        putStatus(&response)
        actions.append(.close(why: "logout"))
        return takeActions()
    }

    mutating func close(_ why: String) {
        if case .closing = phase { return }
        phase = .closing
        actions.append(.close(why: why))
    }

    /// Sends a PDU; `cost` is given back to the budget when it is written.
    mutating func put(_ pdu: PDU, digests: Digests? = nil, cost: Int = 0) {
        let digests = digests ?? parameters.digests
        let bytes = pdu.encodedLength(digests)
        outboundBytes += bytes
        actions.append(.send(pdu, digests, bytes: bytes, cost: cost))
    }

    /// A PDU that was sent has been written.
    mutating func written(bytes: Int, cost: Int) -> [Action] {
        if isDisconnected { return [] }
        outboundBytes -= bytes
        heldBytes -= cost
        if cost > 0, isLoggedIn { admitTasks() }
        return takeActions()
    }

    /// The connection is gone: all tasks are aborted.
    mutating func disconnected() {
        phase = .closing
        isDisconnected = true
        heldBytes = 0
        for task in tasks.values { task.command?.abort() }
        tasks = [:]
        windowUse = 0
        queue = []
        early = [:]
        functions = [:]
    }

    /// Asks the peer for a sign of life (RFC 7143 §11.19). The ping uses up no StatSN.
    mutating func ping() -> [Action] {
        guard isLoggedIn else { return [] }
        var ping = PDU(Opcode.nopIn)
        ping.initiatorTaskTag = reservedTag
        ping.targetTransferTag = nextTransferTag
        nextTransferTag = nextTransferTag &+ 1 == reservedTag ? 1 : nextTransferTag &+ 1
        ping.statSN = statSN
        putNumbered(&ping)
        return takeActions()
    }

    /// Asks the initiator to log out (RFC 7143 §11.9, event 1).
    mutating func requestLogout(seconds: UInt16) -> [Action] {
        guard isLoggedIn else {
            close("shutdown")
            return takeActions()
        }
        var message = PDU(Opcode.asyncMessage)
        message[word: 16] = reservedTag
        message[byte: 36] = 1
        message[half: 42] = seconds
        putStatus(&message)
        return takeActions()
    }

    // MARK: Sequence numbers

    /// The last CmdSN that may be sent: the window holds what this session may have in flight.
    var maxCmdSN: UInt32 {
        expCmdSN &+ UInt32(max(0, ISCSILimits.commandsPerSession - windowUse)) &- 1
    }

    /// Sends a PDU that carries a status of its own: it takes the next StatSN.
    mutating func putStatus(_ pdu: inout PDU, cost: Int = 0) {
        pdu.statSN = statSN
        statSN &+= 1
        putNumbered(&pdu, cost: cost)
    }

    /// Sends a PDU with the state of the command window.
    mutating func putNumbered(_ pdu: inout PDU, cost: Int = 0) {
        pdu.expCmdSN = expCmdSN
        pdu.maxCmdSN = maxCmdSN
        put(pdu, cost: cost)
    }

    mutating func reject(_ pdu: PDU, _ reason: RejectReason) {
        var response = PDU(Opcode.reject)
        response[byte: 2] = reason.rawValue
        response[word: 16] = reservedTag
        response.data = pdu.encodedHeader[...]
        putStatus(&response)
    }
}
