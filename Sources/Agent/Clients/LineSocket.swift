import Blocks
import Glibc

/// What carries lines to a host and back: ``LineSocket`` is it, the simulator has another. Blocking; for one thread at a
/// time. Letting it go ends the connection.
package protocol LineTransport: AnyObject {
    /// Sends all of `bytes`.
    /// - Parameter deadline: by ``MonotonicClock``.
    func send(_ bytes: [UInt8], deadline: UInt64) throws(LineFailure)
    /// The next line without its newline.
    /// - Parameter deadline: by ``MonotonicClock``.
    func receiveLine(deadline: UInt64) throws(LineFailure) -> [UInt8]
}

/// Why a connection carries no more.
package enum LineFailure: Error {
    /// `connect` and its like.
    case system(String, Int32)
    case pathTooLong
    case closed
    case timedOut
    /// A line longer than the limit.
    case lineTooLong
}

/// A connection to a unix socket that carries lines.
package final class LineSocket: LineTransport {
    package typealias Failure = LineFailure

    private let descriptor: Int32
    private let lineLimit: Int
    private var received: [UInt8] = []

    package init(path: String, lineLimit: Int) throws(Failure) {
        self.lineLimit = lineLimit
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        let bytes = Array(path.utf8)
        let capacity = MemoryLayout.size(ofValue: address.sun_path)
        guard !bytes.isEmpty, bytes.count < capacity else { throw .pathTooLong }
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: bytes) }
        let type = Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue)
        descriptor = socket(AF_UNIX, type, 0)
        guard descriptor >= 0 else { throw .system("socket", errno) }
        let code = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        // What is open is closed by `deinit`, which runs since all is set: closed here, too, it would be somebody else's.
        guard code == 0 else { throw .system("connect", errno) }
    }

    deinit { close(descriptor) }

    /// The user who serves the socket (SO_PEERCRED).
    func peerUser() throws(Failure) -> uid_t {
        var credentials = PeerCredentials(pid: 0, uid: 0, gid: 0)
        var length = socklen_t(MemoryLayout<PeerCredentials>.size)
        guard getsockopt(descriptor, SOL_SOCKET, SO_PEERCRED, &credentials, &length) == 0 else {
            throw .system("getsockopt", errno)
        }
        return credentials.uid
    }

    /// Linux's `struct ucred`, which Glibc hides behind _GNU_SOURCE.
    private struct PeerCredentials {
        var pid: pid_t
        var uid: uid_t
        var gid: gid_t
    }

    package func send(_ bytes: [UInt8], deadline: UInt64) throws(Failure) {
        var sent = 0
        while sent < bytes.count {
            try wait(for: Int16(POLLOUT), deadline: deadline)
            let count = bytes.withUnsafeBytes {
                Glibc.send(
                    descriptor, $0.baseAddress! + sent, bytes.count - sent,
                    Int32(MSG_NOSIGNAL) | Int32(MSG_DONTWAIT))
            }
            if count >= 0 {
                sent += count
            } else if errno == EPIPE || errno == ECONNRESET {
                throw .closed
            } else if errno != EINTR, errno != EAGAIN {
                throw .system("send", errno)
            }
        }
    }

    package func receiveLine(deadline: UInt64) throws(Failure) -> [UInt8] {
        var searched = 0
        while true {
            if let end = received[searched...].firstIndex(of: UInt8(ascii: "\n")) {
                let line = Array(received[..<end])
                received.removeSubrange(...end)
                guard line.count < lineLimit else { throw .lineTooLong }
                return line
            }
            guard received.count < lineLimit else { throw .lineTooLong }
            searched = received.count
            try wait(for: Int16(POLLIN), deadline: deadline)
            var part = [UInt8](repeating: 0, count: 16 << 10)
            let count = recv(descriptor, &part, part.count, Int32(MSG_DONTWAIT))
            if count > 0 {
                received += part[..<count]
            } else if count == 0 || errno == ECONNRESET {
                throw .closed
            } else if errno != EINTR, errno != EAGAIN {
                throw .system("recv", errno)
            }
        }
    }

    private func wait(for events: Int16, deadline: UInt64) throws(Failure) {
        while true {
            let now = MonotonicClock.now
            guard now < deadline else { throw .timedOut }
            var entry = pollfd(fd: descriptor, events: events, revents: 0)
            let milliseconds = min((deadline - now) / 1_000_000 + 1, 3_600_000)
            let count = poll(&entry, 1, Int32(milliseconds))
            if count > 0 { return }
            if count < 0, errno != EINTR { throw .system("poll", errno) }
        }
    }
}

/// The system's words for an error number: `No such file or directory`.
func systemMessage(_ number: Int32) -> String { String(cString: strerror(number)) }
