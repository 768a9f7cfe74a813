import Blocks
import Glibc

/// Every system call on files and directories that making, opening and changing a physical copy needs, one entry each,
/// so that tests can make them fail and a simulated file system can stand in their place (style 5). The entries do
/// nothing but the call; retrying, and words for people, are the work of `Files`.
///
/// A path is absolute, or relative to the open directory before it; ``noDirectory`` is none. Files are read and written
/// at offsets: no descriptor has a position.
public struct FileSystemCalls: Sendable {
    public typealias Outcome<Value> = Result<Value, Errno>

    /// In place of a directory's descriptor where the path is absolute.
    public static let noDirectory = AT_FDCWD
    /// `RENAME_NOREPLACE` and `RENAME_EXCHANGE` of renameat2(2).
    public static let renameNoReplace: UInt32 = 1
    public static let renameExchange: UInt32 = 2

    /// Directory, path, flags (close-on-exec comes to them), mode of a file that is made.
    public var openat: @Sendable (Int32, String, Int32, mode_t) -> Outcome<Int32> = {
        directory, path, flags, mode in
        FileSystemCalls.value { Glibc.openat(directory, path, flags | O_CLOEXEC, mode) }
    }
    public var close: @Sendable (Int32) -> Void = { descriptor in _ = Glibc.close(descriptor) }
    /// Descriptor, where to, offset. Gives the bytes read, fewer at the end of the file.
    public var pread: @Sendable (Int32, UnsafeMutableRawBufferPointer, UInt64) -> Outcome<Int> = {
        descriptor, buffer, offset in
        FileSystemCalls.value { Glibc.pread(descriptor, buffer.baseAddress, buffer.count, off_t(offset)) }
    }
    /// Descriptor, what, offset. Gives the bytes written, which may be fewer.
    public var pwrite: @Sendable (Int32, UnsafeRawBufferPointer, UInt64) -> Outcome<Int> = {
        descriptor, buffer, offset in
        FileSystemCalls.value { Glibc.pwrite(descriptor, buffer.baseAddress, buffer.count, off_t(offset)) }
    }
    /// Descriptor, bytes.
    public var ftruncate: @Sendable (Int32, UInt64) -> Outcome<Void> = { descriptor, size in
        FileSystemCalls.nothing { Glibc.ftruncate(descriptor, off_t(size)) }
    }
    /// Of a file or a directory.
    public var fsync: @Sendable (Int32) -> Outcome<Void> = { descriptor in
        FileSystemCalls.nothing { Glibc.fsync(descriptor) }
    }
    public var fstat: @Sendable (Int32) -> Outcome<stat> = { descriptor in
        var status = Glibc.stat()
        return FileSystemCalls.nothing { Glibc.fstat(descriptor, &status) }.map { status }
    }
    /// Directory, path, flags: `AT_SYMLINK_NOFOLLOW` or 0.
    public var fstatat: @Sendable (Int32, String, Int32) -> Outcome<stat> = { directory, path, flags in
        var status = Glibc.stat()
        return FileSystemCalls.nothing { Glibc.fstatat(directory, path, &status, flags) }.map { status }
    }
    /// The names in a directory, by its descriptor, without `.` and `..` (readdir(3)).
    public var names: @Sendable (Int32) -> Outcome<[String]> = { FileSystemCalls.list($0) }
    /// Bytes that the file system of an open file has left for this process (fstatvfs(3)).
    public var availableSpace: @Sendable (Int32) -> Outcome<UInt64> = { descriptor in
        var information = statvfs()
        return FileSystemCalls.nothing { Glibc.fstatvfs(descriptor, &information) }
            .map {
                // Some that do not know their space tell more than there can be.
                let (bytes, isTooMany) = UInt64(information.f_bavail)
                    .multipliedReportingOverflow(by: UInt64(information.f_frsize))
                return isTooMany ? UInt64.max : bytes
            }
    }
    /// Directory, path, mode.
    public var mkdirat: @Sendable (Int32, String, mode_t) -> Outcome<Void> = { directory, path, mode in
        FileSystemCalls.nothing { Glibc.mkdirat(directory, path, mode) }
    }
    /// Directory, path of a file, a further path for it.
    public var linkat: @Sendable (Int32, String, String) -> Outcome<Void> = { directory, old, new in
        FileSystemCalls.nothing { Glibc.linkat(directory, old, directory, new, 0) }
    }
    /// Directory, path, flags: `AT_REMOVEDIR` for a directory, or 0.
    public var unlinkat: @Sendable (Int32, String, Int32) -> Outcome<Void> = { directory, path, flags in
        FileSystemCalls.nothing { Glibc.unlinkat(directory, path, flags) }
    }
    /// Directory, old path, new path, flags: ``renameNoReplace``, ``renameExchange``, or 0 for a plain rename. Fails
    /// with `ENOSYS` or `EINVAL` where flags are not known.
    public var renameat: @Sendable (Int32, String, String, UInt32) -> Outcome<Void> = {
        directory, old, new, flags in
        FileSystemCalls.nothing {
            flags == 0
                ? Glibc.renameat(directory, old, directory, new)
                : FileSystemCalls.rename(directory, old, new, flags)
        }
    }
    /// Descriptor, operation.
    public var flock: @Sendable (Int32, Int32) -> Outcome<Void> = { descriptor, operation in
        FileSystemCalls.nothing { lockFile(descriptor, operation) }
    }
    /// Locks one byte of a file, at an offset, for the open file and not for the process (fcntl(2), F_OFD_SETLK).
    public var lockByte: @Sendable (Int32, UInt64) -> Outcome<Void> = { descriptor, offset in
        // <linux/fcntl.h>; the C library's module has it not.
        let setOpenFileLock: Int32 = 37
        var range = Glibc.flock()
        range.l_type = Int16(F_WRLCK)
        range.l_whence = Int16(SEEK_SET)
        range.l_start = off_t(offset)
        range.l_len = 1
        return FileSystemCalls.nothing { fcntl(descriptor, setOpenFileLock, &range) }
    }
    public var getpid: @Sendable () -> Int32 = { Glibc.getpid() }

