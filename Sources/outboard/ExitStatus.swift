import Agent
import AsyncIO
import Glibc
import Host
import HostControl
import NBD
import OriginalImage
import PhysicalCopy
import TableOfContents

/// The program's exit statuses, after sysexits(3) (design §7). The one table of them.
enum ExitStatus: Int32, Sendable {
    case done = 0
    /// The command line cannot be understood.
    case usage = 64
    /// A copy, a cache or a table of contents does not verify, or does not belong to what it was named for.
    case damaged = 65
    /// An input is not there.
    case missing = 66
    /// The host or the bridge cannot be reached, or refuses.
    case unavailable = 69
    /// A bug of this program.
    case software = 70
    /// Something cannot be made: it exists, it is too small, the disk is full.
    case cannotCreate = 73
    /// Reading or writing failed.
    case io = 74
    /// Abandoned or in use; may be tried again.
    case tryAgain = 75
    /// The system, or a rule of ours, does not permit it.
    case notPermitted = 77
}

/// An error that is ready for people: what was being done, to what, why it failed, what to do next.
struct Failure: Error, CustomStringConvertible {
    var status: ExitStatus
    var description: String

    init(_ status: ExitStatus, _ description: String) {
        self.status = status
        self.description = description
    }
}

extension StorageError {
    /// - Parameter creating: whether the path was to be made or filled rather than read.
    func failure(advice: String = "", creating: Bool = false) -> Failure {
        let status: ExitStatus =
            switch kind {
            case .missing: creating ? .cannotCreate : .missing
            case .notPermitted: .notPermitted
            case .unsuitable: creating ? .cannotCreate : .missing
            case .locked: .tryAgain
            case .tooSmall: creating ? .cannotCreate : .damaged
            case .exists, .exhausted: .cannotCreate
            case .system: .io
            }
        return Failure(status, description + (advice.isEmpty ? "" : "; \(advice)"))
    }
}

extension LogError {
    /// - Parameter path: of the original image cache.
    func failure(cache path: String) -> Failure {
        let text = "cannot use the original image cache \(path): \(self)"
        switch self {
        case .noValidSuperblock, .foreignContents, .unsupportedVersion, .corrupt:
            return Failure(.damaged, "\(text); name another --cache, or remove it if it is needed no more")
        case .otherVolume(let found, _):
            return Failure(
                .damaged,
                "\(text); name the cache of this volume, or, if it is this one and the source was moved or is named "
                    + "otherwise now, give --volume \(found)")
        case .otherGeometry:
            return Failure(
                .damaged, "\(text); start the host as it was, or remove the cache to give the epoch up")
        case .tooSmall:
            return Failure(
                .cannotCreate,
                "\(text); give a --cache-size of that; a cache that exists is not enlarged, so remove it first"
            )
        case .full, .wrongState: return Failure(.tryAgain, text)
        case .store(let error):
            return Failure(error.code == .noSpace ? .cannotCreate : .io, text)
        }
    }
}

extension CopyError {
    var failure: Failure {
        let status: ExitStatus =
            switch kind {
            case .damaged: .damaged
            case .unavailable: .unavailable
            case .missing: .missing
            case .cannotCreate: .cannotCreate
            case .io: .io
            case .cancelled, .abandoned: .tryAgain
            case .notPermitted: .notPermitted
            }
        return Failure(status, description)
    }
}

extension AgentError {
    /// The agent has the statuses of the table by their numbers.
    var failure: Failure { Failure(outboard.ExitStatus(rawValue: status.rawValue) ?? .software, description) }
}

extension NBDServerError {
    var failure: Failure {
        switch self {
        case .nothingToListenOn, .tlsRequired, .pathTooLong: Failure(.usage, description)
        case .notASocket: Failure(.cannotCreate, description)
        case .socketInUse, .directoryLocked: Failure(.tryAgain, description)
        case .system(_, _, let errno):
            Failure(errno == EACCES || errno == EPERM ? .notPermitted : .cannotCreate, description)
        case .certificate: Failure(.missing, description)
        }
    }
}

extension SocketPathError {
    /// As for the NBD socket.
    func failure(control path: String) -> Failure {
        let status: ExitStatus =
            switch self {
            case .inUse, .directoryLocked: .tryAgain
            case .notASocket: .cannotCreate
            case .tooLong: .usage
            case .system(_, _, let errno): errno == EACCES || errno == EPERM ? .notPermitted : .cannotCreate
            }
        // It begins with what it is about: the socket, or its directory.
        let reason = description.hasPrefix(path + ": ") ? description : "\(path): \(self)"
        return Failure(status, "cannot serve the control socket \(reason)")
    }
}

extension Failure {
    /// Any error of the modules below as people shall read it.
    init(_ error: any Error) {
        switch error {
        case let error as Failure: self = error
        case let error as AgentError: self = error.failure
        case let error as StorageError: self = error.failure()
        case let error as CopyError: self = error.failure
        case let error as NBDServerError: self = error.failure
        case let error as TocError: self = AgentError(error).failure
        default: self.init(.io, "\(error)")
        }
    }
}
