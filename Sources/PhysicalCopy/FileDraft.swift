import Blocks
import Glibc

/// A file in the making: under a temporary name beside its final one, which it gets only when all of it is there.
/// Dropped without ``commit(replacing:)``, it is removed.
public final class FileDraft {
    public let destination: String
    /// Where it is being made.
    public let path: String
    private let parent: String
    private let files: Files
    /// Holds the lock by which others know that its maker lives.
    private let descriptor: Int32
    private var isOver = false

    /// Makes the temporary file, empty and for its owner alone, and clears away those that dead processes left of the
    /// same name.
    /// - Parameter calls: the file system.
    public init(for destination: String, files calls: FileSystemCalls = FileSystemCalls()) throws(CopyError) {
        self.destination = destination
        files = Files(calls)
        let slash = destination.lastIndex(of: "/")
        parent = slash.map { String(destination[...$0]) } ?? "./"
        let name = slash.map { String(destination[destination.index(after: $0)...]) } ?? destination
        let prefix = Self.prefix(of: name)
        Self.clearLeftovers(prefix, in: parent, files)
        for _ in 0..<CopyLimits.lockAttempts {
            let path = parent + prefix + Self.token()
            let descriptor = try Self.make(path, for: destination, in: parent, files)
            do throws(CopyError) {
                if try Self.isOurs(path, descriptor, files, "make \(destination)") {
                    self.path = path
                    self.descriptor = descriptor
                    return
                }
                calls.close(descriptor)
            } catch {
                _ = calls.unlinkat(FileSystemCalls.noDirectory, path, 0)
                calls.close(descriptor)
                throw error
            }
        }
        throw CopyError(.cannotCreate, "make \(destination)", "others remove what is made in \(parent)")
    }

    private static func make(
        _ path: String, for destination: String, in parent: String, _ files: Files
    ) throws(CopyError) -> Int32 {
        while true {
            switch files.calls.openat(FileSystemCalls.noDirectory, path, O_RDWR | O_CREAT | O_EXCL, 0o600) {
            case .success(let descriptor): return descriptor
            case .failure(Errno(EINTR)): continue
            case .failure(let error):
                var failure = CopyError.system(error.code, "make \(destination)", otherwise: .cannotCreate)
                if failure.kind == .missing {
                    failure = CopyError(
                        .cannotCreate, "make \(destination)", "the directory \(parent) does not exist",
                        advice: "make it first")
                }
                throw failure
            }
        }
    }

    /// Locks it. Before it was locked it could be taken for a dead one's. Where nothing can be locked nothing is.
    private static func isOurs(
        _ path: String, _ descriptor: Int32, _ files: Files, _ action: String
    ) throws(CopyError) -> Bool {
        let failure = lock(descriptor, files)
        guard failure?.code != EAGAIN, failure?.code != EACCES else { return false }
        return try files.leads(path, to: descriptor, AT_SYMLINK_NOFOLLOW, action)
    }

    /// What the temporary names of a file of that name begin with.
    static func prefix(of name: String) -> String { ".\(name).partial-" }

    deinit {
        abandon()
        files.calls.close(descriptor)
    }

    /// What its name ends with: process numbers say nothing to other machines and containers.
    private static func token() -> String {
        var source = RandomSource()
        let digits = String(source.next(), radix: 16)
        return String(repeating: "0", count: tokenDigits - digits.count) + digits
    }

    private static let tokenDigits = 16

    /// Locks one byte far behind all content, for the open file and not for the process: whoever writes the file may
    /// lock it in his own way, and where locks are enforced they are not in the way of writing.
    /// - Returns: the error; nil when there was none.
    private static func lock(_ descriptor: Int32, _ files: Files) -> Errno? {
        while true {
            switch files.calls.lockByte(descriptor, CopyLimits.draftLockOffset) {
            case .success: return nil
            case .failure(Errno(EINTR)): continue
            case .failure(let error): return error
            }
        }
    }

    /// Whether its name leads to what was made under it, and not to nothing or another file.
    func isInPlace(_ action: String) throws(CopyError) -> Bool {
        try files.leads(path, to: descriptor, AT_SYMLINK_NOFOLLOW, action)
    }

    /// Removes what makers of the same name left that were killed. What cannot be removed only takes space.
    private static func clearLeftovers(_ prefix: String, in parent: String, _ files: Files) {
        let calls = files.calls
        guard
            case .success(let directory) = calls.openat(
                FileSystemCalls.noDirectory, parent, O_RDONLY | O_DIRECTORY, 0)
        else { return }
        defer { calls.close(directory) }
        guard case .success(let names) = calls.names(directory) else { return }
        for name in names {
            let token = name.dropFirst(prefix.count)
            guard name.hasPrefix(prefix), token.utf8.count == tokenDigits, token.allSatisfy(\.isHexDigit),
                case .success(let leftover) = calls.openat(
                    directory, name, O_RDWR | O_NOFOLLOW | O_NONBLOCK, 0)
            else { continue }
            defer { calls.close(leftover) }
            // Locked: its maker lives. A directory is a copy's.
            guard case .success(let status) = calls.fstat(leftover), status.st_mode & S_IFMT == S_IFREG,
                lock(leftover, files) == nil
            else { continue }
            _ = calls.unlinkat(directory, name, 0)
        }
    }

    /// Gives the file, flushed, its name, and makes that durable.
    /// - Parameter replacing: what is there may be replaced.
    public func commit(replacing: Bool) throws(CopyError) {
        precondition(!isOver, "a file is committed once")
        var code: Int32 = 0
        if replacing {
            let outcome = files.calls.renameat(FileSystemCalls.noDirectory, path, destination, 0)
            if case .failure(let error) = outcome { code = error.code }
        } else {
            code = Placement(files: files.calls).place(path, at: destination)
        }
        guard code == 0 else { throw .system(code, "make \(destination)", otherwise: .cannotCreate) }
        isOver = true
        try files.synchronizeDirectory(parent)
    }

    /// Removes what has been made.
    public func abandon() {
        if !isOver { _ = files.calls.unlinkat(FileSystemCalls.noDirectory, path, 0) }
        isOver = true
    }
}