    /// The real ones.
    public init() {}

    private static func value<Value: SignedInteger>(_ call: () -> Value) -> Outcome<Value> {
        let value = call()
        return value < 0 ? .failure(Errno(errno)) : .success(value)
    }

    private static func nothing(_ call: () -> Int32) -> Outcome<Void> {
        call() == 0 ? .success(()) : .failure(Errno(errno))
    }

    private static func list(_ directory: Int32) -> Outcome<[String]> {
        // A position of its own.
        let own = Glibc.openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard own >= 0 else { return .failure(Errno(errno)) }
        guard let stream = fdopendir(own) else {
            let code = errno
            _ = Glibc.close(own)
            return .failure(Errno(code))
        }
        defer { closedir(stream) }
        var names: [String] = []
        while true {
            errno = 0
            guard let entry = readdir(stream) else {
                return errno == 0 ? .success(names) : .failure(Errno(errno))
            }
            let name = withUnsafeBytes(of: &entry.pointee.d_name) { bytes in
                String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
            }
            if name != ".", name != ".." { names.append(name) }
        }
    }

    /// renameat2(2), which the C library has but its module for Swift does not show.
    private static func rename(_ directory: Int32, _ old: String, _ new: String, _ flags: UInt32) -> Int32 {
        typealias Function =
            @convention(c) (
                Int32, UnsafePointer<CChar>, Int32, UnsafePointer<CChar>, UInt32
            ) -> Int32
        guard let symbol = dlsym(nil, "renameat2") else {
            errno = ENOSYS
            return -1
        }
        return unsafeBitCast(symbol, to: Function.self)(directory, old, directory, new, flags)
    }
}

/// flock(2), which the C library's structure of that name would hide.
private func lockFile(_ descriptor: Int32, _ operation: Int32) -> Int32 { flock(descriptor, operation) }
