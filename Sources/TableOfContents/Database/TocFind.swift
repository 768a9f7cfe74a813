import Blocks
import GRDB

// Names that a pattern describes.
extension TocDatabase {
    /// One that fits.
    public struct Match: Hashable, Sendable {
        /// Its names from the volume's root on.
        public var path: [[UInt8]]
        public var entry: TocEntry
    }

    /// Hands on every name that fits `pattern`, in no order that means anything.
    ///
    /// A pattern with `*`, `?` or `[…]` (`[^…]` for what is not among them) describes the whole name; upper and lower
    /// case count. Any other is looked for anywhere in names. Names that are not UTF-8 are compared in their
    /// escaped form.
    /// - Returns: how many fit to which no path leads from a root.
    @discardableResult
    public func find(_ pattern: String, _ body: (Match) throws -> Void) throws -> Int {
        guard !pattern.isEmpty, pattern.utf8.count <= TocLimits.patternBytes else {
            throw TocError(.missing, "a pattern has 1 to \(TocLimits.patternBytes) bytes")
        }
        let glob = pattern.contains(where: "*?[".contains) ? pattern : "*\(pattern)*"
        var unreachable = 0
        var directories = PathCache()
        // Shorter ones have no trigram: then all names are looked through, which the index would only slow down.
        let hasTrigram = glob.split(whereSeparator: "*?[]".contains).contains { $0.unicodeScalars.count >= 3 }
        let ids =
            hasTrigram
            ? "SELECT rowid FROM names_search WHERE name GLOB ?" : "SELECT id FROM names WHERE name GLOB ?"
        try ask { database in
            let cursor = try Row.fetchCursor(
                database,
                sql: """
                    SELECT n.id, n.name, n.raw, n.node, \(Self.nodeColumns), n.parent \
                    FROM (\(ids)) f CROSS JOIN names n ON n.id = f.\(hasTrigram ? "rowid" : "id") \
                    LEFT JOIN nodes d ON d.id = n.node
                    """, arguments: [glob])
            while let row = try cursor.next() {
                let entry = try Self.entry(row)
                let parent = NodeKey(rowID: try Columns(row).integer(4 + 17))
                guard let path = try directories.path(of: parent, in: self) else {
                    unreachable += 1
                    continue
                }
                try body(Match(path: path + [entry.name], entry: entry))
            }
        }
        return unreachable
    }

    /// The paths of directories that were asked for lately: many matches lie in one.
    private struct PathCache {
        private var paths: [NodeKey: [[UInt8]]?] = [:]

        mutating func path(of key: NodeKey, in database: TocDatabase) throws(TocError) -> [[UInt8]]? {
            if let known = paths[key] { return known }
            if paths.count >= TocLimits.cachedPaths { paths.removeAll(keepingCapacity: true) }
            let path = try database.path(of: key)
            paths[key] = path
            return path
        }
    }
}
