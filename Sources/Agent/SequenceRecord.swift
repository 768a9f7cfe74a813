import Blocks

/// What a sequence has told so far: the phases that it went through, how long each took, and how far it is. Hands on
/// to another observer what it is told.
public final class SequenceRecord: SequenceObserver {
    /// One phase, with the time of all its turns: a group's volumes take turns.
    public struct Phase: Hashable, Sendable {
        /// ``SequenceProgress/phaseName``.
        public var name: String
        public var seconds: Double
    }

    private struct State {
        var phases: [(name: String, nanoseconds: UInt64)] = []
        var since: UInt64
        var current = SequenceProgress(phase: SequenceRecord.firstPhase, done: 0, total: 0)
        /// When what is being done was begun, with so many bytes done by now: of a group each volume begins anew.
        var runSince: UInt64
        var copiedBytes: UInt64 = 0
        var isOver = false

        var place: Int? { phases.firstIndex { $0.name == current.phaseName } }

        /// The current phase's time goes on its account.
        mutating func settle(_ now: UInt64) {
            let elapsed = isOver ? 0 : now &- since
            since = now
            if let place {
                phases[place].nanoseconds += elapsed
            } else {
                phases.append((current.phaseName, elapsed))
            }
        }
    }

    /// What a sequence does before it says anything else.
    static let firstPhase = "preparing"

    private let state: Monitor<State>
    private let next: any SequenceObserver

    /// - Parameter next: told whatever this is told, in the same order.
    public init(tellingAlso next: any SequenceObserver) {
        self.next = next
        let now = MonotonicClock.now
        state = Monitor(State(since: now, runSince: now))
    }

    public func progress(_ progress: SequenceProgress) {
        state.withLock { state in
            let isAnother = state.current.phaseName != progress.phaseName
            if isAnother { state.settle(MonotonicClock.now) }
            if isAnother || progress.done == 0 { state.runSince = MonotonicClock.now }
            let fill = progress.cacheFill ?? state.current.cacheFill
            state.current = progress
            state.current.cacheFill = fill
        }
        next.progress(progress)
    }

    public func notice(_ text: String) { next.notice(text) }

    /// Something else is being done now, of which no progress is known yet.
    func enter(_ phase: String) { progress(SequenceProgress(phase: phase, done: 0, total: 0)) }

    /// From now on no phase takes any time.
    public func finish() {
        state.withLock { state in
            state.settle(MonotonicClock.now)
            state.isOver = true
        }
    }

    func copied(_ bytes: UInt64) { state.withLock { $0.copiedBytes += bytes } }

    /// Bytes that bridges have copied, original images included.
    public var copiedBytes: UInt64 { state.withLock { $0.copiedBytes } }

    /// Bytes a second of what is being done; nil while nothing can be said.
    public var rate: Double? {
        state.withLock { state in
            let seconds = Double(MonotonicClock.now &- state.runSince) / 1e9
            return seconds > 0.5 && state.current.done > 0 && !state.isOver
                ? Double(state.current.done) / seconds : nil
        }
    }

    /// What was told last; the cache's fill is the last one that was told at all.
    public var current: SequenceProgress { state.withLock { $0.current } }

    /// All phases up to now, in the order in which they began.
    public var phases: [Phase] {
        state.withLock { state in
            state.settle(MonotonicClock.now)
            return state.phases.map { Phase(name: $0.name, seconds: Double($0.nanoseconds) / 1e9) }
        }
    }
}
