import Blocks
import Foundation
import GRDB
import Glibc

@testable import TableOfContents

/// A table of contents as a file: bit 0 of the first byte says how a small one is changed. 0: its pages, by edits
/// (``EditedBytes``). 1: its rows: for each a byte (bits 0 to 2 the table), a byte that chooses the row, one that chooses
/// the column, and a value: a byte (0 NULL; 1 to 16 a number at an edge, the sign turned by bit 7; 17 a text and 18 a blob
/// of so many bytes as two more say, filled with the byte that follows; any other a text of so many bytes that follow).
///
/// What must hold: whatever can be asked is answered or refused as damaged, and that ends; what is answered is within the
/// bounds of a table of contents.
func fuzzToc(_ input: [UInt8]) {
    var input = FuzzInput(input)
    let path: String
    if input.byte() & 1 == 0 {
        path = FuzzedDirectory.put(
            EditedBytes(FuzzedToc.whole, &input, isFixed: true).bytes, FuzzedToc.name)
    } else {
        path = FuzzedToc.withRows(&input)
    }
    do throws(TocError) { try FuzzedToc.askAll(try TocDatabase(path)) } catch {
        precondition(error.kind == .damaged, "refused as something else: \(error)")
    }
}

private enum FuzzedToc {
    static let name = "toc.sqlite"
    static let info = TocInfo(
        tool: "fuzz 1", volume: "v", volumeSize: 1 << 30, epoch: "e", instant: 1_700_000_000_000_000_001)

    /// As the program makes it.
    static let whole: [UInt8] = {
        let path = FuzzedDirectory.file("whole.sqlite")
        do throws(TocError) {
            try TocBuilder.build(at: path, info: info) { builder throws(TocError) in
                for index in 0..<2 { for record in records(index) { try builder.put(record) } }
            }
        } catch { preconditionFailure("a table of contents that is right: \(error)") }
        return contents(path)
    }()

    /// The same whose tables take any value in any column, while they say that they do not.
    private static let loose: [UInt8] = {
        let path = FuzzedDirectory.put(whole, "loose.sqlite")
        do {
            let queue = try DatabaseQueue(path: path)
            try queue.write { database in
                try database.execute(sql: "PRAGMA writable_schema = ON")
                try database.execute(
                    sql: """
                        UPDATE sqlite_schema SET sql = \
                        replace(replace(replace(sql, ') STRICT,', ')'), ') STRICT', ')'), ' NOT NULL', '')
                        """)
            }
            try queue.close()
        } catch { preconditionFailure("tables that take anything: \(error)") }
        return contents(path)
    }()

    private static func contents(_ path: String) -> [UInt8] {
        guard let data = FileManager.default.contents(atPath: path) else { preconditionFailure("no \(path)") }
        return Array(data)
    }

    /// Of two file systems, the second one so small as it can be: what it has goes into each input's time.
    static func records(_ index: Int) -> [VolumeRecord] {
        let start = UInt64(index) << 24
        func bytes(_ text: String) -> [UInt8] { Array(text.utf8) }
        func name(_ parent: UInt64, _ text: String, _ node: UInt64) -> VolumeRecord {
            .name(FileName(parent: parent, name: bytes(text), node: node))
        }
        var file = FileNode(address: 12, kind: .regular)
        (file.permissions, file.owner, file.group, file.links, file.size) = (0o4640, 1000, 100, 2, 10_000)
        file.modified = FileTime(seconds: -5, nanoseconds: 123_456_789)
        let fileSystem = VolumeRecord.fileSystem(
            FileSystemDescription(
                index: index, kind: .ext4, range: ByteRange(offset: start, count: 1 << 24),
                blockSize: 4096,
                label: "l", uuid: "u", root: 2, isListed: true, knowsUse: true, remark: ""))
        guard index == 0 else {
            return [
                fileSystem, .node(FileNode(address: 2, kind: .directory)), .node(file),
                name(2, "b.log", 12),
                .stream(FileStream(StreamIdentifier(node: 12), size: 10_000, storage: .extents)),
                .extents(
                    StreamIdentifier(node: 12),
                    [FileExtent(fileOffset: 0, volumeOffset: start + 8192, count: 4096)]),
                .end,
            ]
        }
        var link = FileNode(address: 14, kind: .symbolicLink)
        link.target = bytes("docs/a.log")
        var device = FileNode(address: 15, kind: .blockDevice)
        device.device = DeviceNumber(major: 8, minor: 1)
        return [
            fileSystem,
            .node(FileNode(address: 2, kind: .directory)), .node(FileNode(address: 11, kind: .directory)),
            .node(FileNode(address: 13, kind: .directory)), .node(file), .node(link), .node(device),
            .node(FileNode(address: 16, kind: .regular)), name(2, "docs", 11), name(11, "a.log", 12),
            name(2, "b.log", 12), name(11, "sub", 13), name(2, "link", 14), name(2, "dev", 15),
            .name(FileName(parent: 13, name: [0x66, 0xFF, 0x6F], node: 16)), name(13, "gone", 99),
            .stream(FileStream(StreamIdentifier(node: 12), size: 10_000, storage: .extents)),
            .stream(
                FileStream(
                    StreamIdentifier(node: 12, number: 5), name: bytes("zone"), size: 3,
                    storage: .inline([1, 0, 255]))),
            .stream(FileStream(StreamIdentifier(node: 16), size: 1, storage: .unavailable("compressed"))),
            .extents(
                StreamIdentifier(node: 12),
                [
                    FileExtent(fileOffset: 0, volumeOffset: start + 8192, count: 4096),
                    FileExtent(fileOffset: 8192, volumeOffset: start + 40_960, count: 4096),
                ]),
            .attribute(ExtendedAttribute(node: 12, name: bytes("user.x"), value: [9, 0])),
            .problem(ReadProblem(node: 99, reason: "its inode is damaged")), .end,
        ]
    }

