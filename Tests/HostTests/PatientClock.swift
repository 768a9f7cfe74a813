import Blocks

/// Time that passes only where the one thread of a process (an exit test) waits for it: so what was waited, or foretold, is
/// known to the nanosecond, however slow the machine is. Threads that are started, to watch over a time-out, never have
/// their turn.
final class PatientClock: SimulatedScheduler, @unchecked Sendable {
    private(set) var now: UInt64 = 1_000_000_000_000
    private var random = SeededGenerator(seed: 1)

    /// From here on it is everybody's clock.
    static func start() -> PatientClock {
        let clock = PatientClock()
        Simulation.use(clock)
        return clock
    }

    func pass(seconds: UInt64) { now += seconds * 1_000_000_000 }

    func wait(at place: UnsafeRawPointer, until deadline: UInt64?) -> Bool {
        guard let deadline else { preconditionFailure("nobody is there to wake who waits here") }
        now = max(now, deadline)
        return false
    }

    func start(_ body: @escaping @Sendable () -> Void) {}
    func yield() {}
    func wake(_ place: UnsafeRawPointer) {}
    func nextRandom() -> UInt64 { random.next() }
}
