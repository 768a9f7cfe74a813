import Foundation
import Glibc
import TableOfContents
import TestSupport
import Testing

/// What a restore of files that was killed leaves, and who clears it away.
@Suite struct RestoreLeftoverTests {
    /// A restore that has its temporary files and waits for the rest of a backup.
    private func startWaiting(_ crafted: CraftedCopy, _ backup: String) throws -> (ChildProcess, FileHandle) {
        let pipe = crafted.scratch("pipe-\(UUID().uuidString)")
        try #require(mkfifo(pipe, 0o600) == 0)
        let process = try ChildProcess(
            "/bin/sh",
            [
                "-c", #"exec "$0" restore file --from-backup - / --to "$1" --force < "$2""#, Outboard.binary,
                crafted.scratch("out"), pipe,
            ],
            // Who is killed leaves the backup's table of contents there.
            environment: ["TMPDIR": crafted.scratch.path])
        let writer = try FileHandle(forWritingTo: URL(fileURLWithPath: pipe))
        let bytes = try Data(contentsOf: URL(fileURLWithPath: backup))
        try writer.write(contentsOf: bytes.prefix(bytes.count / 2))
        return (process, writer)
    }

    private func leftovers(_ crafted: CraftedCopy) throws -> [String] {
        let out = crafted.scratch("out")
        guard FileManager.default.fileExists(atPath: out) else { return [] }
        return try FileManager.default.subpathsOfDirectory(atPath: out).filter { $0.contains("partial") }
    }

    @Test("What a killed restore left is cleared by the next, what a living one has is not")
    func killed() throws {
        let crafted = try CraftedCopy(mode: "append")
        let extents = [FileExtent(fileOffset: 0, volumeOffset: 4 << 20, count: 64 << 10)]
        var deep = crafted.add(.directory, CraftedCopy.bytes("d"))
        crafted.file("one", size: 60_000, extents)
        crafted.file("in", in: deep, size: 60_000, extents)
        deep = crafted.add(.directory, [0xFF, 0x0A], in: deep)
        let content = crafted.file("deep", in: deep, size: 60_000, extents).content
        try crafted.finish()
        let backup = crafted.scratch("backup.tar")
        #expect(try Outboard.run(["backup", crafted.copy, "--to", backup]).isSuccess)

        let (dead, deadWriter) = try startWaiting(crafted, backup)
        let (living, livingWriter) = try startWaiting(crafted, backup)
        defer { for process in [dead, living] { process.stop() } }
        // Three files and the record, of each.
        try waitUntil("both have their temporary files") { try leftovers(crafted).count == 8 }
        #expect(try crafted.restore(["/one"], to: "out").isSuccess)
        #expect(try leftovers(crafted).count == 8)
        dead.signal(SIGKILL)
        #expect(dead.wait() == .signal(SIGKILL))
        try deadWriter.close()
        #expect(try leftovers(crafted).count == 8)

        let next = try crafted.restore(["/one"], to: "out", ["--force"])
        #expect(next.isSuccess && next.errors.contains("3 temporary files"), "\(next)")
        #expect(try leftovers(crafted).count == 4)
        let silent = try crafted.restore(["/one"], to: "out", ["--force"])
        #expect(silent.isSuccess && !silent.errors.contains("temporary"), "\(silent)")

        let bytes = try Data(contentsOf: URL(fileURLWithPath: backup))
        try livingWriter.write(contentsOf: bytes.dropFirst(bytes.count / 2))
        try livingWriter.close()
        #expect(living.wait() == .exit(0), "\(living.errors)")
        #expect(try leftovers(crafted).isEmpty)
        #expect(try contents(crafted.scratch("out/d/in")) == content)
    }

    /// A record with its own mark, as none comes from a volume.
    private static func forge(_ path: String, _ bytes: Data) throws {
        try Data().write(to: URL(fileURLWithPath: path))
        var status = stat()
        #expect(stat(path, &status) == 0)
        let handle = try FileHandle(forWritingTo: URL(fileURLWithPath: path))
        try handle.write(
            contentsOf: Data("outboard restore \(status.st_dev):\(status.st_ino)".utf8) + [0] + bytes)
        try handle.close()
    }

    @Test("Restored files whose names are those of leftovers are the user's")
    func named() throws {
        let crafted = try CraftedCopy(mode: "overlay")
        // A zero byte alone names the directory itself; the next has a record's mark, though not its own.
        let mark = Array("outboard restore 1:2".utf8) + [0, 0]
        let contents: [String: [UInt8]] = [
            ".outboard-12ab.partial": [0], ".outboard-12ab-1.partial": Array("kept".utf8),
            ".outboard-34cd.partial": mark, ".outboard-34cd-1.partial": Array("kept".utf8),
            ".outboard-56ef.partial": [], "one": Array("one".utf8),
        ]
        for (name, bytes) in contents { crafted.inline(name, bytes) }
        try crafted.finish()
        for options in [[], [], ["--force"], []] {
            // Where they are, they are told as such without --force.
            let restored = try crafted.restore(["/"], to: "out", options)
            #expect(!restored.errors.contains("cleared"), "\(restored)")
            for (name, bytes) in contents {
                #expect(
                    try Data(contentsOf: URL(fileURLWithPath: crafted.scratch("out/" + name))) == Data(bytes))
            }
            #expect(try crafted.names("out") == Set(contents.keys))
        }
    }

    @Test("A record that somebody else made leads nowhere else")
    func forged() throws {
        let crafted = try CraftedCopy(mode: "overlay")
        crafted.file("one", size: 100, [FileExtent(fileOffset: 0, volumeOffset: 0, count: 512)])
        try crafted.finish()
        let out = crafted.scratch("out")
        for name in ["out", "outside", "out/d"] {
            try FileManager.default.createDirectory(
                atPath: crafted.scratch(name), withIntermediateDirectories: false)
        }
        let other = ".outboard-abc-1.partial"
        for name in ["outside/" + other, "out/" + other, "out/d/" + other, "out/.outboard-abd-1.partial"] {
            try Data("kept".utf8).write(to: URL(fileURLWithPath: crafted.scratch(name)))
        }
        #expect(symlink(crafted.scratch("outside"), out + "/link") == 0)
        let record = ["../outside", "link", "d/../../outside", crafted.scratch("outside"), "none", ""]
        var bytes = Data()
        for path in record { bytes += Data(path.utf8) + [0] }
        // Longer than any path, and not written to its end.
        try Self.forge(out + "/.outboard-abc.partial", bytes + Data(repeating: 0x61, count: 3 << 20))
        let restored = try crafted.restore(["/one"], to: "out")
        #expect(restored.isSuccess && restored.errors.contains("1 temporary file "), "\(restored)")
        func isThere(_ name: String) -> Bool {
            FileManager.default.fileExists(atPath: crafted.scratch(name))
        }
        #expect(isThere("outside/" + other) && isThere("out/d/" + other))
        #expect(isThere("out/.outboard-abd-1.partial"))
        #expect(!isThere("out/" + other) && !isThere("out/.outboard-abc.partial"))
    }
}
