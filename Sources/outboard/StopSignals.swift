import Blocks
import Glibc
import Synchronization

/// Where the handler writes; −1 before there is a pipe.
private let signalPipe = Atomic<Int32>(-1)

/// SIGINT, SIGTERM and SIGHUP as calls of a closure on a thread of its own. Programs that we start get the
/// system's dispositions back. A SIGHUP that was ignored when we were started (nohup) stays ignored.
enum StopSignals {
    /// From now on each signal calls `handler` with its number and how many have come, counted from 1.
    /// Called once.
    static func handle(_ handler: @escaping @Sendable (_ signal: Int32, _ count: Int) -> Void) {
        var ends: [Int32] = [0, 0]
        precondition(pipe(&ends) == 0, "no pipe for signals")
        for end in ends { precondition(fcntl(end, F_SETFD, FD_CLOEXEC) == 0) }
        let readEnd = ends[0]
        signalPipe.store(ends[1], ordering: .releasing)
        for number in [SIGINT, SIGTERM, SIGHUP] where number != SIGHUP || !isIgnored(number) {
            install(number)
        }
        let started = BlockingThread.start {
            var count = 0
            while let number = next(from: readEnd) {
                count += 1
                handler(Int32(number), count)
            }
        }
        precondition(started, "no thread for signals")
    }

    /// Ignores SIGINT, for a child whose parent decides when it ends.
    static func ignoreInterrupts() { signal(SIGINT, SIG_IGN) }

    private static func isIgnored(_ number: Int32) -> Bool {
        var action = sigaction()
        guard sigaction(number, nil, &action) == 0 else { return false }
        // SIG_IGN is 1: no function is there, and functions cannot be compared.
        return unsafeBitCast(action.__sigaction_handler.sa_handler, to: Int.self) == 1
    }

    private static func install(_ number: Int32) {
        var action = sigaction()
        action.__sigaction_handler.sa_handler = { number in
            let saved = errno
            var byte = UInt8(truncatingIfNeeded: number)
            // A full pipe has signals enough.
            _ = write(signalPipe.load(ordering: .relaxed), &byte, 1)
            errno = saved
        }
        action.sa_flags = SA_RESTART
        sigaction(number, &action, nil)
    }

    private static func next(from descriptor: Int32) -> UInt8? {
        var byte: UInt8 = 0
        while true {
            let count = read(descriptor, &byte, 1)
            if count == 1 { return byte }
            if count == 0 || errno != EINTR { return nil }
        }
    }
}
