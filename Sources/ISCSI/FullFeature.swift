import Blocks
import SCSI

/// Full feature phase: what comes when it is its turn (RFC 7143 §4.2.2.1), and all that is no SCSI command.
extension TargetConnection {
    mutating func handleFullFeature(_ pdu: PDU) throws(ProtocolViolation) {
        if pdu.isDamaged { return try handleDamaged(pdu) }
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

    /// A data digest error (RFC 7143 §7.8): the PDU is answered with a Reject and dropped. Of Data-Out the task fails
    /// when the rest of its data is there. A numbered request leaves a gap that nobody fills at error recovery
    /// level 0, so the connection ends, and the initiator recovers the session at once.
    private mutating func handleDamaged(_ pdu: PDU) throws(ProtocolViolation) {
        if pdu.opcode == Opcode.dataOut {
            reject(pdu, .dataDigestError)
            return try handleDataOut(pdu)
        }
        guard pdu.isImmediate else { throw ProtocolViolation("data digest error", .dataDigestError) }
        reject(pdu, .dataDigestError)
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
            guard early.values.reduce(0, { $0 + $1.data.count }) <= ISCSILimits.earlyBytes else {
                throw ProtocolViolation("too much data ahead of their turn")
            }
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
        if response[byte: 2] == 0 { return logOut(response) }
        putStatus(&response)
    }

    /// Text negotiation (RFC 7143 §11.10, §11.11): SendTargets, and the few keys of full feature phase. One at a
    /// time; question and answer may each take several PDUs.
    private mutating func handleText(_ pdu: PDU) throws(ProtocolViolation) {
        if pdu.targetTransferTag == reservedTag {
            text = TextExchange()
        } else if !text.isOpen || pdu.targetTransferTag != Self.textTag {
            return reject(pdu, .negotiationReset)
        }
        let continues = pdu.flags & 0x40 != 0
        guard !(continues && pdu.isFinal) else { throw ProtocolViolation("F and C bit together") }
        if text.answer.isEmpty {
            guard text.question.count + pdu.data.count <= ISCSILimits.textBytes else {
                throw ProtocolViolation("too much text")
            }
            text.question += pdu.data
            if continues { return sendText(pdu, isLast: false) }
            let keys = try TextKeys.parse(text.question)
            text.question = []
            var answers: [TextKey] = []
            for key in keys { answers += try answer(key) }
            text.answer = TextKeys.encode(answers)[...]
        } else {
            guard pdu.data.isEmpty else { throw ProtocolViolation("text before the answer's end") }
        }
        sendText(pdu, isLast: pdu.isFinal)
    }

    /// The next piece of the answer, if there is any.
    private mutating func sendText(_ pdu: PDU, isLast: Bool) {
        let piece = text.answer.prefix(parameters.initiatorReceiveSegment)
        text.answer = text.answer.dropFirst(piece.count)
        text.isOpen = !isLast || !text.answer.isEmpty
        var response = PDU(Opcode.textResponse)
        response.lun = pdu.lun
        response.initiatorTaskTag = pdu.initiatorTaskTag
        response.targetTransferTag = text.isOpen ? Self.textTag : reservedTag
        response.flags = text.isOpen ? (text.answer.isEmpty ? 0 : 0x40) : 0x80
        response.data = piece
        putStatus(&response)
    }

    private static let textTag: UInt32 = 1

    private mutating func answer(_ key: TextKey) throws(ProtocolViolation) -> [TextKey] {
        switch key.key {
        case "SendTargets": return sendTargets(key)
        case "MaxRecvDataSegmentLength":
            login?.parameters.initiatorReceiveSegment = try OperationalNegotiation.receiveSegment(key.value)
            return []
        case "InitiatorAlias": return []
        // What is agreed upon at login only (RFC 7143 §13).
        case _ where OperationalNegotiation.loginOnly.contains(key.key) || key.key.hasPrefix("CHAP_"):
            return [TextKey(key.key, OperationalNegotiation.reject)]
        default: return [TextKey(key.key, OperationalNegotiation.notUnderstood)]
        }
    }

    private func sendTargets(_ key: TextKey) -> [TextKey] {
        let isOurs = key.value.lowercased() == target.name.lowercased()
        let isDiscovery = login?.isDiscovery == true
        // All targets can be asked for in discovery only; the own one, in a normal session (RFC 7143 app. C).
        if key.value == "All", !isDiscovery { return [TextKey(key.key, OperationalNegotiation.reject)] }
        guard isOurs || key.value == "All" || (key.value.isEmpty && !isDiscovery) else { return [] }
        return [TextKey("TargetName", target.name)]
            + portals().map { TextKey("TargetAddress", "\($0),\(TargetIdentity.portalGroupTag)") }
    }
}
