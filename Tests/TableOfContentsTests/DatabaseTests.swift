import Blocks
import Foundation
import Glibc
import TestSupport
import Testing

@testable import TableOfContents

/// A small volume's records.
enum SampleVolume {
    static let size: UInt64 = 1 << 30
    static let info = TocInfo(
        tool: "test 1", volume: "v", volumeSize: size, epoch: "e", instant: 1_700_000_000_000_000_001)

    static func description(_ index: Int = 0, isListed: Bool = true) -> FileSystemDescription {
        FileSystemDescription(
            index: index, kind: isListed ? .ext4 : .btrfs,
            range: ByteRange(offset: UInt64(index) << 24, count: 1 << 24), blockSize: 4096, label: "l",
            uuid: "u",
            root: 2, isListed: isListed, knowsUse: isListed, remark: isListed ? "" : "nobody reads it")
    }

    static func bytes(_ text: String) -> [UInt8] { Array(text.utf8) }

    static func directory(_ address: UInt64) -> VolumeRecord {
        .node(FileNode(address: address, kind: .directory))
    }

    static func name(_ parent: UInt64, _ name: String, _ node: UInt64) -> VolumeRecord {
        .name(FileName(parent: parent, name: bytes(name), node: node))
    }

    /// The root with `docs/a.log`, its hard link `b`, `docs/sub`, a link, a device, a name that is not UTF-8, an NTFS
    /// stream, inline data.
    static func tree(_ index: Int = 0) -> [VolumeRecord] {
        let start = UInt64(index) << 24
        var file = FileNode(address: 12, kind: .regular)
        file.permissions = 0o4640
        (file.owner, file.group, file.links, file.size) = (1000, 100, 2, 10_000)
        file.modified = FileTime(seconds: -5, nanoseconds: 123_456_789)
        file.created = FileTime(seconds: 1_700_000_000)
        var link = FileNode(address: 14, kind: .symbolicLink)
        link.target = bytes("docs/a.log")
        var device = FileNode(address: 15, kind: .blockDevice)
        device.device = DeviceNumber(major: 8, minor: 1)
        return [
            .fileSystem(description(index)), directory(2), directory(11), .node(file), directory(13),
            .node(link),
            .node(device), .node(FileNode(address: 16, kind: .regular)),
            name(2, "docs", 11), name(11, "a.log", 12), name(2, "b", 12), name(11, "sub", 13),
            name(2, "link", 14),
            name(2, "dev", 15), .name(FileName(parent: 13, name: [0x66, 0xFF, 0x6F], node: 16)),
            name(2, "a:b", 16), name(13, "back\\slash\nline", 16), name(13, "gone", 99),
            .stream(FileStream(StreamIdentifier(node: 12), size: 10_000, storage: .extents)),
            .stream(
                FileStream(
                    StreamIdentifier(node: 12, number: 5), name: bytes("zone"), size: 3,
                    storage: .inline([1, 0, 255]))),
            .stream(
                FileStream(
                    StreamIdentifier(node: 16), size: 1, storage: .unavailable("compressed"))),
            .extents(
                StreamIdentifier(node: 12),
                [FileExtent(fileOffset: 8192, volumeOffset: start + 40_960, count: 4096)]),
            .extents(
                StreamIdentifier(node: 12),
                [FileExtent(fileOffset: 0, volumeOffset: start + 8192, count: 4096)]),
            .attribute(ExtendedAttribute(node: 12, name: bytes("user.x"), value: [9, 0])),
            .problem(ReadProblem(node: 99, reason: "its inode is damaged")), .end,
        ]
    }

    /// A database with these records.
    static func database(_ records: [VolumeRecord], in scratch: ScratchDirectory) throws -> TocDatabase {
        let path = scratch("toc.sqlite")
        try TocBuilder.build(at: path, info: info) { builder throws(TocError) in
            for record in records { try builder.put(record) }
        }
        return try TocDatabase(path)
    }
}

@Suite struct DatabaseTests {
    let scratch: ScratchDirectory
    init() throws { scratch = try ScratchDirectory() }

    private func find(_ pattern: String, _ toc: TocDatabase) throws -> Set<String> {
        var found: Set<String> = []
        try toc.find(pattern) { found.insert(TocPath.escaped($0.path)) }
        return found
    }

