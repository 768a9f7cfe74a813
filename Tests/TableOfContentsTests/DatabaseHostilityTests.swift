import Blocks
import GRDB
import Glibc
import TestSupport
import Testing

@testable import TableOfContents

/// Files that are no table of contents, or a damaged or malicious one.
@Suite struct DatabaseHostilityTests {
    let scratch: ScratchDirectory
    init() throws { scratch = try ScratchDirectory() }

    /// Opens a database and asks all that can be asked.
    private static func askAll(_ path: String) throws {
        let toc = try TocDatabase(path)
        if let root = try toc.rootEntry() {
            try toc.walk(from: root) { step in
                if let key = step.entry.key {
                    _ = try toc.streams(of: key)
                    _ = try toc.attributes(of: key)
                    _ = try toc.content(of: key, stream: 5)
                    try toc.forEachExtent(of: key) { _ in }
                }
                return true
            }
        }
        _ = try toc.resolve("/docs/a.log:zone")
        try toc.find("*.log") { _ in }
        try toc.find("a") { _ in }
        try toc.forEachProblem { _, _ in }
    }

    private func change(_ path: String, _ sql: String) throws {
        let result = try runProgram("sqlite3", [path, "PRAGMA writable_schema = ON; " + sql])
        #expect(result.isSuccess, "\(result)")
    }

    private func kind(_ path: String) -> TocError.Kind? {
        do {
            try Self.askAll(path)
            return nil
        } catch { return (error as? TocError)?.kind }
    }

