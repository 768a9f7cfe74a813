import AsyncIO
import Blocks
import SCSI

/// One third-party copy operation, running or done, as those see it that ask for it or end it. Bytes and
/// segments only grow, and are final before the state is.
final class CopyRecord: Sendable {
    /// The unit that the command was addressed to.
    let unit: Int
    /// Of the THIRD-PARTY COPY OUT command that began it.
    let serviceAction: UInt8
    /// Of the unit and the nexus. Those of LID1, which have 8 bits, and those of LID4 are of one space. Nil: nobody can
    /// ask for it.
    let listIdentifier: UInt32?
    /// Its command has been answered, or will be, before it ends (IMMED).
    let isBackground: Bool
    private let clock: DeviceClock

    private struct State {
        /// Of the engine that runs for this copy, if one does: its bytes come on top of `bytes`.
        var progress: CopyProgress?
        /// The segment that each piece of the engine's plan belongs to.
        var segments: [Int] = []
        var bytes: UInt64 = 0
        var processed = 0
        /// COPY OPERATION ABORT has named it.
        var isTerminated = false
        /// Nil while it runs.
        var end: End?
        var rodToken: [UInt8]?
        var statusTaken = false
        var failureTaken = false

        var bytesWritten: UInt64 { bytes + (progress?.bytesWritten ?? 0) }
        /// Segments before that of the engine's first open piece are done.
        var segmentsProcessed: Int {
            guard let progress, let last = segments.indices.last else { return processed }
            return max(processed, segments[min(progress.segmentsCompleted, last)])
        }
    }
    private struct End {
        var status: CopyOperationStatus
        /// With which the command ended, or would have, had it not been answered before.
        var scsi: SCSIStatus
        var sense: SenseData?
        var time: UInt64
    }
    private let state = Monitor(State())

    init(_ origin: CopyOrigin, clock: DeviceClock) {
        unit = origin.unit.number
        serviceAction = origin.serviceAction
        listIdentifier = origin.listIdentifier
        isBackground = origin.isImmediate
        self.clock = clock
    }

    // MARK: For what moves the bytes

    /// An engine takes over whose plan has one segment for each of `segments`.
    func follow(_ progress: CopyProgress, segments: [Int]) {
        state.withLock {
            $0.progress = progress
            $0.segments = segments
        }
    }

    /// The engine is done: what it did becomes part of what was done.
    func settle() {
        state.withLock { state in
            guard let progress = state.progress else { return }
            state.processed = state.segmentsProcessed
            state.bytes += progress.bytesWritten
            state.progress = nil
            state.segments = []
        }
    }

    func wrote(_ count: UInt64) { state.withLock { $0.bytes += count } }
    func processed(segments count: Int) { state.withLock { $0.processed = max($0.processed, count) } }

    /// COPY OPERATION ABORT, as seen by what moves the bytes.
    var isTerminated: Bool { state.withLock(\.isTerminated) }

    // MARK: The end

    /// - Parameter status: one of those that say that it completed.
    func finish(_ status: CopyOperationStatus = .completed) { end(status, .good, nil) }
    func fail(_ sense: SenseData) { end(.failed, .checkCondition, sense) }
    /// - Parameter sense: what an initiator is told that did not abort the command itself.
    func cancel(_ status: SCSIStatus = .taskAborted, _ sense: SenseData? = nil) {
        end(.terminated, status, sense)
    }

    private func end(_ status: CopyOperationStatus, _ scsi: SCSIStatus, _ sense: SenseData?) {
        state.withLockAndNotify { state in
            precondition(state.end == nil, "an operation ended twice")
            state.end = End(status: status, scsi: scsi, sense: sense, time: clock.now())
        }
    }

    /// Has it end soon, and waits until it has.
    /// - Returns: false when it had ended before.
    func terminate() -> Bool {
        let isRunning = state.withLock { state in
            if state.end == nil { state.isTerminated = true }
            return state.end == nil
        }
        if isRunning { state.wait { $0.end == nil ? nil : () } }
        return isRunning
    }

