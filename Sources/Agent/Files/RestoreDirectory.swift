import Glibc
import TableOfContents

/// What an inode is, for telling whether it is still the same one.
struct FileIdentity: Hashable {
    var device: UInt64
    var inode: UInt64

    init(_ status: stat) {
        device = UInt64(status.st_dev)
        inode = UInt64(status.st_ino)
    }
}

/// A directory below the one that is restored to.
final class RestoreDirectory {
    let parent: RestoreDirectory?
    /// In its parent; empty for the topmost one.
    let name: [UInt8]
    /// What it must still be whenever it is opened.
    let identity: FileIdentity
    /// Made by this restore; else it was there, and stays as it is.
    let isNew: Bool
    /// From the directory that is restored to.
    let depth: Int
    /// Hashes of the names that this restore has given here, and of these without regard to case: numbers of inodes do
    /// not tell what is ours where the system forgets them (FAT, FUSE).
    private var given: Set<Int> = []

    init(_ name: [UInt8], in parent: RestoreDirectory?, _ identity: FileIdentity, isNew: Bool) {
        self.name = name
        self.parent = parent
        self.identity = identity
        self.isNew = isNew
        depth = (parent?.depth ?? -1) + 1
    }

    private static func hash(_ name: [UInt8]) -> Int {
        var hasher = Hasher()
        hasher.combine(0)
        hasher.combine(name)
        return hasher.finalize()
    }

    /// Canonically equivalent names have the same, too.
    private static func foldedHash(_ name: [UInt8]) -> Int {
        var hasher = Hasher()
        hasher.combine(1)
        hasher.combine(String(decoding: name, as: UTF8.self).lowercased())
        return hasher.finalize()
    }

    /// The restore has given this name.
    func give(_ name: [UInt8]) {
        given.insert(Self.hash(name))
        given.insert(Self.foldedHash(name))
    }

    /// Of a name that leads to something here: whether that got its name, or another that is the same to the file
    /// system, by this restore.
    /// - Parameter descriptor: of the directory.
    func hasGiven(_ name: [UInt8], _ descriptor: Int32) -> Bool {
        if given.contains(Self.hash(name)) { return true }
        guard given.contains(Self.foldedHash(name)) else { return false }
        // Another case was given. Where that is another name, this one is listed, too.
        return !Self.isListed(name, in: descriptor)
    }

    private static func isListed(_ name: [UInt8], in descriptor: Int32) -> Bool {
        var isListed = false
        FileCalls.forEachName(in: descriptor) { if $0.elementsEqual(name) { isListed = true } }
        return isListed
    }

    /// As `base` would have it.
    func path(_ base: String) -> String {
        guard let parent else { return base }
        let above = parent.path(base)
        return above + (above.hasSuffix("/") ? "" : "/") + TocPath.escaped(name)
    }
}

/// The directories of a restore, opened so that nothing outside can be reached, whatever the names are and whoever
/// changes the tree meanwhile: name by name from the topmost, never by a path; no name is `.` or `..` or has a slash;
/// no symbolic link is followed; and what is opened must be the very directory that was made, or found, before.
final class RestoreDirectories {
    let top: RestoreDirectory
    let topDescriptor: Int32
    /// Some that were opened last, and when.
    private var open: [ObjectIdentifier: (descriptor: Int32, used: UInt64)] = [:]
    private var uses: UInt64 = 0

    /// Opens the directory; makes it where there is none.
    init(_ path: String) throws(AgentError) {
        let opened = try RestoreTop(path)
        var status = stat()
        guard fstat(opened.descriptor, &status) == 0 else {
            let number = errno
            close(opened.descriptor)
            throw AgentError.system(number, doing: "restoring to", to: path)
        }
        topDescriptor = opened.descriptor
        top = RestoreDirectory([], in: nil, FileIdentity(status), isNew: opened.isNew)
    }

    deinit {
        for entry in open.values { close(entry.descriptor) }
        close(topDescriptor)
    }

    /// Why a name of the table of contents cannot be one here; nil when it can.
    static func refusal(of name: [UInt8]) -> String? {
        if name.isEmpty || name.contains(0) { return "its name is none" }
        if name == [UInt8(ascii: ".")] || name == [UInt8(ascii: "."), UInt8(ascii: ".")] {
            return "its name leads elsewhere"
        }
        if name.contains(UInt8(ascii: "/")) { return "there is a slash in its name" }
        return nil
    }

