import Glibc

/// What a restore of files leaves in its directory as long as it runs: `.outboard-TOKEN.partial`, which is locked, and in
/// which stand the directories where it has temporary files, `.outboard-TOKEN-N.partial`. The system drops the lock when
/// the process dies, however that comes: then nobody holds it, and the next restore into the directory takes away what
/// the dead one has left.
///
/// Its content: for each directory its names from the restore's on, with slashes between, and a zero byte.
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
        let line = Array(names.reversed().joined(separator: [UInt8(ascii: "/")])) + [0]
        var done = 0
        while done < line.count {
            let count = line[done...].withUnsafeBytes { write(descriptor, $0.baseAddress, $0.count) }
            if count < 0, errno == EINTR { continue }
            guard count > 0 else { throw .system(errno, "noting its directory") }
            done += count
        }
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
                leads(name, in: top, to: descriptor)
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

    private static func forEachDirectory(of descriptor: Int32, _ body: ([UInt8]) -> Void) {
        var path: [UInt8] = []
        var part = [UInt8](repeating: 0, count: 64 << 10)
        while true {
            let count = read(descriptor, &part, part.count)
            if count < 0, errno == EINTR { continue }
            // One that was not written to its end has no files yet.
            guard count > 0 else { return }
            for byte in part[..<count] {
                if byte != 0 {
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
