import Blocks
import SCSI

/// SCSI commands: arrival, data-out, execution, data-in and status (RFC 7143 §4.2.5, §11.3 … §11.8).
extension TargetConnection {
    /// Makes the task of a SCSI command that has arrived.
    mutating func register(_ pdu: PDU) throws(ProtocolViolation) {
        let tag = pdu.initiatorTaskTag
        guard tag != reservedTag else { throw ProtocolViolation("a command without a tag", .invalidPDUField) }
        guard tasks[tag] == nil, functions[tag] == nil else {
            throw ProtocolViolation("a tag that is in use", .taskInProgress)
        }
        guard login?.isDiscovery == false else {
            throw ProtocolViolation("a SCSI command in a discovery session")
        }
        let isWrite = pdu.flags & 0x20 != 0
        let task = SessionTask(
            lun: LogicalUnitNumber(rawValue: pdu.lun), cdb: try Self.cdb(of: pdu),
            isRead: pdu.flags & 0x40 != 0, isWrite: isWrite, expected: Int(pdu.targetTransferTag),
            isOrdered: pdu.flags & 7 == 2, cmdSN: pdu.cmdSN, data: Array(pdu.data),
            unsolicited: isWrite && !pdu.isFinal, isImmediate: pdu.isImmediate)
        if !task.data.isEmpty {
            guard parameters.immediateData else {
                throw ProtocolViolation("immediate data, though agreed not")
            }
        }
        if task.unsolicited, parameters.initialR2T {
            throw ProtocolViolation("unsolicited data, though agreed not")
        }
        guard task.data.count <= min(task.expectedOut, parameters.firstBurst) else {
            throw ProtocolViolation("more immediate data than agreed")
        }
        tasks[tag] = task
    }

    /// The 16 bytes of the header, and the rest from an extended CDB segment (RFC 7143 §11.2.2.3).
    private static func cdb(of pdu: PDU) throws(ProtocolViolation) -> [UInt8] {
        let cdb = Array(pdu.header[32..<PDU.headerLength])
        var rest = pdu.additionalHeaders[...]
        var extended: ArraySlice<UInt8> = []
        while let high = rest.first {
            // AHSLength, AHSType, and what the length counts: a reserved byte first.
            let length = Int(high) << 8 | Int(rest[rest.startIndex + 1])
            let padded = (3 + length + 3) & ~3
            guard length >= 1, padded <= rest.count else {
                throw ProtocolViolation("an additional header of a wrong length", .invalidPDUField)
            }
            switch rest[rest.startIndex + 2] & 0x3F {
            case 1 where extended.isEmpty && length - 1 <= SCSILimits.cdbBytes - 16:
                extended = rest.dropFirst(4).prefix(length - 1)
            // The data-in length of a bidirectional command, which is refused as a command.
            case 2: break
            default: throw ProtocolViolation("an additional header of no known kind", .invalidPDUField)
            }
            rest = rest.dropFirst(padded)
        }
        return cdb + extended
    }

    /// A command's turn has come.
    mutating func queueTask(_ pdu: PDU) {
        let tag = pdu.initiatorTaskTag
        // It may have been aborted while it was early, and its tag be another's by now.
        guard let task = tasks[tag], task.cmdSN == pdu.cmdSN, !task.hasTurn else { return }
        tasks[tag]?.hasTurn = true
        if !task.isImmediate { windowUse += 1 }
        if task.isImmediate,
            tasks.values.lazy.filter({ $0.isImmediate }).count > ISCSILimits.immediateCommands
        {
            return refuse(tag, SCSIOutcome(status: .taskSetFull))
        }
        if task.isRead, task.isWrite { return refuse(tag, .checkCondition(.invalidOperationCode)) }
        if task.expectedOut > SCSITargetLimits.dataOutBytes {
            return refuse(tag, .checkCondition(SenseData(.illegalRequest, .invalidFieldInCDB)))
        }
        queue.append(tag)
    }

    /// Takes a task out of the session.
    mutating func remove(_ tag: UInt32) {
        guard let task = tasks.removeValue(forKey: tag) else { return }
        if task.hasTurn, !task.isImmediate { windowUse -= 1 }
        if task.phase == .waiting { queue.removeAll { $0 == tag } }
    }