    /// - Returns: a descriptor that is valid until the next call.
    func descriptor(of directory: RestoreDirectory) throws(FileProblem) -> Int32 {
        uses += 1
        return try opened(directory)
    }

    private func opened(_ directory: RestoreDirectory) throws(FileProblem) -> Int32 {
        guard let parent = directory.parent else { return topDescriptor }
        let key = ObjectIdentifier(directory)
        if let entry = open[key] {
            open[key]?.used = uses
            return entry.descriptor
        }
        // From the nearest one that is open, one by one: a tree may be deeper than the stack.
        var missing = [directory]
        var above = parent
        while above.parent != nil, open[ObjectIdentifier(above)] == nil, let next = above.parent {
            missing.append(above)
            above = next
        }
        var descriptor = topDescriptor
        if above.parent != nil, let entry = open[ObjectIdentifier(above)] { descriptor = entry.descriptor }
        for directory in missing.reversed() {
            descriptor = try open(directory, in: descriptor)
        }
        return descriptor
    }

    private func open(_ directory: RestoreDirectory, in parent: Int32) throws(FileProblem) -> Int32 {
        let descriptor = openat(
            parent, directory.name.cString, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
        guard descriptor >= 0 else {
            throw errno == ELOOP || errno == ENOTDIR
                ? FileProblem("its directory was replaced meanwhile")
                : .system(errno, "opening its directory")
        }
        var status = stat()
        guard fstat(descriptor, &status) == 0, FileIdentity(status) == directory.identity else {
            close(descriptor)
            throw FileProblem("its directory was replaced meanwhile")
        }
        if open.count >= AgentLimits.openDirectories {
            // The parent of what is opened now was used last, or is among those that are opened with it.
            let oldest = open.filter { $0.value.descriptor != parent }.min { $0.value.used < $1.value.used }
            if let oldest {
                close(oldest.value.descriptor)
                open[oldest.key] = nil
            }
        }
        open[ObjectIdentifier(directory)] = (descriptor, uses)
        return descriptor
    }

    /// Makes a directory, or finds one that is there.
    /// - Parameter made: what this restore made: two different directories are not put into one.
    func make(
        _ name: [UInt8], in parent: RestoreDirectory, made: Set<FileIdentity>
    ) throws(FileProblem) -> RestoreDirectory {
        let above = try descriptor(of: parent)
        var isNew = true
        if mkdirat(above, name.cString, 0o700) != 0 {
            guard errno == EEXIST else { throw .system(errno, "making it") }
            isNew = false
        }
        let descriptor = openat(above, name.cString, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
        guard descriptor >= 0 else {
            throw errno == ELOOP || errno == ENOTDIR
                ? FileProblem("there is something of its name that is no directory")
                : .system(errno, "opening it")
        }
        defer { close(descriptor) }
        var status = stat()
        guard fstat(descriptor, &status) == 0 else { throw .system(errno, "looking at it") }
        let identity = FileIdentity(status)
        guard isNew || !made.contains(identity) && !parent.hasGiven(name, above) else {
            throw .collision
        }
        parent.give(name)
        return RestoreDirectory(name, in: parent, identity, isNew: isNew)
    }
}

/// Why one file was not restored; the others are.
struct FileProblem: Error {
    var status: AgentError.ExitStatus
    var reason: String
    /// Nothing more can be written: no use to go on.
    var isNoSpace = false

    init(_ reason: String, status: AgentError.ExitStatus = .cannotCreate) {
        self.status = status
        self.reason = reason
    }

    static func system(_ number: Int32, _ doing: String) -> FileProblem {
        var problem = FileProblem("\(doing): \(String(cString: strerror(number)))")
        if number == EACCES || number == EPERM { problem.status = .notPermitted }
        problem.isNoSpace = number == ENOSPC || number == EDQUOT
        return problem
    }

    static let exists = FileProblem("there is something of its name; have it replaced with --force")
    static let collision = FileProblem(
        "its name and another's that was restored are one here (upper and lower case, or twice the same)")
}
