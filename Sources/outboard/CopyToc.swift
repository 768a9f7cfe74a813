import Agent
import Glibc
import PhysicalCopy
import TableOfContents

/// A copy with its table of contents, for the commands that ask it.
struct CopyToc {
    let copy: PhysicalCopy
    let toc: TocDatabase

    /// - Throws: 66 when there is no such copy, or it has no table of contents; 65 when either is damaged.
    init(_ path: String) throws { try self.init(try PhysicalCopy(path)) }

    /// The same for a copy that is open.
    init(_ copy: PhysicalCopy) throws {
        self.copy = copy
        do throws(AgentError) { toc = try FileRestoreSequence.tableOfContents(of: copy) } catch {
            throw error.failure
        }
    }

    /// - Throws: 66 when there is no such path, which says what there is instead.
    func resolve(_ path: String) throws -> TocEntry {
        if let entry = try toc.resolve(path) {
            if entry.node.kind == .other, let key = entry.key, key == toc.fileSystems[key.fileSystem].root {
                throw Failure(.missing, Self.unlisted(toc.fileSystems[key.fileSystem]))
            }
            return entry
        }
        let unlisted = toc.fileSystems.filter { !$0.description.isListed }
        var text = "there is no \(path) in the table of contents of \(copy.directory)"
        if toc.fileSystems.isEmpty {
            text += ": no file system was found on the volume"
        } else if unlisted.count == toc.fileSystems.count {
            text += ": " + unlisted.map(Self.unlisted).joined(separator: "; ")
        } else if toc.onlyListed == nil {
            text += "; the volume has several file systems, so paths begin with a number: "
            text += toc.fileSystems.map { "/\($0.number) (\($0.description.kind.rawValue))" }
                .joined(separator: ", ")
        }
        throw Failure(.missing, text)
    }

    /// Why a file system's files are not listed.
    static func unlisted(_ fileSystem: TocFileSystem) -> String {
        let description = fileSystem.description
        let why = description.remark.isEmpty ? "nothing here reads it" : description.remark
        return
            "the files of file system \(fileSystem.number) (\(description.kind.rawValue)) cannot be listed: "
            + "\(why); it is copied and restored whole"
    }

    /// Lines for people about what is not to be seen here.
    func notices() throws -> [String] {
        var lines = toc.fileSystems.filter { !$0.isComplete }.map {
            "file system \($0.number) (\($0.description.kind.rawValue)) was not read to its end"
        }
        let count = try toc.problemCount()
        if count > 0 {
            lines.append(
                "\(count) \(count == 1 ? "thing" : "things") could not be read; outboard toc \(copy.directory) "
                    + "--problems tells which")
        }
        return lines
    }
}

/// An entry of a table of contents as JSON has it.
struct EntryOutput: Encodable {
    struct Stream: Encodable {
        var number: UInt32
        var name: String
        var size: UInt64
        /// `extents`, `inline`, or `unavailable`.
        var storage: String
        /// Why it is unavailable.
        var reason: String?
    }

    var path: String
    var kind: String
    var fileSystem: Int?
    var address: UInt64?
    var permissions: String?
    var owner: UInt32?
    var group: UInt32?
    var links: UInt32
    var size: UInt64
    var modified: String?
    var accessed: String?
    var changed: String?
    var created: String?
    var target: String?
    var device: String?
    /// Absent when all that is known of it is its name.
    var known: Bool
    var streams: [Stream]?

    init(_ entry: TocEntry, path: [[UInt8]], streams: [TocStream]) {
        let node = entry.node
        self.path = TocPath.escaped(path)
        kind = node.kind.name
        fileSystem = entry.key.map { $0.fileSystem + 1 }
        address = entry.key?.address
        permissions = node.permissions.map(Self.octal)
        (owner, group, links) = (node.owner, node.group, node.links)
        size = entry.stream?.size ?? node.size
        modified = node.modified.map(\.text)
        accessed = node.accessed.map(\.text)
        changed = node.changed.map(\.text)
        created = node.created.map(\.text)
        target = node.target.map { TocPath.escaped(target: $0) }
        device = node.device.map { "\($0.major):\($0.minor)" }
        known = entry.isKnown
        self.streams = streams.isEmpty ? nil : streams.map(Stream.init)
    }

    static func octal(_ permissions: UInt16) -> String {
        let digits = String(permissions, radix: 8)
        return String(repeating: "0", count: max(0, 4 - digits.count)) + digits
    }
}

extension EntryOutput.Stream {
    init(_ stream: TocStream) {
        number = stream.number
        name = TocPath.escaped(stream.name)
        size = stream.size
        switch stream.storage {
        case .extents: storage = "extents"
        case .inline: storage = "inline"
        case .unavailable(let why):
            storage = "unavailable"
            reason = why
        }
    }
}

extension FileNode.Kind {
    var name: String {
        switch self {
        case .regular: "file"
        case .directory: "directory"
        case .symbolicLink: "symbolic link"
        case .blockDevice: "block device"
        case .characterDevice: "character device"
        case .fifo: "fifo"
        case .socket: "socket"
        case .other: "other"
        }
    }
}

extension FileTime {
    /// `2023-11-14T22:13:20.000000001Z`, UTC; seconds since 1970 where no calendar has them.
    var text: String {
        let (date, time) = parts
        let fraction = "\(nanoseconds)"
        return date + "T" + time + "." + String(repeating: "0", count: 9 - fraction.count) + fraction + "Z"
    }

    /// `2023-11-14 22:13:20`, UTC.
    var shortText: String { parts.0 + " " + parts.1 }

    private var parts: (String, String) {
        var broken = tm()
        var time = Int(seconds)
        gmtime_r(&time, &broken)
        func two(_ number: Int32) -> String { (number < 10 ? "0" : "") + "\(number)" }
        let year = Int(broken.tm_year) + 1900
        let digits = (0...999).contains(year) ? String(repeating: "0", count: 4 - "\(year)".count) : ""
        return (
            "\(digits)\(year)-\(two(broken.tm_mon + 1))-\(two(broken.tm_mday))",
            "\(two(broken.tm_hour)):\(two(broken.tm_min)):\(two(broken.tm_sec))"
        )
    }
}