    @Test func whatWasPutIsFound() throws {
        let toc = try SampleVolume.database(SampleVolume.tree(), in: scratch)
        #expect(toc.info == SampleVolume.info)
        var description = SampleVolume.description()
        description.knowsUse = false
        #expect(toc.fileSystems == [TocFileSystem(description: description, isComplete: true)])
        let entry = try #require(try toc.resolve("/docs/a.log"))
        let key = try #require(entry.key)
        #expect(key == NodeKey(fileSystem: 0, address: 12))
        guard case .node(let node) = SampleVolume.tree()[3] else { preconditionFailure() }
        #expect(entry.node == node)
        #expect(try toc.resolve("b")?.node == node)
        var extents: [FileExtent] = []
        try toc.forEachExtent(of: key) { extents.append($0) }
        #expect(extents.map(\.fileOffset) == [0, 8192])
        #expect(extents.map(\.volumeOffset) == [8192, 40_960])
        #expect(try toc.streams(of: key).map(\.storage) == [.extents, .inline])
        #expect(try toc.content(of: key, stream: 5) == [1, 0, 255])
        #expect(try toc.content(of: key) == nil)
        #expect(try toc.attributes(of: key).map(\.value) == [[9, 0]])
        #expect(try toc.resolve("link")?.node.target == SampleVolume.bytes("docs/a.log"))
        #expect(try toc.resolve("dev")?.node.device == DeviceNumber(major: 8, minor: 1))
        var problems: [ReadProblem] = []
        try toc.forEachProblem { problems.append($1) }
        #expect(problems == [ReadProblem(node: 99, reason: "its inode is damaged")])
    }

    @Test func pathsOfEveryKindResolve() throws {
        let toc = try SampleVolume.database(SampleVolume.tree(), in: scratch)
        #expect(try toc.resolve("/")?.key?.address == 2)
        #expect(try toc.resolve("//docs/./sub/")?.key?.address == 13)
        #expect(try toc.resolve("/docs/sub/f\\xFFo")?.key?.address == 16)
        #expect(try toc.resolve("/docs/sub/back\\\\slash\\x0Aline")?.key?.address == 16)
        #expect(try toc.resolve("/docs/sub/gone")?.isKnown == false)
        #expect(try toc.resolve("/docs/none") == nil)
        #expect(try toc.resolve("/docs/a.log/x") == nil)
        // A colon may be a name's, or a stream's.
        #expect(try toc.resolve("/a:b")?.stream == nil)
        #expect(try toc.resolve("/a:b")?.key?.address == 16)
        #expect(try toc.resolve("/docs/a.log:zone")?.stream?.number == 5)
        #expect(try toc.resolve("/docs/a.log:none") == nil)
    }

    @Test func everyNameComesBackFromItsEscapedForm() {
        for name in [
            [0x61], [0xFF], [0x5C, 0x78, 0x34, 0x31], [0x2F], [0x0A], [0xC3, 0xA4], [0xC3],
            [0xE2, 0x80, 0xAE],
            [0x5C], [0x5C, 0x5C], [0x1B, 0x5B], [0xF0, 0x9F, 0x98, 0x80], [0xED, 0xA0, 0x80], [0xC2, 0x85],
        ] as [[UInt8]] {
            let text = TocPath.escaped(name)
            #expect(TocPath.components(text) == [name], "\(text)")
            #expect(text.unicodeScalars.allSatisfy { $0.value >= 0x20 && $0 != "/" })
        }
        #expect(TocPath.components("a\\b/\\xZZ/.") == [Array("a\\b".utf8), Array("\\xZZ".utf8)])
    }

    @Test func directoriesAreListedInOrder() throws {
        let toc = try SampleVolume.database(SampleVolume.tree(), in: scratch)
        var names: [String] = []
        // Asking while answers come is allowed.
        try toc.children(of: try #require(try toc.resolve("/"))) { entry in
            names.append(TocPath.escaped(entry.name))
            _ = try toc.resolve("/docs")
        }
        #expect(names == ["a:b", "b", "dev", "docs", "link"])
        var steps: [String] = []
        try toc.walk(from: try #require(try toc.resolve("docs"))) { step in
            steps.append(TocPath.escaped(step.path))
            return true
        }
        #expect(steps == ["/", "/a.log", "/sub", "/sub/back\\\\slash\\x0Aline", "/sub/f\\xFFo", "/sub/gone"])
    }

