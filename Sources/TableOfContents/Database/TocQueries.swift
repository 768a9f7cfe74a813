import Blocks
import GRDB

// Nodes, names and paths.
extension TocDatabase {
    /// The columns of a node, as ``node(_:from:key:)`` takes them.
    static let nodeColumns = """
        d.kind, d.permissions, d.owner, d."group", d.links, d.size, d.modified, d.modified_ns, d.accessed, \
        d.accessed_ns, d.changed, d.changed_ns, d.created, d.created_ns, d.target, d.major, d.minor
        """

    /// Nil where there is no such node.
    public func node(_ key: NodeKey) throws(TocError) -> FileNode? {
        try answer { database in
            let row = try Row.fetchOne(
                database, sql: "SELECT \(Self.nodeColumns) FROM nodes d WHERE d.id = ?",
                arguments: [key.rowID])
            return try row.flatMap { try Self.node(Columns($0), from: 0, key) }
        }
    }

    /// What a path leads to; its form is ``TocPath``'s. `NAME:STREAM` as the last component names an alternate stream,
    /// unless a file is called so.
    /// - Returns: nil when there is no such thing.
    public func resolve(_ path: String) throws(TocError) -> TocEntry? {
        try resolve(TocPath.components(path))
    }

    /// The same for names that are not escaped.
    public func resolve(_ names: [[UInt8]]) throws(TocError) -> TocEntry? {
        guard names.count <= TocLimits.depth, var entry = try rootEntry() else { return nil }
        for (position, name) in names.enumerated() {
            if let next = try child(of: entry, name) {
                entry = next
                continue
            }
            guard position == names.count - 1 else { return nil }
            return try stream(in: entry, name)
        }
        return entry
    }

    /// The directory where all paths begin; nil where nothing is on the volume.
    public func rootEntry() throws(TocError) -> TocEntry? {
        guard let only = onlyListed else { return fileSystems.isEmpty ? nil : .volume }
        return try entry(ofRoot: only, name: [])
    }

    private func entry(ofRoot fileSystem: TocFileSystem, name: [UInt8]) throws(TocError) -> TocEntry {
        let isListed = fileSystem.description.isListed
        if let node = try node(fileSystem.root), isListed {
            return TocEntry(key: fileSystem.root, name: name, node: node)
        }
        // Even where the root could not be read, there may be names in it.
        let node = FileNode(address: fileSystem.root.address, kind: isListed ? .directory : .other)
        return TocEntry(key: fileSystem.root, name: name, node: node, isKnown: false)
    }

    private func child(of parent: TocEntry, _ name: [UInt8]) throws(TocError) -> TocEntry? {
        guard let key = parent.key else {
            guard
                let found = fileSystems.first(where: { "\($0.number)".utf8.elementsEqual(name) })
            else { return nil }
            return try entry(ofRoot: found, name: name)
        }
        let stored = StoredName(name)
        let text = String(decoding: stored.text, as: UTF8.self)
        return try answer { database in
            let cursor = try Row.fetchCursor(
                database, sql: Self.children + " AND n.name = ? ORDER BY n.id", arguments: [key.rowID, text])
            while let row = try cursor.next() {
                let entry = try Self.entry(row)
                if entry.name == name { return entry }
            }
            return nil
        }
    }

    private func stream(in parent: TocEntry, _ name: [UInt8]) throws(TocError) -> TocEntry? {
        // A stream's name holds no colon; a file's may.
        guard let colon = name.lastIndex(of: UInt8(ascii: ":")) else { return nil }
        let file = Array(name[..<colon])
        guard var entry = file.isEmpty ? parent : try child(of: parent, file), let key = entry.key else {
            return nil
        }
        let wanted = Array(name[(colon + 1)...])
        guard !wanted.isEmpty, let found = try streams(of: key).first(where: { $0.name == wanted }) else {
            return nil
        }
        entry.stream = found
        entry.name = name
        return entry
    }

    static let children = """
        SELECT n.id, n.name, n.raw, n.node, \(nodeColumns) \
        FROM names n LEFT JOIN nodes d ON d.id = n.node WHERE n.parent = ?
        """

    /// Hands on what is in a directory, in the order of its names' bytes; nothing for what is no directory.
    public func children(of directory: TocEntry, _ body: (TocEntry) throws -> Void) throws {
        guard let key = directory.key else {
            for fileSystem in fileSystems {
                try body(try entry(ofRoot: fileSystem, name: Array("\(fileSystem.number)".utf8)))
            }
            return
        }
        try ask { database in
            let cursor = try Row.fetchCursor(
                database, sql: Self.children + " ORDER BY n.name, n.id", arguments: [key.rowID])
            while let row = try cursor.next() { try body(try Self.entry(row)) }
        }
    }

