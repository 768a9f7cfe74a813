import Blocks
import SCSI

/// Reservations of all units, and who runs what at them.
final class Reservations: Sendable {
    private struct Unit {
        var persistent = UnitReservations()
        /// The session that reserved the unit by RESERVE (6).
        var reserver: ObjectIdentifier?
        /// Commands at the unit, and copies that read or write it.
        var tasks: [ObjectIdentifier: SCSITask] = [:]
        /// Those of them that write it.
        var writers: [ObjectIdentifier: SCSITask] = [:]
    }
    private let state: Monitor<[Int: Unit]>
    private let directory: StateDirectory?

    /// - Parameter directory: where what is to persist is kept; nil: nothing can.
    init(_ units: [LogicalUnit] = [], in directory: StateDirectory? = nil) throws(BridgeStateError) {
        self.directory = directory
        var state: [Int: Unit] = [:]
        if let directory {
            for unit in units {
                guard let saved = try directory.load(unit) else { continue }
                state[unit.number, default: Unit()].persistent = saved
            }
        }
        self.state = Monitor(state)
    }

    /// Whether APTPL is taken.
    var canPersist: Bool { directory != nil }

    /// Counts `task` among those that PREEMPT AND ABORT ends, until ``end(_:at:)``. Before it is looked whether
    /// it is admitted: so whoever preempts either sees the task here or it sees the reservation.
    /// - Parameter written: those of the units that it writes, or where it counts already. They are told before it is looked whether they may be written:
    ///   so whoever forbids that either sees the task here or it sees the prohibition.
    func begin(_ task: SCSITask, at units: some Sequence<Int>, writing written: some Sequence<Int>) {
        state.withLock { state in
            for unit in units { state[unit, default: Unit()].tasks[ObjectIdentifier(task)] = task }
            for unit in written { state[unit, default: Unit()].writers[ObjectIdentifier(task)] = task }
        }
    }

    func end(_ task: SCSITask, at units: some Sequence<Int>) {
        state.withLockAndNotify { state in
            for unit in units {
                state[unit]?.tasks[ObjectIdentifier(task)] = nil
                state[unit]?.writers[ObjectIdentifier(task)] = nil
            }
        }
    }

    func tasks(at unit: Int) -> [SCSITask] { state.withLock { Array(($0[unit]?.tasks ?? [:]).values) } }

    /// Whether somebody else's reservation keeps `nexus` from `access`.
    func excludes(_ nexus: Nexus, _ access: Operation.Access, at unit: Int) -> Bool {
        guard access == .read || access == .write else { return false }
        return state.withLock { state in
            guard let unit = state[unit] else { return false }
            if let reserver = unit.reserver { return reserver != ObjectIdentifier(nexus) }
            return unit.persistent.excludes(InitiatorPort(nexus), writing: access == .write)
        }
    }

    /// TEST UNIT READY and the like are admitted by persistent reservations, not by RESERVE (6) (SPC-2 table 10).
    func isReservedByOther(_ nexus: Nexus, at unit: Int) -> Bool {
        state.withLock { $0[unit]?.reserver.map { $0 != ObjectIdentifier(nexus) } ?? false }
    }

    /// - Returns: false for a conflict.
    func reserve(_ nexus: Nexus, at unit: Int) -> Bool {
        state.withLock { state in
            var entry = state[unit] ?? Unit()
            guard entry.persistent.registrations.isEmpty,
                entry.reserver == nil || entry.reserver == ObjectIdentifier(nexus)
            else { return false }
            entry.reserver = ObjectIdentifier(nexus)
            state[unit] = entry
            return true
        }
    }

    /// Without effect unless `nexus` had reserved. Returns false for a conflict.
    func release(_ nexus: Nexus, at unit: Int) -> Bool {
        state.withLock { state in
            guard let entry = state[unit] else { return true }
            guard entry.persistent.registrations.isEmpty else { return false }
            if entry.reserver == ObjectIdentifier(nexus) { state[unit]?.reserver = nil }
            return true
        }
    }

