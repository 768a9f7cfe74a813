import Blocks
import GRDB
import GRDBSQLite
import Glibc

/// Puts what readers find into a new database, in one transaction and with memory that does not grow with the files.
///
/// Until it is complete and flushed the file has another name beside its own, which is the builder's or the caller's.
/// Not for several threads at once.
public final class TocBuilder: RecordSink {
    /// What was put so far.
    public private(set) var counts = TocCounts()
    private let connection: OpaquePointer
    private let volumeSize: UInt64
    private let progress: (TocCounts) -> Void
    private let fileSystem: RawStatement
    private let complete: RawStatement
    private let node: RawStatement
    private let name: RawStatement
    private let search: RawStatement
    private let stream: RawStatement
    private let extent: RawStatement
    private let attribute: RawStatement
    private let problem: RawStatement
    /// Whose records come.
    private var current: FileSystemDescription?
    private var records = 0
    /// Nodes, streams, extents and attributes that were told before.
    private var repeated = 0

    /// Makes a database at `path`, in place of what is there.
    /// - Parameters:
    ///   - inPlace: an empty file is there under a name that is not the final one, and becomes the database itself; when
    ///     that fails it is of no use.
    ///   - progress: called now and then.
    ///   - body: puts records, of one file system after another.
    ///   One that has no end when the next one begins was not read to its end: what came of it stays.
    /// - Throws: ``TocError`` `cannotCreate` when the file cannot be written; what `body` throws. Then there is
    ///   nothing new at `path`.
    @discardableResult
    public static func build(
        at path: String, inPlace: Bool = false, info: TocInfo,
        progress: @escaping (TocCounts) -> Void = { _ in },
        _ body: (TocBuilder) throws(TocError) -> Void
    ) throws(TocError) -> TocCounts {
        if inPlace {
            try requireEmpty(path)
            let counts = try fill(path, info, progress, body)
            try flush(path, O_RDWR)
            return counts
        }
        let temporary = path + ".partial"
        try remove(temporary)
        do throws(TocError) {
            try make(temporary)
            let counts = try fill(temporary, info, progress, body)
            try publish(temporary, as: path)
            return counts
        } catch {
            // What is left over says by its name that it is nothing; the first failure is the one to tell.
            unlink(temporary)
            throw error
        }
    }

    private static func fill(
        _ path: String, _ info: TocInfo, _ progress: @escaping (TocCounts) -> Void,
        _ body: (TocBuilder) throws(TocError) -> Void
    ) throws(TocError) -> TocCounts {
        do {
            var configuration = Configuration()
            // One that ends early is closed with its transaction, and removed.
            configuration.allowsUnsafeTransactions = true
            let queue = try DatabaseQueue(path: path, configuration: configuration)
            let counts = try queue.inDatabase { database in
                try prepare(database, info)
                guard let connection = database.sqliteConnection else {
                    preconditionFailure("a database without its connection")
                }
                let builder = try TocBuilder(connection, info.volumeSize, progress)
                try body(builder)
                try builder.finish()
                for item in Schema.indexes + Schema.views { try database.execute(sql: item.sql) }
                try database.execute(sql: "COMMIT")
                return builder.counts
            }
            try queue.close()
            return counts
        } catch let error as TocError {
            throw error
        } catch {
            throw TocError(.cannotCreate, "writing the table of contents \(path): \(error)")
        }
    }

    private static func prepare(_ database: Database, _ info: TocInfo) throws {
        // The file counts only when all of it is there: nothing has to be undone.
        try database.execute(
            sql: """
                PRAGMA page_size = 8192;
                PRAGMA journal_mode = OFF;
                PRAGMA synchronous = OFF;
                PRAGMA locking_mode = EXCLUSIVE;
                PRAGMA secure_delete = OFF;
                PRAGMA cache_size = -\(TocLimits.buildingCacheBytes >> 10);
                PRAGMA threads = 1;
                PRAGMA application_id = \(Schema.applicationIdentifier);
                PRAGMA user_version = \(Schema.version);
                BEGIN EXCLUSIVE;
                """)
        for item in Schema.tables + [Schema.search] { try database.execute(sql: item.sql) }
        try database.execute(
            sql: "INSERT INTO names_search(names_search, rank) VALUES('hashsize', ?)",
            arguments: [TocLimits.searchHashBytes])
        for (key, value) in info.rows {
            try database.execute(sql: "INSERT INTO info VALUES(?, ?)", arguments: [key, value])
        }
    }

    private init(
        _ connection: OpaquePointer, _ volumeSize: UInt64, _ progress: @escaping (TocCounts) -> Void
    ) throws(TocError) {
        self.connection = connection
        self.volumeSize = volumeSize
        self.progress = progress
        func insert(_ table: String, _ count: Int) throws(TocError) -> RawStatement {
            let marks = repeatElement("?", count: count).joined(separator: ", ")
            return try RawStatement(connection, "INSERT OR IGNORE INTO \(table) VALUES(\(marks))")
        }
        fileSystem = try insert("file_systems", 11)
        complete = try RawStatement(connection, "UPDATE file_systems SET complete = 1 WHERE number = ?")
        node = try insert("nodes", 18)
        name = try insert("names", 5)
        search = try insert("names_search(rowid, name)", 2)
        stream = try insert("streams", 7)
        extent = try insert("extents", 5)
        attribute = try insert("attributes", 4)
        problem = try insert("problems", 4)
    }