    static func entry(_ row: Row) throws(TocError) -> TocEntry {
        let columns = Columns(row)
        let key = NodeKey(rowID: try columns.integer(3))
        let node = try node(columns, from: 4, key)
        return TocEntry(
            key: key, name: try columns.name(text: 1, raw: 2),
            node: node ?? FileNode(address: key.address, kind: .other), isKnown: node != nil)
    }

    /// - Returns: nil where the row has no node.
    private static func node(_ columns: Columns, from first: Int, _ key: NodeKey) throws(TocError)
        -> FileNode?
    {
        guard let letter = try columns.optionalText(first) else { return nil }
        guard let kind = FileNode.Kind(letter: letter) else { throw damaged("a node of an unknown kind") }
        func time(_ index: Int) throws(TocError) -> FileTime? {
            guard let seconds = try columns.optionalInteger(first + index) else { return nil }
            let nanoseconds: UInt32 = try columns.narrow(first + index + 1) ?? 0
            guard nanoseconds < 1_000_000_000 else { throw damaged("a time that cannot be") }
            return FileTime(seconds: seconds, nanoseconds: nanoseconds)
        }
        var node = FileNode(address: key.address, kind: kind)
        node.permissions = try columns.narrow(first + 1)
        guard node.permissions ?? 0 <= 0o7777 else { throw damaged("permissions that cannot be") }
        node.owner = try columns.narrow(first + 2)
        node.group = try columns.narrow(first + 3)
        node.links = try columns.narrow(first + 4) ?? 1
        node.size = try columns.unsigned(first + 5)
        node.modified = try time(6)
        node.accessed = try time(8)
        node.changed = try time(10)
        node.created = try time(12)
        node.target = try columns.bytes(first + 14, limit: TocLimits.targetBytes)
        if let major: UInt32 = try columns.narrow(first + 15),
            let minor: UInt32 = try columns.narrow(first + 16)
        {
            node.device = DeviceNumber(major: major, minor: minor)
        }
        return node
    }

    /// The names from the volume's root to a directory, as ``resolve(_:)-([[UInt8]])`` takes them. Of several paths
    /// one.
    /// - Returns: nil when none leads to it.
    public func path(of directory: NodeKey) throws(TocError) -> [[UInt8]]? {
        var names: [[UInt8]] = []
        var key = directory
        var seen: Set<NodeKey> = []
        let root = NodeKey(
            fileSystem: key.fileSystem, address: try fileSystem(of: key).root)
        while key != root {
            guard seen.insert(key).inserted, seen.count < TocLimits.depth,
                let (name, parent) = try firstName(of: key)
            else { return nil }
            names.append(name)
            key = parent
        }
        if onlyListed == nil { names.append(Array("\(key.fileSystem + 1)".utf8)) }
        return names.reversed()
    }

    private func firstName(of key: NodeKey) throws(TocError) -> (name: [UInt8], parent: NodeKey)? {
        try answer { database in
            let row = try Row.fetchOne(
                database, sql: "SELECT name, raw, parent FROM names WHERE node = ? ORDER BY id LIMIT 1",
                arguments: [key.rowID])
            return try row.map {
                let columns = Columns($0)
                let parent = NodeKey(rowID: try columns.integer(2))
                guard parent.fileSystem == key.fileSystem else {
                    throw Self.damaged("a name in another file system")
                }
                return (try columns.name(text: 0, raw: 1), parent)
            }
        }
    }
}

// What files consist of.
extension TocDatabase {
    /// By number; without the unnamed one where the file has no content of its own.
    public func streams(of key: NodeKey) throws(TocError) -> [TocStream] {
        try answer { database in
            let cursor = try Row.fetchCursor(
                database,
                sql: """
                    SELECT number, name, raw, size, storage, CASE storage WHEN 'unavailable' THEN content END \
                    FROM streams WHERE node = ? ORDER BY number LIMIT \(TocLimits.streams)
                    """, arguments: [key.rowID])
            var result: [TocStream] = []
            while let row = try cursor.next() {
                let columns = Columns(row)
                let storage: TocStream.Storage
                switch try columns.text(4) {
                case "extents": storage = .extents
                case "inline": storage = .inline
                case "unavailable": storage = .unavailable(try columns.optionalText(5) ?? "")
                default: throw Self.damaged("a stream that is kept in an unknown way")
                }
                guard let number: UInt32 = try columns.narrow(0) else {
                    throw Self.damaged("a stream without number")
                }
                result.append(
                    TocStream(
                        number: number, name: try columns.name(text: 1, raw: 2, mayBeEmpty: true),
                        size: try columns.unsigned(3), storage: storage))
            }
            return result
        }
    }