    /// Ends a task that never came to execution.
    mutating func refuse(_ tag: UInt32, _ outcome: SCSIOutcome) {
        guard let task = tasks[tag] else { return }
        finish(tag, task, outcome)
        settle(tag)
    }

    /// Lets tasks through in order, as far as the budget reaches.
    mutating func admitTasks() {
        var active = tasks.values.lazy.filter { $0.phase != .waiting }.count
        var orderedIsActive = tasks.values.contains { $0.phase != .waiting && $0.isOrdered }
        while let tag = queue.first {
            guard let task = tasks[tag] else {
                queue.removeFirst()
                continue
            }
            let cost = task.expectedOut + min(task.expectedIn, SCSITargetLimits.dataInBytes)
            let fits =
                heldBytes == 0 || (heldBytes + cost <= ISCSILimits.sessionDataBytes && budget.fits(cost))
            guard fits, !orderedIsActive, !task.isOrdered || active == 0 else { return }
            queue.removeFirst()
            active += 1
            orderedIsActive = task.isOrdered
            heldBytes += cost
            tasks[tag]?.cost = cost
            tasks[tag]?.phase = .soliciting
            advance(tag)
        }
    }

    /// Asks for data that lack, or executes.
    private mutating func advance(_ tag: UInt32) {
        guard var task = tasks[tag], task.phase == .soliciting, !task.unsolicited else { return }
        guard task.lacksData else { return execute(tag) }
        let start = task.data.count
        task.data.reserveCapacity(task.expectedOut)
        task.burstEnd = min(task.expectedOut, start + parameters.maxBurst)
        task.transferTag = nextTransferTag
        task.nextDataSN = 0
        nextTransferTag = nextTransferTag &+ 1 == reservedTag ? 1 : nextTransferTag &+ 1
        var r2t = PDU(Opcode.r2t)
        r2t.lun = task.lun.rawValue
        r2t.initiatorTaskTag = tag
        r2t.targetTransferTag = task.transferTag
        // R2T carries the next StatSN without using it up.
        r2t.statSN = statSN
        r2t.dataSN = task.r2tSN
        r2t.bufferOffset = UInt32(start)
        r2t.residualCount = UInt32(task.burstEnd - start)
        task.r2tSN &+= 1
        tasks[tag] = task
        putNumbered(&r2t)
    }

    /// Data-Out, unsolicited or of a burst that was asked for (RFC 7143 §11.7).
    mutating func handleDataOut(_ pdu: PDU) throws(ProtocolViolation) {
        let tag = pdu.initiatorTaskTag
        // Data of a task that is no more, e.g. aborted: dropped.
        guard var task = tasks[tag], task.phase != .executing else { return }
        let isSolicited = pdu.targetTransferTag != reservedTag
        if isSolicited {
            guard task.phase == .soliciting, pdu.targetTransferTag == task.transferTag else {
                throw ProtocolViolation("data for a transfer tag nobody gave", .invalidPDUField)
            }
        } else {
            guard task.unsolicited else { throw ProtocolViolation("unsolicited data after their end") }
        }
        let end = isSolicited ? task.burstEnd : min(task.expectedOut, parameters.firstBurst)
        // A sequence error ends the task, not the connection (RFC 7143 §7.9), once all of its data are there.
        if task.isSpoiled || pdu.isDamaged || pdu.dataSN != task.nextDataSN {
            tasks[tag]?.isSpoiled = true
            if pdu.isFinal {
                refuse(tag, .checkCondition(SenseData(.abortedCommand, .protocolServiceCRCError)))
                admitTasks()
            }
            return
        }
        guard Int(pdu.bufferOffset) == task.data.count, task.data.count + pdu.data.count <= end else {
            throw ProtocolViolation("data at the wrong offset, or too much")
        }
        guard !(pdu.data.isEmpty && !pdu.isFinal) else { throw ProtocolViolation("an empty Data-Out") }
        task.data.append(contentsOf: pdu.data)
        task.nextDataSN &+= 1
        if pdu.isFinal {
            // Not what was asked for (RFC 7143 §11.4.7.2).
            if isSolicited, task.data.count != task.burstEnd {
                refuse(tag, .checkCondition(SenseData(.abortedCommand, .incorrectAmountOfData)))
                return admitTasks()
            }
            if isSolicited { task.transferTag = reservedTag }
            task.unsolicited = false
        }
        tasks[tag] = task
        if pdu.isFinal { advance(tag) }
    }