    /// - Throws: ``TocError`` `cannotCreate` when the file cannot be written, `damaged` for records that belong to no
    ///   file system, and for a file system beyond the volume.
    public func put(_ record: VolumeRecord) throws(TocError) {
        records += 1
        if records & 0xFFF == 0 { progress(counts) }
        if case .fileSystem(let description) = record { return try begin(description) }
        guard let current else {
            throw TocError(.damaged, "records that belong to no file system were to be listed")
        }
        switch record {
        case .fileSystem: break
        case .node(let it): try put(it, current)
        case .name(let it): try put(it, current)
        case .stream(let it): try put(it, current)
        case .extents(let identifier, let extents): try put(extents, of: identifier, current)
        case .attribute(let it):
            let stored = StoredName(it.name)
            attribute.bind(1, key(it.node, current))
            try attribute.binding(2, stored.text, asText: true) { () throws(TocError) in
                try attribute.binding(3, stored.raw, asText: false) { () throws(TocError) in
                    try attribute.binding(4, it.value, asText: false) { () throws(TocError) in
                        try insert(attribute)
                    }
                }
            }
        case .used: break
        case .problem(let it): try tell(it, of: current.index)
        case .end: try end()
        }
    }

    /// A problem that is not told by a reader: a reader that crashed, or was ended.
    public func tell(_ problem: ReadProblem, of fileSystem: Int?) throws(TocError) {
        counts.problems += 1
        guard counts.problems <= UInt64(TocLimits.problems) else { return }
        self.problem.bind(1, nil)
        self.problem.bind(2, fileSystem.map(Int64.init))
        self.problem.bind(
            3,
            fileSystem.flatMap { index in
                problem.node.map { NodeKey(fileSystem: index, address: $0).rowID }
            })
        try self.problem.binding(4, Array(problem.reason.utf8), asText: true, self.problem.run)
    }

}

// The rows.
extension TocBuilder {
    private func insert(_ statement: RawStatement) throws(TocError) {
        try statement.run()
        if sqlite3_changes(connection) == 0 { repeated += 1 }
    }

    private func key(_ address: UInt64, _ current: FileSystemDescription) -> Int64 {
        NodeKey(fileSystem: current.index, address: address).rowID
    }

    private func begin(_ it: FileSystemDescription) throws(TocError) {
        guard it.range.end <= volumeSize, it.index < TocLimits.fileSystems else {
            throw TocError(.damaged, "file system \(it.index) lies beyond the volume")
        }
        current = it
        counts.fileSystems += 1
        fileSystem.bind(1, Int64(it.index + 1))
        fileSystem.bind(3, Int64(it.range.offset))
        fileSystem.bind(4, Int64(it.range.count))
        fileSystem.bind(5, Int64(clamping: it.blockSize))
        fileSystem.bind(8, key(it.root, it))
        fileSystem.bind(9, it.isListed ? 1 : 0)
        fileSystem.bind(10, 0)
        let fileSystem = fileSystem
        try fileSystem.binding(2, Array(it.kind.rawValue.utf8), asText: true) { () throws(TocError) in
            try fileSystem.binding(6, Array(it.label.utf8), asText: true) { () throws(TocError) in
                try fileSystem.binding(7, Array(it.uuid.utf8), asText: true) { () throws(TocError) in
                    try fileSystem.binding(11, Array(it.remark.utf8), asText: true, fileSystem.run)
                }
            }
        }
    }

    private func end() throws(TocError) {
        guard let current else { return }
        complete.bind(1, Int64(current.index + 1))
        try complete.run()
        self.current = nil
    }

    private func put(_ it: FileNode, _ current: FileSystemDescription) throws(TocError) {
        let node = node
        node.bind(1, key(it.address, current))
        switch it.kind {
        case .regular: node.bind(2, text: "f")
        case .directory: node.bind(2, text: "d")
        case .symbolicLink: node.bind(2, text: "l")
        case .blockDevice: node.bind(2, text: "b")
        case .characterDevice: node.bind(2, text: "c")
        case .fifo: node.bind(2, text: "p")
        case .socket: node.bind(2, text: "s")
        case .other: node.bind(2, text: "o")
        }
        node.bind(3, it.permissions.map(Int64.init))
        node.bind(4, it.owner.map(Int64.init))
        node.bind(5, it.group.map(Int64.init))
        node.bind(6, Int64(it.links))
        node.bind(7, Int64(clamping: it.size))
        func bind(_ time: FileTime?, _ index: Int32) {
            node.bind(index, time?.seconds)
            node.bind(index + 1, (time?.nanoseconds).map(Int64.init))
        }
        bind(it.modified, 8)
        bind(it.accessed, 10)
        bind(it.changed, 12)
        bind(it.created, 14)
        node.bind(17, (it.device?.major).map(Int64.init))
        node.bind(18, (it.device?.minor).map(Int64.init))
        try node.binding(16, it.target, asText: it.target.map(StoredName.isText) ?? false) {
            () throws(TocError) in try insert(node)
        }
        counts.nodes += 1
    }

