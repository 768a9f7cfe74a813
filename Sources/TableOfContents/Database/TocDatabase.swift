import Blocks
import Foundation
import GRDB
import Synchronization

/// A table of contents, opened for asking. For many threads at once; they take turns.
///
/// The file may be damaged, or made by somebody who means harm: it is opened read-only and as immutable, it must have
/// exactly the tables, indexes and views of its version, and values that cannot be throw ``TocError`` `damaged`.
/// The closures that answers are handed to may ask again.
// Sendable: the queue serializes; all else does not change.
public final class TocDatabase: Sendable {
    public let path: String
    public let info: TocInfo
    /// What is on the volume, by index.
    public let fileSystems: [TocFileSystem]
    private let queue: DatabaseQueue

    /// - Throws: ``TocError`` `missing` when there is no such file, `damaged` when it is not a table of contents of a
    ///   version that is known.
    public init(_ path: String) throws(TocError) {
        self.path = path
        guard access(path, F_OK) == 0 else {
            throw TocError(
                .missing, "opening the table of contents \(path): \(String(cString: strerror(errno)))")
        }
        do {
            var configuration = Configuration()
            configuration.readonly = true
            configuration.label = "toc"
            configuration.prepareDatabase { database in
                guard let connection = database.sqliteConnection, Defence.raise(on: connection) else {
                    throw Self.damaged("SQLite cannot defend itself")
                }
                try database.execute(
                    sql: """
                        PRAGMA trusted_schema = OFF;
                        PRAGMA cell_size_check = ON;
                        PRAGMA mmap_size = 0;
                        PRAGMA temp_store = MEMORY;
                        PRAGMA cache_size = -\(TocLimits.readingCacheBytes >> 10);
                        """)
            }
            let absolute = URL(fileURLWithPath: path).absoluteString
            let queue = try DatabaseQueue(path: absolute + "?immutable=1", configuration: configuration)
            (info, fileSystems) = try queue.read { database in
                try Self.checkSchema(database)
                let info = try Self.readInfo(database)
                return (info, try Self.readFileSystems(database, volumeSize: info.volumeSize))
            }
            self.queue = queue
        } catch { throw Self.failure(error, path) }
    }

    private static func failure(_ error: any Error, _ path: String) -> TocError {
        if let error = error as? TocError { return error }
        let text = "reading the table of contents \(path): "
        guard let error = error as? DatabaseError else { return TocError(.damaged, text + "\(error)") }
        return TocError(.damaged, text + (error.message ?? "\(error.resultCode)"))
    }

    static func damaged(_ reason: String) -> TocError {
        TocError(.damaged, "the table of contents is damaged: \(reason)")
    }

    /// The file must be as this program makes it: a view in a table's place could do anything.
    private static func checkSchema(_ database: Database) throws {
        let version = try Int.fetchOne(database, sql: "PRAGMA user_version") ?? 0
        let identifier = try Int.fetchOne(database, sql: "PRAGMA application_id") ?? 0
        guard identifier == Schema.applicationIdentifier else { throw damaged("it is something else") }
        guard version == Schema.version else {
            throw TocError(
                .damaged,
                "the table of contents has version \(version), and this program knows \(Schema.version); build it anew"
            )
        }
        var expected = Dictionary(uniqueKeysWithValues: Schema.all.map { ($0.name, $0.sql) })
        expected.merge(Defence.searchTables) { own, _ in own }
        let rows = try Row.fetchCursor(database, sql: "SELECT name, sql FROM sqlite_schema")
        while let row = try rows.next() {
            let columns = Columns(row)
            let name = try columns.text(0)
            guard try columns.optionalText(1) == expected.removeValue(forKey: name) else {
                throw damaged("\(name) is not as it should be")
            }
        }
        guard expected.isEmpty else { throw damaged("tables are missing") }
    }

    private static func readInfo(_ database: Database) throws -> TocInfo {
        var rows: [String: String] = [:]
        let cursor = try Row.fetchCursor(database, sql: "SELECT key, value FROM info LIMIT 64")
        while let row = try cursor.next() {
            let columns = Columns(row)
            rows[try columns.text(0)] = try columns.text(1)
        }
        guard let info = TocInfo(rows: rows) else { throw damaged("its table info does not fit") }
        return info
    }

