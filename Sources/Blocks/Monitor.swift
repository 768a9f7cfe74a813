import Glibc

/// State that lives inside its lock, with a condition to wait for. Mutex and condition are POSIX's and not
/// `Synchronization.Mutex`, which has no condition and which ThreadSanitizer cannot see.
///
/// The lock is not recursive, and nothing that takes long may run under it.
public final class Monitor<State>: @unchecked Sendable {
    private var state: State
    private let mutex: UnsafeMutablePointer<pthread_mutex_t>
    private let condition: UnsafeMutablePointer<pthread_cond_t>

    public init(_ state: sending State) {
        self.state = state
        mutex = .allocate(capacity: 1)
        mutex.initialize(to: pthread_mutex_t())
        condition = .allocate(capacity: 1)
        condition.initialize(to: pthread_cond_t())
        precondition(pthread_mutex_init(mutex, nil) == 0)
        var attributes = pthread_condattr_t()
        precondition(pthread_condattr_init(&attributes) == 0)
        precondition(pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC) == 0)
        precondition(pthread_cond_init(condition, &attributes) == 0)
        pthread_condattr_destroy(&attributes)
    }

    deinit {
        pthread_cond_destroy(condition)
        condition.deallocate()
        pthread_mutex_destroy(mutex)
        mutex.deallocate()
    }

    /// Runs `body` under the lock.
    @discardableResult
    public func withLock<Result, Failure: Error>(
        _ body: (inout State) throws(Failure) -> Result
    ) throws(Failure) -> Result {
        lock()
        defer { unlock() }
        return try body(&state)
    }

    /// Runs `body` under the lock, then wakes all who wait.
    @discardableResult
    public func withLockAndNotify<Result, Failure: Error>(
        _ body: (inout State) throws(Failure) -> Result
    ) throws(Failure) -> Result {
        lock()
        defer {
            notify()
            unlock()
        }
        return try body(&state)
    }

    /// Asks `body` under the lock until it gives a value, and between times waits for
    /// ``withLockAndNotify(_:)``.
    public func wait<Result>(until body: (inout State) -> Result?) -> Result {
        lock()
        defer { unlock() }
        while true {
            if let result = body(&state) { return result }
            if let simulation = Simulation.scheduler {
                _ = waitSimulated(simulation, until: nil)
            } else {
                precondition(pthread_cond_wait(condition, mutex) == 0)
            }
        }
    }

    /// The same with a time-out in nanoseconds: nil when `body` gave none in that time.
    public func wait<Result>(nanoseconds: UInt64, until body: (inout State) -> Result?) -> Result? {
        let deadline = MonotonicClock.now &+ nanoseconds
        var time = timespec(tv_sec: Int(deadline / 1_000_000_000), tv_nsec: Int(deadline % 1_000_000_000))
        lock()
        defer { unlock() }
        while true {
            if let result = body(&state) { return result }
            if let simulation = Simulation.scheduler {
                if waitSimulated(simulation, until: deadline) { continue }
                return body(&state)
            }
            let code = pthread_cond_timedwait(condition, mutex, &time)
            if code == ETIMEDOUT { return body(&state) }
            precondition(code == 0)
        }
    }

    private func lock() {
        if let simulation = Simulation.scheduler {
            simulation.yield()
            while pthread_mutex_trylock(mutex) != 0 { simulation.yield() }
        } else {
            precondition(pthread_mutex_lock(mutex) == 0)
        }
    }

    private func notify() {
        pthread_cond_broadcast(condition)
        Simulation.scheduler?.wake(condition)
    }

    /// Only one thread runs in a simulation: nothing is missed between the unlocking and the waiting.
    private func waitSimulated(_ simulation: any SimulatedScheduler, until deadline: UInt64?) -> Bool {
        unlock()
        let isWoken = simulation.wait(at: condition, until: deadline)
        while pthread_mutex_trylock(mutex) != 0 { simulation.yield() }
        return isWoken
    }

    private func unlock() { precondition(pthread_mutex_unlock(mutex) == 0) }
}

/// Time that only moves forward.
public enum MonotonicClock {
    /// Nanoseconds since some moment of this boot.
    public static var now: UInt64 {
        if let simulation = Simulation.scheduler { return simulation.now }
        var time = timespec()
        clock_gettime(CLOCK_MONOTONIC, &time)
        return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
    }
}

/// A thread of the system, for work that blocks.
public enum BlockingThread {
    /// Holds the calling thread for so long.
    public static func sleep(nanoseconds: UInt64) {
        let nothing = Monitor(0)
        _ = nothing.wait(nanoseconds: nanoseconds) { _ -> Void? in nil }
    }

    private final class Start {
        let body: @Sendable () -> Void
        init(_ body: @escaping @Sendable () -> Void) { self.body = body }
    }

    /// Starts a detached thread that runs `body` and ends.
    /// - Returns: false when the system has no thread to give.
    @discardableResult
    public static func start(
        stackSize: Int = 512 << 10, _ body: @escaping @Sendable () -> Void
    ) -> Bool {
        if let simulation = Simulation.scheduler {
            simulation.start(body)
            return true
        }
        var attributes = pthread_attr_t()
        pthread_attr_init(&attributes)
        defer { pthread_attr_destroy(&attributes) }
        pthread_attr_setdetachstate(&attributes, Int32(PTHREAD_CREATE_DETACHED))
        pthread_attr_setstacksize(&attributes, stackSize)
        let start = Unmanaged.passRetained(Start(body))
        var thread = pthread_t()
        let code = pthread_create(
            &thread, &attributes,
            { argument in
                let start = Unmanaged<Start>.fromOpaque(argument!).takeRetainedValue()
                start.body()
                return nil
            }, start.toOpaque())
        guard code == 0 else {
            start.release()
            return false
        }
        return true
    }
}
