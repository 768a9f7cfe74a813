import Blocks
import Glibc

func systemMessage(_ errno: Int32) -> String {
    withUnsafeTemporaryAllocation(of: CChar.self, capacity: 256) { text in
        guard strerror_r(errno, text.baseAddress!, text.count) == 0 else { return "error \(errno)" }
        return String(cString: text.baseAddress!)
    }
}

/// The socket file of a server: made with mode 0600 from the start, and taken away only while it is still
/// the one made here.
struct UnixSocket: Sendable {
    let path: String
    private let device: dev_t
    private let inode: ino_t

    /// Listens at `path` and gives the descriptor, close-on-exec and non-blocking. The socket file of a dead server
    /// is replaced.
    /// - Parameter patience: nanoseconds that another process may keep the directory locked.
    static func listen(
        at path: String, patience: UInt64 = NBDLimits.directoryLock
    ) throws(NBDServerError) -> (socket: UnixSocket, descriptor: Int32) {
        guard var address = socketAddress(path) else { throw .pathTooLong(path) }
        // Two servers that start at once must not both find the file stale: one after the other.
        let directory = path.lastIndex(of: "/").map { String(path[...$0]) } ?? "."
        let lock = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard lock >= 0 else { throw .system(action: "open", subject: directory, errno: errno) }
        defer { close(lock) }
        let start = MonotonicClock.now
        while flock(lock, LOCK_EX | LOCK_NB) != 0 {
            switch errno {
            case EINTR: continue
            case EWOULDBLOCK where MonotonicClock.now - start < patience: usleep(10_000)
            case EWOULDBLOCK: throw .directoryLocked(directory)
            default: throw .system(action: "lock", subject: directory, errno: errno)
            }
        }
        try removeStale(path, &address)
        let descriptor = socket(AF_UNIX, kind | Int32(SOCK_NONBLOCK.rawValue), 0)
        guard descriptor >= 0 else { throw .system(action: "make a socket for", subject: path, errno: errno) }
        // Linux makes the file with the mode of the socket, so that it is never open to others.
        let size = socklen_t(MemoryLayout<sockaddr_un>.size)
        var status = stat()
        guard fchmod(descriptor, 0o600) == 0,
            withSockAddr(&address, { bind(descriptor, $0, size) }) == 0,
            lstat(path, &status) == 0,
            Glibc.listen(descriptor, 128) == 0
        else {
            let code = errno
            close(descriptor)
            throw .system(action: "listen on", subject: path, errno: code)
        }
        return (UnixSocket(path: path, device: status.st_dev, inode: status.st_ino), descriptor)
    }

    /// Removes the socket file if it is still ours.
    func remove() {
        var status = stat()
        guard lstat(path, &status) == 0, status.st_dev == device, status.st_ino == inode else { return }
        unlink(path)
    }

    private static let kind = Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue)

    private static func socketAddress(_ path: String) -> sockaddr_un? {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        let bytes = Array(path.utf8)
        guard !bytes.isEmpty, bytes.count < MemoryLayout.size(ofValue: address.sun_path) else { return nil }
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: bytes) }
        return address
    }

    private static func withSockAddr(
        _ address: inout sockaddr_un, _ body: (UnsafePointer<sockaddr>) -> Int32
    ) -> Int32 {
        withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { body($0) }
        }
    }

    private static func removeStale(_ path: String, _ address: inout sockaddr_un) throws(NBDServerError) {
        var status = stat()
        guard lstat(path, &status) == 0 else {
            guard errno == ENOENT else { throw .system(action: "look at", subject: path, errno: errno) }
            return
        }
        guard status.st_mode & S_IFMT == S_IFSOCK else { throw .notASocket(path) }
        let probe = socket(AF_UNIX, kind | Int32(SOCK_NONBLOCK.rawValue), 0)
        guard probe >= 0 else { throw .system(action: "make a socket for", subject: path, errno: errno) }
        defer { close(probe) }
        let size = socklen_t(MemoryLayout<sockaddr_un>.size)
        let answer = withSockAddr(&address) { connect(probe, $0, size) }
        // Only a refusal says that nobody listens; a full backlog (EAGAIN), for one, says the contrary.
        guard answer != 0, errno == ECONNREFUSED else { throw .socketInUse(path) }
        guard unlink(path) == 0 || errno == ENOENT else {
            throw .system(action: "remove the stale socket", subject: path, errno: errno)
        }
    }
}
