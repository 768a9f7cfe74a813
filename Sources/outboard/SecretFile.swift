import Foundation
import Glibc
import ISCSI

/// Small files that decide who may do what.
enum SecretFile {
    /// Bytes of one.
    static let limit = 64 << 10

    /// What only the owner may do with a file.
    enum Privilege {
        case read
        case write

        var mode: mode_t { self == .read ? 0o077 : 0o022 }
    }

    /// - Parameter nobodyElseMay: with such rights for group or others the file is refused (77), by what is open,
    ///   not by what its name may mean a moment later.
    static func read(_ path: String, for what: String, nobodyElseMay privilege: Privilege) throws -> String {
        // Not to wait for the other end of a pipe.
        let descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
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
        guard status.st_mode & privilege.mode == 0 else {
            let (may, mode) = privilege == .read ? ("use", "600") : ("write", "go-w")
            throw Failure(
                .notPermitted,
                "cannot use \(what) \(path): others than its owner may \(may) it; chmod \(mode) \(path)")
        }
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

    /// Name and secret from a CHAP file's first line; from a second line those by which the target proves itself.
    static func credentials(_ path: String) throws -> CHAPCredentials {
        let text = try read(path, for: "the CHAP file", nobodyElseMay: .read)
        func wrong(_ why: String) -> Failure { Failure(.usage, "cannot use the CHAP file \(path): \(why)") }
        let lines = text.split(omittingEmptySubsequences: false) { $0.isNewline }
        func pair(_ index: Int) -> (name: String, secret: [UInt8])? {
            guard index < lines.count else { return nil }
            // A name may hold colons, as an iSCSI name does: they separate only where no white space does.
            let blank = lines[index].contains { $0 == " " || $0 == "\t" }
            let fields = lines[index].split(maxSplits: 1) { blank ? $0 == " " || $0 == "\t" : $0 == ":" }
            guard fields.count == 2 else { return nil }
            return (String(fields[0]), Array(fields[1].trimmingCharacters(in: .whitespaces).utf8))
        }
        guard let own = pair(0) else { throw wrong("its first line is not `name secret`") }
        let mutual = pair(1)
        if mutual == nil, lines.dropFirst().contains(where: { !$0.allSatisfy(\.isWhitespace) }) {
            throw wrong("its second line is not the target's own `name secret`")
        }
        do throws(CHAPCredentials.Invalid) {
            return try CHAPCredentials(name: own.name, secret: own.secret, mutual: mutual)
        } catch {
            switch error {
            case .secretTooShort: throw wrong("a secret has less than \(ISCSILimits.chapSecret) bytes")
            case .nameMissing: throw wrong("a name is missing")
            case .sameSecretBothWays: throw wrong("both directions share a secret")
            }
        }
    }
}
