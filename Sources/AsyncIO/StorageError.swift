import Blocks
import Glibc

/// Why a file or device could not be opened, made or prepared: what was being done, to what, and why it failed.
public struct StorageError: Error, Hashable, Sendable, CustomStringConvertible {
    public enum Kind: Hashable, Sendable {
        /// Nothing has that name.
        case missing
        /// The permissions, or a read-only medium, forbid it.
        case notPermitted
        /// Neither a regular file nor a block device.
        case unsuitable
        /// Another process holds the lock.
        case locked
        /// The file or device has fewer bytes than was said.
        case tooSmall
        /// There is something of that name already.
        case exists
        /// The system's resources (space, requests, memory) do not suffice.
        case exhausted
        /// Whatever else the system says.
        case system
    }

    public var kind: Kind
    /// What was being done, as in "open" or "lock".
    public var operation: String
    public var path: String
    /// The system's error number where there was one, else 0.
    public var errno: Int32
    /// Why it failed and what to do next.
    public var reason: String

    public init(_ kind: Kind, operation: String, path: String, errno: Int32 = 0, reason: String) {
        self.kind = kind
        self.operation = operation
        self.path = path
        self.errno = errno
        self.reason = reason
    }

    init(operation: String, path: String, _ error: Errno) {
        let kind: Kind =
            switch error.code {
            case ENOENT, ENOTDIR, ENXIO, ENODEV: .missing
            case EACCES, EPERM, EROFS: .notPermitted
            case EISDIR, ELOOP: .unsuitable
            case EBUSY, EWOULDBLOCK, ETXTBSY: .locked
            case EEXIST: .exists
            case ENOSPC, EDQUOT, EMFILE, ENFILE, ENOMEM, EFBIG: .exhausted
            default: .system
            }
        self.init(kind, operation: operation, path: path, errno: error.code, reason: error.description)
    }

    public var description: String { "cannot \(operation) \(path): \(reason)" }
}
