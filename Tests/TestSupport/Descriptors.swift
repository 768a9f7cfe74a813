import Blocks
import Glibc

/// The next connection to a listening socket; no program that is started later inherits it, so that its end is seen when
/// it is closed here.
/// - Returns: negative when the socket takes no more.
public func acceptConnection(_ listener: Int32) -> Int32 {
    while true {
        let connection = accept(listener, nil, nil)
        if connection < 0, errno == EINTR || errno == ECONNABORTED { continue }
        if connection >= 0 { _ = fcntl(connection, F_SETFD, FD_CLOEXEC) }
        return connection
    }
}

/// Calls `body` so many times, and sees whether it closes a descriptor that is not its own any more: one that another
/// thread was given meanwhile. For a process of its own.
public func closesOthersDescriptors(times: Int, _ body: () -> Void) -> Bool {
    let (isOver, losses) = (Monitor(false), Monitor<Int?>(nil))
    let isStarted = BlockingThread.start {
        var count = 0
        while !isOver.withLock({ $0 }) {
            // The lowest number that is free: that which was closed last.
            let own = fcntl(0, F_DUPFD_CLOEXEC, 0)
            let isLost = (0..<8).contains { _ in fcntl(own, F_GETFD) < 0 }
            if isLost || close(own) != 0 { count += 1 }
        }
        losses.withLockAndNotify { [count] in $0 = count }
    }
    precondition(isStarted)
    for _ in 0..<times { body() }
    isOver.withLock { $0 = true }
    return losses.wait { $0 } > 0
}
