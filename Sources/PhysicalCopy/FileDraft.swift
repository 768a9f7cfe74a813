import Blocks
import Glibc

/// A file in the making: under a temporary name beside its final one, which it gets only when all of it is there.
/// Dropped without ``commit(replacing:)``, it is removed.
public final class FileDraft {
    public let destination: String
    /// Where it is being made.
    public let path: String
    private let parent: String
    /// Holds the lock by which others know that its maker lives.
    private let descriptor: Int32
    private var isOver = false

    /// Makes the temporary file, empty and for its owner alone, and clears away those that dead processes left of the
    /// same name.
    public init(for destination: String) throws(CopyError) {
        self.destination = destination
        let slash = destination.lastIndex(of: "/")
        parent = slash.map { String(destination[...$0]) } ?? "./"
        let name = slash.map { String(destination[destination.index(after: $0)...]) } ?? destination
        let prefix = Self.prefix(of: name)
        Self.clearLeftovers(prefix, in: parent)
        while true {
            let path = parent + prefix + Self.token()
            let descriptor = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
            guard descriptor >= 0 else {
                if errno == EEXIST || errno == EINTR { continue }
                var error = CopyError.system(errno, "make \(destination)", otherwise: .cannotCreate)
                if error.kind == .missing {
                    error = CopyError(
                        .cannotCreate, "make \(destination)", "the directory \(parent) does not exist",
                        advice: "make it first")
                }
                throw error
            }
            // Before it was locked it could be taken for a dead one's. Where nothing can be locked nothing is.
            let number = Self.lock(descriptor)
            if number != EAGAIN, number != EACCES, Self.leads(path, to: descriptor) {
                self.path = path
                self.descriptor = descriptor
                return
            }
            close(descriptor)
        }
    }

    /// What the temporary names of a file of that name begin with.
    static func prefix(of name: String) -> String { ".\(name).partial-" }

    deinit {
        abandon()
        close(descriptor)
    }

    /// What its name ends with: process numbers say nothing to other machines and containers.
    private static func token() -> String {
        let digits = String(UInt64.random(in: 0...UInt64.max), radix: 16)
        return String(repeating: "0", count: tokenDigits - digits.count) + digits
    }

    private static let tokenDigits = 16
    /// F_OFD_SETLK, fcntl(2), <linux/fcntl.h>; the C library's module has it not.
    private static let setOpenFileLock: Int32 = 37

    /// Locks one byte far behind all content, for the open file and not for the process: whoever writes the file may
    /// lock it in his own way, and where locks are enforced they are not in the way of writing.
    /// - Returns: the error's number, 0 for none.
    private static func lock(_ descriptor: Int32) -> Int32 {
        var range = flock()
        range.l_type = Int16(F_WRLCK)
        range.l_whence = Int16(SEEK_SET)
        range.l_start = CopyLimits.draftLockOffset
        range.l_len = 1
        while fcntl(descriptor, setOpenFileLock, &range) != 0 {
            if errno != EINTR { return errno }
        }
        return 0
    }

    /// Whether its name leads to what was made under it, and not to nothing or another file.
    var isInPlace: Bool { Self.leads(path, to: descriptor) }

    private static func leads(_ path: String, to descriptor: Int32) -> Bool {
        var (own, found) = (stat(), stat())
        return fstat(descriptor, &own) == 0 && lstat(path, &found) == 0 && own.st_dev == found.st_dev
            && own.st_ino == found.st_ino
    }

    /// Removes what makers of the same name left that were killed. What cannot be removed only takes space.
    private static func clearLeftovers(_ prefix: String, in parent: String) {
        guard let directory = opendir(parent) else { return }
        defer { closedir(directory) }
        while let entry = readdir(directory) {
            let name = withUnsafeBytes(of: entry.pointee.d_name) { bytes in
                String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
            }
            let token = name.dropFirst(prefix.count)
            guard name.hasPrefix(prefix), token.utf8.count == tokenDigits, token.allSatisfy(\.isHexDigit)
            else { continue }
            let descriptor = openat(dirfd(directory), name, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC)
            guard descriptor >= 0 else { continue }
            defer { close(descriptor) }
            var information = stat()
            // Locked: its maker lives. A directory is a copy's.
            guard fstat(descriptor, &information) == 0, information.st_mode & S_IFMT == S_IFREG,
                lock(descriptor) == 0
            else { continue }
            unlinkat(dirfd(directory), name, 0)
        }
    }

    /// Gives the file, flushed, its name, and makes that durable.
    /// - Parameter replacing: what is there may be replaced.
    public func commit(replacing: Bool) throws(CopyError) {
        precondition(!isOver, "a file is committed once")
        let number: Int32
        if replacing {
            number = rename(path, destination) == 0 ? 0 : errno
        } else {
            number = Placement().place(path, at: destination)
        }
        guard number == 0 else {
            throw .system(number, "make \(destination)", otherwise: .cannotCreate)
        }
        isOver = true
        try Files.synchronize(parent)
    }

    /// Removes what has been made.
    public func abandon() {
        if !isOver { unlink(path) }
        isOver = true
    }
}
