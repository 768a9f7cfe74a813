import Blocks
import SCSI

/// Full feature phase: what comes when it is its turn (RFC 7143 §4.2.2.1), and all that is no SCSI command.
extension TargetConnection {
    mutating func handleFullFeature(_ pdu: PDU) throws(ProtocolViolation) {
        switch pdu.opcode {
        case Opcode.dataOut: try handleDataOut(pdu)
        case Opcode.snackRequest: reject(pdu, .snackReject)
        case Opcode.scsiCommand, Opcode.nopOut, Opcode.taskManagementRequest, Opcode.textRequest,
            Opcode.logoutRequest:
            try handleNumbered(pdu)
        case Opcode.loginRequest: throw ProtocolViolation("a login request in full feature phase")
        default: reject(pdu, .commandNotSupported)
        }
    }

    private mutating func handleNumbered(_ pdu: PDU) throws(ProtocolViolation) {
        if pdu.isImmediate { return try take(pdu) }
        // Outside the window: ignored without a word (RFC 7143 §4.2.2.1).
        guard windowHas(pdu.cmdSN), early[pdu.cmdSN] == nil else { return }
        // Its unsolicited data may follow at once, so a command is known from now on.
        if pdu.opcode == Opcode.scsiCommand { try register(pdu) }
        try arrive(pdu)
    }

    func windowHas(_ cmdSN: UInt32) -> Bool { cmdSN &- expCmdSN < maxCmdSN &- expCmdSN &+ 1 }

    /// What is within the window is taken when its turn comes.
    mutating func arrive(_ pdu: PDU) throws(ProtocolViolation) {
        guard pdu.cmdSN == expCmdSN else {
            early[pdu.cmdSN] = pdu
            // A command's data are in its task.
            if pdu.opcode == Opcode.scsiCommand { early[pdu.cmdSN]?.data = [] }
            return
        }
        var next: PDU? = pdu
        while let current = next {
            expCmdSN &+= 1
            if current.opcode == Opcode.scsiCommand {
                queueTask(current)
            } else {
                try take(current)
            }
            next = isLoggedIn ? early.removeValue(forKey: expCmdSN) : nil
        }
        if isLoggedIn { admitTasks() }
    }

    /// It is its turn.
    private mutating func take(_ pdu: PDU) throws(ProtocolViolation) {
        switch pdu.opcode {
        case Opcode.scsiCommand:
            try register(pdu)
            queueTask(pdu)
            admitTasks()
        case Opcode.nopOut: try handleNOP(pdu)
        case Opcode.taskManagementRequest: try manageTasks(pdu)
        case Opcode.textRequest: try handleText(pdu)
        case Opcode.logoutRequest: handleLogout(pdu)
        default: preconditionFailure("not a numbered request")
        }
    }

    /// NOP-Out is a ping, or the answer to one of ours (RFC 7143 §11.18).
    private mutating func handleNOP(_ pdu: PDU) throws(ProtocolViolation) {
        if pdu.initiatorTaskTag == reservedTag {
            guard pdu.isImmediate else { throw ProtocolViolation("a NOP-Out answer that is numbered") }
            return
        }
        guard pdu.targetTransferTag == reservedTag else { return }
        var response = PDU(Opcode.nopIn)
        response.lun = pdu.lun
        response.initiatorTaskTag = pdu.initiatorTaskTag
        response.targetTransferTag = reservedTag
        response.data = pdu.data.prefix(parameters.initiatorReceiveSegment)
        putStatus(&response)
    }

    private mutating func handleLogout(_ pdu: PDU) {
        var response = PDU(Opcode.logoutResponse)
        response.initiatorTaskTag = pdu.initiatorTaskTag
        let reason = pdu.flags & 0x7F
        switch reason {
        case 0: break
        case 1 where pdu[half: 20] == login?.connectionID: break
        case 1: response[byte: 2] = 1
        case 2: response[byte: 2] = 2
        default: return reject(pdu, .invalidPDUField)
        }
        putStatus(&response)
        if response[byte: 2] == 0 { close("logout") }
    }

    /// Text negotiation (RFC 7143 §11.10): SendTargets.
    private mutating func handleText(_ pdu: PDU) throws(ProtocolViolation) {
        guard pdu.targetTransferTag == reservedTag || textIsOpen else {
            return reject(pdu, .negotiationReset)
        }
        if pdu.targetTransferTag == reservedTag { textRequest = [] }
        textIsOpen = !pdu.isFinal
        guard textRequest.count + pdu.data.count <= ISCSILimits.textBytes else {
            throw ProtocolViolation("too much text")
        }
        textRequest += pdu.data
        var response = PDU(Opcode.textResponse)
        response.lun = pdu.lun
        response.initiatorTaskTag = pdu.initiatorTaskTag
        response.targetTransferTag = reservedTag
        if pdu.flags & 0x40 != 0 {
            guard !pdu.isFinal else { throw ProtocolViolation("F and C bit together") }
            response.flags = 0
            response.targetTransferTag = 1
            return putStatus(&response)
        }
        let keys = try TextKeys.parse(textRequest)
        textRequest = []
        response.data = TextKeys.encode(keys.flatMap { answer($0) })[...]
        guard response.data.count <= parameters.initiatorReceiveSegment else {
            throw ProtocolViolation("the answer to the text would be too long")
        }
        response.flags = pdu.isFinal ? 0x80 : 0
        if !pdu.isFinal { response.targetTransferTag = 1 }
        putStatus(&response)
    }

    private func answer(_ key: TextKey) -> [TextKey] {
        guard key.key == "SendTargets" else {
            return [TextKey(key.key, OperationalNegotiation.notUnderstood)]
        }
        let isOurs = key.value.lowercased() == target.name.lowercased()
        let isDiscovery = login?.isDiscovery == true
        // All targets can be asked for in discovery only; the own one, in a normal session (RFC 7143 app. C).
        if key.value == "All", !isDiscovery { return [TextKey(key.key, OperationalNegotiation.reject)] }
        guard isOurs || key.value == "All" || (key.value.isEmpty && !isDiscovery) else { return [] }
        return [TextKey("TargetName", target.name)]
            + portals().map { TextKey("TargetAddress", "\($0),\(TargetIdentity.portalGroupTag)") }
    }
}
