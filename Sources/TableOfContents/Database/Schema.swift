/// The tables of `toc.sqlite`; what they mean is in <doc:TableOfContents>.
enum Schema {
    /// Stands in PRAGMA user_version.
    static let version = 1
    /// "OBTC": PRAGMA application_id.
    static let applicationIdentifier = 0x4F42_5443

    /// A table, an index or a view.
    struct Item: Sendable {
        let name: String
        let sql: String
    }

    static let tables: [Item] = [
        Item(
            name: "info",
            sql: "CREATE TABLE info(key TEXT PRIMARY KEY NOT NULL, value TEXT NOT NULL) STRICT, WITHOUT ROWID"
        ),
        Item(
            name: "file_systems",
            sql: """
                CREATE TABLE file_systems(number INTEGER PRIMARY KEY, kind TEXT NOT NULL, \
                offset INTEGER NOT NULL, bytes INTEGER NOT NULL, block_size INTEGER NOT NULL, \
                label TEXT NOT NULL, uuid TEXT NOT NULL, root INTEGER NOT NULL, listed INTEGER NOT NULL, \
                complete INTEGER NOT NULL, remark TEXT NOT NULL) STRICT
                """),
        Item(
            name: "nodes",
            sql: """
                CREATE TABLE nodes(id INTEGER PRIMARY KEY, kind TEXT NOT NULL, permissions INTEGER, \
                owner INTEGER, "group" INTEGER, links INTEGER NOT NULL, size INTEGER NOT NULL, \
                modified INTEGER, modified_ns INTEGER, accessed INTEGER, accessed_ns INTEGER, \
                changed INTEGER, changed_ns INTEGER, created INTEGER, created_ns INTEGER, \
                target ANY, major INTEGER, minor INTEGER) STRICT
                """),
        Item(
            name: "names",
            sql: """
                CREATE TABLE names(id INTEGER PRIMARY KEY, parent INTEGER NOT NULL, name TEXT NOT NULL, \
                node INTEGER NOT NULL, raw BLOB) STRICT
                """),
        Item(
            name: "streams",
            sql: """
                CREATE TABLE streams(node INTEGER NOT NULL, number INTEGER NOT NULL, name TEXT NOT NULL, \
                raw BLOB, size INTEGER NOT NULL, storage TEXT NOT NULL, content ANY, \
                PRIMARY KEY(node, number)) STRICT, WITHOUT ROWID
                """),
        Item(
            name: "extents",
            sql: """
                CREATE TABLE extents(node INTEGER NOT NULL, stream INTEGER NOT NULL, \
                offset INTEGER NOT NULL, volume_offset INTEGER NOT NULL, bytes INTEGER NOT NULL, \
                PRIMARY KEY(node, stream, offset)) STRICT, WITHOUT ROWID
                """),
        Item(
            name: "attributes",
            sql: """
                CREATE TABLE attributes(node INTEGER NOT NULL, name TEXT NOT NULL, raw BLOB, \
                value BLOB NOT NULL, PRIMARY KEY(node, name)) STRICT, WITHOUT ROWID
                """),
        Item(
            name: "problems",
            sql: """
                CREATE TABLE problems(id INTEGER PRIMARY KEY, file_system INTEGER, node INTEGER, \
                reason TEXT NOT NULL) STRICT
                """),
    ]

    /// Made when all rows are there.
    static let indexes: [Item] = [
        Item(name: "names_by_parent", sql: "CREATE INDEX names_by_parent ON names(parent, name)"),
        Item(name: "names_by_node", sql: "CREATE INDEX names_by_node ON names(node)"),
    ]

    /// Substrings of names, by their trigrams. The text itself stays in `names` alone.
    static let search = Item(
        name: "names_search",
        sql: """
            CREATE VIRTUAL TABLE names_search USING fts5(name, content='names', content_rowid='id', \
            tokenize='trigram case_sensitive 0', detail='none', columnsize=0)
            """)

    static let views: [Item] = [
        Item(
            name: "files",
            sql: """
                CREATE VIEW files AS SELECT n.node >> 56 & 255 AS file_system, \
                n.node & 72057594037927935 AS address, \
                (WITH RECURSIVE up(node, path, depth) AS (\
                VALUES(n.parent, '/' || n.name, 1) UNION ALL \
                SELECT p.parent, '/' || p.name || up.path, up.depth + 1 FROM up JOIN names p ON p.node = up.node \
                WHERE up.depth < 4096 AND up.node NOT IN (SELECT root FROM file_systems) LIMIT 4096) \
                SELECT path FROM up WHERE node IN (SELECT root FROM file_systems) LIMIT 1) AS path, \
                d.kind, printf('%04o', d.permissions) AS mode, d.owner, d."group", d.links, d.size, \
                datetime(d.modified, 'unixepoch') AS modified, datetime(d.created, 'unixepoch') AS created, \
                n.name, n.node, n.parent FROM names n LEFT JOIN nodes d ON d.id = n.node
                """),
        Item(
            name: "file_extents",
            sql: """
                CREATE VIEW file_extents AS SELECT f.path, e.stream, e.offset, e.volume_offset, e.bytes \
                FROM files f JOIN extents e ON e.node = f.node
                """),
    ]

    static var all: [Item] { tables + indexes + [search] + views }
}

extension FileNode.Kind {
    /// As in the database, and as find(1) prints %y.
    public var letter: String {
        switch self {
        case .regular: "f"
        case .directory: "d"
        case .symbolicLink: "l"
        case .blockDevice: "b"
        case .characterDevice: "c"
        case .fifo: "p"
        case .socket: "s"
        case .other: "o"
        }
    }

    init?(letter: String) {
        guard let kind = Self.allCases.first(where: { $0.letter == letter }) else { return nil }
        self = kind
    }
}

/// A node of a volume: its file system's index, and its address there.
public struct NodeKey: Hashable, Sendable {
    public var fileSystem: Int
    public var address: UInt64

    /// - Precondition: both are within ``TocLimits``.
    public init(fileSystem: Int, address: UInt64) {
        precondition((0..<TocLimits.fileSystems).contains(fileSystem) && address < TocLimits.address)
        self.fileSystem = fileSystem
        self.address = address
    }

    /// As in the database: the index in the upper 8 bits.
    var rowID: Int64 { Int64(bitPattern: UInt64(fileSystem) << 56 | address) }

    init(rowID: Int64) {
        let bits = UInt64(bitPattern: rowID)
        self.init(fileSystem: Int(bits >> 56), address: bits & (TocLimits.address - 1))
    }
}
