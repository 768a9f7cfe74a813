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
    private let place: CopyPlace
    private var lock: DirectoryLock?
    /// Tests put calls here that lack what some file systems lack.
    var files: Files
    private var isOver = false

    /// Makes the temporary directory, and clears away those that dead processes left of the same copy.
    /// - Parameters:
    ///   - destination: the copy's directory; its parent must exist.
    ///   - force: replace a copy that is there. What is not a copy is never replaced.
    ///   - calls: the file system.
    public init(
        destination: String, force: Bool, files calls: FileSystemCalls = FileSystemCalls()
    ) throws(CopyError) {
        let files = Files(calls)
        place = try CopyPlace(destination, files: files)
        self.files = files
        self.destination = place.destination
        let action = "make the copy \(place.destination)"
        try place.bringBack()
        replacesExisting = try place.check(force: force)
        try place.clearLeftovers()
        let directory = place.draft(of: calls.getpid())
        self.directory = directory
        do throws(Errno) {
            try calls.mkdirat(FileSystemCalls.noDirectory, directory, 0o755).get()
        } catch {
            var failure = CopyError.system(error.code, action, otherwise: .cannotCreate)
            if failure.kind == .missing {
                failure = CopyError(
                    .cannotCreate, action, "the directory \(place.parent) does not exist",
                    advice: "make it first")
            }
            throw failure
        }
        do throws(CopyError) {
            guard let lock = try DirectoryLock(directory, exclusive: true, files: files, action) else {
                throw CopyError(.cannotCreate, action, "another process took \(directory)")
            }
            self.lock = lock
        } catch {
            _ = calls.unlinkat(FileSystemCalls.noDirectory, directory, AT_REMOVEDIR)
            throw error
        }
    }

    deinit {
        // An error here has no reader; the next copy to this name clears the rest away.
        if !isOver { try? files.removeFlat(directory) }
    }

    /// Where a member of the copy is to be written.
    public func path(of member: String) -> String { directory + "/" + member }

    /// Bytes that the copy's file system has left for this process.
    public func availableSpace() throws(CopyError) -> UInt64 {
        do throws(Errno) { return try files.calls.availableSpace(descriptor).get() } catch {
            throw .system(error.code, "look for space in \(directory)")
        }
    }

    /// The temporary directory, as long as it is one.
    private var descriptor: Int32 {
        guard let lock else { preconditionFailure("the copy is finished") }
        return lock.descriptor
    }

    /// Makes the usual data file, empty and sparse, for its owner alone.
    /// - Parameter size: bytes.
    public func makeData(size: UInt64) throws(CopyError) {
        let name = DataLocation.usualName
        let action = "make \(path(of: name))"
        do throws(CopyError) {
            let data = try files.open(
                name, in: descriptor, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, mode: 0o600, action)
            defer { files.calls.close(data) }
            try files.truncate(data, to: size, action)
        } catch {
            guard error.kind == .io else { throw error }
            throw CopyError(.cannotCreate, action, error.reason)
        }
    }

    /// Cuts the usual data file to what it holds.
    /// - Parameter size: bytes.
    public func cutData(to size: UInt64) throws(CopyError) {
        let name = DataLocation.usualName
        let action = "cut \(path(of: name))"
        let data = try files.openRegular(name, in: descriptor, O_RDWR, action).descriptor
        defer { files.calls.close(data) }
        try files.truncate(data, to: size, action)
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
            try draft.files.synchronizeDirectory(draft.place.parent)
        }
        for (draft, old) in moved { if let old { try draft.files.removeFlat(old) } }
    }

    private var action: String { "complete the copy \(destination)" }

    private func seal(_ manifest: Manifest) throws(CopyError) {
        precondition(!isOver, "a copy is committed once")
        for name in try files.names(inDirectory: descriptor, action) {
            try files.synchronizeFile(name, in: descriptor)
        }
        try files.replace(
            Manifest.fileName, in: descriptor, with: manifest.encoded(),
            "write \(path(of: Manifest.fileName))")
    }

    /// - Returns: what keeps readers away from the copy that is there; nil when none is to be replaced.
    private func lockExisting() throws(CopyError) -> DirectoryLock? {
        guard replacesExisting else {
            guard try files.kind(of: destination, action) == nil else { throw appeared }
            return nil
        }
        guard let lock = try DirectoryLock(destination, exclusive: true, files: files, action) else {
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
            var failure = rename(directory, destination, FileSystemCalls.renameNoReplace)
            if failure?.code == EEXIST { throw appeared }
            // A file system without that flag: the directory was absent when we looked, and a rename
            // replaces an empty directory only.
            if isWithoutFlags(failure) { failure = rename(directory, destination) }
            if let failure { throw .system(failure.code, action, otherwise: .cannotCreate) }
            return nil
        }
        guard let failure = rename(directory, destination, FileSystemCalls.renameExchange) else {
            return directory
        }
        guard isWithoutFlags(failure) else {
            throw .system(failure.code, action, otherwise: .cannotCreate)
        }
        if let failure = rename(destination, place.aside) {
            throw .system(failure.code, action, otherwise: .cannotCreate)
        }
        if let failure = rename(directory, destination) {
            // If this fails, too, the next draft of the name brings it back.
            _ = rename(place.aside, destination)
            throw .system(failure.code, action, otherwise: .cannotCreate)
        }
        return place.aside
    }

    /// Undoes ``move()``.
    private func moveBack(_ old: String?) -> Bool {
        guard let old else { return rename(destination, directory) == nil }
        if old == directory {
            return rename(directory, destination, FileSystemCalls.renameExchange) == nil
        }
        return rename(destination, directory) == nil && rename(place.aside, destination) == nil
    }

    /// - Returns: the error; nil when there was none.
    private func rename(_ old: String, _ new: String, _ flags: UInt32 = 0) -> Errno? {
        switch files.calls.renameat(FileSystemCalls.noDirectory, old, new, flags) {
        case .success: nil
        case .failure(let error): error
        }
    }

    /// Whether a rename failed for want of its flag.
    private func isWithoutFlags(_ error: Errno?) -> Bool { error?.code == EINVAL || error?.code == ENOSYS }

    /// Removes what has been made.
    public func abandon() throws(CopyError) {
        guard !isOver else { return }
        isOver = true
        try files.removeFlat(directory)
    }
}
