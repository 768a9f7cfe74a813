import Blocks
import Glibc

/// A file in the making: under a temporary name beside its final one, which it gets only when all of it is there.
/// Dropped without ``commit(replacing:)``, it is removed.
public final class FileDraft {
    public let destination: String
    /// Where it is being made.
    public let path: String
    private let parent: String
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
        path = "\(parent)\(prefix)\(getpid())"
        unlink(path)
        let descriptor = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else {
            var error = CopyError.system(errno, "make \(destination)", otherwise: .cannotCreate)
            if error.kind == .missing {
                error = CopyError(
                    .cannotCreate, "make \(destination)", "the directory \(parent) does not exist",
                    advice: "make it first")
            }
            throw error
        }
        close(descriptor)
    }

    /// What the temporary names of a file of that name begin with.
    static func prefix(of name: String) -> String { ".\(name).partial-" }

    deinit { abandon() }

    /// Removes what makers of the same name left that were killed. What cannot be removed only takes space.
    private static func clearLeftovers(_ prefix: String, in parent: String) {
        guard let directory = opendir(parent) else { return }
        defer { closedir(directory) }
        while let entry = readdir(directory) {
            let name = withUnsafeBytes(of: entry.pointee.d_name) { bytes in
                String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
            }
            guard name.hasPrefix(prefix), let maker = pid_t(name.dropFirst(prefix.count)), maker > 0,
                kill(maker, 0) != 0, errno == ESRCH
            else { continue }
            let descriptor = openat(dirfd(directory), name, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC)
            guard descriptor >= 0 else { continue }
            defer { close(descriptor) }
            var information = stat()
            // Unlocked: who else wrote it is gone as well. A directory is a copy's.
            guard fstat(descriptor, &information) == 0, information.st_mode & S_IFMT == S_IFREG,
                flock(descriptor, LOCK_EX | LOCK_NB) == 0
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
