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
    /// Where the old copy steps aside on a file system that cannot exchange. No leftover: it is whole, and the only
    /// one there is until the new one has its name.
    private let aside: String
    private var lock: DirectoryLock?
    /// renameat2(2); tests put one here that lacks what some file systems lack.
    var renameWithFlags: (String, String, UInt32) -> Int32 = { Files.rename($0, $1, flags: $2) }
    /// rename(2); tests make it fail.
    var renamePlainly: (String, String) -> Int32 = { rename($0, $1) }
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
        aside = Self.join(parent, ".\(name).replaced")
        try Self.bringBack(aside, to: destination, action)
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

    /// A process that died while it replaced a copy may have left the old one aside: it gets its name back when
    /// nothing has that, and is removed when the new one has it.
    private static func bringBack(_ aside: String, to destination: String, _ action: String) throws(CopyError)
    {
        guard try Files.kind(of: aside, action) == S_IFDIR,
            // Locked: its replacement is going on.
            let lock = try DirectoryLock(aside, exclusive: true, action)
        else { return }
        defer { withExtendedLifetime(lock) {} }
        guard try Files.kind(of: destination, action) == nil else {
            if try isCopy(destination, action), try isCopy(aside, action) { try Files.removeFlat(aside) }
            return
        }
        guard rename(aside, destination) == 0 else {
            throw .system(errno, action, otherwise: .cannotCreate)
        }
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
        let members: Set = [
            Manifest.fileName, "data.img", TocDescription.fileName, ".\(Manifest.fileName).new",
        ]
        let names = try Files.names(in: path, action)
        let draft = FileDraft.prefix(of: TocDescription.fileName)
        guard names.contains(Manifest.fileName),
            names.allSatisfy({ members.contains($0) || $0.hasPrefix(draft) })
        else { return false }
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
            // A restore that makes a file of that name has such a temporary file, which is its own.
            guard try Files.kind(of: path, action) == S_IFDIR else { continue }
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
    /// there less than a whole copy under that name, the old one or the new (for a moment, on a file system that
    /// cannot exchange, under a name from which the next draft brings it back).
    public func commit(_ manifest: Manifest) throws(CopyError) {
        try Self.commit([(self, manifest)])
    }

    /// Commits all of a group or none: each is written and flushed, and what it replaces locked, before the first
    /// gets its name; when one cannot get it, the others lose theirs again.
    public static func commit(_ group: [(draft: CopyDraft, manifest: Manifest)]) throws(CopyError) {
        var locks: [DirectoryLock] = []
        for (draft, manifest) in group {
            try draft.seal(manifest)
            if let lock = try draft.lockExisting() { locks.append(lock) }
        }
        defer { withExtendedLifetime(locks) {} }
        var moved: [(draft: CopyDraft, old: String?)] = []
        do throws(CopyError) {
            for (draft, _) in group { moved.append((draft, try draft.move())) }
        } catch {
            var failure = error
            for (draft, old) in moved.reversed() where !draft.moveBack(old) {
                // Its new copy is whole; nothing is lost, and the user knows.
                failure.reason += "; \(draft.destination) is complete nevertheless"
            }
            throw failure
        }
        for (draft, _) in moved {
            draft.isOver = true
            draft.lock = nil  // it is the finished copy's now
        }
        for (draft, _) in moved {
            try Files.synchronize(String(draft.directory[..<draft.directory.lastIndex(of: "/")!]) + "/")
        }
        for (_, old) in moved { if let old { try Files.removeFlat(old) } }
    }

    private var action: String { "complete the copy \(destination)" }

    private func seal(_ manifest: Manifest) throws(CopyError) {
        precondition(!isOver, "a copy is committed once")
        for name in try Files.names(in: directory, action) { try Files.synchronize(path(of: name)) }
        try Files.replace(directory, Manifest.fileName, with: manifest.encoded())
    }

    /// - Returns: what keeps readers away from the copy that is there; nil when none is to be replaced.
    private func lockExisting() throws(CopyError) -> DirectoryLock? {
        guard replacesExisting else {
            guard try Files.kind(of: destination, action) == nil else { throw appeared }
            return nil
        }
        guard let lock = try DirectoryLock(destination, exclusive: true, action) else {
            throw CopyError(
                .cannotCreate, action, "the copy that is there is being read",
                advice: "try again when that is over")
        }
        return lock
    }

    private var appeared: CopyError {
        CopyError(.cannotCreate, action, "something has appeared there meanwhile")
    }

    /// - Returns: where the copy that was replaced lies now; nil when there was none.
    private func move() throws(CopyError) -> String? {
        guard replacesExisting else {
            if renameWithFlags(directory, destination, Files.renameNoReplace) == 0 { return nil }
            if errno == EEXIST { throw appeared }
            // A file system without that flag: the directory was absent when we looked, and a rename
            // replaces an empty directory only.
            guard errno == EINVAL || errno == ENOSYS, renamePlainly(directory, destination) == 0 else {
                throw .system(errno, action, otherwise: .cannotCreate)
            }
            return nil
        }
        if renameWithFlags(directory, destination, Files.renameExchange) == 0 { return directory }
        guard errno == EINVAL || errno == ENOSYS, renamePlainly(destination, aside) == 0 else {
            throw .system(errno, action, otherwise: .cannotCreate)
        }
        guard renamePlainly(directory, destination) == 0 else {
            let failure = CopyError.system(errno, action, otherwise: .cannotCreate)
            // If this fails, too, the next draft of the name brings it back.
            _ = renamePlainly(aside, destination)
            throw failure
        }
        return aside
    }

    /// Undoes ``move()``.
    private func moveBack(_ old: String?) -> Bool {
        guard let old else { return renamePlainly(destination, directory) == 0 }
        if old == directory { return renameWithFlags(directory, destination, Files.renameExchange) == 0 }
        return renamePlainly(destination, directory) == 0 && renamePlainly(aside, destination) == 0
    }

    /// Removes what has been made.
    public func abandon() throws(CopyError) {
        guard !isOver else { return }
        isOver = true
        try Files.removeFlat(directory)
    }
}
