import Glibc
import HostControl

/// Whether file systems can stand still while the instant is made. A host whose source or cache lies on one of them
/// would wait for the thaw, and the thaw, which comes after the host's answer, for the host.
struct FreezeCheck {
    let members: [CopyMember]
    /// As ``Collaborators/fileSystems``.
    let fileSystems: (String) throws(AgentError) -> [UInt64]

    /// Nothing is stopped yet.
    /// - Throws: 64 when one carries what a copy needs, 66 when one is not there.
    func run(_ mountPoints: [String]) throws(AgentError) {
        var seen: Set<UInt64?> = []
        for mountPoint in mountPoints {
            let frozen = try fileSystems(mountPoint).first
            guard seen.insert(frozen).inserted else {
                throw AgentError(
                    .usage, doing: "freezing", to: mountPoint, because: "that file system was named twice",
                    advice: "give --freeze once for each")
            }
            for member in members {
                for need in needs(member) where try fileSystems(need.path).contains(where: { $0 == frozen }) {
                    throw AgentError(
                        .usage, doing: "freezing", to: mountPoint,
                        because: "\(need.what) \(need.path) is on that file system, and \(need.why)",
                        advice: "move that to another file system, or leave out --freeze")
                }
            }
        }
    }

    private struct Need {
        var what: String
        var path: String
        var why: String
    }

    private func needs(_ member: CopyMember) -> [Need] {
        let destination = member.draft.destination
        let slash = destination.lastIndex(of: "/") ?? destination.startIndex
        let parent = destination[..<slash].isEmpty ? "/" : String(destination[..<slash])
        let writes = "the host must write there before it can be thawed"
        return [
            Need(what: "the source", path: member.status.source, why: writes),
            Need(what: "the original image cache", path: member.status.cache, why: writes),
            Need(
                what: "the host's control socket", path: member.line.path,
                why: "the host is asked there while it is frozen"),
            Need(what: "the copy's directory", path: parent, why: "the copy is written there"),
        ]
    }
}

/// What a path lies on.
enum FileSystems {
    /// Layers of devices and files that are followed.
    private static let depth = 16

    /// The numbers (st_dev) of the file system that a file or directory lies on, first, and of all that those lie on in
    /// their turn: the files of loop devices, below device mapper and partitions, too.
    /// - Throws: 66 when nothing is at `path`.
    static func under(_ path: String) throws(AgentError) -> [UInt64] {
        var information = stat()
        guard stat(path, &information) == 0 else {
            throw AgentError.system(
                errno, doing: "looking for the file system of", to: path, otherwise: .inputMissing)
        }
        let isDevice = information.st_mode & S_IFMT == S_IFBLK
        return [UInt64(information.st_dev)]
            + below(number(isDevice ? information.st_rdev : information.st_dev), depth)
    }

    /// `MAJOR:MINOR`, as Linux packs them; the macros for it are not imported.
    private static func number(_ device: dev_t) -> String {
        let device = UInt64(device)
        let major = device >> 8 & 0xFFF | device >> 32 & 0xFFFF_F000
        let minor = device & 0xFF | device >> 12 & 0xFFFF_FF00
        return "\(major):\(minor)"
    }

    private static func below(_ device: String, _ depth: Int) -> [UInt64] {
        guard depth > 0 else { return [] }
        let place = "/sys/dev/block/\(device)"
        var found: [UInt64] = []
        // A partition's loop device is its parent.
        for file in ["\(place)/loop/backing_file", "\(place)/../loop/backing_file"] {
            var information = stat()
            guard let path = line(file), stat(path, &information) == 0 else { continue }
            found += [UInt64(information.st_dev)] + below(number(information.st_dev), depth - 1)
        }
        for slave in names("\(place)/slaves") {
            if let device = line("\(place)/slaves/\(slave)/dev") { found += below(device, depth - 1) }
        }
        return found
    }

    /// The first line of a small file; nil when there is no such file, as for most devices.
    private static func line(_ path: String) -> String? {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { return nil }
        defer { close(descriptor) }
        var buffer = [UInt8](repeating: 0, count: Int(PATH_MAX))
        let count = read(descriptor, &buffer, buffer.count)
        guard count > 0 else { return nil }
        return String(decoding: buffer[..<count].prefix { $0 != UInt8(ascii: "\n") }, as: UTF8.self)
    }

    private static func names(_ path: String) -> [String] {
        guard let directory = opendir(path) else { return [] }
        defer { closedir(directory) }
        var names: [String] = []
        while let entry = readdir(directory) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) {
                $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            if !name.hasPrefix(".") { names.append(name) }
        }
        return names
    }
}