    private static func readFileSystems(_ database: Database, volumeSize: UInt64) throws -> [TocFileSystem] {
        let cursor = try Row.fetchCursor(
            database,
            sql: """
                SELECT number, kind, offset, bytes, block_size, label, uuid, root, listed, complete, remark \
                FROM file_systems ORDER BY number LIMIT \(TocLimits.fileSystems + 1)
                """)
        var result: [TocFileSystem] = []
        while let row = try cursor.next() {
            let columns = Columns(row)
            let index = try columns.unsigned(0)
            let root = NodeKey(rowID: try columns.integer(7))
            guard (1...UInt64(TocLimits.fileSystems)).contains(index), root.fileSystem == Int(index) - 1,
                let kind = FileSystemKind(rawValue: try columns.text(1)),
                let range = ByteRange(
                    checking: try columns.unsigned(2), try columns.unsigned(3), within: volumeSize)
            else { throw damaged("a file system that cannot be") }
            result.append(
                TocFileSystem(
                    description: FileSystemDescription(
                        index: Int(index) - 1, kind: kind, range: range,
                        blockSize: try columns.unsigned(4), label: try columns.text(5),
                        uuid: try columns.text(6), root: root.address,
                        isListed: try columns.integer(8) != 0, remark: try columns.text(10)),
                    isComplete: try columns.integer(9) != 0))
        }
        return result
    }

    /// Asks the database; `body` may do so again.
    func ask<Result>(_ body: (Database) throws -> Result) throws -> Result {
        do { return try queue.unsafeReentrantRead(body) } catch let error as DatabaseError {
            throw Self.failure(error, path)
        }
    }

    /// The same for what throws nothing else.
    func answer<Result>(_ body: (Database) throws -> Result) throws(TocError) -> Result {
        do { return try ask(body) } catch { throw Self.failure(error, path) }
    }

    /// The file system whose paths begin at the volume's root: the only one whose files are listed. Nil: paths begin
    /// with a file system's number.
    public var onlyListed: TocFileSystem? {
        let listed = fileSystems.filter(\.description.isListed)
        return listed.count == 1 ? listed[0] : nil
    }

    func fileSystem(of key: NodeKey) throws(TocError) -> FileSystemDescription {
        guard let found = fileSystems.first(where: { $0.description.index == key.fileSystem }) else {
            throw Self.damaged("a file of no file system")
        }
        return found.description
    }
}

/// A file system in a table of contents.
public struct TocFileSystem: Hashable, Sendable {
    /// Without ``FileSystemDescription/knowsUse``: use is not kept.
    public var description: FileSystemDescription
    /// Whether it was read to its end.
    public var isComplete: Bool

    /// The first component of its files' paths where the volume has several: 1 for the first.
    public var number: Int { description.index + 1 }
    public var root: NodeKey { NodeKey(fileSystem: description.index, address: description.root) }
}

/// A row's values, each checked: GRDB's own conversions trap where a type does not fit.
struct Columns {
    private let row: Row

    init(_ row: Row) { self.row = row }

    private func value(_ index: Int) -> DatabaseValue { row[index] }

    func optionalInteger(_ index: Int) throws(TocError) -> Int64? {
        switch value(index).storage {
        case .null: return nil
        case .int64(let number): return number
        default: throw TocDatabase.damaged("something else in a number's place")
        }
    }

    func integer(_ index: Int) throws(TocError) -> Int64 {
        guard let number = try optionalInteger(index) else {
            throw TocDatabase.damaged("a number is missing")
        }
        return number
    }

    /// Not below 0.
    func unsigned(_ index: Int) throws(TocError) -> UInt64 {
        guard let number = UInt64(exactly: try integer(index)) else {
            throw TocDatabase.damaged("a number below 0")
        }
        return number
    }

    func narrow<T: FixedWidthInteger>(_ index: Int, as: T.Type = T.self) throws(TocError) -> T? {
        guard let number = try optionalInteger(index) else { return nil }
        guard let narrow = T(exactly: number) else { throw TocDatabase.damaged("a number that does not fit") }
        return narrow
    }

    func optionalText(_ index: Int) throws(TocError) -> String? {
        switch value(index).storage {
        case .null: return nil
        case .string(let text):
            guard text.utf8.count <= TocLimits.storedTextBytes else {
                throw TocDatabase.damaged("a text beyond its limit")
            }
            return text
        default: throw TocDatabase.damaged("something else in a text's place")
        }
    }

    func text(_ index: Int) throws(TocError) -> String {
        guard let text = try optionalText(index) else { throw TocDatabase.damaged("a text is missing") }
        return text
    }

    /// Of a text or a blob.
    func bytes(_ index: Int, limit: Int) throws(TocError) -> [UInt8]? {
        let bytes: [UInt8]
        switch value(index).storage {
        case .null: return nil
        case .string(let text): bytes = Array(text.utf8)
        case .blob(let data): bytes = Array(data)
        default: throw TocDatabase.damaged("a number in bytes' place")
        }
        guard bytes.count <= limit else { throw TocDatabase.damaged("a value beyond its limit") }
        return bytes
    }

    /// A name: the bytes of `raw` where there are some, else the text's.
    func name(text: Int, raw: Int, mayBeEmpty: Bool = false) throws(TocError) -> [UInt8] {
        var name = try bytes(raw, limit: TocLimits.nameBytes)
        if name == nil { name = try bytes(text, limit: TocLimits.nameBytes) }
        guard let name, mayBeEmpty || !name.isEmpty, !name.contains(0) else {
            throw TocDatabase.damaged("a name that cannot be")
        }
        return name
    }
}
