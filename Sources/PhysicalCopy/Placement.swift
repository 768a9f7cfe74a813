import Blocks
import Glibc

/// Gives a finished file its name.
public struct Placement {
    // Tests put calls here that lack what some file systems lack.
    var calls: FileSystemCalls

    /// - Parameter calls: the file system.
    public init(files calls: FileSystemCalls = FileSystemCalls()) { self.calls = calls }

    /// Renames `path` to `destination` and replaces nothing, as far as the file system can: by a rename that does
    /// not replace; by a hard link, where there is no such rename; where there is none of that either, by a
    /// rename after a look.
    /// - Returns: 0, or the number of the error; `EEXIST` when something is there.
    public func place(_ path: String, at destination: String) -> Int32 {
        let none = FileSystemCalls.noDirectory
        var code = code(of: calls.renameat(none, path, destination, FileSystemCalls.renameNoReplace))
        guard code == EINVAL || code == ENOSYS else { return code }
        code = self.code(of: calls.linkat(none, path, destination))
        if code == 0 {
            _ = calls.unlinkat(none, path, 0)
            return 0
        }
        guard [EPERM, EOPNOTSUPP, ENOSYS, EMLINK].contains(code) else { return code }
        guard case .failure = calls.fstatat(none, destination, AT_SYMLINK_NOFOLLOW) else { return EEXIST }
        return self.code(of: calls.renameat(none, path, destination, 0))
    }

    private func code(of outcome: FileSystemCalls.Outcome<Void>) -> Int32 {
        switch outcome {
        case .success: 0
        case .failure(let error): error.code
        }
    }
}
