import Blocks
import Glibc

/// Why a unix socket cannot be served at a path.
public enum SocketPathError: Error, Hashable, Sendable, CustomStringConvertible {
    /// A live process listens there.
    case inUse(String)
    /// Something that is not a socket is there.
    case notASocket(String)
    case tooLong(String)
    /// Another process keeps a lock on the socket's directory.
    case directoryLocked(String)
    case system(String, path: String, errno: Int32)

    public var description: String {
        switch self {
        case .inUse(let path): "\(path): another process serves this socket; choose another path or end it"
        case .notASocket(let path): "\(path): exists and is not a socket; choose another path"
        case .tooLong(let path): "\(path): longer than a unix socket's path may be (107 bytes)"
        case .directoryLocked(let path):
            "\(path): another process keeps this directory locked (flock); end it, or choose another directory"
        case .system(let what, let path, let errno): "\(path): \(what): \(String(cString: strerror(errno)))"
        }
    }
}

/// A unix socket that listens at a path with mode 0600 from its first moment.
package enum SocketPath {
    /// Takes the place of a dead socket; never of a live one, and of nothing else.
    /// - Parameter patience: nanoseconds that another process may keep the directory locked.
    /// - Returns: the listening descriptor, which the caller owns.
    package static func bind(
        _ path: String, patience: UInt64 = HostLimits.directoryLockNanoseconds
    ) throws(SocketPathError) -> Int32 {
        var address = try self.address(path)
        // Two hosts that start at once must not both find the socket dead: one after the other.
        let lock = try lockDirectory(of: path, patience)
        defer { close(lock) }
        try removeDeadSocket(path, &address)
        let descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        guard descriptor >= 0 else { throw .system("socket", path: path, errno: errno) }
        // The file that bind makes takes its mode from the socket's.
        guard fchmod(descriptor, 0o600) == 0, withAddress(&address, { Glibc.bind(descriptor, $0, $1) }) == 0,
            listen(descriptor, 16) == 0
        else {
            let code = errno
            close(descriptor)
            throw .system("cannot listen", path: path, errno: code)
        }
        return descriptor
    }

    /// - Returns: a descriptor whose closing gives the lock back.
    private static func lockDirectory(of path: String, _ patience: UInt64) throws(SocketPathError) -> Int32 {
        let directory = path.lastIndex(of: "/").map { String(path[...$0]) } ?? "."
        let lock = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard lock >= 0 else { throw .system("cannot open", path: directory, errno: errno) }
        let start = MonotonicClock.now
        while flock(lock, LOCK_EX | LOCK_NB) != 0 {
            let code = errno
            if code == EINTR { continue }
            guard code == EWOULDBLOCK, MonotonicClock.now - start < patience else {
                close(lock)
                throw code == EWOULDBLOCK
                    ? .directoryLocked(directory) : .system("cannot lock", path: directory, errno: code)
            }
            BlockingThread.sleep(nanoseconds: 10_000_000)
        }
        return lock
    }

    private static func address(_ path: String) throws(SocketPathError) -> sockaddr_un {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        let bytes = Array(path.utf8)
        guard !bytes.isEmpty, bytes.count < MemoryLayout.size(ofValue: address.sun_path) else {
            throw .tooLong(path)
        }
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: bytes) }
        return address
    }

    private static func withAddress(
        _ address: inout sockaddr_un, _ body: (UnsafePointer<sockaddr>, socklen_t) -> Int32
    ) -> Int32 {
        withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                body($0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
    }

    private static func removeDeadSocket(
        _ path: String, _ address: inout sockaddr_un
    ) throws(SocketPathError) {
        var status = stat()
        guard lstat(path, &status) == 0 else {
            guard errno == ENOENT else { throw .system("cannot look", path: path, errno: errno) }
            return
        }
        guard status.st_mode & S_IFMT == S_IFSOCK else { throw .notASocket(path) }
        let probe = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        guard probe >= 0 else { throw .system("socket", path: path, errno: errno) }
        defer { close(probe) }
        if withAddress(&address, { connect(probe, $0, $1) }) == 0 { throw .inUse(path) }
        guard errno == ECONNREFUSED else { throw .system("cannot connect", path: path, errno: errno) }
        guard unlink(path) == 0 || errno == ENOENT else {
            throw .system("cannot remove the dead socket", path: path, errno: errno)
        }
    }

    /// Device and inode of what is at `path`.
    static func identity(_ path: String) -> [UInt64]? {
        var status = stat()
        guard lstat(path, &status) == 0 else { return nil }
        return [UInt64(status.st_dev), UInt64(status.st_ino)]
    }
}
