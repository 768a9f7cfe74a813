import Blocks
import Logging
import SCSI

/// How a third-party copy operation was asked for. It ends with the command: what it names goes on without it.
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
    /// - Parameter prepare: checks what is asked and plans it; what it throws is the operation's failure. It may add
    ///   to what the line of audit says.
    /// - Returns: TASK SET FULL when as many run as may; GOOD with IMMED when the operation has begun.
    /// - Throws: OPERATION IN PROGRESS for an identifier in use; what `prepare` threw; COPY ABORTED.
    func originate(
        _ origin: CopyOrigin, _ audit: CopyAudit,
        prepare: (inout CopyAudit) throws(CheckCondition) -> CopyWork
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
        do throws(CheckCondition) { work = try prepare(&operation.audit) } catch {
            operation.record.fail(error.sense)
            operation.log(CopyAudit.describe(error.sense), logger)
            throw error
        }
        operation.plan = work.plan
        reservations.begin(operation.task, at: operation.units, writing: work.plan.targets)
        // Who ends commands knows the operation's own task from here on. What it ended before was the command's.
        if origin.task.isAborted { operation.task.abort() }
        if isExcluded(work.plan, origin.task.nexus) {
            reservations.end(operation.task, at: operation.units)
            operation.record.cancel(.reservationConflict)
            operation.log(CopyAudit.reservationConflict, logger)
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
        let state = operation.state
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
        let (record, task, state) = (operation.record, operation.task, operation.state)
        let used = operation.dataOutCount
        let targets = units.filter { work.plan.targets.contains($0.number) }
        let control = CopyControl(record: record) {
            task.isAborted || state.isClosed || record.isTerminated
                || targets.contains { $0.writeProtection != nil }
        }
        copies.begin(record, work.plan, state.nexus)
        var result = CopyMeters.Result.failed
        defer { copies.end(record, result) }
        do throws(MoveFailure) {
            if control.isCancelled() { throw MoveFailure(reason: .cancelled, segment: 0) }
            // The engine writes to files, not through the units' stores, which would tell of it.
            try work.plan.asChange { () throws(MoveFailure) in try mover.move(work.plan, control) }
        } catch {
            // None of the three is ever taken back; without one, it was a destination that became protected.
            let isEnded = task.isAborted || state.isClosed || record.isTerminated
            guard error.reason == .cancelled, isEnded else {
                let sense =
                    error.reason == .cancelled
                    ? SenseTable.protectedMeanwhile(segment: record.segmentsProcessed)
                    : Self.sense(error, work.plan)
                record.fail(sense)
                operation.log(CopyAudit.describe(sense), logger)
                throw CheckCondition(sense)
            }
            // Who aborted the task or closed the nexus knows; who waits for the command must hear of it.
            let isTold = record.isTerminated && !task.isAborted && !state.isClosed
            let sense = isTold ? SenseTable.clearedByDevice(segment: record.segmentsProcessed) : nil
            record.cancel(isTold ? .checkCondition : .taskAborted, sense)
            result = .aborted
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
        result = .done
        operation.log("done", logger)
        return SCSIOutcome(status: .good, dataOutUsed: used)
    }

    /// A copy is on stable storage at those of its destinations that have no write cache.
    private func settle(_ plan: CopyPlan) throws(CheckCondition) {
        for unit in units where plan.targets.contains(unit.number) && unit.isWriteThrough {
            do throws(StoreError) { try unit.store.flush() } catch {
                throw CheckCondition(
                    SenseTable.sense(
                        copy: max(plan.segmentCount - 1, 0), .store(error, .write), residue: nil))
            }
        }
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

/// An operation on its way: by which task it is ended, and what is told of it. It does not keep the command, whose
/// data-out may be large.
private final class CopyOperation: @unchecked Sendable {
    // Unchecked because of `plan` and `audit`, which are not set any more when another thread is given the operation.
    let state: NexusState
    /// Bytes of the command.
    let dataOutCount: Int
    /// The number of the unit that was asked.
    private let unit: Int
    private let isImmediate: Bool
    let record: CopyRecord
    /// The command's own or, in the background, one that outlives it: no transport knows that one.
    let task: SCSITask
    var audit: CopyAudit
    var plan: CopyPlan?

    init(_ origin: CopyOrigin, _ record: CopyRecord, _ audit: CopyAudit) {
        state = origin.state
        dataOutCount = origin.task.dataOut.count
        unit = origin.unit.number
        isImmediate = origin.isImmediate
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
        return isImmediate ? used.union([unit]) : used.subtracting([unit])
    }

    func log(_ result: String, _ logger: Logger) { audit.log(result, logger, plan, record) }
}
