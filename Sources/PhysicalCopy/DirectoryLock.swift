import Blocks
import Glibc

/// An open directory and an advisory lock on it, held until closed; the system drops it when the process dies.
final class DirectoryLock: Sendable {
    /// The directory itself, wherever it was moved meanwhile.
    let descriptor: Int32
    private let files: Files

    /// - Parameter followsLink: a link at the path's end may lead to the directory.
    /// - Returns: nil when somebody else holds one that excludes it.
    init?(
        _ directory: String, exclusive: Bool, followsLink: Bool = false, files: Files = Files(),
        _ action: String
    ) throws(CopyError) {
        self.files = files
        let flags = O_RDONLY | O_DIRECTORY | (followsLink ? 0 : O_NOFOLLOW)
        for _ in 0..<CopyLimits.lockAttempts {
            let descriptor = try files.open(directory, flags, action)
            var isOurs = false
            defer { if !isOurs { files.calls.close(descriptor) } }
            switch files.calls.flock(descriptor, (exclusive ? LOCK_EX : LOCK_SH) | LOCK_NB) {
            case .success: break
            case .failure(Errno(EWOULDBLOCK)): return nil
            // A file system without locks: do without.
            case .failure(let error) where Self.isWithoutLocks(error): break
            case .failure(let error): throw .system(error.code, action)
            }
            // Before it was locked another one may have been put in its place.
            isOurs = try files.leads(directory, to: descriptor, followsLink ? 0 : AT_SYMLINK_NOFOLLOW, action)
            if isOurs {
                self.descriptor = descriptor
                return
            }
        }
        return nil
    }

    private static func isWithoutLocks(_ error: Errno) -> Bool {
        [ENOLCK, EOPNOTSUPP, ENOSYS, EINVAL].contains(error.code)
    }

    /// From now on it excludes all others. While it does not, it may exclude nobody.
    /// - Returns: false when somebody else holds one.
    func makeExclusive(_ directory: String, _ action: String) throws(CopyError) -> Bool {
        switch files.calls.flock(descriptor, LOCK_EX | LOCK_NB) {
        case .success: break
        case .failure(Errno(EWOULDBLOCK)), .failure(Errno(EINTR)): return false
        case .failure(let error) where Self.isWithoutLocks(error): break
        case .failure(let error): throw .system(error.code, action)
        }
        guard try files.leads(directory, to: descriptor, 0, action) else {
            throw CopyError(.cannotCreate, action, "another directory was put in its place")
        }
        return true
    }

    deinit { files.calls.close(descriptor) }
}