    /// Hands on a stream's extents by their offsets in it; they do not overlap there, and lie in the file system.
    public func forEachExtent(
        of key: NodeKey, stream: UInt32 = 0, _ body: (FileExtent) throws -> Void
    ) throws {
        let bounds = try fileSystem(of: key).range
        var end: UInt64 = 0
        try ask { database in
            let cursor = try Row.fetchCursor(
                database,
                sql: """
                    SELECT offset, volume_offset, bytes FROM extents WHERE node = ? AND stream = ? ORDER BY offset
                    """, arguments: [key.rowID, Int64(stream)])
            while let row = try cursor.next() {
                let columns = Columns(row)
                let extent = FileExtent(
                    fileOffset: try columns.unsigned(0), volumeOffset: try columns.unsigned(1),
                    count: try columns.unsigned(2))
                guard extent.isSound, extent.fileOffset >= end, extent.volumeOffset >= bounds.offset,
                    extent.volumeOffset + extent.count <= bounds.end
                else { throw Self.damaged("an extent that cannot be, of node \(key.address)") }
                end = extent.fileOffset + extent.count
                try body(extent)
            }
        }
    }

    /// Hands on which files have bytes of these ranges of the volume, once for each of their extents that has. All extents are
    /// looked at.
    public func forEachUser(of ranges: RangeList, _ body: (NodeKey, ByteRange) throws -> Void) throws {
        guard let first = ranges.ranges.first, let last = ranges.ranges.last else { return }
        try ask { database in
            let cursor = try Row.fetchCursor(
                database,
                sql: """
                    SELECT node, volume_offset, bytes FROM extents \
                    WHERE volume_offset < ? AND volume_offset + bytes > ?
                    """, arguments: [Int64(clamping: last.end), Int64(clamping: first.offset)])
            while let row = try cursor.next() {
                let columns = Columns(row)
                guard
                    let extent = ByteRange(
                        checking: try columns.unsigned(1), try columns.unsigned(2), within: info.volumeSize)
                else { throw Self.damaged("an extent beyond the volume") }
                guard ranges.overlaps(extent) else { continue }
                try body(NodeKey(rowID: try columns.integer(0)), extent)
            }
        }
    }

    /// The bytes of a stream that the database itself has.
    /// - Returns: nil where it has none of that stream.
    public func content(of key: NodeKey, stream: UInt32 = 0) throws(TocError) -> [UInt8]? {
        try answer { database in
            let row = try Row.fetchOne(
                database,
                sql: "SELECT content FROM streams WHERE node = ? AND number = ? AND storage = 'inline'",
                arguments: [key.rowID, Int64(stream)])
            return try row.flatMap { try Columns($0).bytes(0, limit: TocLimits.inlineBytes) }
        }
    }

    /// A node's extended attributes, by name.
    public func attributes(of key: NodeKey) throws(TocError) -> [ExtendedAttribute] {
        try answer { database in
            let cursor = try Row.fetchCursor(
                database,
                sql: """
                    SELECT name, raw, value FROM attributes WHERE node = ? ORDER BY name LIMIT \(TocLimits.attributes)
                    """, arguments: [key.rowID])
            var result: [ExtendedAttribute] = []
            var bytes = 0
            while let row = try cursor.next() {
                let columns = Columns(row)
                let attribute = ExtendedAttribute(
                    node: key.address, name: try columns.name(text: 0, raw: 1),
                    value: try columns.bytes(2, limit: TocLimits.attributeBytes) ?? [])
                // Rows of a damaged file may share their bytes: a small one may have as many as it likes.
                bytes += attribute.name.count + attribute.value.count
                guard bytes <= TocLimits.nodeAttributeBytes else {
                    throw Self.damaged("more attributes than a file can have")
                }
                result.append(attribute)
            }
            return result
        }
    }

    /// Hands on what could not be read: of which file system (nil: of the volume), and what.
    public func forEachProblem(_ body: (Int?, ReadProblem) throws -> Void) throws {
        try ask { database in
            let cursor = try Row.fetchCursor(
                database, sql: "SELECT file_system, node, reason FROM problems ORDER BY id")
            while let row = try cursor.next() {
                let columns = Columns(row)
                let node = try columns.optionalInteger(1).map(NodeKey.init(rowID:))
                try body(
                    try columns.narrow(0, as: UInt8.self).map(Int.init),
                    ReadProblem(node: node?.address, reason: try columns.text(2)))
            }
        }
    }

    /// How many problems there are.
    public func problemCount() throws(TocError) -> Int {
        try answer { database in
            guard let row = try Row.fetchOne(database, sql: "SELECT count(*) FROM problems") else { return 0 }
            return Int(try Columns(row).integer(0))
        }
    }
}
