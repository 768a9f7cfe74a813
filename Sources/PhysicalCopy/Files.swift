import Glibc

/// The few system calls that make a directory and its files durable, each with its error told.
enum Files {
    /// `open(2)`, close-on-exec, continued after signals.
    static func open(_ path: String, _ flags: Int32, _ action: String) throws(CopyError) -> Int32 {
        while true {
            let descriptor = Glibc.open(path, flags | O_CLOEXEC, 0o644)
            if descriptor >= 0 { return descriptor }
            if errno != EINTR { throw .system(errno, action) }
        }
    }

    /// Makes what was written through `path` durable.
    static func synchronize(_ path: String) throws(CopyError) {
        let action = "flush \(path)"
        let descriptor = try open(path, O_RDONLY, action)
        defer { close(descriptor) }
        guard fsync(descriptor) == 0 else { throw .system(errno, action) }
    }

    /// Writes a file under a temporary name beside it, flushes it, renames it over `path`, flushes the
    /// directory: `path` holds the old bytes or the new ones, whatever happens.
    static func replace(_ directory: String, _ name: String, with bytes: [UInt8]) throws(CopyError) {
        let path = directory + "/" + name
        let action = "write \(path)"
        let temporary = "\(directory)/.\(name).new"
        let descriptor = try open(temporary, O_WRONLY | O_CREAT | O_TRUNC, action)
        do throws(CopyError) {
            defer { close(descriptor) }
            try write(bytes, to: descriptor, action)
            guard fsync(descriptor) == 0 else { throw .system(errno, action) }
        } catch {
            unlink(temporary)
            throw error
        }
        guard Glibc.rename(temporary, path) == 0 else {
            let number = errno
            unlink(temporary)
            throw .system(number, action)
        }
        try synchronize(directory)
    }

    private static func write(
        _ bytes: [UInt8], to descriptor: Int32, _ action: String
    ) throws(CopyError) {
        var written = 0
        while written < bytes.count {
            let count = bytes[written...].withUnsafeBytes {
                Glibc.write(descriptor, $0.baseAddress, $0.count)
            }
            if count < 0, errno == EINTR { continue }
            guard count > 0 else { throw .system(count < 0 ? errno : EIO, action) }
            written += count
        }
    }

    /// Reads a whole file of at most `limit` bytes.
    static func read(_ path: String, limit: Int, _ action: String) throws(CopyError) -> [UInt8] {
        let descriptor = try open(path, O_RDONLY | O_NONBLOCK, action)
        defer { close(descriptor) }
        var information = stat()
        guard fstat(descriptor, &information) == 0 else { throw .system(errno, action) }
        guard information.st_mode & S_IFMT == S_IFREG else {
            throw CopyError(.damaged, action, "it is not a regular file")
        }
        guard information.st_size <= limit else {
            throw CopyError(.damaged, action, "it is longer than \(limit) bytes")
        }
        var bytes = [UInt8](repeating: 0, count: Int(information.st_size))
        var filled = 0
        while filled < bytes.count {
            let count = bytes.withUnsafeMutableBytes {
                Glibc.read(descriptor, $0.baseAddress! + filled, $0.count - filled)
            }
            if count < 0, errno == EINTR { continue }
            guard count >= 0 else { throw .system(errno, action) }
            if count == 0 { break }
            filled += count
        }
        return Array(bytes[..<filled])
    }

    /// Reads a whole file of any length, part after part.
    /// - Parameter buffer: what the parts are read into.
    static func forEachPart(
        of path: String, _ buffer: UnsafeMutableRawBufferPointer,
        _ body: (UnsafeRawBufferPointer) throws(CopyError) -> Void
    ) throws(CopyError) {
        let action = "read \(path)"
        let descriptor = try open(path, O_RDONLY | O_NONBLOCK, action)
        defer { close(descriptor) }
        while true {
            let count = Glibc.read(descriptor, buffer.baseAddress, buffer.count)
            if count < 0, errno == EINTR { continue }
            guard count >= 0 else { throw .system(errno, action) }
            if count == 0 { return }
            try body(UnsafeRawBufferPointer(rebasing: buffer[..<count]))
        }
    }