    private func put(_ it: FileName, _ current: FileSystemDescription) throws(TocError) {
        let stored = StoredName(it.name)
        counts.names += 1
        let number = Int64(counts.names)
        let (name, search) = (name, search)
        name.bind(1, number)
        name.bind(2, key(it.parent, current))
        name.bind(4, key(it.node, current))
        try name.binding(3, stored.text, asText: true) { () throws(TocError) in
            try name.binding(5, stored.raw, asText: false, name.run)
        }
        search.bind(1, number)
        try search.binding(2, stored.text, asText: true, search.run)
    }

    private func put(_ it: FileStream, _ current: FileSystemDescription) throws(TocError) {
        let stored = StoredName(it.name)
        let stream = stream
        stream.bind(1, key(it.identifier.node, current))
        stream.bind(2, Int64(it.identifier.number))
        stream.bind(5, Int64(clamping: it.size))
        var content: [UInt8]?
        var isReason = false
        switch it.storage {
        case .extents: stream.bind(6, text: "extents")
        case .inline(let bytes):
            stream.bind(6, text: "inline")
            content = bytes
        case .unavailable(let reason):
            stream.bind(6, text: "unavailable")
            content = Array(reason.utf8)
            isReason = true
        }
        try stream.binding(3, stored.text, asText: true) { () throws(TocError) in
            try stream.binding(4, stored.raw, asText: false) { () throws(TocError) in
                try stream.binding(7, content, asText: isReason) { () throws(TocError) in try insert(stream) }
            }
        }
    }

    private func put(
        _ extents: [FileExtent], of identifier: StreamIdentifier, _ current: FileSystemDescription
    ) throws(TocError) {
        let extent = extent
        extent.bind(1, key(identifier.node, current))
        extent.bind(2, Int64(identifier.number))
        for it in extents {
            guard it.isSound, it.volumeOffset >= current.range.offset,
                it.volumeOffset + it.count <= current.range.end
            else {
                try tell(
                    ReadProblem(
                        node: identifier.node,
                        reason: "an extent that lies outside the file system is left out"),
                    of: current.index)
                continue
            }
            extent.bind(3, Int64(it.fileOffset))
            extent.bind(4, Int64(it.volumeOffset))
            extent.bind(5, Int64(it.count))
            try insert(extent)
            counts.extents += 1
        }
    }
}

// The file.
extension TocBuilder {
    /// What was told twice, or too often, is said.
    private func finish() throws(TocError) {
        current = nil
        if repeated > 0 {
            try tell(
                ReadProblem(reason: "\(repeated) records were told twice; the first ones are listed"), of: nil
            )
        }
        if counts.problems > UInt64(TocLimits.problems) {
            let more = counts.problems - UInt64(TocLimits.problems)
            counts.problems = UInt64(TocLimits.problems) - 1
            try tell(ReadProblem(reason: "\(more) more problems are not listed"), of: nil)
        }
        progress(counts)
    }

    private static func system(_ path: String) -> TocError {
        TocError(
            .cannotCreate, "writing the table of contents \(path): \(String(cString: strerror(errno)))")
    }

    private static func make(_ path: String) throws(TocError) {
        let descriptor = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else { throw system(path) }
        close(descriptor)
    }

    private static func requireEmpty(_ path: String) throws(TocError) {
        var status = stat()
        guard stat(path, &status) == 0 else { throw system(path) }
        guard status.st_mode & S_IFMT == S_IFREG, status.st_size == 0 else {
            throw TocError(.cannotCreate, "writing the table of contents \(path): it is no empty file")
        }
    }

    private static func remove(_ path: String) throws(TocError) {
        guard unlink(path) == 0 || errno == ENOENT else { throw system(path) }
    }

    /// Flushes the file, gives it its name, and flushes that.
    private static func publish(_ temporary: String, as path: String) throws(TocError) {
        try flush(temporary, O_RDWR)
        guard rename(temporary, path) == 0 else { throw system(path) }
        let directory = path.lastIndex(of: "/").map { String(path[..<$0]) } ?? "."
        try flush(directory.isEmpty ? "/" : directory, O_RDONLY | O_DIRECTORY)
    }

    private static func flush(_ path: String, _ flags: Int32) throws(TocError) {
        let descriptor = open(path, flags | O_CLOEXEC)
        guard descriptor >= 0 else { throw system(path) }
        defer { close(descriptor) }
        guard fsync(descriptor) == 0 else { throw system(path) }
    }
}
