import Blocks
import SCSI

@testable import ISCSI

/// A scripted initiator against one ``TargetConnection``: what the connection wants done is done at once,
/// and the PDUs it sends are kept, decoded.
struct Peer {
    static let name = "iqn.2026-01.net.example:outboard"
    static let keys = [
        TextKey("InitiatorName", "iqn.2026-01.net.example:peer"), TextKey("TargetName", name),
        TextKey("SessionType", "Normal"),
    ]

    var connection: TargetConnection
    var received: [PDU] = []
    var executing: [(tag: UInt32, task: SCSITask)] = []
    var resets: [(tag: UInt32, scope: ResetScope)] = []
    var closed: String?
    var hasEndedAll = false
    var refusals: [[String]] = []
    var cmdSN: UInt32 = 100
    /// Bytes that were sent but are not yet reported as written.
    var unwritten: [(bytes: Int, cost: Int)] = []
    var reportsWrites = true
    /// The device takes its time to end the nexus.
    var holdsNexus = false

    init(credentials: CHAPCredentials? = nil, budget: DataBudget = DataBudget()) {
        self.init(access: .anybody(credentials), budget: budget)
    }

    init(access: ISCSIAccess, budget: DataBudget = DataBudget()) {
        let target = TargetIdentity(name: Self.name, access: access)
        connection = TargetConnection(target: target, portals: { ["127.0.0.1:3260"] }, budget: budget)
    }

    mutating func perform(_ actions: [TargetConnection.Action]) {
        for action in actions {
            switch action {
            case .send(let pdu, let digests, let bytes, let cost):
                precondition(pdu.encoded(digests).count == bytes)
                received.append(pdu)
                if reportsWrites {
                    perform(connection.written(bytes: bytes, cost: cost))
                } else {
                    unwritten.append((bytes, cost))
                }
            case .establish(let result):
                let nexus = Nexus(
                    initiatorName: result.initiatorName, sessionIdentifier: result.isid,
                    authenticatedName: result.authenticatedName)
                perform(connection.established(nexus, tsih: 7))
            case .execute(let tag, let task): executing.append((tag, task))
            case .reset(let tag, let scope): resets.append((tag, scope))
            case .report(let refusal, let initiator): refusals.append([refusal, initiator ?? ""])
            case .endSessions: hasEndedAll = true
            case .endNexus: if !holdsNexus { perform(connection.nexusEnded()) }
            case .close(let why): closed = why
            }
        }
    }

    /// Sends a PDU, with the digests that are agreed.
    mutating func send(_ pdu: PDU, step: Int? = nil) {
        let digests = connection.isLoggedIn ? connection.parameters.digests : Digests()
        send(bytes: pdu.encoded(digests), step: step)
    }

    mutating func send(bytes: [UInt8], step: Int? = nil) {
        let step = step ?? max(1, bytes.count)
        for start in stride(from: 0, to: bytes.count, by: step) {
            perform(connection.receive(Array(bytes[start..<min(bytes.count, start + step)])))
        }
    }

    mutating func take() -> [PDU] {
        defer { received = [] }
        return received
    }

    static func loginRequest(_ keys: [TextKey], flags: UInt8, text: [UInt8]? = nil) -> PDU {
        var pdu = PDU(Opcode.loginRequest, flags: flags)
        pdu.isImmediate = true
        pdu.lun = 0x8000_0012_3456_0000
        pdu.initiatorTaskTag = 1
        pdu.cmdSN = 100
        pdu.data = (text ?? TextKeys.encode(keys))[...]
        return pdu
    }

    /// Flags: T, from the operational stage to full feature phase.
    static let operationalToFull: UInt8 = 0x87

    mutating func logIn(_ more: [TextKey] = []) {
        send(Self.loginRequest(Self.keys + more, flags: Self.operationalToFull))
    }

    static func loggedIn(_ more: [TextKey] = []) -> Peer {
        var peer = Peer()
        peer.logIn(more)
        precondition(peer.connection.isLoggedIn)
        peer.received = []
        return peer
    }

    mutating func command(
        _ tag: UInt32, _ cdb: [UInt8], read: Int = 0, write: Int = 0, data: [UInt8] = [], final: Bool = true,
        immediate: Bool = false
    ) -> PDU {
        var pdu = PDU(Opcode.scsiCommand, flags: (final ? 0x80 : 0) | 1)
        if read > 0 { pdu.flags |= 0x40 }
        if write > 0 { pdu.flags |= 0x20 }
        pdu.initiatorTaskTag = tag
        pdu.targetTransferTag = UInt32(read + write)
        pdu.isImmediate = immediate
        pdu.cmdSN = cmdSN
        if !immediate { cmdSN &+= 1 }
        for (i, byte) in cdb.enumerated() { pdu[byte: 32 + i] = byte }
        pdu.data = data[...]
        return pdu
    }

    static func dataOut(_ tag: UInt32, ttt: UInt32, sn: UInt32, offset: Int, _ data: [UInt8], final: Bool)
        -> PDU
    {
        var pdu = PDU(Opcode.dataOut, flags: final ? 0x80 : 0)
        pdu.initiatorTaskTag = tag
        pdu.targetTransferTag = ttt
        pdu.dataSN = sn
        pdu.bufferOffset = UInt32(offset)
        pdu.data = data[...]
        return pdu
    }

    mutating func request(_ opcode: UInt8, _ tag: UInt32, flags: UInt8 = 0x80, immediate: Bool = false) -> PDU
    {
        var pdu = PDU(opcode, flags: flags)
        pdu.initiatorTaskTag = tag
        pdu.targetTransferTag = reservedTag
        pdu.isImmediate = immediate
        pdu.cmdSN = cmdSN
        if !immediate { cmdSN &+= 1 }
        return pdu
    }

    mutating func complete(_ tag: UInt32, _ outcome: SCSIOutcome) {
        executing.removeAll { $0.tag == tag }
        perform(connection.completed(tag, outcome))
    }
}
