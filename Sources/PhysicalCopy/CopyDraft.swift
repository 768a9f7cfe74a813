import Blocks
import Glibc

/// A copy in the making: a directory under a temporary name beside its final one, where it moves only
/// when all of it is complete and flushed. Dropped without ``commit(_:)``, it is removed.
public final class CopyDraft: @unchecked Sendable {  // `isOver` is touched by the one thread that owns it
    /// Where the copy will be, absolute.
    public let destination: String
    /// Where it is being made, absolute.
    public let directory: String
    /// Whether a copy that is at the destination may be replaced; an abandoned one may always be.
    private let replacesCopies: Bool
    /// Whether something that is there will be, once that is known.
    private var isReplacing = false
    let place: CopyPlace
    var lock: DirectoryLock?
    /// Tests put calls here that lack what some file systems lack.
    var files: Files
    var isOver = false

    /// Makes the temporary directory, and clears away those that dead processes left of the same copy.
    /// - Parameters:
    ///   - destination: the copy's directory; its parent must exist.
    ///   - force: replace a copy that is there. What is not a copy is never replaced, an abandoned one without being
    ///     asked.
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
        replacesCopies = try place.check(force: force)
        try place.clearLeftovers()
        let directory = place.draft(of: calls.getpid())
        self.directory = directory
        // `deinit` runs as well when this throws: until the directory is ours, it is another's, a process of the same
        // number in another container maybe, and is left alone.
        isOver = true
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
            isOver = false
        } catch {
            _ = calls.unlinkat(FileSystemCalls.noDirectory, directory, AT_REMOVEDIR)
            throw error
        }
    }

    /// One that is there already, and locked.
    init(_ place: CopyPlace, _ directory: String, replacing: Bool, _ lock: DirectoryLock, _ files: Files) {
        self.place = place
        self.files = files
        self.directory = directory
        self.lock = lock
        destination = place.destination
        replacesCopies = replacing
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
    var descriptor: Int32 {
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

    /// Writes a member whole; flushed.
    func write(member name: String, _ bytes: [UInt8]) throws(CopyError) {
        try files.replace(name, in: descriptor, with: bytes, "write \(path(of: name))")
    }

    /// Makes the usual data file as long as what it holds, or as what it shall take.
    /// - Parameter size: bytes.
    public func resizeData(to size: UInt64) throws(CopyError) {
        let name = DataLocation.usualName
        let action = "make \(path(of: name)) \(size) bytes long"
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
    /// gets its name; when one cannot get it, the others lose theirs again. Who dies between two names leaves the one new and the
    /// other old, each whole; their manifests tell of which group they are.
    public static func commit(_ group: [(draft: CopyDraft, manifest: Manifest)]) throws(CopyError) {
        var locks: [DirectoryLock] = []
        for (draft, manifest) in group {
            try draft.seal(manifest.encoded())
            if let lock = try draft.lockExisting(orCopies: draft.replacesCopies) { locks.append(lock) }
        }
        defer { withExtendedLifetime(locks) {} }
        try put(group.map(\.draft))
    }

    /// Gives sealed drafts their names, all or none.
    private static func put(_ drafts: [CopyDraft]) throws(CopyError) {
        var moved: [(draft: CopyDraft, old: String?)] = []
        do throws(CopyError) {
            for draft in drafts { moved.append((draft, try draft.move())) }
        } catch {
            var failure = error
            for (draft, old) in moved.reversed() {
                if !draft.moveBack(old) {
                    // Its new copy is whole; nothing is lost, and the user knows.
                    failure.reason += "; \(draft.destination) is complete nevertheless"
                }
                // What is under the temporary name may be removed as soon as it cannot have the final one again.
                draft.isOver = (try? draft.files.synchronizeDirectory(draft.place.parent)) == nil
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

    /// Writes the manifest and flushes everything.
    private func seal(_ manifest: [UInt8]) throws(CopyError) {
        precondition(!isOver, "a copy is committed once")
        try forgetRecord()
        for name in try files.names(inDirectory: descriptor, action) {
            try files.synchronizeFile(name, in: descriptor)
        }
        try write(member: Manifest.fileName, manifest)
    }

    /// - Parameter orCopies: whether a copy may be replaced, and not only an abandoned one.
    /// - Returns: what keeps readers away from what is there; nil when nothing is to be replaced.
    private func lockExisting(orCopies: Bool) throws(CopyError) -> DirectoryLock? {
        isReplacing = false
        guard try files.kind(of: destination, action) != nil else { return nil }
        // Looked at before and after: nothing that is not ours is locked, nor a copy that came meanwhile replaced.
        if !orCopies { guard try place.isAbandoned() else { throw appeared } }
        guard let lock = try DirectoryLock(destination, exclusive: true, files: files, action) else {
            throw CopyError(
                .cannotCreate, action, "the copy that is there is being read",
                advice: "try again when that is over")
        }
        if !orCopies { guard try place.isAbandoned() else { throw appeared } }
        isReplacing = true
        return lock
    }

    private var appeared: CopyError {
        CopyError(.cannotCreate, action, "something has appeared there meanwhile")
    }

    /// - Returns: where the copy that was replaced lies now; nil when there was none.
    private func move() throws(CopyError) -> String? {
        guard isReplacing else {
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
    /// - Returns: whether the new copy has lost its name.
    private func moveBack(_ old: String?) -> Bool {
        guard let old else { return rename(destination, directory) == nil }
        if old == directory {
            return rename(directory, destination, FileSystemCalls.renameExchange) == nil
        }
        guard rename(destination, directory) == nil else { return false }
        // If this fails, the next draft of the name brings it back.
        _ = rename(place.aside, destination)
        return true
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

    /// Removes what has been made and leaves, where the copy was to be, why there is none. Where there is anything else
    /// than an abandoned copy, that stays, and nothing is left.
    /// - Returns: whether it was left.
    @discardableResult
    public func abandon(leaving record: AbandonedCopy) throws(CopyError) -> Bool {
        guard !isOver else { return false }
        if try files.kind(of: destination, action) != nil, try !place.isAbandoned() {
            try abandon()
            return false
        }
        do throws(CopyError) {
            // First of all, because the disk may be full.
            for name in try files.names(inDirectory: descriptor, action) {
                try files.remove(name, in: descriptor, action)
            }
            try seal(record.encoded())
            let lock = try lockExisting(orCopies: false)
            defer { withExtendedLifetime(lock) {} }
            try Self.put([self])
            return true
        } catch {
            try abandon()
            throw error
        }
    }
}