    private static let tables: [(name: String, columns: [String])] = Schema.tables.map { item in
        // `CREATE TABLE name(column TYPE …, column TYPE …, PRIMARY KEY(…)) …`
        let body = item.sql.drop { $0 != "(" }.dropFirst()
        let columns = body.split(separator: ",").map { $0.split(separator: " ")[0] }
        return (item.name, columns.prefix { $0 != "PRIMARY" }.map(String.init))
    }

    /// The file with rows changed.
    static func withRows(_ input: inout FuzzInput) -> String {
        let path = FuzzedDirectory.put(loose, FuzzedToc.name)
        do {
            let queue = try DatabaseQueue(path: path)
            try queue.writeWithoutTransaction { database in
                try database.execute(sql: "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF")
                for _ in 0..<32 where !input.isEmpty {
                    let (name, columns) = tables[Int(input.byte() & 7)]
                    let row = Int(input.byte())
                    let column = columns[Int(input.byte()) % columns.count]
                    let value = value(&input)
                    let key =
                        [
                            "info": "key", "streams": "(node, number)", "extents": "(node, stream, offset)",
                            "attributes": "(node, name)",
                        ][name] ?? "rowid"
                    // Two keys may become one: that is refused, and the row stays.
                    try? database.execute(
                        sql: """
                            UPDATE \(name) SET \(column) = ? WHERE \(key) = \
                            (SELECT \(key.filter { $0 != "(" && $0 != ")" }) FROM \(name) LIMIT 1 OFFSET \(row % 32))
                            """, arguments: [value])
                }
                try database.execute(sql: "PRAGMA writable_schema = ON")
                let cases = Schema.all.map { _ in "WHEN ? THEN ?" }.joined(separator: " ")
                try database.execute(
                    sql: "UPDATE sqlite_schema SET sql = CASE name \(cases) ELSE sql END",
                    arguments: StatementArguments(Schema.all.flatMap { [$0.name, $0.sql] }))
            }
            try queue.close()
        } catch { preconditionFailure("rows that take anything: \(error)") }
        return path
    }

    private static let numbers: [Int64] = [
        0, 1, 2, 5, 11, 12, 100, 0xFFF, 0xFFFF, 1 << 24, 0xFFFF_FFFF, 1 << 40, 1 << 56, 1 << 57,
        Int64.max - 1, .max,
    ]

    private static func value(_ input: inout FuzzInput) -> DatabaseValue {
        let kind = input.byte()
        switch kind & 0x7F {
        case 0: return .null
        case 1...16:
            let number = numbers[Int(kind & 0x7F) - 1]
            return (kind & 0x80 == 0 ? number : -number).databaseValue
        case 17, 18:
            // A hundred thousand at most.
            let filling = [UInt8](repeating: input.byte(), count: input.half() * 2)
            return kind & 0x7F == 18
                ? Data(filling).databaseValue : String(decoding: filling, as: UTF8.self).databaseValue
        case let count: return String(decoding: input.bytes(Int(count) - 18), as: UTF8.self).databaseValue
        }
    }

    /// All that `ls`, `find`, `cat` and `restore file` ask.
    static func askAll(_ toc: TocDatabase) throws(TocError) {
        do {
            if let root = try toc.rootEntry() {
                var steps = 0
                try toc.walk(from: root) { step in
                    steps += 1
                    precondition(steps < 10_000, "a walk of a few names that does not end")
                    _ = TocPath.escaped(step.path)
                    if let key = step.entry.key { try ask(toc, key, step.entry) }
                    return true
                }
            }
            for path in ["/docs/a.log:zone", "/1/docs/a.log", "/2/b.log", "/link"] {
                _ = try toc.resolve(path)
            }
            for pattern in ["*.log", "a", "log", "[a-z]*"] {
                try toc.find(pattern) { _ = TocPath.escaped($0.path) }
            }
            try toc.forEachProblem { _, _ in }
            _ = try toc.problemCount()
        } catch let error as TocError { throw error } catch {
            preconditionFailure("another kind of error: \(error)")
        }
    }

    private static func ask(_ toc: TocDatabase, _ key: NodeKey, _ entry: TocEntry) throws {
        precondition(!entry.name.contains(0) && entry.name.count <= TocLimits.nameBytes)
        for stream in try toc.streams(of: key) {
            precondition(stream.name.count <= TocLimits.nameBytes)
            let content = try toc.content(of: key, stream: stream.number)
            precondition(content?.count ?? 0 <= TocLimits.inlineBytes)
            var end: UInt64 = 0
            try toc.forEachExtent(of: key, stream: stream.number) { extent in
                precondition(
                    extent.fileOffset >= end && extent.volumeOffset + extent.count <= toc.info.volumeSize)
                end = extent.fileOffset + extent.count
            }
        }
        for attribute in try toc.attributes(of: key) {
            precondition(attribute.value.count <= TocLimits.attributeBytes)
        }
        _ = try toc.path(of: key)
    }
}