    private func write(_ bytes: [UInt8], to path: String) throws {
        let descriptor = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0o600)
        #expect(descriptor >= 0)
        defer { close(descriptor) }
        #expect(Glibc.write(descriptor, bytes, bytes.count) == bytes.count)
    }

    private func read(_ path: String) throws -> [UInt8] {
        let descriptor = open(path, O_RDONLY)
        #expect(descriptor >= 0)
        defer { close(descriptor) }
        var bytes = [UInt8](repeating: 0, count: Int(lseek(descriptor, 0, SEEK_END)))
        #expect(pread(descriptor, &bytes, bytes.count, 0) == bytes.count)
        return bytes
    }

    @Test func whatIsNoTableOfContentsIsRefused() throws {
        #expect(kind(scratch("none")) == .missing)
        try write([], to: scratch("empty"))
        #expect(kind(scratch("empty")) == .damaged)
        try write(Array("no database at all, but long enough to be looked at".utf8), to: scratch("text"))
        #expect(kind(scratch("text")) == .damaged)
        try change(scratch("other"), "CREATE TABLE info(key, value)")
        #expect(kind(scratch("other")) == .damaged)
        mkdir(scratch("directory"), 0o700)
        #expect(kind(scratch("directory")) == .damaged)
    }

    /// A path may hold what means something in a URI.
    @Test func thePathIsTakenAsItIs() throws {
        for name in ["a?mode=memory", "b%41", "c#d", "e f"] {
            mkdir(scratch(name), 0o700)
            let path = scratch(name) + "/toc.sqlite"
            try TocBuilder.build(at: path, info: SampleVolume.info) { builder throws(TocError) in
                for record in SampleVolume.tree() { try builder.put(record) }
            }
            #expect(try TocDatabase(path).resolve("/docs") != nil)
        }
    }

    @Test(arguments: [
        "PRAGMA user_version = 2",
        "PRAGMA application_id = 1",
        "CREATE TRIGGER t AFTER INSERT ON names BEGIN SELECT 1; END",
        "CREATE VIEW more AS SELECT 1",
        "ALTER TABLE names ADD COLUMN more",
        "DROP TABLE problems",
        "DROP TABLE names; CREATE VIEW names AS WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x AS id, 1 AS parent, 'a' AS name, 1 AS node, NULL AS raw FROM c",
        "UPDATE sqlite_schema SET sql = 'CREATE TABLE names(id)' WHERE name = 'names'",
        "DELETE FROM info WHERE key = 'volume_size'",
        "UPDATE info SET value = '-1' WHERE key = 'volume_size'",
        "UPDATE file_systems SET bytes = -1", "UPDATE file_systems SET offset = 9223372036854775807",
        "UPDATE file_systems SET kind = 'zfs'", "UPDATE file_systems SET number = 500",
        "UPDATE file_systems SET root = root + (1 << 57)",
        "UPDATE nodes SET kind = 'x'", "UPDATE nodes SET size = -1", "UPDATE nodes SET permissions = 65536",
        "UPDATE nodes SET modified = 1, modified_ns = 1000000000", "UPDATE nodes SET owner = -1",
        "UPDATE nodes SET major = 1 << 40, minor = 0", "UPDATE nodes SET target = zeroblob(65537)",
        "UPDATE names SET name = '' WHERE id = 2", "UPDATE names SET raw = zeroblob(3)",
        "UPDATE streams SET storage = 'x'", "UPDATE streams SET size = -5",
        "UPDATE streams SET content = zeroblob(65537), storage = 'inline'",
        "UPDATE streams SET number = number + (1 << 33)",
        "UPDATE extents SET bytes = 0", "UPDATE extents SET bytes = bytes + (1 << 40)",
        "UPDATE extents SET volume_offset = -4096", "UPDATE extents SET bytes = 16384",
        "UPDATE attributes SET value = zeroblob(65537)",
        "UPDATE problems SET file_system = 256",
        // What is beyond a limit is not even read; no table, view or trigger hides behind the search index's name.
        "UPDATE problems SET reason = printf('%.*c', 12289, 'x')",
        "UPDATE attributes SET value = zeroblob(1048576)",
        "UPDATE info SET value = printf('%.*c', 1048577, 'x')",
        "CREATE TABLE names_search_more(x)",
        "CREATE TRIGGER names_search_more AFTER INSERT ON names BEGIN SELECT 1; END",
        "UPDATE sqlite_schema SET type = 'view', rootpage = 0, sql = 'CREATE VIEW names_search_idx AS WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x AS segid, x AS term, x AS pgno FROM c' WHERE name = 'names_search_idx'",
        """
        WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c LIMIT 1025) \
        INSERT INTO attributes SELECT 12, 'user.' || x, NULL, zeroblob(65536) FROM c
        """,
    ]) func whatCannotBeIsRefused(sql: String) throws {
        _ = try SampleVolume.database(SampleVolume.tree(), in: scratch)
        #expect(kind(scratch("toc.sqlite")) == nil)
        try change(scratch("toc.sqlite"), sql)
        #expect(kind(scratch("toc.sqlite")) == .damaged)
    }

    /// At the limits, all is read.
    @Test(arguments: [
        "UPDATE problems SET reason = printf('%.*c', 12288, 'x')",
        "UPDATE attributes SET value = zeroblob(65536)",
        """
        WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c LIMIT 1000) \
        INSERT INTO attributes SELECT 12, 'user.' || x, NULL, zeroblob(65536) FROM c
        """,
    ]) func whatIsAtItsLimitIsRead(sql: String) throws {
        _ = try SampleVolume.database(SampleVolume.tree(), in: scratch)
        try change(scratch("toc.sqlite"), sql)
        #expect(kind(scratch("toc.sqlite")) == nil)
    }

    /// What a row may not hold is refused by SQLite itself, before there is memory for it.
    @Test(arguments: [(1_048_576, false), (1_048_577, true), (900_000_000, true)])
    func longValuesAreNotRead(count: Int, isBeyond: Bool) throws {
        _ = try SampleVolume.database(SampleVolume.tree(), in: scratch)
        let toc = try TocDatabase(scratch("toc.sqlite"))
        var failure: TocError?
        do throws(TocError) {
            try toc.answer { _ = try Row.fetchOne($0, sql: "SELECT zeroblob(\(count))") }
        } catch { failure = error }
        #expect((failure?.kind == .damaged) == isBeyond)
        #expect(failure?.description.contains("too big") ?? false == isBeyond)
    }

    /// Directories that are in themselves, and a name that is its own parent.
    @Test func circlesEnd() throws {
        _ = try SampleVolume.database(SampleVolume.tree(), in: scratch)
        try change(scratch("toc.sqlite"), "UPDATE names SET node = 2 WHERE name = 'sub'")
        #expect(kind(scratch("toc.sqlite")) == nil)
        try change(scratch("toc.sqlite"), "UPDATE names SET parent = node")
        #expect(kind(scratch("toc.sqlite")) == nil)
    }

    /// Pages that are cut off, or with any byte changed: an error or another answer, but no trap and no end of it.
    @Test func damagedFilesNeverTrap() throws {
        _ = try SampleVolume.database(SampleVolume.tree(), in: scratch)
        let good = try read(scratch("toc.sqlite"))
        let path = scratch("damaged")
        for count in stride(from: 0, to: good.count, by: 8192) {
            try write(Array(good.prefix(count)), to: path)
            #expect(kind(path) == .damaged)
        }
        var generator = SeededGenerator(seed: 4)
        for _ in 0..<400 {
            var bytes = good
            for _ in 0..<Int.random(in: 1...8, using: &generator) {
                // Where something is: most of a page is empty.
                var position = Int.random(in: 0..<bytes.count, using: &generator)
                while position + 1 < bytes.count, bytes[position] == 0 { position += 1 }
                bytes[position] = UInt8.random(in: 0...255, using: &generator)
            }
            try write(bytes, to: path)
            do { try Self.askAll(path) } catch is TocError {}
        }
    }

    /// What lies beside it is not taken for its journal.
    @Test func aJournalBesideItIsLeftAlone() throws {
        _ = try SampleVolume.database(SampleVolume.tree(), in: scratch)
        for name in ["toc.sqlite-journal", "toc.sqlite-wal"] {
            try write([UInt8](repeating: 0x5A, count: 8192), to: scratch(name))
        }
        #expect(try TocDatabase(scratch("toc.sqlite")).resolve("/docs/a.log") != nil)
        #expect(access(scratch("toc.sqlite-journal"), F_OK) == 0)
    }
}

/// SplitMix64: numbers that a seed decides.
private struct SeededGenerator: RandomNumberGenerator {
    var state: UInt64
    init(seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var mixed = state
        mixed = (mixed ^ (mixed >> 30)) &* 0xBF58_476D_1CE4_E5B9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94D0_49BB_1331_11EB
        return mixed ^ (mixed >> 31)
    }
}
