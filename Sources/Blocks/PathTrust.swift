import Glibc

/// Whether anybody but this process's user and root can decide what a path leads to.
///
/// Whoever may change names on the way to a file can put another in its place, at any moment: between a look and an
/// opening, or before the next start. So where something is written, or believed, by its name, nobody else may.
public enum PathTrust {
    /// Who could put something else there.
    public struct Flaw: Error, Hashable, Sendable, CustomStringConvertible {
        /// The directory, or the name in a directory where everybody has his own.
        public var path: String
        /// Words for people that follow the path: "belongs to user 1000".
        public var reason: String

        public var description: String { "\(path) \(reason)" }
    }

    private static let links = 40  // as many as the system follows

    /// Looks at each directory on the way, links followed: it must belong to root or this user, and only with the sticky
    /// bit may everybody write in it; then what is there must belong to root or this user, too. A directory's group is
    /// trusted: it was given the right to write by the owner. What is not there has no flaw of its own.
    /// - Returns: the first flaw; nil: there is none.
    public static func flaw(of path: String) -> Flaw? {
        var directory: [Substring] = []
        var rest = Array(absolute(path).split(separator: "/").reversed())
        var followed = 0
        while let name = rest.popLast() {
            if name == "." { continue }
            if name == ".." {
                directory = directory.dropLast()
                continue
            }
            let parent = "/" + directory.joined(separator: "/")
            var (above, entry) = (stat(), stat())
            // What cannot be looked at cannot be used either, and whoever tries is told.
            guard stat(parent, &above) == 0 else { return nil }
            if let reason = flaw(ofDirectory: above) { return Flaw(path: parent, reason: reason) }
            let full = (directory.isEmpty ? "" : parent) + "/" + name
            guard lstat(full, &entry) == 0 else { return nil }
            if above.st_mode & 0o022 != 0, above.st_mode & S_ISVTX != 0, let reason = flaw(ofOwner: entry) {
                return Flaw(path: full, reason: reason)
            }
            guard entry.st_mode & S_IFMT == S_IFLNK else {
                directory.append(name)
                continue
            }
            followed += 1
            guard followed <= links, let target = target(of: full) else { return nil }
            if target.hasPrefix("/") { directory = [] }
            rest += target.split(separator: "/").reversed()
        }
        return nil
    }

    /// Whether it is root or this user.
    public static func isTrusted(owner: UInt32) -> Bool { owner == 0 || owner == geteuid() }

    private static func flaw(ofOwner status: stat) -> String? {
        isTrusted(owner: status.st_uid) ? nil : "belongs to user \(status.st_uid)"
    }

    private static func flaw(ofDirectory status: stat) -> String? {
        if let reason = flaw(ofOwner: status) { return reason }
        return status.st_mode & 0o002 != 0 && status.st_mode & S_ISVTX == 0 ? "belongs to everybody" : nil
    }

    /// `path` from the root on, as text.
    public static func absolute(_ path: String) -> String {
        guard !path.hasPrefix("/"), let current = getcwd(nil, 0) else { return path }
        defer { free(current) }
        return String(cString: current) + "/" + path
    }

    private static func target(of link: String) -> String? {
        withUnsafeTemporaryAllocation(byteCount: Int(PATH_MAX), alignment: 1) { buffer in
            let count = readlink(link, buffer.baseAddress!.assumingMemoryBound(to: CChar.self), buffer.count)
            return count < 0 ? nil : String(decoding: buffer[..<count], as: UTF8.self)
        }
    }
}