    // MARK: For those who ask

    var isRunning: Bool { state.withLock { $0.end == nil } }
    /// By the device's clock; nil while it runs.
    var endTime: UInt64? { state.withLock { $0.end?.time } }
    /// Whether its results have been held for ``BridgeLimits/resultsHeldSeconds``.
    var isExpired: Bool {
        guard let endTime else { return false }
        return clock.now() >= endTime + BridgeLimits.resultsHeldSeconds * 1_000_000_000
    }

    /// Bytes written to destinations so far.
    var bytesWritten: UInt64 { state.withLock(\.bytesWritten) }
    /// Reads and writes of an engine that are under way.
    var requestsInFlight: Int { state.withLock { $0.progress?.requestsInFlight ?? 0 } }
    /// Segments that are wholly done, none before them open.
    var segmentsProcessed: Int { state.withLock(\.segmentsProcessed) }

    /// A ROD token that the operation made, held with its results.
    var rodToken: [UInt8]? {
        get { state.withLock(\.rodToken) }
        set { state.withLock { $0.rodToken = newValue } }
    }

    /// For RECEIVE COPY STATUS (LID4) and RECEIVE ROD TOKEN INFORMATION; may be asked for again and again. The
    /// transfer count is in bytes.
    /// - Parameter descriptorFormat: of the sense data; else in fixed format (D_SENSE of the unit that is asked).
    func report(descriptorFormat: Bool) -> CopyOperationReport {
        state.withLock { state in
            let running = isBackground ? CopyOperationStatus.inBackground : .inForeground
            var report = CopyOperationReport(
                serviceAction: serviceAction, status: state.end?.status ?? running)
            let (bytes, segments) = (state.bytesWritten, state.segmentsProcessed)
            report.operations = UInt16(truncatingIfNeeded: (bytes >> 20) &+ UInt64(segments))
            report.transferCount = bytes
            report.segmentsProcessed = UInt16(clamping: segments)
            if let end = state.end {
                report.completionStatus = end.scsi.rawValue
                report.sense = end.sense?.encoded(descriptorFormat: descriptorFormat) ?? []
            } else {
                report.updateDelay = BridgeLimits.statusUpdateMilliseconds
            }
            return report
        }
    }

    /// For RECEIVE COPY STATUS (LID1). Nil when that of an ended EXTENDED COPY (LID1) was told already.
    func takeStatus() -> CopyStatus? {
        state.withLock { state in
            if let end = state.end {
                if isToldOnce, state.statusTaken { return nil }
                state.statusTaken = true
                return CopyStatus(
                    state: end.status == .failed || end.status == .terminated ? .failed : .completed,
                    segmentsProcessed: UInt16(clamping: state.segmentsProcessed), bytes: state.bytesWritten)
            }
            return CopyStatus(
                state: .inProgress, segmentsProcessed: UInt16(clamping: state.segmentsProcessed),
                bytes: state.bytesWritten)
        }
    }

    /// Nil where there is none, or it was told already.
    func takeFailure(descriptorFormat: Bool) -> FailedSegmentDetails? {
        state.withLock { state in
            guard let end = state.end, let sense = end.sense, !state.failureTaken else { return nil }
            state.failureTaken = isToldOnce
            return FailedSegmentDetails(
                status: end.scsi.rawValue, sense: sense.encoded(descriptorFormat: descriptorFormat))
        }
    }

    /// SPC-3's results are discarded when they were told; SPC-4's are held for their time.
    private var isToldOnce: Bool { serviceAction == ServiceAction.extendedCopyLID1 }

    /// Whether all that was held has been told.
    var isSpent: Bool {
        guard isToldOnce else { return false }
        return state.withLock { $0.statusTaken && ($0.failureTaken || $0.end?.sense == nil) }
    }
}

/// The device's time, which tests hand in.
struct DeviceClock: Sendable {
    /// Nanoseconds since some moment; never less than before.
    let now: @Sendable () -> UInt64

    static let monotonic = DeviceClock { MonotonicClock.now }
}
