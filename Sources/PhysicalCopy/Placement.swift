import Glibc

/// Gives a finished file its name.
public struct Placement {
    // The calls, so that tests can lack what some file systems lack.
    var renameWithFlags: (String, String, UInt32) -> Int32 = { Files.rename($0, $1, flags: $2) }
    var makeLink: (String, String) -> Int32 = { link($0, $1) }

    public init() {}

    /// Renames `path` to `destination` and replaces nothing, as far as the file system can: by a rename that does
    /// not replace; by a hard link, where there is no such rename; where there is none of that either, by a
    /// rename after a look.
    /// - Returns: 0, or the number of the error; `EEXIST` when something is there.
    public func place(_ path: String, at destination: String) -> Int32 {
        if renameWithFlags(path, destination, Files.renameNoReplace) == 0 { return 0 }
        guard errno == EINVAL || errno == ENOSYS else { return errno }
        if makeLink(path, destination) == 0 {
            unlink(path)
            return 0
        }
        guard [EPERM, EOPNOTSUPP, ENOSYS, EMLINK].contains(errno) else { return errno }
        guard access(destination, F_OK) != 0 else { return EEXIST }
        return rename(path, destination) == 0 ? 0 : errno
    }
}
