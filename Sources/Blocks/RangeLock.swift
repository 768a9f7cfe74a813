/// Keeps a read-modify-write of some bytes apart from all else that is done to them. Plain operations do not
/// keep each other apart (``BlockStore`` promises no order), so they share. Ranges are in bytes.
///
/// Who waits is served in turn: nobody gets a range that conflicts with one for which somebody waits already. So
/// steady sharers do not starve those who exclude, nor the reverse. Therefore whoever waits by
/// ``lock(_:exclusive:unless:)`` may hold nothing of the same lock, nor of another that is taken after it: a sharer
/// could wait for one who waits for what it holds. ``lockPassing(_:unless:)`` is for a second range.
public final class RangeLock: Sendable {
    private struct Held {
        var start: UInt64
        var end: UInt64
        var isExclusive: Bool

        func conflicts(with other: Held) -> Bool {
            start < other.end && other.start < end && (isExclusive || other.isExclusive)
        }
    }

    private struct State {
        var held: [Held] = []
        /// In the order in which they came.
        var waiting: [(ticket: UInt64, wanted: Held)] = []
        var nextTicket: UInt64 = 0

        /// Takes what is wanted if no holder and none of those who wait before `ticket` excludes it.
        mutating func take(_ wanted: Held, before ticket: UInt64 = .max) -> Bool {
            for other in held where wanted.conflicts(with: other) { return false }
            for other in waiting where other.ticket < ticket && wanted.conflicts(with: other.wanted) {
                return false
            }
            held.append(wanted)
            return true
        }

        mutating func queue(_ wanted: Held) -> UInt64 {
            let ticket = nextTicket
            nextTicket += 1
            waiting.append((ticket, wanted))
            return ticket
        }
    }

    /// Nanoseconds after which one who waits asks again whether it shall give up.
    private static let poll: UInt64 = 10_000_000

    private let state = Monitor(State())

    public init() {}

    /// Waits until no other holder excludes `range`, behind those who wait already.
    /// - Parameter exclusive: nobody else may hold any of the bytes; without, other sharers may.
    public func lock(_ range: ByteRange, exclusive: Bool) {
        let isLocked = lock(range, exclusive: exclusive, unless: { false })
        precondition(isLocked, "gave up, which nobody asked for")
    }

    /// The same, but ends early, some milliseconds after `isGivenUp` begins to say so. It is asked only while the range
    /// must be waited for.
    /// - Returns: whether the range is now held.
    public func lock(_ range: ByteRange, exclusive: Bool, unless isGivenUp: () -> Bool) -> Bool {
        let wanted = Held(start: range.offset, end: range.end, isExclusive: exclusive)
        let ticket = state.withLock { state in state.take(wanted) ? nil : state.queue(wanted) }
        guard let ticket else { return true }
        var isLocked: Bool?
        while isLocked == nil {
            let gaveUp = isGivenUp()
            isLocked = state.wait(nanoseconds: Self.poll) { state -> Bool? in
                let isTaken = state.take(wanted, before: ticket)
                guard isTaken || gaveUp else { return nil }
                state.waiting.removeAll { $0.ticket == ticket }
                return isTaken
            }
        }
        // Others may have waited for its turn only.
        if isLocked == false { state.withLockAndNotify { _ in } }
        return isLocked == true
    }

    /// Shares `range` with others, without regard to who waits for it: waits only for one who holds it exclusively, and
    /// so may be called by one who holds other ranges, shared.
    /// - Returns: whether the range is now held; false when `isGivenUp` said so.
    public func lockPassing(_ range: ByteRange, unless isGivenUp: () -> Bool) -> Bool {
        let wanted = Held(start: range.offset, end: range.end, isExclusive: false)
        while true {
            let gaveUp = isGivenUp()
            let isLocked = state.wait(nanoseconds: Self.poll) { state -> Bool? in
                state.take(wanted, before: 0) ? true : gaveUp ? false : nil
            }
            if let isLocked { return isLocked }
        }
    }

    /// Takes the range if nobody holds it or waits for it who excludes that, and never waits.
    /// - Returns: whether the range is now held.
    public func tryLock(_ range: ByteRange, exclusive: Bool) -> Bool {
        let wanted = Held(start: range.offset, end: range.end, isExclusive: exclusive)
        return state.withLock { $0.take(wanted) }
    }

    /// How many wait for a turn; for tests.
    package var waiting: Int { state.withLock { $0.waiting.count } }

    /// Gives back what was locked with just these arguments; traps if nothing was.
    public func unlock(_ range: ByteRange, exclusive: Bool) {
        state.withLockAndNotify { state in
            let index = state.held.firstIndex {
                $0.start == range.offset && $0.end == range.end && $0.isExclusive == exclusive
            }
            precondition(index != nil, "unlocked a range that was not locked")
            state.held.swapAt(index!, state.held.count - 1)
            state.held.removeLast()
        }
    }
}
