import Blocks
import Logging
import SCSI

/// The copy manager: EXTENDED COPY (LID1) and RECEIVE COPY RESULTS (SPC-4 §5.17, §6.4, §6.21 … §6.24).
extension BridgeDevice {
    func extendedCopy(
        _ task: SCSITask, parameterListLength length: Int, _ unit: LogicalUnit, _ state: NexusState
    ) throws(CheckCondition) -> SCSIOutcome {
        // No list is no error and copies nothing (SPC-4 §6.4.1).
        if length == 0 { return .good }
        guard task.dataOut.count >= length else { throw CheckCondition(.parameterListLengthError) }
        let list = try CopyParameterList(
            decoding: Array(task.dataOut.prefix(length)), limits: BridgeLimits.copyList)
        guard takeSlot(state) else { return SCSIOutcome(status: .taskSetFull, dataOutUsed: length) }
        defer { giveSlotBack(state) }
        let record = CopyRecord(unit: unit)
        if list.usage != .none { try state.register(record, listIdentifier: list.listIdentifier) }
        var audit = CopyAudit(task.nexus, list)
        do throws(CheckCondition) {
            let plan = try CopyPlan(list, units: units(visibleTo: task.nexus))
            audit.plan = plan
            let involved = plan.sources.union(plan.targets).subtracting([unit.number])
            reservations.begin(task, at: involved)
            defer { reservations.end(task, at: involved) }
            if isExcluded(plan, task.nexus) {
                record.cancel()
                audit.log(record, "reservation conflict", logger)
                return SCSIOutcome(status: .reservationConflict, dataOutUsed: length)
            }
            let isDone = try run(plan, record, task, state)
            audit.log(record, isDone ? "done" : "aborted", logger)
            return SCSIOutcome(status: isDone ? .good : .taskAborted, dataOutUsed: length)
        } catch {
            record.fail(error.sense)
            audit.log(record, CopyAudit.describe(error.sense), logger)
            throw error
        }
    }

    /// - Returns: false when it was aborted.
    private func run(
        _ plan: CopyPlan, _ record: CopyRecord, _ task: SCSITask, _ state: NexusState
    ) throws(CheckCondition) -> Bool {
        let control = CopyControl(record: record) { task.isAborted || state.isClosed }
        do throws(MoveFailure) {
            try mover.move(plan, control)
        } catch {
            if error.reason == .cancelled {
                record.cancel()
                return false
            }
            // Not from the bytes written in all: those of later segments may be among them.
            let whole = plan.pieces.reduce(UInt64(0)) { $0 + ($1.segment == error.segment ? $1.count : 0) }
            throw CheckCondition(
                SenseTable.sense(copy: error.segment, error.reason, residue: whole - error.written))
        }
        try settle(plan)
        record.processed(segments: plan.segmentCount)
        record.finish()
        return true
    }

    private func takeSlot(_ state: NexusState) -> Bool {
        guard state.takeSlot() else { return false }
        let isTaken = running.withLock { running in
            guard running < BridgeLimits.concurrentCopies else { return false }
            running += 1
            return true
        }
        if !isTaken { state.giveSlotBack() }
        return isTaken
    }

    private func giveSlotBack(_ state: NexusState) {
        running.withLock { $0 -= 1 }
        state.giveSlotBack()
    }

    func copyResults(
        _ action: CopyResultsServiceAction, _ identifier: UInt8, _ state: NexusState
    ) throws(CheckCondition) -> [UInt8] {
        switch action {
        case .copyStatus:
            guard let status = state.takeStatus(identifier) else { throw .cdb(2) }
            return status.encoded()
        case .failedSegmentDetails:
            guard let details = state.takeFailure(identifier) else { throw .cdb(2) }
            return details
        case .operatingParameters: return Self.operatingParameters.encoded()
        default: throw .cdb(1, bit: 4)
        }
    }

    static var operatingParameters: CopyOperatingParameters {
        var parameters = CopyOperatingParameters()
        parameters.supportsNoListIdentifier = BridgeLimits.copyList.supportsNoListIdentifier
        parameters.maximumCSCDDescriptors = UInt16(BridgeLimits.cscdDescriptors)
        parameters.maximumSegmentDescriptors = UInt16(BridgeLimits.segmentDescriptors)
        parameters.maximumDescriptorListLength = UInt32(BridgeLimits.descriptorListBytes)
        parameters.maximumSegmentLength = BridgeLimits.segmentBytes
        parameters.totalConcurrentCopies = UInt16(BridgeLimits.concurrentCopies)
        parameters.maximumConcurrentCopies = UInt8(BridgeLimits.concurrentCopiesOfNexus)
        parameters.implementedDescriptorTypes = [
            SegmentDescriptor.TypeCode.blockToBlock, SegmentDescriptor.TypeCode.blockToBlockWithOffset,
            CSCDDescriptor.typeCode,
        ]
        return parameters
    }
}

/// The one line of audit that every copy leaves: who, from what, to what, how much, with what result.
struct CopyAudit {
    private let nexus: Nexus
    private let list: CopyParameterList
    private let start = MonotonicClock.now
    /// Nil while it is not known whether the list makes sense.
    var plan: CopyPlan?

    init(_ nexus: Nexus, _ list: CopyParameterList) {
        self.nexus = nexus
        self.list = list
    }

    static func describe(_ sense: SenseData) -> String {
        let code = String(sense.code.rawValue, radix: 16, uppercase: true)
        let padded = String(repeating: "0", count: 4 - code.count) + code
        var text = "\(sense.key) \(padded)h"
        if sense.key == .copyAborted, let segment = sense.commandSpecificInformation {
            text += " in segment \(segment)"
        }
        switch sense.specific {
        case .segmentPointer(_, let byte, _)?, .fieldPointer(_, let byte, _)?: text += ", byte \(byte)"
        default: break
        }
        return text
    }

    func log(_ record: CopyRecord, _ result: String, _ logger: Logger) {
        logger.notice(
            "EXTENDED COPY",
            metadata: [
                "initiator": "\(nexus.initiatorName)",
                "session": "\(String(nexus.sessionIdentifier, radix: 16))",
                "user": "\(nexus.authenticatedName ?? "-")",
                "list": "\(list.usage == .none ? "-" : String(list.listIdentifier))",
                "from": "\(Self.describe(plan?.sources))", "to": "\(Self.describe(plan?.targets))",
                "segments": "\(list.segments.count)", "bytes": "\(record.bytesWritten)",
                "of": "\(plan.map { String($0.totalBytes) } ?? "-")",
                "ms": "\((MonotonicClock.now - start) / 1_000_000)", "result": "\(result)",
            ])
    }

    private static func describe(_ units: Set<Int>?) -> String {
        guard let units, !units.isEmpty else { return "-" }
        return units.sorted().map(String.init).joined(separator: ",")
    }
}
