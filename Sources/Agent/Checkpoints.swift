import Blocks
import HostControl
import PhysicalCopy

/// Makes a raw pass count while it runs, on a thread of its own: has the copy flushed, notes in the draft's record what is on
/// stable storage, and then tells the host that it is, in this order. Commands go on meanwhile.
///
/// The order is what a resumed copy rests on: the host keeps no originals of what it was told, so that must never be copied
/// again, and the record says so first.
final class Checkpoints: CommandAccount {
    /// What it has done by others.
    struct Steps: Sendable {
        /// Returns when all that was copied before is on stable storage.
        var flush: @Sendable () throws(StoreError) -> Void
        /// Writes the record, and returns when it is durable.
        var note: @Sendable (CopyState) throws(CopyError) -> Void
        /// Tells the host of an epoch's passed extents.
        var pass: @Sendable (_ epoch: String, _ extents: [VolumeExtent]) throws(AgentError) -> Void
        /// Describes the table of contents that was built.
        var describe: @Sendable (TocBuild.Summary) throws(CopyError) -> ResumeRecord.Contents
        var notice: @Sendable (String) -> Void
    }

    /// What a record says that changes while the copy is made.
    struct CopyState: Hashable, Sendable {
        /// The epoch in force.
        var epoch: EpochStatus
        var contents: ResumeRecord.Contents
        /// Where only a part is to be copied, the file that lists it.
        var used: ResumeRecord.File?
        /// As of the epoch.
        var durable: RangeList
    }

    private struct State {
        var ledger: CopyLedger
        var epoch: EpochStatus
        var contents: ResumeRecord.Contents
        var used: ResumeRecord.File?
        /// Whether it is known what is to be copied as of the epoch.
        var isUseKnown = true
        /// What builds the table of contents; nil: nothing does.
        var toc: TocTask?
        /// What the record on stable storage says.
        var noted: CopyState?
        /// No record could be written: it was told, and from then on nothing is noted, nor passed.
        var cannotNote = false
        /// The epoch of which the host took no passed extents.
        var refused: String?
        var hasThread = false
        var isStopping = false
        var failure: AgentError?
    }

    private let state: Monitor<State>
    private let steps: Steps
    private let interval: UInt64
    /// Whether the host may let go of originals, once nobody here needs the logical snapshot.
    private let passes: Bool
    private let inVain: CancellationToken

    /// - Parameters:
    ///   - interval: nanoseconds between two flushes.
    ///   - passes: false where somebody else will need the logical snapshot.
    ///   - inVain: cancelled when a flush that runs is needed no more.
    init(
        _ ledger: CopyLedger, as state: CopyState, every interval: UInt64, passes: Bool,
        inVain: CancellationToken, _ steps: Steps
    ) {
        self.state = Monitor(
            State(ledger: ledger, epoch: state.epoch, contents: state.contents, used: state.used))
        self.interval = interval
        self.passes = passes
        self.inVain = inVain
        self.steps = steps
    }

    // MARK: Account

    func begin(_ number: UInt8, writing ranges: [ByteRange]) {
        state.withLock { $0.ledger.begin(number, writing: ranges) }
    }

    func end(_ number: UInt8, isDone: Bool) {
        state.withLockAndNotify { $0.ledger.end(number, isDone: isDone) }
    }

    func cleared(_ range: ByteRange) { state.withLock { $0.ledger.cleared(range) } }

    /// Whether what is settled is whole blocks of the bridge's units.
    var isWhole: Bool { state.withLock { $0.ledger.isAligned } }
    /// What must be copied.
    var remaining: RangeList { state.withLock { $0.ledger.remaining } }
    /// What must be zeroed.
    var toClear: RangeList { state.withLock { $0.ledger.toClear } }
    /// Whether a record is there by which the copy can go on.
    var isNoted: Bool { state.withLock { $0.noted != nil } }
    /// Bytes that the host was told of.
    var passedBytes: UInt64 { state.withLock { $0.ledger.passed.total } }
    /// Bytes that are noted as durable.
    var durableBytes: UInt64 { state.withLock { $0.noted?.durable.total ?? 0 } }

    /// From now on this builds the table of contents; nil: nothing does, and none will be.
    func follow(_ toc: TocTask?) {
        state.withLock { state in
            state.toc = toc
            state.contents = toc == nil ? .none : .pending
        }
    }

    /// Another epoch is in force, and of its logical snapshot nobody has made a table of contents yet: ``follow(_:)`` says whether
    /// somebody will.
    /// - Parameters:
    ///   - changes: see ``CopyLedger/restart(changes:wanted:)``.
    ///   - isUseKnown: false: ``want(_:_:)`` will tell what is to be copied as of it.
    func restart(_ epoch: EpochStatus, changes: RangeList?, isUseKnown: Bool) {
        state.withLockAndNotify { state in
            state.ledger.restart(changes: changes)
            state.epoch = epoch
            state.contents = .pending
            state.toc = nil
            state.isUseKnown = isUseKnown
        }
    }

