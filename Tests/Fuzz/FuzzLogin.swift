import Blocks
import SCSI

@testable import ISCSI

/// A login of several requests: for each a byte of flags, two of length, and its text. The first byte of all says
/// what is demanded: bit 0, CHAP; bit 1, that the target can prove itself, too; bit 2, that only one name is let in.
///
/// What must hold: no trap; nobody who cannot know the secret gets in; what is agreed lies within the bounds of
/// RFC 7143 and of this target.
func fuzzLogin(_ input: [UInt8]) {
    var input = FuzzInput(input)
    let how = input.byte()
    var credentials: CHAPCredentials?
    if how & 1 != 0 {
        let mutual = how & 2 != 0 ? (name: "bridge", secret: Array("another secret".utf8)) : nil
        guard
            let made = try? CHAPCredentials(
                name: "peer", secret: Array("a secret it is".utf8), mutual: mutual)
        else { preconditionFailure("credentials that are right") }
        credentials = made
    }
    var target = TargetIdentity(
        name: FuzzedLogin.target,
        access: how & 4 != 0 ? .only([FuzzedLogin.initiator: credentials]) : .anybody(credentials))
    target.random = { [UInt8](repeating: 0xA5, count: $0) }
    var login = LoginPhase(target: target)
    while !input.isEmpty {
        let flags = input.byte()
        let length = input.half()
        let request = FuzzedLogin.request(input.bytes(length), flags: flags)
        switch login.handle(request) {
        case .reply(let response): check(response)
        case .fail(let response, _):
            check(response)
            precondition(response[half: 36] != 0, "a failure that is called success")
            return
        case .finish(let response, let result):
            check(response)
            precondition(how & 1 == 0, "let in without having proven anything")
            precondition(
                how & 4 == 0 || result.initiatorName == FuzzedLogin.initiator,
                "let in under a name that is not on the list")
            check(result.parameters)
            return
        }
    }
}

private func check(_ response: PDU) {
    precondition(response.opcode == Opcode.loginResponse)
    // As many keys as there were, and what the target declares by itself.
    let answer = try? TextKeys.parse(response.data, limit: ISCSILimits.textKeys + 3)
    precondition(answer != nil, "an answer that nobody can read")
}

private func check(_ parameters: NegotiatedParameters) {
    precondition((512..<1 << 24).contains(parameters.maxBurst))
    precondition((512...parameters.maxBurst).contains(parameters.firstBurst))
    precondition((512..<1 << 24).contains(parameters.initiatorReceiveSegment))
    precondition(parameters.maxBurst <= ISCSILimits.maxBurst)
    precondition(parameters.firstBurst <= ISCSILimits.firstBurst)
}

/// The names that seeds use, and requests of one initiator.
enum FuzzedLogin {
    static let target = "iqn.2026-01.net.example:outboard"
    static let initiator = "iqn.2026-01.net.example:peer"
    static let keys = [
        TextKey("InitiatorName", initiator), TextKey("TargetName", target), TextKey("SessionType", "Normal"),
    ]
    /// T, from the operational stage to full feature phase.
    static let operationalToFull: UInt8 = 0x87

    static func request(_ text: [UInt8], flags: UInt8) -> PDU {
        var pdu = PDU(Opcode.loginRequest, flags: flags)
        pdu.isImmediate = true
        pdu.lun = 0x8000_0012_3456_0000
        pdu.initiatorTaskTag = 1
        pdu.cmdSN = 100
        pdu.data = text[...]
        return pdu
    }
}
