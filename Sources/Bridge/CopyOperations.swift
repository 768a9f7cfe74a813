import Blocks
import Logging
import SCSI

/// How a third-party copy operation was asked for.
struct CopyOrigin: Sendable {
    let task: SCSITask
    /// Of the task; must have looked at the reservations of it already.
    let unit: LogicalUnit
    let state: NexusState
    /// Of the THIRD-PARTY COPY OUT command.
    let serviceAction: UInt8
    /// Nil: there is none (LIST ID USAGE 11b).
    let listIdentifier: UInt32?
    /// IMMED: the command is answered as soon as it is found good, and the operation goes on in the background.
    var isImmediate = false
}

/// What a third-party copy operation does, found good before it begins.
struct CopyWork: Sendable {
    var plan: CopyPlan
    /// Done after the last byte is moved, while the operation still counts as running.
    /// - Returns: how it ended, one of the statuses that say that it completed.
    /// - Throws: why it failed after all.
    var whenMoved: @Sendable (CopyRecord) throws(CheckCondition) -> CopyOperationStatus = { _ in .completed }
}

/// What becomes of a third-party copy operation between its command and its results, the same for all commands that
/// originate one.
extension BridgeDevice {
    /// Runs an operation to its end, in the foreground or in the background: gives it a place among those that may
    /// run, registers its list identifier, prepares it, keeps reservations, moves the bytes, holds the results,
    /// and leaves the line of audit.
    ///
    /// It ends early, with nothing left running, when its task is aborted, a unit that it uses is reset, its
    /// reservation is preempted and aborted, its nexus is lost, or COPY OPERATION ABORT names it.
    /// - Parameter prepare: checks what is asked and plans it; what it throws is the operation's failure.
    /// - Returns: TASK SET FULL when as many run as may; GOOD with IMMED when the operation has begun.
    /// - Throws: OPERATION IN PROGRESS for an identifier in use; what `prepare` threw; COPY ABORTED.
    func originate(
        _ origin: CopyOrigin, _ audit: CopyAudit, prepare: (CopyRecord) throws(CheckCondition) -> CopyWork
    ) throws(CheckCondition) -> SCSIOutcome {
        let used = origin.task.dataOut.count
        guard takeSlot(origin.state) else {
            audit.log("task set full", logger)
            return SCSIOutcome(status: .taskSetFull, dataOutUsed: used)
        }
        let operation = CopyOperation(origin, CopyRecord(origin, clock: clock), audit)
        var isHandedOver = false
        defer { if !isHandedOver { giveSlotBack(origin.state) } }
        do throws(CheckCondition) { try origin.state.register(operation.record) } catch {
            audit.log(CopyAudit.describe(error.sense), logger)
            throw error
        }
        let work: CopyWork
        do throws(CheckCondition) { work = try prepare(operation.record) } catch {
            operation.record.fail(error.sense)
            operation.log(CopyAudit.describe(error.sense), logger)
            throw error
        }
        operation.plan = work.plan
        reservations.begin(operation.task, at: operation.units)
        if isExcluded(work.plan, origin.task.nexus) {
            reservations.end(operation.task, at: operation.units)
            operation.record.cancel(.reservationConflict)
            operation.log("reservation conflict", logger)
            return SCSIOutcome(status: .reservationConflict, dataOutUsed: used)
        }
        if origin.isImmediate {
            isHandedOver = background(operation, work)
            return SCSIOutcome(status: isHandedOver ? .good : .taskSetFull, dataOutUsed: used)
        }
        defer { reservations.end(operation.task, at: operation.units) }
        return try run(operation, work)
    }

    /// - Returns: false when it could not begin.
    private func background(_ operation: CopyOperation, _ work: CopyWork) -> Bool {
        let state = operation.origin.state
        let isOpen = state.beginBackground()
        let isStarted =
            isOpen
            && BlockingThread.start { [self] in
                // Failures are told to those who ask for the status.
                do throws(CheckCondition) { _ = try run(operation, work) } catch {}
                reservations.end(operation.task, at: operation.units)
                giveSlotBack(state)
                state.endBackground()
            }
        if isStarted { return true }
        if isOpen { state.endBackground() }
        reservations.end(operation.task, at: operation.units)
        operation.record.cancel(.taskSetFull)
        operation.log("no thread", logger)
        return false
    }