    private mutating func execute(_ tag: UInt32) {
        guard var task = tasks[tag], let nexus else { return }
        let command = SCSITask(
            nexus: nexus, lun: task.lun, cdb: task.cdb, dataOut: task.data,
            expectedDataIn: task.expectedIn, expectedDataOut: task.expectedOut)
        task.phase = .executing
        task.data = []
        task.command = command
        tasks[tag] = task
        actions.append(.execute(tag: tag, command))
    }

    /// The device server is done with a task.
    mutating func completed(_ tag: UInt32, _ outcome: SCSIOutcome) -> [Action] {
        guard isLoggedIn, let task = tasks[tag] else { return [] }
        if task.isAborted {
            remove(tag)
            heldBytes -= task.cost
        } else {
            // Aborted by another session: TASK ABORTED (SAM-5 §5.3.1 with TAS 1).
            finish(tag, task, task.command?.isAborted == true ? SCSIOutcome(status: .taskAborted) : outcome)
        }
        settle(tag)
        admitTasks()
        return takeActions()
    }

    /// Sends data-in and status; the task is over.
    private mutating func finish(_ tag: UInt32, _ task: SessionTask, _ outcome: SCSIOutcome) {
        remove(tag)
        let data = outcome.dataIn.prefix(task.expectedIn)
        let residual = Self.residual(task, outcome)
        let hasSense = !outcome.sense.isEmpty
        // A Data-In has no place for sense data.
        let collapses = !data.isEmpty && outcome.status == .good && !hasSense
        let count = sendData(tag, task, data, residual: collapses ? residual : nil)
        if collapses { return }
        var response = PDU(Opcode.scsiResponse, flags: 0x80 | residual.flags)
        response[byte: 3] = outcome.status.rawValue
        response.initiatorTaskTag = tag
        response.dataSN = count
        response.residualCount = residual.count
        if hasSense {
            let sense = outcome.sense.prefix(SCSILimits.senseBytes)
            response.data = ([0, UInt8(sense.count)] + sense)[...]
        }
        putStatus(&response, cost: task.cost)
    }

    private struct Residual {
        /// O (04h), U (02h), or neither.
        var flags: UInt8
        var count: UInt32
    }

    /// RFC 7143 §11.4.5.1.
    private static func residual(_ task: SessionTask, _ outcome: SCSIOutcome) -> Residual {
        // A command moves data one way only; that it is not the way told by R and W makes no difference.
        let wanted = max(outcome.dataOutUsed, outcome.dataIn.count)
        let expected = task.isRead || task.isWrite ? task.expected : 0
        if wanted > expected { return Residual(flags: 0x04, count: UInt32(clamping: wanted - expected)) }
        if wanted < expected { return Residual(flags: 0x02, count: UInt32(clamping: expected - wanted)) }
        return Residual(flags: 0, count: 0)
    }

    /// Data-In PDUs, in bursts; with `residual`, the last one carries GOOD status (RFC 7143 §11.7.3).
    /// - Returns: how many they were.
    private mutating func sendData(
        _ tag: UInt32, _ task: SessionTask, _ data: ArraySlice<UInt8>, residual: Residual?
    ) -> UInt32 {
        let segment = min(parameters.initiatorReceiveSegment, ISCSILimits.sendDataSegment)
        var number: UInt32 = 0
        var offset = 0
        var burst = 0
        while offset < data.count {
            let length = min(segment, data.count - offset, parameters.maxBurst - burst)
            let isLast = offset + length == data.count
            burst += length
            var pdu = PDU(Opcode.dataIn, flags: 0)
            if isLast || burst == parameters.maxBurst {
                pdu.flags = 0x80
                burst = 0
            }
            pdu.lun = task.lun.rawValue
            pdu.initiatorTaskTag = tag
            pdu.targetTransferTag = reservedTag
            pdu.dataSN = number
            pdu.bufferOffset = UInt32(offset)
            pdu.data = data[(data.startIndex + offset)..<(data.startIndex + offset + length)]
            number &+= 1
            offset += length
            if isLast, let residual {
                pdu.flags |= 0x01 | residual.flags
                pdu[byte: 3] = SCSIStatus.good.rawValue
                pdu.residualCount = residual.count
                putStatus(&pdu, cost: task.cost)
            } else {
                putNumbered(&pdu)
            }
        }
        return number
    }
}
