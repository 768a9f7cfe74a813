/// What takes the place of the system's threads, waiting and time, so that a whole host, bridge and agent run in one
/// process, one thread at a time, in an order that a seed decides (Tests/Simulation).
package protocol SimulatedScheduler: AnyObject, Sendable {
    /// Nanoseconds.
    var now: UInt64 { get }
    func start(_ body: @escaping @Sendable () -> Void)
    /// Others may run here.
    func yield()
    /// Returns when somebody wakes that place, or at the deadline (nil: none).
    /// - Returns: false when the time is over.
    func wait(at place: UnsafeRawPointer, until deadline: UInt64?) -> Bool
    func wake(_ place: UnsafeRawPointer)
    func nextRandom() -> UInt64
}

package enum Simulation {
    /// A flag of its own, because every look at the clock asks; written while no other thread is there.
    private nonisolated(unsafe) static var isOn = false
    private nonisolated(unsafe) static var chosen: (any SimulatedScheduler)?

    /// Nil but in the simulator: then ``Monitor``, ``BlockingThread``, ``MonotonicClock`` and ``RandomSource`` are the
    /// system's.
    @inline(__always) package static var scheduler: (any SimulatedScheduler)? { isOn ? chosen : nil }

    /// Before the first monitor is used, and between two runs.
    package static func use(_ scheduler: (any SimulatedScheduler)?) {
        chosen = scheduler
        isOn = scheduler != nil
    }
}

/// Where names and samples get what nobody can foresee: the system's generator, or the seed's in the simulator, so that a
/// run is the same every time.
package struct RandomSource: RandomNumberGenerator {
    package init() {}
    package mutating func next() -> UInt64 {
        if let simulation = Simulation.scheduler { return simulation.nextRandom() }
        var system = SystemRandomNumberGenerator()
        return system.next()
    }
}
