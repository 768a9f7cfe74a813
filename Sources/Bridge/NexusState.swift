import AsyncIO
import Blocks
import SCSI
import Synchronization

/// What the device remembers for one I_T nexus: unit attentions and list identifiers.
final class NexusState: Sendable {
    let nexus: Nexus

    private struct State {
        /// By unit number, the oldest first.
        var attentions: [Int: [AdditionalSenseCode]] = [:]
        /// By list identifier: copies that run, and those whose results are held.
        var copies: [UInt8: CopyRecord] = [:]
        /// Copies that run, with or without an identifier.
        var running = 0
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

    /// - Returns: false when as many copies run as may.
    func takeSlot() -> Bool {
        state.withLock { state in
            guard state.running < BridgeLimits.concurrentCopiesOfNexus else { return false }
            state.running += 1
            return true
        }
    }

    func giveSlotBack() { state.withLock { $0.running -= 1 } }

    /// Registers a copy under its identifier; what was held for it is discarded.
    /// - Throws: OPERATION IN PROGRESS when a copy of that identifier runs (SPC-4 §5.17.4.2).
    func register(_ record: CopyRecord, listIdentifier: UInt8) throws(CheckCondition) {
        try state.withLock { state throws(CheckCondition) in
            if state.copies[listIdentifier]?.isRunning == true {
                throw CheckCondition(SenseTable.operationInProgress)
            }
            state.copies[listIdentifier] = record
        }
    }

    /// The status of a copy. That of an ended one is held until it is asked for.
    func takeStatus(_ listIdentifier: UInt8) -> CopyStatus? {
        state.withLock { state in
            guard let record = state.copies[listIdentifier] else { return nil }
            let status = record.status
            guard status.state != .inProgress else { return status }
            if record.statusTaken.exchange(true, ordering: .acquiringAndReleasing) { return nil }
            if record.isSpent { state.copies[listIdentifier] = nil }
            return status
        }
    }

    /// The failure of a copy, held until it is asked for; ``FailedSegmentDetails/nothingHeld`` where there
    /// is none. Nil for an identifier that is not known.
    func takeFailure(_ listIdentifier: UInt8) -> [UInt8]? {
        state.withLock { state in
            guard let record = state.copies[listIdentifier] else { return nil }
            guard !record.isRunning, let failure = record.takeFailure() else {
                return FailedSegmentDetails.nothingHeld
            }
            if record.isSpent { state.copies[listIdentifier] = nil }
            return failure.encoded()
        }
    }

    /// Held results end with a reset of the unit that they were asked of (SPC-3 §6.18.2).
    func discardResults(of unit: LogicalUnit) {
        state.withLock { state in
            state.copies = state.copies.filter { $0.value.isRunning || $0.value.unit != unit.number }
        }
    }
}

/// One EXTENDED COPY, running or done, as RECEIVE COPY RESULTS sees it. Bytes and segments only grow, and
/// are final before the state is.
final class CopyRecord: Sendable {
    /// The unit that the command was addressed to.
    let unit: Int
    /// Of the engine that runs for this copy, if one does: its bytes come on top of `bytes`.
    private struct Live {
        var progress: CopyProgress?
        /// The segment that each piece of the engine's plan belongs to.
        var segments: [Int] = []
        var bytes: UInt64 = 0
        var processed = 0

        /// Segments before that of the engine's first open piece are done.
        var segmentsProcessed: Int {
            guard let progress, let last = segments.indices.last else { return processed }
            return max(processed, segments[min(progress.segmentsCompleted, last)])
        }
    }
    private let live = Monitor(Live())
    private let outcome = Atomic<UInt8>(CopyStatus.State.inProgress.rawValue)
    private let failure = Monitor<FailedSegmentDetails?>(nil)
    let statusTaken = Atomic(false)

    init(unit: LogicalUnit) { self.unit = unit.number }

    /// Bytes written to destinations so far.
    var bytesWritten: UInt64 {
        live.withLock { $0.bytes + ($0.progress?.bytesWritten ?? 0) }
    }
    /// Segments that are wholly done, none before them open.
    var segmentsProcessed: Int { live.withLock(\.segmentsProcessed) }

    /// An engine takes over whose plan has one segment for each of `segments`.
    func follow(_ progress: CopyProgress, segments: [Int]) {
        live.withLock {
            $0.progress = progress
            $0.segments = segments
        }
    }

    /// The engine is done: what it did becomes part of what was done.
    func settle() {
        live.withLock { live in
            guard let progress = live.progress else { return }
            live.bytes += progress.bytesWritten
            live.processed = live.segmentsProcessed
            live.progress = nil
            live.segments = []
        }
    }

    var isRunning: Bool { outcome.load(ordering: .acquiring) == CopyStatus.State.inProgress.rawValue }

    func wrote(_ count: UInt64) { live.withLock { $0.bytes += count } }
    func processed(segments count: Int) { live.withLock { $0.processed = max($0.processed, count) } }

    var status: CopyStatus {
        // First the state: whoever sees an ended copy must see all that it did.
        let state = CopyStatus.State(rawValue: outcome.load(ordering: .acquiring))
        return CopyStatus(
            state: state, segmentsProcessed: UInt16(clamping: segmentsProcessed), bytes: bytesWritten)
    }

    func finish() { outcome.store(CopyStatus.State.completed.rawValue, ordering: .releasing) }

    func fail(_ sense: SenseData) {
        failure.withLock {
            $0 = FailedSegmentDetails(
                status: SCSIStatus.checkCondition.rawValue, sense: sense.encodedFixed())
        }
        outcome.store(CopyStatus.State.failed.rawValue, ordering: .releasing)
    }

    /// Ended by an abort: there is no sense to hold.
    func cancel() { outcome.store(CopyStatus.State.failed.rawValue, ordering: .releasing) }

    func takeFailure() -> FailedSegmentDetails? {
        failure.withLock { failure in
            defer { failure = nil }
            return failure
        }
    }

    /// Whether all that was held has been asked for.
    var isSpent: Bool {
        statusTaken.load(ordering: .acquiring) && failure.withLock { $0 == nil }
    }
}
