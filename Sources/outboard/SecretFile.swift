import Agent
import Blocks
import Foundation
import Glibc
import ISCSI

/// Small files that decide who may do what.
enum SecretFile {
    /// Bytes of one.
    static let limit = 64 << 10

    /// What nobody but the owner may do with a file.
    enum Privilege {
        case read
        /// As keys are kept that several services share: their group may read them.
        case readAsOther
        case write

        fileprivate var mode: mode_t {
            switch self {
            case .read: 0o077
            case .readAsOther: 0o027
            case .write: 0o022
            }
        }
        fileprivate var advice: (may: String, mode: String) {
            switch self {
            case .read: ("use", "600")
            case .readAsOther: ("use", "640")
            case .write: ("write", "go-w")
            }
        }
    }

    /// The same as ``read(_:for:nobodyElseMay:)`` for what somebody else reads.
    static func requireTrust(
        in path: String, for what: String, nobodyElseMay privilege: Privilege
    ) throws { _ = try open(path, for: what, nobodyElseMay: privilege) }

    /// - Parameter nobodyElseMay: with such rights for group or others the file is refused (77), and so it is when it
    ///   is neither root's nor this user's: by what is open, not by what its name may mean a moment later.
    static func read(_ path: String, for what: String, nobodyElseMay privilege: Privilege) throws -> String {
        let handle = try open(path, for: what, nobodyElseMay: privilege)
        do {
            let data = try handle.read(upToCount: limit + 1) ?? Data()
            guard data.count <= limit else {
                throw Failure(.usage, "cannot read \(what) \(path): it has more than \(limit) bytes")
            }
            return String(decoding: data, as: UTF8.self)
        } catch let failure as Failure {
            throw failure
        } catch { throw Failure(.io, "cannot read \(what) \(path): \(error)") }
    }

    private static func open(
        _ path: String, for what: String, nobodyElseMay privilege: Privilege
    ) throws -> FileHandle {
        try Trust.require(path, to: "use \(what)")
        // Not to wait for the other end of a pipe.
        let descriptor = Glibc.open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
        guard descriptor >= 0 else {
            let code = errno
            throw Failure(
                code == EACCES ? .notPermitted : .missing,
                "cannot read \(what) \(path): \(String(cString: strerror(code)))")
        }
        let handle = FileHandle(fileDescriptor: descriptor, closeOnDealloc: true)
        var status = stat()
        guard fstat(descriptor, &status) == 0, status.st_mode & S_IFMT == S_IFREG else {
            throw Failure(.usage, "cannot read \(what) \(path): it is not a regular file")
        }
        guard PathTrust.isTrusted(owner: status.st_uid) else {
            throw Failure(
                .notPermitted,
                "cannot use \(what) \(path): it belongs to user \(status.st_uid), and not to root or this user"
            )
        }
        guard status.st_mode & privilege.mode == 0 else {
            let (may, mode) = privilege.advice
            throw Failure(
                .notPermitted,
                "cannot use \(what) \(path): others than its owner may \(may) it; chmod \(mode) \(path)")
        }
        return handle
    }

    /// What a CHAP file says: name and secret on its first line; on a second, if there is one, those by which the
    /// target proves itself.
    private struct Lines {
        var own: (name: String, secret: String)
        var mutual: (name: String, secret: String)?

        init(_ path: String) throws {
            let text = try read(path, for: "the CHAP file", nobodyElseMay: .read)
            let lines = text.split(omittingEmptySubsequences: false) { $0.isNewline }
            func pair(_ index: Int) -> (name: String, secret: String)? {
                guard index < lines.count else { return nil }
                // A name may hold colons, as an iSCSI name does: they separate only where no white space does.
                let blank = lines[index].contains { $0 == " " || $0 == "\t" }
                let fields = lines[index].split(maxSplits: 1) { blank ? $0 == " " || $0 == "\t" : $0 == ":" }
                guard fields.count == 2 else { return nil }
                return (String(fields[0]), fields[1].trimmingCharacters(in: .whitespaces))
            }
            guard let own = pair(0) else { throw wrong(path, "its first line is not `name secret`") }
            self.own = own
            mutual = pair(1)
            if mutual == nil, lines.dropFirst().contains(where: { !$0.allSatisfy(\.isWhitespace) }) {
                throw wrong(path, "its second line is not the target's own `name secret`")
            }
        }
    }

    private static func wrong(_ path: String, _ why: String) -> Failure {
        Failure(.usage, "cannot use the CHAP file \(path): \(why)")
    }

    /// For a target.
    static func credentials(_ path: String) throws -> CHAPCredentials {
        let lines = try Lines(path)
        do throws(CHAPCredentials.Invalid) {
            return try CHAPCredentials(
                name: lines.own.name, secret: Array(lines.own.secret.utf8),
                mutual: lines.mutual.map { ($0.name, Array($0.secret.utf8)) })
        } catch {
            switch error {
            case .secretTooShort:
                throw wrong(path, "a secret has less than \(ISCSILimits.chapSecret) bytes")
            case .nameMissing: throw wrong(path, "a name is missing")
            case .sameSecretBothWays: throw wrong(path, "both directions share a secret")
            }
        }
    }

    /// For the agent, who proves itself and asks for no proof: a second line is the target's business. Another
    /// maker's target may have a shorter secret than ours takes.
    static func initiatorCredentials(_ path: String) throws -> InitiatorCredentials {
        let own = try Lines(path).own
        return InitiatorCredentials(name: own.name, secret: own.secret)
    }
}