    @Test func namesAreFound() throws {
        let toc = try SampleVolume.database(SampleVolume.tree(), in: scratch)
        #expect(try find("*.log", toc) == ["/docs/a.log"])
        #expect(try find(".log", toc) == ["/docs/a.log"])
        #expect(try find("a", toc).count == 3)
        #expect(try find("?", toc) == ["/b"])
        #expect(try find("lin[a-k]", toc) == ["/link"])
        #expect(try find("LINK", toc) == [])
        #expect(try find("*slash*", toc) == ["/docs/sub/back\\\\slash\\x0Aline"])
        #expect(try find("f*o", toc) == ["/docs/sub/f\\xFFo"])
        #expect(try find("'; DROP", toc) == [])
        #expect(throws: TocError.self) { try find("", toc) }
    }

    /// With several file systems paths begin with a number.
    @Test func severalFileSystemsHaveNumbers() throws {
        let bare = SampleVolume.description(1, isListed: false)
        let toc = try SampleVolume.database(
            SampleVolume.tree(0) + [.fileSystem(bare), .end] + SampleVolume.tree(2), in: scratch)
        #expect(try toc.resolve("/1/docs/a.log")?.key?.fileSystem == 0)
        let last = try #require(try toc.resolve("/3/docs/a.log"))
        #expect(last.key?.fileSystem == 2)
        #expect(try toc.resolve("/2")?.isDirectory == false)
        #expect(try toc.resolve("/docs") == nil)
        #expect(try find("a.log", toc) == ["/1/docs/a.log", "/3/docs/a.log"])
        var names: [String] = []
        try toc.children(of: try #require(try toc.resolve("/"))) { names.append(TocPath.escaped($0.name)) }
        #expect(names == ["1", "2", "3"])
        #expect(try toc.path(of: try #require(last.key)).map { TocPath.escaped($0) } == "/3/docs/a.log")
        // One that is listed beside one that is not needs none.
        let other = try ScratchDirectory()
        let single = try SampleVolume.database([.fileSystem(bare), .end] + SampleVolume.tree(2), in: other)
        #expect(try single.resolve("/docs/a.log")?.key?.fileSystem == 2)
    }

    /// Whatever a disk says, nothing loops, nothing lies elsewhere, nothing is half told.
    @Test func hostileRecordsAreContained() throws {
        var records: [VolumeRecord] = [.fileSystem(SampleVolume.description())]
        records += [2, 20, 21].map(SampleVolume.directory)
        records += [
            SampleVolume.directory(20), SampleVolume.name(2, "x", 20), SampleVolume.name(20, "y", 21),
        ]
        // A directory in itself, the root in a directory, names that are paths, and a cycle that nothing leads to.
        records += [SampleVolume.name(21, "loop", 20), SampleVolume.name(21, "root", 2)]
        records += [SampleVolume.name(21, "..", 20), SampleVolume.name(21, "a/b", 20)]
        records += [SampleVolume.name(30, "p", 31), SampleVolume.name(31, "p", 30)]
        let stream = StreamIdentifier(node: 20)
        records += [
            .extents(
                stream,
                [
                    FileExtent(fileOffset: 0, volumeOffset: 1 << 24, count: 4096),
                    FileExtent(fileOffset: 0, volumeOffset: (1 << 24) - 1, count: 2),
                    FileExtent(fileOffset: 0, volumeOffset: UInt64(Int64.max), count: .max),
                    FileExtent(fileOffset: 0, volumeOffset: 0, count: 4096),
                    FileExtent(fileOffset: 0, volumeOffset: 8192, count: 4096),
                    FileExtent(fileOffset: 100, volumeOffset: 0, count: 4096),
                ])
        ]
        let toc = try SampleVolume.database(records, in: scratch)
        // Its end did not come.
        #expect(toc.fileSystems[0].isComplete == false)
        // Three extents outside, and what was told twice.
        #expect(try toc.problemCount() == 4)
        var steps = 0
        var omitted = 0
        try toc.walk(from: try #require(try toc.resolve("/"))) { step in
            steps += 1
            if step.omission != nil { omitted += 1 }
            return true
        }
        #expect(steps == 7)
        #expect(omitted == 4)
        #expect(try toc.resolve("/x/y/a\\x2Fb")?.key?.address == 20)
        #expect(try toc.find("[p]") { _ in Issue.record("nothing leads there") } == 2)
        // Extents that overlap in the file are told when somebody asks for them.
        #expect(throws: TocError.self) {
            try toc.forEachExtent(of: NodeKey(fileSystem: 0, address: 20)) { _ in }
        }
    }

