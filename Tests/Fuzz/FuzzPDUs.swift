import Blocks
import SCSI

@testable import ISCSI

/// The first byte says how the peer begins: bit 0, after a login; bits 1 and 2, with header and data digests; bit 3,
/// that its PDUs come without digests and are given right ones; bits 4 to 6, how long the pieces are in which the
/// bytes arrive; bit 7, that commands end at once, not after all bytes have come.
///
/// What must hold: no trap; never more data held than the session may hold; and with the bytes in pieces the
/// connection answers exactly as with all at once.
func fuzzPDUs(_ input: [UInt8]) {
    var input = FuzzInput(input)
    let how = input.byte()
    let bytes = input.all()
    let pieces = FuzzedConnection(how: how, bytes: bytes, step: Int(how >> 4 & 7) * 13 + 1)
    // What ends meanwhile, and a login that ends within the bytes, have an order that the pieces make.
    if how & 0x80 != 0 || pieces.loggedInByItself { return }
    let whole = FuzzedConnection(how: how, bytes: bytes, step: Int.max)
    precondition(whole.sent == pieces.sent, "the answers depend on how the bytes were cut")
    precondition(whole.closed == pieces.closed, "the end depends on how the bytes were cut")
}

/// A connection that got all of an input, with whatever it asked for done at once.
struct FuzzedConnection {
    private(set) var sent: [[UInt8]] = []
    private(set) var closed: String?
    private var connection: TargetConnection
    private(set) var loggedInByItself = false
    private let endsAtOnce: Bool
    private var deferred: [TargetConnection.Action] = []
    private let budget = DataBudget()

    init(how: UInt8, bytes: [UInt8], step: Int) {
        endsAtOnce = how & 0x80 != 0
        var target = TargetIdentity(name: FuzzedLogin.target, access: .anybody(nil))
        target.random = { [UInt8](repeating: 0x5A, count: $0) }
        connection = TargetConnection(target: target, portals: { ["127.0.0.1:3260"] }, budget: budget)
        if how & 1 != 0 {
            var keys = FuzzedLogin.keys
            if how & 2 != 0 { keys.append(TextKey("HeaderDigest", "CRC32C")) }
            if how & 4 != 0 { keys.append(TextKey("DataDigest", "CRC32C")) }
            let login = FuzzedLogin.request(TextKeys.encode(keys), flags: FuzzedLogin.operationalToFull)
            feed(login.encoded())
            precondition(connection.isLoggedIn, "the login that every input begins with")
            loggedInByItself = false
        }
        var received = bytes
        if how & 8 != 0 { received = Self.digested(bytes, connection.parameters.digests) }
        var start = 0
        while start < received.count, closed == nil {
            let end = step < received.count - start ? start + step : received.count
            feed(Array(received[start..<end]))
            start = end
        }
        while !deferred.isEmpty { end(deferred.removeFirst()) }
        connection.disconnected()
        precondition(connection.heldBytes == 0, "data held for a connection that is gone")
    }

    /// The PDUs in `bytes`, with digests where they are agreed; what is no whole PDU stays as it is.
    private static func digested(_ bytes: [UInt8], _ digests: Digests) -> [UInt8] {
        var decoder = PDUDecoder()
        decoder.maximumDataSegment = ISCSILimits.receiveDataSegment
        var result: [UInt8] = []
        bytes.withUnsafeBytes { buffer in
            var rest = buffer
            while let pdu = try? decoder.next(&rest) { result += pdu.encoded(digests) }
            result += rest
        }
        return result
    }

    private mutating func feed(_ bytes: [UInt8]) {
        perform(connection.receive(bytes))
        precondition(
            connection.heldBytes <= ISCSILimits.sessionDataBytes + SCSITargetLimits.dataOutBytes,
            "more data held than a session may hold")
    }

    private mutating func perform(_ actions: [TargetConnection.Action]) {
        for action in actions {
            switch action {
            case .send(let pdu, let digests, let bytes, _):
                let encoded = pdu.encoded(digests)
                precondition(encoded.count == bytes, "a PDU of another length than was said")
                sent.append(encoded)
            case .establish(let result):
                loggedInByItself = true
                let nexus = Nexus(
                    initiatorName: result.initiatorName, sessionIdentifier: result.isid,
                    authenticatedName: result.authenticatedName)
                perform(connection.established(nexus, tsih: 7))
            case .close(let why): if closed == nil { closed = why }
            case .execute, .reset, .endNexus, .endSessions, .report: break
            }
            if endsAtOnce { end(action) } else { deferred.append(action) }
        }
    }

    /// What another thread or the socket would tell when an action is done.
    private mutating func end(_ action: TargetConnection.Action) {
        switch action {
        case .send(_, _, let bytes, let cost): perform(connection.written(bytes: bytes, cost: cost))
        case .execute(let tag, let task): perform(connection.completed(tag, Self.answer(task)))
        case .reset(let tag, _): perform(connection.resetDone(tag))
        case .endNexus: perform(connection.nexusEnded())
        case .establish, .close, .endSessions, .report: break
        }
    }

    /// Some of each way in which a command can end, by its CDB.
    private static func answer(_ task: SCSITask) -> SCSIOutcome {
        switch task.cdb[0] & 3 {
        case 0: .good
        case 1: SCSIOutcome(status: .good, dataIn: [UInt8](repeating: 7, count: Int(task.cdb[4]) * 512))
        case 2: .checkCondition(SenseData(.illegalRequest, .invalidOperationCode))
        default: SCSIOutcome(status: .good, dataOutUsed: Int(task.cdb[4]) * 512)
        }
    }
}