    private func run(_ operation: CopyOperation, _ work: CopyWork) throws(CheckCondition) -> SCSIOutcome {
        let (record, task, state) = (operation.record, operation.task, operation.origin.state)
        let used = operation.origin.task.dataOut.count
        let control = CopyControl(record: record) {
            task.isAborted || state.isClosed || record.isTerminated
        }
        do throws(MoveFailure) {
            if control.isCancelled() { throw MoveFailure(reason: .cancelled, segment: 0) }
            // The engine writes to files, not through the units' stores, which would tell of it.
            try work.plan.asChange { () throws(MoveFailure) in try mover.move(work.plan, control) }
        } catch {
            guard error.reason == .cancelled else {
                let sense = Self.sense(error, work.plan)
                record.fail(sense)
                operation.log(CopyAudit.describe(sense), logger)
                throw CheckCondition(sense)
            }
            // Who aborted the task or closed the nexus knows; who waits for the command must hear of it.
            let isTold = record.isTerminated && !task.isAborted && !state.isClosed
            let sense = isTold ? SenseTable.clearedByDevice(segment: record.segmentsProcessed) : nil
            record.cancel(isTold ? .checkCondition : .taskAborted, sense)
            operation.log("aborted", logger)
            if let sense { throw CheckCondition(sense) }
            return SCSIOutcome(status: .taskAborted, dataOutUsed: used)
        }
        let status: CopyOperationStatus
        do throws(CheckCondition) {
            try settle(work.plan)
            status = try work.whenMoved(record)
        } catch {
            record.fail(error.sense)
            operation.log(CopyAudit.describe(error.sense), logger)
            throw error
        }
        record.processed(segments: work.plan.segmentCount)
        record.finish(status)
        operation.log("done", logger)
        return SCSIOutcome(status: .good, dataOutUsed: used)
    }

    private static func sense(_ failure: MoveFailure, _ plan: CopyPlan) -> SenseData {
        // Not from the bytes written in all: those of later segments may be among them.
        let pieces = plan.pieces.filter { $0.segment == failure.segment }
        let residue = pieces.reduce(0) { $0 + $1.count } - failure.written
        let block = UInt64(pieces.first?.target.blockSize ?? 1)
        return SenseTable.sense(
            copy: failure.segment, failure.reason,
            residue: failure.written > 0 ? residue.roundedUp(to: block) / block : nil)
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
}

/// An operation on its way: what was asked, by which task it is ended, and what is told of it.
private final class CopyOperation: @unchecked Sendable {
    // Unchecked because of `plan`, which is set once before another thread is given the operation.
    let origin: CopyOrigin
    let record: CopyRecord
    /// The command's own or, in the background, one that outlives it: no transport knows that one.
    let task: SCSITask
    private let audit: CopyAudit
    var plan: CopyPlan?

    init(_ origin: CopyOrigin, _ record: CopyRecord, _ audit: CopyAudit) {
        self.origin = origin
        self.record = record
        self.audit = audit
        let task = origin.task
        self.task =
            origin.isImmediate
            ? SCSITask(
                nexus: task.nexus, lun: task.lun, cdb: task.cdb, dataOut: [], expectedDataIn: 0,
                expectedDataOut: 0) : task
    }

    /// Where the task counts as running. The dispatcher sees to that for the unit to which a command in the
    /// foreground was addressed.
    var units: Set<Int> {
        let used = (plan?.sources ?? []).union(plan?.targets ?? [])
        return origin.isImmediate ? used.union([origin.unit.number]) : used.subtracting([origin.unit.number])
    }

    func log(_ result: String, _ logger: Logger) { audit.log(result, logger, plan, record) }
}
