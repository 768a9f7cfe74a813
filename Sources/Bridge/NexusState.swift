import Blocks
import SCSI
import Synchronization

/// What names an operation within its nexus: the copy manager is the device server of the unit that was asked, so each
/// unit has identifiers of its own.
private struct CopyKey: Hashable {
    var unit: Int
    var identifier: UInt32
}

/// What the device remembers for one I_T nexus: unit attentions and copy operations.
final class NexusState: Sendable {
    let nexus: Nexus

    private struct State {
        /// By unit number, the oldest first.
        var attentions: [Int: [AdditionalSenseCode]] = [:]
        /// Operations that run, and those whose results are held.
        var copies: [CopyKey: CopyRecord] = [:]
        /// Commands that are being executed.
        var commands = 0
        /// Operations that run, with or without an identifier.
        var running = 0
        /// Those of them that run on threads of the device's own.
        var inBackground = 0
    }
    private let state = Monitor(State())
    private let closed = Atomic(false)

    /// A nexus that is new to `units`: for each, the power on condition is pending (SAM-5 §5.14.1).
    init(_ nexus: Nexus, units: [LogicalUnit]) {
        self.nexus = nexus
        for unit in units { raise(.powerOnOrReset, unit) }
    }

    /// The nexus is lost; copies that belong to it end.
    var isClosed: Bool { closed.load(ordering: .acquiring) }
    func close() { closed.store(true, ordering: .releasing) }

    func raise(_ attention: AdditionalSenseCode, _ unit: LogicalUnit) {
        state.withLock { state in
            let pending = state.attentions[unit.number, default: []]
            guard !pending.contains(attention), pending.count < BridgeLimits.unitAttentions else { return }
            state.attentions[unit.number, default: []].append(attention)
        }
    }

    /// The unit attention to report now; it is then cleared.
    func takeAttention(_ unit: LogicalUnit) -> SenseData? {
        state.withLock { state in
            guard let code = state.attentions[unit.number]?.first else { return nil }
            state.attentions[unit.number]?.removeFirst()
            return SenseData(.unitAttention, code)
        }
    }

    // MARK: Commands

    func beginCommand() { state.withLock { $0.commands += 1 } }

    func endCommand() {
        state.withLock { $0.commands -= 1 }
        // Whoever waits has closed it before it saw that the command runs.
        if isClosed { state.withLockAndNotify { _ in } }
    }

    /// Waits until none is executed; after ``close()``, and when none can begin any more.
    func awaitCommands() { state.wait { $0.commands == 0 ? () : nil } }

    // MARK: Operations that run

    /// - Returns: false when as many copies run as may.
    func takeSlot() -> Bool {
        state.withLock { state in
            guard state.running < BridgeLimits.concurrentCopiesOfNexus else { return false }
            state.running += 1
            return true
        }
    }

    func giveSlotBack() { state.withLock { $0.running -= 1 } }

    /// - Returns: false when the nexus is lost, so that nothing more may begin.
    func beginBackground() -> Bool {
        state.withLock { state in
            if isClosed { return false }
            state.inBackground += 1
            return true
        }
    }

    func endBackground() { state.withLockAndNotify { $0.inBackground -= 1 } }

    /// Waits until nothing runs in the background. After ``close()``, nothing begins there any more.
    func awaitBackground() { state.wait { $0.inBackground == 0 ? () : nil } }

    // MARK: List identifiers

    /// Registers an operation under its identifier, if it has one; what was held for it is discarded.
    /// - Throws: OPERATION IN PROGRESS when an operation of that identifier runs.
    func register(_ record: CopyRecord) throws(CheckCondition) {
        guard let identifier = record.listIdentifier else { return }
        let key = CopyKey(unit: record.unit, identifier: identifier)
        try state.withLock { state throws(CheckCondition) in
            if state.copies[key]?.isRunning == true {
                throw CheckCondition(SenseTable.operationInProgress)
            }
            state.copies[key] = record
            if state.copies.count > BridgeLimits.heldResults { Self.discardOne(&state) }
        }
    }

    /// The operation that was asked of `unit` under that identifier, if it runs or its results are still held.
    func find(_ listIdentifier: UInt32, at unit: LogicalUnit) -> CopyRecord? {
        state.withLock { Self.find(CopyKey(unit: unit.number, identifier: listIdentifier), &$0) }
    }

    private static func find(_ key: CopyKey, _ state: inout State) -> CopyRecord? {
        guard let record = state.copies[key] else { return nil }
        if record.isExpired {
            state.copies[key] = nil
            return nil
        }
        return record
    }

    /// Makes room: those whose time is over, or else the one that ended first.
    private static func discardOne(_ state: inout State) {
        let ended = state.copies.filter { $0.value.endTime != nil }
        let expired = ended.filter { $0.value.isExpired }
        for (key, _) in expired { state.copies[key] = nil }
        if !expired.isEmpty { return }
        let first = ended.min { ($0.value.endTime ?? 0) < ($1.value.endTime ?? 0) }
        if let first { state.copies[first.key] = nil }
    }

    /// The status of a copy for RECEIVE COPY STATUS (LID1). That of an ended EXTENDED COPY (LID1) is told once.
    func takeStatus(_ listIdentifier: UInt8, at unit: LogicalUnit) -> CopyStatus? {
        let key = CopyKey(unit: unit.number, identifier: UInt32(listIdentifier))
        return state.withLock { state in
            guard let record = Self.find(key, &state) else { return nil }
            let status = record.takeStatus()
            if record.isSpent { state.copies[key] = nil }
            return status
        }
    }

    /// The failure of a copy, told once; ``FailedSegmentDetails/nothingHeld`` where there is none. Nil for an
    /// identifier that is not known.
    func takeFailure(
        _ listIdentifier: UInt8, at unit: LogicalUnit, descriptorFormat: Bool
    ) -> [UInt8]? {
        let key = CopyKey(unit: unit.number, identifier: UInt32(listIdentifier))
        return state.withLock { state in
            guard let record = Self.find(key, &state) else { return nil }
            guard let failure = record.takeFailure(descriptorFormat: descriptorFormat) else {
                return FailedSegmentDetails.nothingHeld
            }
            if record.isSpent { state.copies[key] = nil }
            return failure.encoded()
        }
    }

    /// Held results end with a reset of the unit that they were asked of.
    func discardResults(of unit: LogicalUnit) {
        state.withLock { state in
            state.copies = state.copies.filter { $0.value.isRunning || $0.value.unit != unit.number }
        }
    }
}