    /// What is at `path`, links not followed; nil when nothing is.
    static func kind(of path: String, _ action: String) throws(CopyError) -> mode_t? {
        var information = stat()
        if lstat(path, &information) == 0 { return information.st_mode & S_IFMT }
        if errno == ENOENT { return nil }
        throw .system(errno, action)
    }

    /// The names in a directory, without `.` and `..`.
    static func names(in directory: String, _ action: String) throws(CopyError) -> [String] {
        guard let stream = opendir(directory) else { throw .system(errno, action) }
        defer { closedir(stream) }
        var names: [String] = []
        while true {
            errno = 0
            guard let entry = readdir(stream) else {
                if errno != 0 { throw .system(errno, action) }
                return names
            }
            let name = withUnsafeBytes(of: &entry.pointee.d_name) { bytes in
                String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
            }
            if name != ".", name != ".." { names.append(name) }
        }
    }

    /// Removes a flat directory: its files, then itself. Absent is as good as removed.
    static func removeFlat(_ directory: String) throws(CopyError) {
        let action = "remove \(directory)"
        guard try kind(of: directory, action) != nil else { return }
        for name in try names(in: directory, action) {
            guard unlink(directory + "/" + name) == 0 || errno == ENOENT else {
                throw .system(errno, action)
            }
        }
        guard rmdir(directory) == 0 || errno == ENOENT else { throw .system(errno, action) }
    }

    /// `RENAME_NOREPLACE` and `RENAME_EXCHANGE` of renameat2(2).
    static let renameNoReplace: UInt32 = 1
    static let renameExchange: UInt32 = 2

    /// renameat2(2), which the C library has but its module for Swift does not show; −1 and `errno` as it sets
    /// them, `ENOSYS` where the library has none.
    static func rename(_ old: String, _ new: String, flags: UInt32) -> Int32 {
        typealias Function =
            @convention(c) (
                Int32, UnsafePointer<CChar>, Int32, UnsafePointer<CChar>, UInt32
            ) -> Int32
        guard let symbol = dlsym(nil, "renameat2") else {
            errno = ENOSYS
            return -1
        }
        return unsafeBitCast(symbol, to: Function.self)(AT_FDCWD, old, AT_FDCWD, new, flags)
    }

    /// `path` made absolute, without `.`, `..` and slashes at its end as far as text can tell.
    static func absolute(_ path: String) -> String {
        var full = path
        if !path.hasPrefix("/"), let current = getcwd(nil, 0) {
            full = String(cString: current) + "/" + path
            free(current)
        }
        var parts: [Substring] = []
        for part in full.split(separator: "/") where part != "." {
            // `a/..` is resolved by text only when `a` is no link; keep it otherwise for the system to do.
            parts.append(part)
        }
        return "/" + parts.joined(separator: "/")
    }
}

/// An advisory lock on a directory, held until closed; the system drops it when the process dies.
final class DirectoryLock: Sendable {
    private let descriptor: Int32

    /// - Returns: nil when somebody else holds one that excludes it.
    init?(_ directory: String, exclusive: Bool, _ action: String) throws(CopyError) {
        descriptor = try Files.open(directory, O_RDONLY | O_DIRECTORY, action)
        guard flock(descriptor, (exclusive ? LOCK_EX : LOCK_SH) | LOCK_NB) != 0 else { return }
        switch errno {
        case EWOULDBLOCK:
            close(descriptor)
            return nil
        case ENOLCK, EOPNOTSUPP, ENOSYS, EINVAL: return  // a file system without locks: do without
        default:
            let number = errno
            close(descriptor)
            throw .system(number, action)
        }
    }

    /// From now on it excludes all others. While it does not, it may exclude nobody.
    /// - Returns: false when somebody else holds one.
    func makeExclusive(_ directory: String, _ action: String) throws(CopyError) -> Bool {
        if flock(descriptor, LOCK_EX | LOCK_NB) != 0 {
            switch errno {
            case EWOULDBLOCK, EINTR: return false
            case ENOLCK, EOPNOTSUPP, ENOSYS, EINVAL: break
            default: throw .system(errno, action)
            }
        }
        var (own, there) = (stat(), stat())
        guard fstat(descriptor, &own) == 0, stat(directory, &there) == 0, own.st_dev == there.st_dev,
            own.st_ino == there.st_ino
        else {
            throw CopyError(.cannotCreate, action, "another directory was put in its place")
        }
        return true
    }

    deinit { close(descriptor) }
}
