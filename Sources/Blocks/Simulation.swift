import Synchronization

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
}

package enum Simulation {
    private static let isOn = Atomic(false)
    private nonisolated(unsafe) static var chosen: (any SimulatedScheduler)?

    /// Nil but in the simulator: then ``Monitor``, ``BlockingThread`` and ``MonotonicClock`` are the system's.
    @inline(__always) package static var scheduler: (any SimulatedScheduler)? {
        isOn.load(ordering: .relaxed) ? chosen : nil
    }

    /// Before the first monitor is used, and between two runs.
    package static func use(_ scheduler: (any SimulatedScheduler)?) {
        chosen = scheduler
        isOn.store(scheduler != nil, ordering: .releasing)
    }
}
