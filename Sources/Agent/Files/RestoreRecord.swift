import Glibc

/// What a restore of files leaves in its directory as long as it runs: `.outboard-TOKEN.partial`, which is locked, and in
/// which stand the directories where it has temporary files, `.outboard-TOKEN-N.partial`. The system drops the lock when
/// the process dies, however that comes: then nobody holds it, and the next restore into the directory takes away what
/// the dead one has left.
///
/// Its content: by which device and inode number it is itself known, which no file has that came by its name and content
/// otherwise, from a restored volume for one; then for each directory its names from the restore's on, with slashes
/// between. A zero byte ends each.
final class RestoreRecord {
    let token: String
    /// Of the directory that is restored to; valid as long as this is used.
    private let top: Int32
    private let descriptor: Int32
    private var noted: Set<FileIdentity> = []

    private static let prefix = ".outboard-"
    private static let suffix = ".partial"

    /// - Parameter top: the directory that is restored to.
    /// - Returns: nil where nothing may be made there, though perhaps below it.
    init?(in top: Int32) throws(FileProblem) {
        self.top = top
        while true {
            let token = String(UInt64.random(in: 0...UInt64.max), radix: 16)
            let name = Self.prefix + token + Self.suffix
            let descriptor = openat(top, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0o600)
            if descriptor < 0 {
                switch errno {
                case EEXIST, EINTR: continue
                case EACCES, EPERM, EROFS: return nil
                default: throw .system(errno, "making \(name)")
                }
            }
            do throws(FileProblem) { try Self.append(Self.mark(of: descriptor), to: descriptor) } catch {
                unlinkat(top, name, 0)
                close(descriptor)
                throw error
            }
            // Before it was locked it could be taken for a dead one's.
            let isLocked = flock(descriptor, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK
            if isLocked, Self.leads(name, in: top, to: descriptor) {
                self.token = token
                self.descriptor = descriptor
                return
            }
            close(descriptor)
        }
    }

    /// The process ends the restore itself, and has left nothing.
    func end() {
        unlinkat(top, Self.prefix + token + Self.suffix, 0)
        close(descriptor)
    }

    /// From now on there may be temporary files in a directory.
    func note(_ directory: RestoreDirectory) throws(FileProblem) {
        guard noted.insert(directory.identity).inserted else { return }
        var names: [[UInt8]] = []
        var above: RestoreDirectory? = directory
        while let one = above, let parent = one.parent {
            names.append(one.name)
            above = parent
        }
        try Self.append(
            Array(names.reversed().joined(separator: [UInt8(ascii: "/")])) + [0], to: descriptor)
    }

    private static func append(_ entry: [UInt8], to descriptor: Int32) throws(FileProblem) {
        var done = 0
        while done < entry.count {
            let count = entry[done...].withUnsafeBytes { write(descriptor, $0.baseAddress, $0.count) }
            if count < 0, errno == EINTR { continue }
            guard count > 0 else { throw .system(errno, "noting where temporary files are") }
            done += count
        }
    }

    /// What a record begins with.
    private static func mark(of descriptor: Int32) throws(FileProblem) -> [UInt8] {
        var status = stat()
        guard fstat(descriptor, &status) == 0 else { throw .system(errno, "looking at the restore's record") }
        return Array("outboard restore \(status.st_dev):\(status.st_ino)".utf8) + [0]
    }

    // MARK: What the dead have left

    private static func leads(_ name: String, in directory: Int32, to descriptor: Int32) -> Bool {
        var (own, found) = (stat(), stat())
        return fstat(descriptor, &own) == 0 && fstatat(directory, name, &found, AT_SYMLINK_NOFOLLOW) == 0
            && FileIdentity(own) == FileIdentity(found)
    }

    /// Takes away what restores of this user that are dead have left below a directory. What cannot be taken away only
    /// takes space.
    /// - Returns: temporary files that were there.
    static func clear(in top: Int32) -> Int {
        var cleared = 0
        for name in names(in: top) where name.hasPrefix(prefix) && name.hasSuffix(suffix) {
            let token = name.dropFirst(prefix.count).dropLast(suffix.count)
            guard !token.isEmpty, token.allSatisfy(\.isHexDigit) else { continue }
            let descriptor = openat(top, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC)
            guard descriptor >= 0 else { continue }
            defer { close(descriptor) }
            var status = stat()
            guard fstat(descriptor, &status) == 0, status.st_mode & S_IFMT == S_IFREG,
                status.st_uid == geteuid(), flock(descriptor, LOCK_EX | LOCK_NB) == 0,
                leads(name, in: top, to: descriptor), isRecord(descriptor)
            else { continue }
            forEachDirectory(of: descriptor) { cleared += clear("\(prefix)\(token)-", in: $0, below: top) }
            unlinkat(top, name, 0)
        }
        return cleared
    }

    private static func clear(_ prefix: String, in path: [UInt8], below top: Int32) -> Int {
        var descriptor = openat(top, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        for name in path.split(separator: UInt8(ascii: "/")) where descriptor >= 0 {
            let above = descriptor
            defer { close(above) }
            // What stands in it need not be ours.
            guard RestoreDirectories.refusal(of: Array(name)) == nil else { return 0 }
            descriptor = openat(
                above, Array(name).cString, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
        }
        guard descriptor >= 0 else { return 0 }
        defer { close(descriptor) }
        var cleared = 0
        for name in names(in: descriptor) where name.hasPrefix(prefix) && name.hasSuffix(suffix) {
            if unlinkat(descriptor, name, 0) == 0 { cleared += 1 }
        }
        return cleared
    }

    /// Whether it was made by a restore, under this very number: what a restore brought under such a name is the
    /// user's. Where numbers are forgotten none is a record, and what it tells of stays.
    private static func isRecord(_ descriptor: Int32) -> Bool {
        // Of what cannot be looked at or read nothing is known.
        guard let mark = try? mark(of: descriptor) else { return false }
        var found = [UInt8](repeating: 0, count: mark.count)
        guard pread(descriptor, &found, found.count, 0) == found.count, found == mark else { return false }
        return lseek(descriptor, off_t(mark.count), SEEK_SET) == mark.count
    }

    private static func forEachDirectory(of descriptor: Int32, _ body: ([UInt8]) -> Void) {
        var path: [UInt8] = []
        var part = [UInt8](repeating: 0, count: 64 << 10)
        var left = AgentLimits.restoreRecordBytes
        while left > 0 {
            let count = read(descriptor, &part, min(part.count, left))
            if count < 0, errno == EINTR { continue }
            // One that was not written to its end has no files yet.
            guard count > 0 else { return }
            left -= count
            for byte in part[..<count] {
                if byte != 0 {
                    guard path.count < AgentLimits.recordedPathBytes else { return }
                    path.append(byte)
                    continue
                }
                body(path)
                path.removeAll(keepingCapacity: true)
            }
        }
    }

    private static func names(in directory: Int32) -> [String] {
        var names: [String] = []
        FileCalls.forEachName(in: directory) { bytes in
            let name = String(decoding: bytes, as: UTF8.self)
            if name.hasPrefix(prefix) { names.append(name) }
        }
        return names
    }
}
