import Blocks
import Glibc
import OriginalImage

/// Why something with a physical copy failed, in words for people: what was being done, to what, why it
/// failed, and what to do next.
public struct CopyError: Error, Hashable, Sendable, CustomStringConvertible {
    /// What kind of failure; the command line has an exit status for each (design §7).
    public enum Kind: Hashable, Sendable {
        /// The copy does not verify: its manifest or a portion is damaged (65).
        case damaged
        /// What holds the data is not there any more, or not reachable (69).
        case unavailable
        /// The copy, or a part of it, is not there (66).
        case missing
        /// The destination cannot be made, or there is no space left for it (73).
        case cannotCreate
        /// Reading or writing failed (74).
        case io
        /// Asked to stop (75).
        case cancelled
        /// It was given up, and why is known; there is no copy (75).
        case abandoned
        /// The system does not permit it (77).
        case notPermitted
    }

    public var kind: Kind
    /// What was being done, to what: "read the manifest /copies/a/manifest.json".
    public var action: String
    /// Why it failed.
    public var reason: String
    /// What to do next; may be empty.
    public var advice: String
    /// Of a damaged backup: what and where.
    public var finding: BackupFinding?

    public init(_ kind: Kind, _ action: String, _ reason: String, advice: String = "") {
        self.kind = kind
        self.action = action
        self.reason = reason
        self.advice = advice
    }

    public var description: String {
        "cannot \(action): \(reason)" + (advice.isEmpty ? "" : "; \(advice)")
    }

    private static let freeSpace = "free some space there and try again"

    /// A failed system call.
    static func system(_ number: Int32, _ action: String, otherwise kind: Kind = .io) -> CopyError {
        let reason = String(cString: strerror(number))
        switch number {
        case EACCES, EPERM: return CopyError(.notPermitted, action, reason)
        case ENOENT, ENOTDIR: return CopyError(.missing, action, reason)
        case EROFS: return CopyError(kind, action, reason)
        case ENOSPC, EDQUOT:
            return CopyError(.cannotCreate, action, "no space left", advice: freeSpace)
        case ENAMETOOLONG: return CopyError(.cannotCreate, action, reason, advice: "choose a shorter name")
        default: return CopyError(kind, action, reason)
        }
    }

    /// A failed operation of a store.
    public static func store(_ error: StoreError, _ action: String) -> CopyError {
        switch error.code {
        case .corrupt:
            return CopyError(.damaged, action, "an original image does not fit its checksum")
        case .noSpace:
            return CopyError(.cannotCreate, action, "no space left", advice: freeSpace)
        case .readOnly: return CopyError(.notPermitted, action, "it cannot be written")
        case .notSupported: return CopyError(.io, action, "the store cannot do this")
        case .gone:
            return CopyError(.unavailable, action, "the store was closed, or the connection to it was lost")
        case .io:
            let reason = error.errno == 0 ? "input/output error" : String(cString: strerror(error.errno))
            return CopyError(.io, action, reason)
        }
    }

    /// A failure of an original-image portion.
    static func log(_ error: LogError, _ action: String) -> CopyError {
        if case .store(let store) = error { return .store(store, action) }
        return CopyError(.damaged, action, error.description)
    }
}
