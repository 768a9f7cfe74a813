import Blocks
import Synchronization

/// The gate that every write passes: a count of those inside and a bit that closes it, in one atomic word, so
/// that passing costs one atomic operation in and one out.
final class Gate: Sendable {
    private static let closedBit: UInt64 = 1 << 63
    private let word = Atomic<UInt64>(0)
    /// To wait at: for the gate to open, or for it to be drained. The state is the word above; one without any
    /// bytes here would share its address with the monitor's own fields, which ThreadSanitizer takes for a race.
    private let waiting = Monitor(0)

    var isClosed: Bool { word.load(ordering: .relaxed) & Self.closedBit != 0 }

    @inline(__always) func enter() {
        let before = word.wrappingAdd(1, ordering: .acquiringAndReleasing).oldValue
        if before & Self.closedBit != 0 { enterSlowly() }
    }

    /// Enters unless the gate is closed; never waits.
    @inline(__always) func tryEnter() -> Bool {
        guard !isClosed else { return false }
        guard word.wrappingAdd(1, ordering: .acquiringAndReleasing).oldValue & Self.closedBit == 0 else {
            leave()
            return false
        }
        return true
    }

    private func enterSlowly() {
        repeat {
            leave()
            waiting.wait { _ in isClosed ? nil : () }
        } while word.wrappingAdd(1, ordering: .acquiringAndReleasing).oldValue & Self.closedBit != 0
    }

    @inline(__always) func leave() {
        if word.wrappingSubtract(1, ordering: .acquiringAndReleasing).newValue == Self.closedBit {
            waiting.withLockAndNotify { _ in }
        }
    }

    /// Nobody enters from here on.
    func close() { word.bitwiseOr(Self.closedBit, ordering: .acquiringAndReleasing) }

    enum Drain {
        case drained, timedOut
        /// Somebody opened the gate meanwhile.
        case reopened
    }

    /// Waits until nobody is inside a closed gate, at most for `nanoseconds`.
    func drain(nanoseconds: UInt64) -> Drain {
        let outcome: Drain? = waiting.wait(nanoseconds: nanoseconds) { _ in
            let now = word.load(ordering: .acquiring)
            guard now & Self.closedBit != 0 else { return .reopened }
            return now == Self.closedBit ? .drained : nil
        }
        return outcome ?? .timedOut
    }

    func open() {
        word.bitwiseAnd(~Self.closedBit, ordering: .acquiringAndReleasing)
        waiting.withLockAndNotify { _ in }
    }
}