    @Test func recordsOfNoFileSystemAreRefused() throws {
        for records in [
            [SampleVolume.directory(2)],
            [.fileSystem(SampleVolume.description()), .end, SampleVolume.directory(2)],
            [
                .fileSystem(
                    FileSystemDescription(
                        index: 0, kind: .ext4, range: ByteRange(offset: 0, count: (1 << 30) + 1),
                        isListed: true))
            ],
        ] as [[VolumeRecord]] {
            #expect(throws: TocError.self) { _ = try SampleVolume.database(records, in: scratch) }
            #expect(access(scratch("toc.sqlite"), F_OK) != 0)
            #expect(access(scratch("toc.sqlite.partial"), F_OK) != 0)
        }
    }

    /// A caller's draft becomes the database, and nothing lies beside it meanwhile.
    @Test func aDraftIsBuiltInPlace() throws {
        let path = scratch("draft")
        func build() throws {
            try TocBuilder.build(at: path, inPlace: true, info: SampleVolume.info) {
                builder throws(TocError) in
                for record in SampleVolume.tree() { try builder.put(record) }
                let names = try? FileManager.default.contentsOfDirectory(atPath: scratch.path)
                #expect(names == ["draft"])
            }
        }
        #expect(throws: TocError.self) { try build() }
        #expect(FileManager.default.createFile(atPath: path, contents: nil))
        try build()
        #expect(try TocDatabase(path).resolve("/docs/a.log") != nil)
        #expect(try FileManager.default.contentsOfDirectory(atPath: scratch.path) == ["draft"])
        #expect(throws: TocError.self, "it is not empty any more") { try build() }
    }

    /// What goes wrong while one is built leaves the one that was there.
    @Test func anOldOneStaysUntilTheNewOneIsThere() throws {
        _ = try SampleVolume.database(SampleVolume.tree(), in: scratch)
        #expect(throws: TocError.self) {
            try TocBuilder.build(at: scratch("toc.sqlite"), info: SampleVolume.info) {
                builder throws(TocError) in
                try builder.put(.fileSystem(SampleVolume.description()))
                throw TocError(.cancelled, "stop")
            }
        }
        #expect(access(scratch("toc.sqlite.partial"), F_OK) != 0)
        #expect(try TocDatabase(scratch("toc.sqlite")).resolve("/docs/a.log") != nil)
    }

    /// The tables are for people with sqlite3, too.
    @Test func theProgramSqlite3CanUseIt() throws {
        _ = try SampleVolume.database(SampleVolume.tree(), in: scratch)
        func ask(_ sql: String) throws -> String {
            let result = try runProgram("sqlite3", [scratch("toc.sqlite"), sql])
            #expect(result.isSuccess, "\(result)")
            return result.output
        }
        #expect(
            try ask("SELECT path, kind, mode, size, modified FROM files WHERE address = 12 ORDER BY path")
                == "/b|f|4640|10000|1969-12-31 23:59:55\n/docs/a.log|f|4640|10000|1969-12-31 23:59:55\n")
        #expect(try ask("SELECT count(*) FROM file_extents WHERE path = '/b'") == "2\n")
        #expect(try ask("SELECT name FROM names_search WHERE name GLOB '*.log'") == "a.log\n")
        #expect(try ask("PRAGMA integrity_check") == "ok\n")
        #expect(try ask("SELECT value FROM info WHERE key = 'format'") == "outboard-toc\n")
        #expect(try ask("INSERT INTO names_search(names_search) VALUES('integrity-check')") == "")
    }
}
