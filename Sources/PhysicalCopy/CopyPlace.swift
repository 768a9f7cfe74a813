import Blocks
import Glibc

/// Where a copy will be, and what is there now.
struct CopyPlace {
    /// The copy's directory, absolute.
    let destination: String
    /// The directory that it lies in, and its name there.
    let parent: String
    let name: String
    private let files: Files
    private let action: String

    init(_ path: String, files: Files) throws(CopyError) {
        destination = Files.absolute(path)
        action = "make the copy \(destination)"
        guard let slash = destination.lastIndex(of: "/"), destination.count > 1 else {
            throw CopyError(.cannotCreate, action, "that is no name for a copy")
        }
        parent = destination[..<slash].isEmpty ? "/" : String(destination[..<slash])
        name = String(destination[destination.index(after: slash)...])
        self.files = files
    }

    /// Where the old copy steps aside on a file system that cannot exchange. No leftover: it is whole, and the only
    /// one there is until the new one has its name.
    var aside: String { beside(".\(name).replaced") }

    /// Where one process makes the copy.
    func draft(of process: Int32) -> String { beside("\(draftPrefix)\(process)") }

    private var draftPrefix: String { "." + name + Self.draftMark }
    private static let draftMark = ".partial-"

    /// Whether that is the name of a copy in the making, whatever is in it.
    static func isDraft(_ path: String) -> Bool {
        let name = path.split(separator: "/").last ?? ""
        guard name.hasPrefix("."), let mark = name.ranges(of: draftMark).last else { return false }
        let process = name[mark.upperBound...]
        return !process.isEmpty && process.allSatisfy { $0.isASCII && $0.isNumber }
    }

    private func beside(_ name: String) -> String { parent == "/" ? "/" + name : parent + "/" + name }

    /// A process that died while it replaced a copy may have left the old one aside: it gets its name back when
    /// nothing has that, and is removed when the new one has it.
    func bringBack() throws(CopyError) {
        guard try files.kind(of: aside, action) == S_IFDIR,
            // Locked: its replacement is going on.
            let lock = try DirectoryLock(aside, exclusive: true, files: files, action)
        else { return }
        defer { withExtendedLifetime(lock) {} }
        if try files.kind(of: destination, action) == nil {
            guard try !isCopy(aside) else {
                do throws(Errno) {
                    try files.calls.renameat(FileSystemCalls.noDirectory, aside, destination, 0).get()
                } catch { throw .system(error.code, action, otherwise: .cannotCreate) }
                return
            }
        } else {
            guard try isCopy(destination) else { return }
        }
        if try holdsOnlyMembers(aside) { try removeLeftover(aside) }
    }

    /// Removes what a dead process left. What it had renamed last, and not made durable, is made durable before: after a
    /// power cut the old copy may have its name again, or the new one its temporary name.
    private func removeLeftover(_ path: String) throws(CopyError) {
        try files.synchronizeDirectory(parent)
        try files.removeFlat(path)
    }

    /// - Returns: whether a copy is there that may be replaced.
    func check(force: Bool) throws(CopyError) -> Bool {
        guard let kind = try files.kind(of: destination, action) else { return false }
        guard kind == S_IFDIR, try isCopy(destination) else {
            throw CopyError(
                .cannotCreate, action, "something that is not a copy is there, and it is never replaced",
                advice: "choose another directory")
        }
        if try isAbandoned() { return false }
        guard force else {
            throw CopyError(
                .cannotCreate, action, "it exists",
                advice: "choose another directory, or replace it with --force")
        }
        return true
    }

    /// Whether an abandoned copy is there, which may be replaced unasked.
    func isAbandoned() throws(CopyError) -> Bool {
        guard try files.kind(of: destination, action) == S_IFDIR else { return false }
        return try AbandonedCopy.find(in: destination, files, action) != nil
    }

    /// A directory that holds nothing but members of a copy, a manifest among them, whole or damaged.
    private func isCopy(_ path: String) throws(CopyError) -> Bool {
        let directory = try files.open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW, action)
        defer { files.calls.close(directory) }
        let names = try files.names(inDirectory: directory, action)
        guard names.contains(Manifest.fileName), names.allSatisfy(Self.isMember) else { return false }
        do throws(CopyError) {
            let bytes = try files.read(
                Manifest.fileName, in: directory, limit: CopyLimits.manifestBytes, action)
            return bytes.firstRange(of: Array(Manifest.formatName.utf8)) != nil
        } catch {
            // A link, or something else that no copy has under that name.
            guard error.kind == .damaged else { throw error }
            return false
        }
    }

    /// The temporary directories of copies to here.
    func drafts() throws(CopyError) -> [String] {
        guard try files.kind(of: parent, action) != nil else { return [] }
        var drafts: [String] = []
        for name in try files.names(in: parent, action) where name.hasPrefix(draftPrefix) {
            let path = beside(name)
            // A restore that makes a file of that name has such a temporary file, which is its own.
            if try files.kind(of: path, action) == S_IFDIR { drafts.append(path) }
        }
        return drafts
    }

    /// A copy, or what is left of one of which some was removed already.
    private func holdsOnlyMembers(_ path: String) throws(CopyError) -> Bool {
        try files.names(in: path, action).allSatisfy(Self.isMember)
    }

    private static func isMember(_ name: String) -> Bool {
        let replaced = [
            Manifest.fileName, ChecksumDescription.fileName, ChecksumDescription.integratedFileName,
        ]
        let members =
            replaced + replaced.map(Files.temporaryName) + [
                DataLocation.usualName, TocDescription.fileName,
            ]
        return members.contains(name) || name.hasPrefix(FileDraft.prefix(of: TocDescription.fileName))
    }

    /// Clears away what dead processes left of the same copy.
    func clearLeftovers() throws(CopyError) {
        for path in try drafts() {
            // Locked: its maker lives. Not locked: its maker is dead, and nobody will finish it.
            if let lock = try DirectoryLock(path, exclusive: true, files: files, action) {
                defer { withExtendedLifetime(lock) {} }
                try removeLeftover(path)
            }
        }
    }
}
