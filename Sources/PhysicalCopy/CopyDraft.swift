import Blocks
import Glibc

/// A copy in the making: a directory under a temporary name beside its final one, where it moves only
/// when all of it is complete and flushed. Dropped without ``commit(_:)``, it is removed.
public final class CopyDraft: @unchecked Sendable {  // `isOver` is touched by the one thread that owns it
    /// Where the copy will be, absolute.
    public let destination: String
    /// Where it is being made, absolute.
    public let directory: String
    /// Whether a copy that is at the destination now will be replaced.
    public let replacesExisting: Bool
    private var lock: DirectoryLock?
    private var isOver = false

    /// Makes the temporary directory, and clears away those that dead processes left of the same copy.
    /// - Parameters:
    ///   - destination: the copy's directory; its parent must exist.
    ///   - force: replace a copy that is there. What is not a copy is never replaced.
    public init(destination path: String, force: Bool) throws(CopyError) {
        destination = Files.absolute(path)
        let action = "make the copy \(destination)"
        guard let slash = destination.lastIndex(of: "/"), destination.count > 1 else {
            throw CopyError(.cannotCreate, action, "that is no name for a copy")
        }
        let parent = destination[..<slash].isEmpty ? "/" : String(destination[..<slash])
        let name = String(destination[destination.index(after: slash)...])
        replacesExisting = try Self.checkDestination(destination, force: force, action)
        try Self.clearLeftovers(of: name, in: parent, action)
        directory = Self.join(parent, ".\(name).partial-\(getpid())")
        guard mkdir(directory, 0o755) == 0 else {
            var error = CopyError.system(errno, action, otherwise: .cannotCreate)
            if error.kind == .missing {
                error = CopyError(
                    .cannotCreate, action, "the directory \(parent) does not exist", advice: "make it first")
            }
            throw error
        }
        do throws(CopyError) {
            guard let lock = try DirectoryLock(directory, exclusive: true, action) else {
                throw CopyError(.cannotCreate, action, "another process took \(directory)")
            }
            self.lock = lock
        } catch {
            rmdir(directory)
            throw error
        }
    }

    deinit {
        // An error here has no reader; the next copy to this name clears the rest away.
        if !isOver { try? Files.removeFlat(directory) }
    }

    private static func join(_ parent: String, _ name: String) -> String {
        parent == "/" ? "/" + name : parent + "/" + name
    }

    /// - Returns: whether something is there that may be replaced.
    private static func checkDestination(
        _ path: String, force: Bool, _ action: String
    ) throws(CopyError) -> Bool {
        guard let kind = try Files.kind(of: path, action) else { return false }
        guard kind == S_IFDIR, try isCopy(path, action) else {
            throw CopyError(
                .cannotCreate, action, "something that is not a copy is there, and it is never replaced",
                advice: "choose another directory")
        }
        guard force else {
            throw CopyError(
                .cannotCreate, action, "it exists",
                advice: "choose another directory, or replace it with --force")
        }
        return true
    }

    /// A directory that holds nothing but members of a copy, a manifest among them, whole or damaged.
    static func isCopy(_ path: String, _ action: String) throws(CopyError) -> Bool {
        let members: Set = [Manifest.fileName, "data.img", "toc.sqlite", ".\(Manifest.fileName).new"]
        let names = try Files.names(in: path, action)
        guard names.contains(Manifest.fileName), names.allSatisfy(members.contains) else { return false }
        let bytes = try Files.read(
            path + "/" + Manifest.fileName, limit: CopyLimits.manifestBytes, action)
        return bytes.firstRange(of: Array(Manifest.formatName.utf8)) != nil
    }

    private static func clearLeftovers(
        of name: String, in parent: String, _ action: String
    ) throws(CopyError) {
        guard try Files.kind(of: parent, action) != nil else { return }
        for leftover in try Files.names(in: parent, action)
        where leftover.hasPrefix(".\(name).partial-") {
            let path = join(parent, leftover)
            // Locked: its maker lives. Not locked: its maker is dead, and nobody will finish it.
            if try DirectoryLock(path, exclusive: true, action) != nil { try Files.removeFlat(path) }
        }
    }

    /// Where a member of the copy is to be written.
    public func path(of member: String) -> String { directory + "/" + member }

    /// Bytes that the copy's file system has left for this process.
    public func availableSpace() throws(CopyError) -> UInt64 {
        var information = statvfs()
        guard statvfs(directory, &information) == 0 else {
            throw .system(errno, "look for space in \(directory)")
        }
        return UInt64(information.f_bavail) * UInt64(information.f_frsize)
    }

    /// Writes the manifest, flushes everything, and moves the directory to its final name: at no moment is
    /// there less than a whole copy under that name, the old one or the new.
    public func commit(_ manifest: Manifest) throws(CopyError) {
        precondition(!isOver, "a copy is committed once")
        let action = "complete the copy \(destination)"
        for name in try Files.names(in: directory, action) { try Files.synchronize(path(of: name)) }
        try Files.replace(directory, Manifest.fileName, with: manifest.encoded())
        try move(action)
        isOver = true
        lock = nil  // it is the finished copy's now
        try Files.synchronize(String(directory[..<directory.lastIndex(of: "/")!]) + "/")
        // The old copy now lies under the temporary name.
        if replacesExisting { try Files.removeFlat(directory) }
    }

    private func move(_ action: String) throws(CopyError) {
        guard replacesExisting else {
            if Files.rename(directory, destination, flags: Files.renameNoReplace) == 0 { return }
            if errno == EEXIST {
                throw CopyError(.cannotCreate, action, "something has appeared there meanwhile")
            }
            // A file system without that flag: the directory was absent when we looked, and a rename
            // replaces an empty directory only.
            guard errno == EINVAL || errno == ENOSYS, rename(directory, destination) == 0 else {
                throw .system(errno, action, otherwise: .cannotCreate)
            }
            return
        }
        guard let lock = try DirectoryLock(destination, exclusive: true, action) else {
            throw CopyError(
                .cannotCreate, action, "the copy that is there is being read",
                advice: "try again when that is over")
        }
        defer { withExtendedLifetime(lock) {} }
        if Files.rename(directory, destination, flags: Files.renameExchange) == 0 { return }
        guard errno == EINVAL || errno == ENOSYS else {
            throw .system(errno, action, otherwise: .cannotCreate)
        }
        // A file system that cannot exchange: the old copy steps aside for a moment, under a name of its own.
        let aside = directory + ".replaced"
        guard rename(destination, aside) == 0, rename(directory, destination) == 0,
            rename(aside, directory) == 0
        else { throw .system(errno, action, otherwise: .cannotCreate) }
    }

    /// Removes what has been made.
    public func abandon() throws(CopyError) {
        guard !isOver else { return }
        isOver = true
        try Files.removeFlat(directory)
    }
}
