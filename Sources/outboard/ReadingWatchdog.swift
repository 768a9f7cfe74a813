import Glibc
import Synchronization

/// Records so far; what the timer saw last; and for how many of its ticks there was nothing new.
private let beats = Atomic<UInt64>(0)
private let seen = Atomic<UInt64>(0)
private let idle = Atomic<Int32>(0)

/// What bounds the process that reads hostile disks: a reader that is led round in circles, or to take all memory, is
/// ended, and not by itself.
enum ReadingWatchdog {
    /// Seconds of processor time without a record, and without a part of the volume that was not read before.
    private static let patience: Int32 = 5
    /// Bytes of data segments and anonymous memory. Reading a million files takes a small part of it.
    private static let memory: UInt = 512 << 20

    /// Called once, by the thread that reads.
    static func start() {
        // It ends by the signal itself: Swift's handler would take seconds to write down where.
        for number in [SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT] { signal(number, SIG_DFL) }
        limit(__rlimit_resource_t(RLIMIT_CORE.rawValue), to: 0)
        limit(__rlimit_resource_t(RLIMIT_DATA.rawValue), to: memory)
        // Made now: the first use of a global must not be in a signal's handler.
        beats.store(0, ordering: .relaxed)
        seen.store(.max, ordering: .relaxed)
        idle.store(0, ordering: .relaxed)
        var action = sigaction()
        action.__sigaction_handler.sa_handler = { _ in
            let now = beats.load(ordering: .relaxed)
            guard seen.exchange(now, ordering: .relaxed) == now else {
                return idle.store(0, ordering: .relaxed)
            }
            guard idle.add(1, ordering: .relaxed).newValue >= ReadingWatchdog.patience else { return }
            // Only what may be called in a handler.
            _exit(ExitStatus.tryAgain.rawValue)
        }
        action.sa_flags = SA_RESTART
        sigaction(SIGPROF, &action, nil)
        let second = timeval(tv_sec: 1, tv_usec: 0)
        var timer = itimerval(it_interval: second, it_value: second)
        setitimer(__itimer_which_t(ITIMER_PROF.rawValue), &timer, nil)
    }

    /// There is something new.
    static func beat() { beats.store(beats.load(ordering: .relaxed) &+ 1, ordering: .relaxed) }

    private static func limit(_ resource: __rlimit_resource_t, to bytes: UInt) {
        var limits = rlimit(rlim_cur: bytes, rlim_max: bytes)
        setrlimit(resource, &limits)
    }
}