    /// A reset ends what RESERVE (6) made, and copies that were asked of the unit, read it or write it, and returns
    /// when none of them runs; persistent reservations stay.
    func reset(unit: Int) {
        let ended = state.withLock { state in
            state[unit]?.reserver = nil
            let copies = (state[unit]?.tasks ?? [:]).values.filter {
                $0.cdb.first == OperationCode.extendedCopy.rawValue
            }
            for task in copies { task.abort() }
            return copies
        }
        awaitEnd(of: ended, at: unit)
    }

    /// Waits until none of `tasks` is left at the unit; what begins meanwhile is not waited for.
    func awaitEnd(of tasks: [SCSITask], at unit: Int) {
        state.wait { state in
            let isBusy = tasks.contains { state[unit]?.tasks[ObjectIdentifier($0)] != nil }
            return isBusy ? nil : ()
        }
    }

    /// Waits until those that write the unit now have ended.
    func awaitWriters(at unit: Int) {
        let writers = state.withLock { Array(($0[unit]?.writers ?? [:]).values) }
        state.wait { state in
            let isBusy = writers.contains { state[unit]?.writers[ObjectIdentifier($0)] != nil }
            return isBusy ? nil : ()
        }
    }

    /// A session is over.
    func close(_ nexus: Nexus) {
        state.withLock { state in
            for unit in state.keys where state[unit]?.reserver == ObjectIdentifier(nexus) {
                state[unit]?.reserver = nil
            }
        }
    }

    /// Nil for a conflict with RESERVE (6).
    func persistent(at unit: Int) -> UnitReservations? {
        state.withLock { state in
            let entry = state[unit] ?? Unit()
            return entry.reserver == nil ? entry.persistent : nil
        }
    }

    /// Executes PERSISTENT RESERVE OUT; for PREEMPT AND ABORT the commands of those who lost their
    /// registrations are marked, too. What is to persist is on stable storage before anybody sees that it is so:
    /// under the lock, although that takes a while.
    /// - Returns: `aborted`, to be waited for: what they wrote is written when they have ended, and nothing of
    ///   theirs comes after. Other PERSISTENT RESERVE OUT, which may wait for this one, are not among them.
    func apply(
        _ command: PersistentReserveOut, _ parameters: ReservationParameters, from nexus: Nexus,
        at logicalUnit: LogicalUnit
    ) throws(CheckCondition) -> (effect: UnitReservations.Effect, aborted: [SCSITask]) {
        let unit = logicalUnit.number
        return try state.withLock { state throws(CheckCondition) in
            var entry = state[unit] ?? Unit()
            guard entry.reserver == nil else { return (.conflict, []) }
            let persisted = entry.persistent.persists
            let effect = try entry.persistent.apply(command, parameters, from: InitiatorPort(nexus))
            if case .done = effect {
                if command.action.isRegistration { entry.persistent.persists = parameters.persists }
                if persisted || entry.persistent.persists {
                    try save(entry.persistent, logicalUnit)
                }
            }
            var aborted: [SCSITask] = []
            if case .done(let consequences) = effect, command.action == .preemptAndAbort {
                aborted = entry.tasks.values.filter {
                    consequences.preempted.contains(InitiatorPort($0.nexus)) && $0.nexus !== nexus
                }
                for task in aborted { task.abort() }
                aborted.removeAll { $0.cdb.first == OperationCode.persistentReserveOut.rawValue }
            }
            state[unit] = entry
            return (effect, aborted)
        }
    }

    private func save(_ state: UnitReservations, _ unit: LogicalUnit) throws(CheckCondition) {
        guard let directory else { preconditionFailure("APTPL was taken without a place to keep it") }
        do throws(BridgeStateError) { try directory.save(state, unit: unit) } catch {
            throw CheckCondition(SenseTable.stateNotKept)
        }
    }
}

extension PersistentReserveOutAction {
    /// Those whose APTPL, SPEC_I_PT and ALL_TG_PT bits mean something.
    var isRegistration: Bool { self == .register || self == .registerAndIgnoreExistingKey }
}