    /// This is to be copied as of the epoch in force.
    func want(_ ranges: RangeList, _ used: ResumeRecord.File?) {
        state.withLockAndNotify { state in
            state.ledger.restart(changes: .empty, wanted: ranges)
            state.used = used
            state.isUseKnown = true
        }
    }

    // MARK: The thread

    func start() throws(AgentError) {
        let isStarted = state.withLock { state in
            precondition(!state.hasThread, "it runs already")
            state.hasThread = true
            state.isStopping = false
            return BlockingThread.start { [self] in work() }
        }
        guard isStarted else {
            state.withLock { $0.hasThread = false }
            throw AgentError(
                .io, doing: "copying", to: "", because: "the system has no thread to give")
        }
    }

    /// Ends it, and returns when nothing of it runs.
    /// - Parameter isInVain: a flush that runs is given up, and none will follow.
    func stop(isInVain: Bool) {
        if isInVain { inVain.cancel() }
        state.withLockAndNotify { $0.isStopping = true }
        state.wait { $0.hasThread ? nil : () }
    }

    /// - Throws: why the copy cannot be made to last.
    func check() throws(AgentError) {
        if let failure = state.withLock({ $0.failure }) { throw failure }
    }

    private func work() {
        defer { state.withLockAndNotify { $0.hasThread = false } }
        var due = MonotonicClock.now &+ interval
        while true {
            let isOver: Bool? = state.wait(nanoseconds: AgentLimits.watchNanoseconds) { state in
                if state.isStopping { return true }
                return MonotonicClock.now >= due && state.ledger.needsFlush ? false : nil
            }
            if isOver == true { return }
            if isOver == false {
                guard flush() else { return }
                due = MonotonicClock.now &+ interval
            }
            lookAtContents()
            note()
            pass()
        }
    }

    /// One checkpoint, now, by the caller; while the thread does not run.
    func checkpoint() throws(AgentError) {
        lookAtContents()
        if state.withLock({ $0.ledger.needsFlush }), flush() { note() }
        try check()
    }

    /// - Returns: false when no more will succeed.
    private func flush() -> Bool {
        state.withLock { $0.ledger.beginFlush() }
        do throws(StoreError) {
            try steps.flush()
        } catch {
            state.withLockAndNotify { state in
                state.ledger.endFlush(isDone: false)
                // What is gone or stopped is told by those who copy. Anything else may have cost bytes that were
                // said to be written.
                if error.code != .gone {
                    state.failure = AgentError(error, doing: "flushing", to: "the copy")
                }
            }
            return false
        }
        state.withLock { $0.ledger.endFlush(isDone: true) }
        return true
    }

    /// Sees whether the table of contents is ready. Whoever reads the logical snapshot may then read no more.
    private func lookAtContents() {
        let (toc, result) = state.withLock { ($0.toc, $0.contents == .pending ? $0.toc?.result : nil) }
        guard let toc, let result else { return }
        var contents = ResumeRecord.Contents.none
        do {
            contents = try steps.describe(try result.get())
        } catch {
            // It is told when it is waited for.
        }
        state.withLock { state in
            if state.toc === toc, state.contents == .pending { state.contents = contents }
        }
    }

    /// Notes what there is, if that is not noted.
    func note() {
        let next = state.withLock { state -> CopyState? in
            let now = CopyState(
                epoch: state.epoch, contents: state.contents, used: state.used, durable: state.ledger.durable)
            // Of too many extents the record that is there stays in force, until they are fewer.
            guard !state.cannotNote, state.isUseKnown, now != state.noted,
                now.durable.ranges.count <= CopyLimits.resumeExtents
            else { return nil }
            return now
        }
        guard let next else { return }
        do throws(CopyError) {
            try steps.note(next)
            state.withLock { $0.noted = next }
        } catch {
            state.withLock { $0.cannotNote = true }
            steps.notice("\(error); if this copy is cut off, it cannot go on from here")
        }
    }

    private func pass() {
        let (epoch, list) = state.withLock { state -> (String, RangeList) in
            guard passes, !state.cannotNote, state.isUseKnown, let noted = state.noted,
                noted.contents != .pending,
                noted.epoch.uuid == state.epoch.uuid, state.refused != state.epoch.uuid
            else { return ("", .empty) }
            return (noted.epoch.uuid, state.ledger.passable(noted.durable))
        }
        var rest = list.ranges[...]
        while !rest.isEmpty {
            let part = rest.prefix(HostControl.Limits.extents)
            rest = rest.dropFirst(part.count)
            do throws(AgentError) {
                try steps.pass(epoch, part.map { VolumeExtent(offset: $0.offset, count: $0.count) })
            } catch {
                // Another epoch, none, or a host that does not know this: who watches the epoch tells what matters.
                return state.withLock { $0.refused = epoch }
            }
            state.withLock { state in
                if state.epoch.uuid == epoch { state.ledger.pass(RangeList(Array(part))) }
            }
        }
    }
}
