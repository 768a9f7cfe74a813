import GRDB

// Whole trees.
extension TocDatabase {
    /// A step of a walk.
    public struct Step: Sendable {
        /// The names from where the walk began; empty for that itself.
        public var path: [[UInt8]]
        public var entry: TocEntry
        /// Why what is in this directory is left out: it is in itself, or has been walked already by another path, or
        /// lies too deep. Nil: nothing is.
        public var omission: String?
    }

    /// Directories of a walk that are open: where it is in each.
    private struct Level {
        var directory: TocEntry
        /// What comes next, the last first.
        var batch: [TocEntry] = []
        var after: (name: String, id: Int64)?
        var isDone = false
    }

    /// Hands on `start`, and if it is a directory all that is in it: each directory before what is in it, and the
    /// names of one in the order of their bytes. Whatever the database says it ends: no directory is walked twice.
    /// - Parameter body: returns whether to go into it, should it be a directory.
    public func walk(from start: TocEntry, _ body: (Step) throws -> Bool) throws {
        var seen: Set<NodeKey> = []
        var levels: [Level] = []
        var path: [[UInt8]] = []
        /// Hands an entry on, and opens it when it is a directory.
        func visit(_ entry: TocEntry) throws {
            var step = Step(path: path, entry: entry)
            let isDirectory = entry.isDirectory && entry.stream == nil
            if isDirectory, let key = entry.key, !seen.insert(key).inserted {
                step.omission = "the directory is listed by another path already"
            } else if isDirectory, levels.count >= TocLimits.depth {
                step.omission = "more than \(TocLimits.depth) directories one in another"
            }
            let wanted = try body(step)
            if wanted, isDirectory, step.omission == nil {
                levels.append(Level(directory: entry))
            } else if !path.isEmpty {
                path.removeLast()
            }
        }
        try visit(start)
        while var level = levels.popLast() {
            if level.batch.isEmpty, !level.isDone { try fill(&level) }
            guard let next = level.batch.popLast() else {
                if !path.isEmpty { path.removeLast() }
                continue
            }
            levels.append(level)
            path.append(next.name)
            try visit(next)
        }
    }

    /// Reads what comes next in a directory, not more than a batch: one may have millions of entries.
    private func fill(_ level: inout Level) throws {
        guard let key = level.directory.key else {
            try children(of: level.directory) { level.batch.append($0) }
            level.batch.reverse()
            level.isDone = true
            return
        }
        var last = level.after
        level.batch = try answer { database in
            var arguments: StatementArguments = [key.rowID]
            if let last { arguments += [last.name, last.id] }
            let cursor = try Row.fetchCursor(
                database,
                sql: Self.children + (last == nil ? "" : " AND (n.name, n.id) > (?, ?)")
                    + " ORDER BY n.name, n.id LIMIT \(TocLimits.walkBatch)",
                arguments: arguments)
            var batch: [TocEntry] = []
            while let row = try cursor.next() {
                batch.append(try Self.entry(row))
                last = (try Columns(row).text(1), try Columns(row).integer(0))
            }
            return batch
        }
        level.after = last
        level.isDone = level.batch.count < TocLimits.walkBatch
        level.batch.reverse()
    }
}
