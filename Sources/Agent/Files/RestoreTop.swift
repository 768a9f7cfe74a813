import Blocks
import Glibc

/// The directory that files are restored to, opened; made where there is none.
struct RestoreTop {
    let descriptor: Int32
    let isNew: Bool
    private static let doing = "restoring to"

    /// Where others may change names on the way (``PathTrust``), a link could lead anywhere by the time that it is
    /// followed: then none is, and what is restored stays in the tree that the path names.
    init(_ path: String) throws(AgentError) {
        guard let flaw = PathTrust.flaw(of: path) else {
            (descriptor, isNew) = try Self.make(path, path, in: AT_FDCWD, 0)
            return
        }
        var directory = Glibc.open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard directory >= 0 else { throw AgentError.system(errno, doing: Self.doing, to: "/") }
        defer { close(directory) }
        let names = PathTrust.absolute(path).split(separator: "/").filter { $0 != "." }.map(String.init)
        for name in names.dropLast() {
            let next = try Self.open(name, path, in: directory, flaw, FileCalls.pathOnly)
            close(directory)
            directory = next
        }
        guard let last = names.last, last != ".." else { throw Self.refused(path, names.last ?? "/", flaw) }
        guard Self.kind(last, in: directory) != S_IFLNK else { throw Self.refused(path, last, flaw) }
        (descriptor, isNew) = try Self.make(last, path, in: directory, O_NOFOLLOW)
    }

    private static func make(
        _ name: String, _ path: String, in directory: Int32, _ flags: Int32
    ) throws(AgentError) -> (Int32, isNew: Bool) {
        var isNew = true
        if mkdirat(directory, name, 0o700) != 0 {
            isNew = false
            guard errno == EEXIST else {
                throw AgentError.system(errno, doing: doing, to: path, otherwise: .cannotCreate)
            }
        }
        let descriptor = openat(directory, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | flags)
        guard descriptor >= 0 else {
            throw AgentError.system(errno, doing: doing, to: path, otherwise: .cannotCreate)
        }
        return (descriptor, isNew)
    }

    private static func open(
        _ name: String, _ path: String, in directory: Int32, _ flaw: PathTrust.Flaw, _ flags: Int32
    ) throws(AgentError) -> Int32 {
        guard name != "..", kind(name, in: directory) != S_IFLNK else { throw refused(path, name, flaw) }
        let descriptor = openat(directory, name, O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC | flags)
        guard descriptor >= 0 else {
            throw AgentError.system(errno, doing: doing, to: path, otherwise: .cannotCreate)
        }
        return descriptor
    }

    private static func kind(_ name: String, in directory: Int32) -> mode_t? {
        var status = stat()
        return fstatat(directory, name, &status, AT_SYMLINK_NOFOLLOW) == 0 ? status.st_mode & S_IFMT : nil
    }

    private static func refused(_ path: String, _ name: String, _ flaw: PathTrust.Flaw) -> AgentError {
        AgentError(
            .notPermitted, doing: doing, to: path,
            because: "\(flaw), and there no link is followed, nor \"..\": \(name)",
            advice: "name the directory by its own path")
    }
}
