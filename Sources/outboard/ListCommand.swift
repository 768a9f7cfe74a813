import ArgumentParser
import TableOfContents

struct ListCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "ls", abstract: "List the files of a copy.",
        discussion: """
            Asks the copy's table of contents; neither the copy's data nor a mount is needed. A file is listed as \
            itself, a directory by what is in it, in the order of its names' bytes.

            Where the volume has files of one file system, PATH begins in its root. Where it has several, the first \
            component is the file system's number: outboard ls COPY lists those. path:stream is an alternate stream \
            of NTFS.

            In paths \\xHH is the byte of these two hexadecimal digits and \\\\ a backslash, both as printed and as \
            given: names that are not UTF-8, or hold control characters, can be told so. Symbolic links are not \
            followed. Times are UTC.

            EXAMPLES:
                outboard ls /backup/monday /etc -l
                outboard ls /backup/monday -R --json

            EXIT STATUS: 0 listed; 64 usage; 65 the manifest or the table of contents is damaged; 66 no such copy, \
            no table of contents (outboard toc builds one), no such path, or a file system whose files cannot be \
            listed; 73 the copy is being changed; 75 it was abandoned; 77 not permitted.
            """)

    @Argument(help: "The copy's directory.")
    var copy: String

    @Argument(help: "A path in the volume.")
    var path = "/"

    @Flag(name: .short, help: "With type, permissions, links, owner, group, size and time of modification.")
    var long = false

    @Flag(name: [.customShort("R"), .long], help: "With all that is in directories below.")
    var recursive = false

    @Flag(help: "Print one JSON object; its member `entries` has one for each name.")
    var json = false

    private struct Head: Encodable {
        var copy: String
        var path: String
    }
    private struct Tail: Encodable {
        var notices: [String]
    }

    func run() throws {
        let source = try CopyToc(copy)
        let start = try source.resolve(path)
        let output = ResultWriter()
        let names = TocPath.components(path)
        let notices = try source.notices()
        if json {
            let head = Head(copy: source.copy.directory, path: TocPath.escaped(names))
            var list = try JSONListWriter(head, list: "entries", to: output)
            var omissions: [String] = []
            func omit(_ text: String) { omissions.append(text) }
            try each(start, names, source, omit: omit) { entry, path in
                try list.put(EntryOutput(entry, path: path, streams: try source.streams(of: entry)))
            }
            return try list.finish(Tail(notices: notices + omissions))
        }
        if recursive, start.isDirectory {
            try printTree(start, names, source, output)
        } else {
            func omit(_ text: String) { Console.logger("ls").notice("\(text)") }
            try each(start, names, source, omit: omit) { entry, _ in try print(entry, source, output) }
        }
        try output.flush()
        for fileSystem in source.toc.fileSystems where start.key == nil && !fileSystem.description.isListed {
            Console.logger("ls").notice("\(CopyToc.unlisted(fileSystem))")
        }
        for notice in notices { Console.logger("ls").notice("\(notice)") }
    }

    /// Hands on what is to be listed, each with its path from the volume's root.
    private func each(
        _ start: TocEntry, _ names: [[UInt8]], _ source: CopyToc, omit: (String) -> Void,
        _ body: (TocEntry, [[UInt8]]) throws -> Void
    ) throws {
        guard start.isDirectory, start.stream == nil else { return try body(start, names) }
        guard recursive else {
            return try source.toc.children(of: start) { try body($0, names + [$0.name]) }
        }
        try source.toc.walk(from: start) { step in
            if let omission = step.omission { omit("\(TocPath.escaped(names + step.path)): \(omission)") }
            if !step.path.isEmpty { try body(step.entry, names + step.path) }
            return true
        }
    }

    /// Directory after directory, as ls(1) does.
    private func printTree(
        _ start: TocEntry, _ names: [[UInt8]], _ source: CopyToc, _ output: ResultWriter
    ) throws {
        var isFirst = true
        try source.toc.walk(from: start) { step in
            guard step.entry.isDirectory else { return false }
            let path = TocPath.escaped(names + step.path)
            if let omission = step.omission {
                Console.logger("ls").notice("\(path): \(omission)")
                return false
            }
            if !isFirst { try output.line("") }
            isFirst = false
            try output.line(path + ":")
            try source.toc.children(of: step.entry) { try print($0, source, output) }
            return true
        }
    }

    private func print(_ entry: TocEntry, _ source: CopyToc, _ output: ResultWriter) throws {
        let name = entry.name.isEmpty ? "/" : TocPath.escaped(entry.name)
        guard long else { return try output.line(name) }
        let node = entry.node
        let size = entry.stream?.size ?? node.size
        var text = Self.mode(node)
        text += " " + Self.right(entry.isKnown ? "\(node.links)" : "?", 3)
        text += " " + Self.right(node.owner.map { "\($0)" } ?? "-", 5)
        text += " " + Self.right(node.group.map { "\($0)" } ?? "-", 5)
        text += " " + Self.right(node.device.map { "\($0.major), \($0.minor)" } ?? "\(size)", 12)
        text += " " + (node.modified?.shortText ?? "-                  ") + " " + name
        if let target = node.target { text += " -> " + TocPath.escaped(target: target) }
        let streams = try source.streams(of: entry)
        for case .unavailable(let reason) in streams.filter({ $0.number == 0 }).map(\.storage) {
            text += " [cannot be restored by itself: \(reason.visibleOnOneLine)]"
        }
        try output.line(text)
        for stream in streams where stream.number != 0 && entry.stream == nil {
            try output.line(
                String(repeating: " ", count: 28) + Self.right("\(stream.size)", 12)
                    + String(repeating: " ", count: 21) + name + ":" + TocPath.escaped(stream.name))
        }
    }

    private static func right(_ text: String, _ width: Int) -> String {
        String(repeating: " ", count: max(0, width - text.count)) + text
    }

    /// As ls(1) prints it: `drwxr-xr-x`.
    static func mode(_ node: FileNode) -> String {
        let kind = node.kind == .regular ? "-" : node.kind == .other ? "?" : node.kind.letter
        guard let permissions = node.permissions else { return kind + "---------" }
        var text = kind
        for (shift, special, letter) in [(6, 0o4000, "s"), (3, 0o2000, "s"), (0, 0o1000, "t")]
            as [(Int, UInt16, String)]
        {
            let bits = permissions >> shift
            text += bits & 4 != 0 ? "r" : "-"
            text += bits & 2 != 0 ? "w" : "-"
            if permissions & special != 0 {
                text += bits & 1 != 0 ? letter : letter.uppercased()
            } else {
                text += bits & 1 != 0 ? "x" : "-"
            }
        }
        return text
    }
}

extension CopyToc {
    /// Of what is a node.
    func streams(of entry: TocEntry) throws -> [TocStream] {
        guard let key = entry.key, entry.isKnown else { return [] }
        return try toc.streams(of: key)
    }
}
