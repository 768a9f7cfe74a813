import Blocks
import Foundation
import Glibc
import Host

/// A unix socket (mode 0600) on which a process tells its status: whoever connects, of its user or root, gets one JSON
/// object on one line. Nothing is read of him.
final class StatusSocket: Sendable {
    /// Seconds that a reader has to take it.
    private static let sendSeconds = 2
    /// Nanoseconds until another try, where the system has no descriptor or memory for a reader.
    private static let pauseNanoseconds: UInt64 = 50_000_000

    let path: String
    private let listener: Int32
    private let isOver = Monitor(false)

    /// - Parameter status: called for each reader, on a thread of this socket.
    /// - Throws: ``SocketPathError``.
    init(_ path: String, _ status: @escaping @Sendable () -> any Encodable & Sendable) throws(SocketPathError)
    {
        self.path = path
        listener = try SocketPath.bind(path)
        let isStarted = BlockingThread.start { [listener, isOver] in
            while true {
                let reader = accept(listener, nil, nil)
                if reader >= 0 {
                    _ = fcntl(reader, F_SETFD, FD_CLOEXEC)
                    Self.tell(status, to: reader)
                    close(reader)
                } else if [EMFILE, ENFILE, ENOBUFS, ENOMEM].contains(errno) {
                    // Who waits to be accepted stays there: it would be refused again at once.
                    BlockingThread.sleep(nanoseconds: Self.pauseNanoseconds)
                } else if ![EINTR, ECONNABORTED].contains(errno) {
                    break
                }
            }
            isOver.withLockAndNotify { $0 = true }
        }
        if !isStarted { isOver.withLock { $0 = true } }
    }

    /// Removes the socket; returns when nothing of it runs any more.
    func stop() {
        unlink(path)
        shutdown(listener, Int32(SHUT_RDWR))
        isOver.wait { $0 ? () : nil }
        close(listener)
    }

    private static func tell(_ status: () -> any Encodable & Sendable, to reader: Int32) {
        // The kernel's `struct ucred`: process, user, group.
        var peer: (pid_t, uid_t, gid_t) = (0, 0, 0)
        var length = socklen_t(MemoryLayout.size(ofValue: peer))
        guard getsockopt(reader, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0,
            peer.1 == geteuid() || peer.1 == 0
        else { return }
        var limit = timeval(tv_sec: sendSeconds, tv_usec: 0)
        setsockopt(reader, SOL_SOCKET, SO_SNDTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
        guard var rest = try? JSONEncoder().encode(status())[...] else { return }
        rest.append(UInt8(ascii: "\n"))
        while !rest.isEmpty {
            let count = rest.withUnsafeBytes { send(reader, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) }
            guard count > 0 else { return }
            rest = rest.dropFirst(count)
        }
    }
}
