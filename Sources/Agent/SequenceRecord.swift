import Blocks

/// What a sequence has told so far: the phases that it went through, how long each took, and how far it is. Hands on
/// to another observer what it is told.
public final class SequenceRecord: SequenceObserver {
    /// One phase, with the time of all its turns: a group's volumes take turns.
    public struct Phase: Hashable, Sendable {
        /// As in ``SequenceProgress/phase``.
        public var name: String
        public var seconds: Double
    }

    private struct State {
        var phases: [(name: String, nanoseconds: UInt64)] = []
        var since: UInt64
        var current = SequenceProgress(phase: SequenceRecord.firstPhase, done: 0, total: 0)
        var isOver = false

        var place: Int? { phases.firstIndex { $0.name == current.phase } }

        /// The current phase's time goes on its account.
        mutating func settle(_ now: UInt64) {
            let elapsed = isOver ? 0 : now &- since
            since = now
            if let place {
                phases[place].nanoseconds += elapsed
            } else {
                phases.append((current.phase, elapsed))
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
        state = Monitor(State(since: MonotonicClock.now))
    }

    public func progress(_ progress: SequenceProgress) {
        state.withLock { state in
            if state.current.phase != progress.phase { state.settle(MonotonicClock.now) }
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