extension SCSIOutcome {
    static func reservationConflict(_ task: SCSITask) -> SCSIOutcome {
        SCSIOutcome(status: .reservationConflict, dataOutUsed: task.dataOut.count)
    }
}

extension BridgeDevice {
    /// Whether a reservation of somebody else keeps the command away.
    func isExcluded(_ task: SCSITask, _ unit: LogicalUnit) -> Bool {
        let access = OperationTable.access(of: task.cdb)
        if reservations.excludes(task.nexus, access, at: unit.number) { return true }
        let admitted: [OperationCode] = [
            .readCapacity10, .serviceActionIn16, .startStopUnit, .preventAllowMediumRemoval,
        ]
        let isAdmitted = admitted.contains { $0.rawValue == task.cdb.first }
        return access == .all && !isAdmitted
            && reservations.isReservedByOther(task.nexus, at: unit.number)
    }

    func reservation(
        _ command: ReservationCommand, _ task: SCSITask, _ unit: LogicalUnit
    ) throws(CheckCondition) -> SCSIOutcome {
        switch command {
        case .reserve6:
            return reservations.reserve(task.nexus, at: unit.number) ? .good : .reservationConflict(task)
        case .release6:
            return reservations.release(task.nexus, at: unit.number) ? .good : .reservationConflict(task)
        case .persistentIn(let action, let length):
            guard let state = reservations.persistent(at: unit.number) else {
                return .reservationConflict(task)
            }
            return .data(reservationData(action, state), allocationLength: length)
        case .persistentOut(let command): return try persistentReserveOut(command, task, unit)
        }
    }

    private func reservationData(
        _ action: PersistentReserveInAction, _ state: UnitReservations
    ) -> [UInt8] {
        switch action {
        case .readKeys: ReservationData.keys(generation: state.generation, state.registrations.map(\.key))
        case .readReservation: ReservationData.reservation(generation: state.generation, state.held)
        case .reportCapabilities:
            ReservationData.capabilities(canPersist: reservations.canPersist, persists: state.persists)
        case .readFullStatus:
            ReservationData.fullStatus(
                generation: state.generation,
                state.registrations.map {
                    ReservationData.FullStatus(
                        key: $0.key, type: state.holds($0.port) ? state.reservation?.type : nil,
                        initiatorName: $0.port.name, isid: $0.port.session)
                })
        }
    }

    private func persistentReserveOut(
        _ command: PersistentReserveOut, _ task: SCSITask, _ unit: LogicalUnit
    ) throws(CheckCondition) -> SCSIOutcome {
        guard command.parameterListLength == ReservationParameters.length else {
            throw CheckCondition(.parameterListLengthError)
        }
        let parameters = try ReservationParameters(decoding: task.dataOut)
        let isRegistration = command.action.isRegistration
        if parameters.specifiesPorts { throw CheckCondition(.invalidFieldInParameterList(byte: 20, bit: 3)) }
        if isRegistration, parameters.allTargetPorts {
            throw CheckCondition(.invalidFieldInParameterList(byte: 20, bit: 2))
        }
        if isRegistration, parameters.persists, !reservations.canPersist {
            throw CheckCondition(.invalidFieldInParameterList(byte: 20, bit: 0))
        }
        let (effect, aborted) = try reservations.apply(command, parameters, from: task.nexus, at: unit)
        guard case .done(let consequences) = effect else { return .reservationConflict(task) }
        for state in nexusStates {
            if let attention = consequences.attentions[InitiatorPort(state.nexus)] {
                state.raise(attention, unit)
            }
        }
        reservations.awaitEnd(of: aborted, at: unit.number)
        return SCSIOutcome(status: .good, dataOutUsed: ReservationParameters.length)
    }

    /// Whether reservations of others allow a copy among `plan`'s units; checked before its first byte is moved.
    func isExcluded(_ plan: CopyPlan, _ nexus: Nexus) -> Bool {
        plan.sources.contains { reservations.excludes(nexus, .read, at: $0) }
            || plan.targets.contains { reservations.excludes(nexus, .write, at: $0) }
    }
}
