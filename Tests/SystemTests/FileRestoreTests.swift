import Blocks
import Foundation
import Glibc
import PhysicalCopy
import TableOfContents
import TestSupport
import Testing

/// `restore file` of copies whose tables of contents were made up.
@Suite struct FileRestoreTests {
    private func status(_ path: String) throws -> stat {
        var status = stat()
        guard lstat(path, &status) == 0 else {
            throw TestFailure("\(path): \(String(cString: strerror(errno)))")
        }
        return status
    }

    private func json(_ result: ProgramResult) throws -> [String: Any] {
        try #require(try JSONSerialization.jsonObject(with: Data(result.output.utf8)) as? [String: Any])
    }

    @Test("Files come back byte for byte, with their holes", arguments: ["overlay", "append"])
    func contentsComeBack(mode: String) throws {
        let crafted = try CraftedCopy(mode: mode)
        var random = SeededGenerator(seed: mode == "append" ? 11 : 12)
        var expected: [String: [UInt8]] = [:]
        let directory = crafted.add(.directory, CraftedCopy.bytes("many"))
        for number in 0..<400 {
            let (size, extents) = crafted.randomExtents(&random)
            expected["many/\(number)"] = crafted.file("\(number)", in: directory, size: size, extents).content
        }
        let large = FileExtent(fileOffset: 0, volumeOffset: 0, count: 6 << 20)
        expected["large"] = crafted.file("large", size: (6 << 20) - 100, [large]).content
        let inline = crafted.add(.regular, CraftedCopy.bytes("inline")) { $0.size = 5 }
        crafted.put(
            .stream(FileStream(.init(node: inline), size: 5, storage: .inline(CraftedCopy.bytes("hello")))))
        expected["inline"] = CraftedCopy.bytes("hello")
        // A terabyte of hole.
        let hole = FileExtent(fileOffset: 1 << 40, volumeOffset: 4096, count: 4096)
        let sparse = crafted.add(.regular, CraftedCopy.bytes("sparse")) { $0.size = 1 << 40 + 10 }
        crafted.put(.stream(FileStream(.init(node: sparse), size: (1 << 40) + 10, storage: .extents)))
        crafted.put(.extents(.init(node: sparse), [hole]))
        try crafted.finish()
        let result = try crafted.restore(to: "out", ["--json"])
        #expect(result.isSuccess, "\(result)")
        for (name, content) in expected {
            #expect(try contents(crafted.scratch("out/" + name)) == content, "\(name)")
        }
        let found = try status(crafted.scratch("out/sparse"))
        #expect(found.st_size == (1 << 40) + 10 && found.st_blocks < 100)
        let handle = try FileHandle(forReadingFrom: URL(fileURLWithPath: crafted.scratch("out/sparse")))
        try handle.seek(toOffset: 1 << 40)
        #expect(try handle.readToEnd().map(Array.init) == Array(crafted.volume[4096..<4106]))
        #expect(try crafted.names("out") == ["many", "large", "inline", "sparse"])
        #expect(try crafted.names("out/many").count == 400)
        // One file, and nothing but its extents is read.
        let one = try crafted.restore(["/large"], to: "one", ["--json"])
        #expect(one.isSuccess, "\(one)")
        #expect(try contents(crafted.scratch("one/large")) == expected["large"])
        let read = try #require(try json(one)["bytesRead"] as? Int)
        if mode == "overlay" {
            #expect(read == 6 << 20)
        } else {
            // The originals are checked before, and their log's headers read.
            #expect(read >= 6 << 20 && read < (6 << 20) + (5 << 20))
        }
        let verified = try crafted.restore(["/large"], to: "verified", ["--verify"])
        #expect(verified.isSuccess, "\(verified)")
    }

    @Test func metadataAndLinks() throws {
        let crafted = try CraftedCopy(mode: "overlay", size: 2 << 20)
        let isRoot = geteuid() == 0
        let time = FileTime(seconds: 1_234_567_890, nanoseconds: 987_654_321)
        let old = FileTime(seconds: -86_400, nanoseconds: 5)
        let sub = crafted.add(.directory, CraftedCopy.bytes("sub")) { node in
            node.permissions = 0o550
            (node.modified, node.accessed) = (time, old)
            (node.owner, node.group) = (1234, 5678)
        }
        let file = crafted.file(
            "file", in: sub, size: 3000, [FileExtent(fileOffset: 0, volumeOffset: 512, count: 3072)]
        ) { node in
            node.permissions = 0o6751
            (node.owner, node.group) = (1234, 5678)
            (node.modified, node.accessed, node.links) = (time, old, 3)
        }
        crafted.put(
            .attribute(
                ExtendedAttribute(node: file.node, name: CraftedCopy.bytes("user.key"), value: [1, 0, 2])))
        // Owner rw, user 4321 r, mask r, group and others nothing: version 2 of the system's form.
        let list: [UInt8] =
            [2, 0, 0, 0] + [1, 0, 6, 0, 255, 255, 255, 255] + [2, 0, 4, 0, 0xE1, 0x10, 0, 0]
            + [4, 0, 0, 0, 255, 255, 255, 255] + [16, 0, 4, 0, 255, 255, 255, 255]
            + [32, 0, 0, 0, 255, 255, 255, 255]
        let listed = crafted.file("listed", size: 0, []) { $0.permissions = 0o640 }
        crafted.put(
            .attribute(
                ExtendedAttribute(
                    node: listed.node, name: CraftedCopy.bytes("system.posix_acl_access"), value: list)))
        crafted.link(file.node, CraftedCopy.bytes("other name"))
        crafted.link(file.node, CraftedCopy.bytes("third"), in: sub)
        crafted.add(.symbolicLink, CraftedCopy.bytes("link")) { node in
            node.target = CraftedCopy.bytes("/nonexistent/\u{FC}")
            (node.modified, node.accessed) = (time, old)
        }
        crafted.add(.fifo, CraftedCopy.bytes("fifo")) { $0.permissions = 0o622 }
        crafted.add(.characterDevice, CraftedCopy.bytes("null")) { node in
            node.permissions = 0o666
            node.device = DeviceNumber(major: 1, minor: 3)
        }
        let streams = crafted.file("streams", size: 0, [])
        let zone = crafted.stream(
            of: streams.node, number: 3, name: "Zone", size: 1000,
            [FileExtent(fileOffset: 0, volumeOffset: 8192, count: 1024)])
        crafted.put(
            .stream(
                FileStream(
                    .init(node: streams.node, number: 4), name: CraftedCopy.bytes("short"), size: 2,
                    storage: .inline([7, 8]))))
        try crafted.finish()
        let result = try crafted.restore(to: "out", ["--json"])
        #expect(result.isSuccess, "\(result)")
        let out = crafted.scratch("out")
        let found = try status(out + "/sub/file")
        #expect(found.st_mtim.tv_sec == 1_234_567_890 && found.st_mtim.tv_nsec == 987_654_321)
        #expect(found.st_atim.tv_sec == -86_400 && found.st_atim.tv_nsec == 5)
        #expect(found.st_nlink == 3)
        let subStatus = try status(out + "/sub")
        #expect(subStatus.st_mode & 0o7777 == 0o550)
        #expect(subStatus.st_mtim.tv_sec == 1_234_567_890 && subStatus.st_mtim.tv_nsec == 987_654_321)
        for name in ["other name", "sub/third"] {
            #expect(try status(out + "/" + name).st_ino == found.st_ino)
        }
        if isRoot {
            #expect(found.st_uid == 1234 && found.st_gid == 5678 && found.st_mode & 0o7777 == 0o6751)
            #expect(try status(out + "/null").st_rdev == 0x103)
        } else {
            #expect(found.st_uid == geteuid() && found.st_mode & 0o7777 == 0o751)
            #expect(result.errors.contains("notice") && result.errors.contains("set-user-ID"))
        }
        let link = try status(out + "/link")
        #expect(
            try FileManager.default.destinationOfSymbolicLink(atPath: out + "/link") == "/nonexistent/\u{FC}")
        #expect(link.st_mtim.tv_nsec == 987_654_321)
        #expect(try status(out + "/fifo").st_mode == S_IFIFO | 0o622)
        let attributes = try runProgram(
            "python3",
            [
                "-c",
                """
                import os, sys
                for path, name in (("sub/file", "user.key"), ("listed", "system.posix_acl_access"),
                        ("streams", "user.Zone"), ("streams", "user.short")):
                    print(os.getxattr(sys.argv[1] + "/" + path, name).hex())
                """, out,
            ])
        func hexadecimal(_ bytes: [UInt8]) -> String { bytes.map { String(format: "%02x", $0) }.joined() }
        #expect(
            attributes.output.split(separator: "\n").map(String.init) == [
                "010002", hexadecimal(list), hexadecimal(zone), "0708",
            ], "\(attributes)")
        #expect(!(try crafted.names("out").contains { $0.contains("partial") }))
        // A stream by itself.
        let alone = try crafted.restore(["/streams:Zone"], to: "alone")
        #expect(alone.isSuccess, "\(alone)")
        #expect(try contents(crafted.scratch("alone/streams:Zone")) == zone)
    }

    @Test("No name leads out of the directory; what fails is told, all else comes back")
    func hostileNames() throws {
        let crafted = try CraftedCopy(mode: "append", size: 2 << 20)
        let extents = [FileExtent(fileOffset: 0, volumeOffset: 4096, count: 512)]
        for name in ["..", ".", "../escaped", "/escaped", "a/b"] { crafted.file(name, size: 100, extents) }
        crafted.file(String(repeating: "n", count: 300), size: 100, extents)
        // A symbolic link out of it, and a directory of the same name with a file in it; in both orders.
        let outside = crafted.scratch("outside")
        try FileManager.default.createDirectory(atPath: outside, withIntermediateDirectories: false)
        crafted.add(.symbolicLink, CraftedCopy.bytes("trick")) { $0.target = CraftedCopy.bytes(outside) }
        let trick = crafted.add(.directory, CraftedCopy.bytes("trick"))
        crafted.file("escaped", in: trick, size: 100, extents)
        let second = crafted.add(.directory, CraftedCopy.bytes("second"))
        crafted.file("inside", in: second, size: 100, extents)
        crafted.add(.symbolicLink, CraftedCopy.bytes("second")) { $0.target = CraftedCopy.bytes(outside) }
        // A directory that is in itself; up is down.
        let loop = crafted.add(.directory, CraftedCopy.bytes("loop"))
        crafted.link(loop, CraftedCopy.bytes("again"), in: loop)
        crafted.link(CraftedCopy.root, CraftedCopy.bytes("up"), in: loop)
        crafted.link(loop, CraftedCopy.bytes(".."), in: loop)
        // Twice the same name, and two directories in one.
        let first = crafted.file("twice", size: 100, extents)
        crafted.file("twice", size: 50, [FileExtent(fileOffset: 0, volumeOffset: 8192, count: 512)])
        for file in ["x", "y"] {
            let pair = crafted.add(.directory, CraftedCopy.bytes("pair"))
            crafted.file(file, in: pair, size: 100, extents)
        }
        // No text.
        let odd = crafted.add(.regular, [0x66, 0xFF, 0x6F, 0x0A]) { $0.size = 100 }
        let oddContent = crafted.stream(of: odd, size: 100, extents)
        let gone = crafted.add(.regular, CraftedCopy.bytes("compressed")) { $0.size = 10 }
        crafted.put(
            .stream(FileStream(.init(node: gone), size: 10, storage: .unavailable("it is compressed"))))
        crafted.link(9999, CraftedCopy.bytes("unknown"))
        let good = crafted.file("zz-last", size: 100, extents)
        try crafted.finish()
        let before = try crafted.names("")
        let result = try crafted.restore(to: "out", ["--json"])
        #expect(!result.isSuccess)
        let report = try #require(try json(result)["restored"] as? [String: Any])
        let failures = try #require(report["failures"] as? [[String: Any]])
        #expect(failures.count == report["failureCount"] as? Int)
        #expect(result.status == failures.first?["status"] as? Int32, "\(result)")
        let told = failures.compactMap { $0["path"] as? String }
        for name in [
            "..", ".", "..\\x2Fescaped", "a\\x2Fb", "trick", "second", "loop/again", "loop/up", "loop/..",
            "twice",
            "pair", "compressed", "unknown",
        ] {
            #expect(told.contains(crafted.scratch("out") + "/" + name), "\(name): \(told)")
        }
        #expect(try crafted.names("") == before.union(["out"]))
        #expect(try FileManager.default.contentsOfDirectory(atPath: outside).isEmpty)
        #expect(try contents(crafted.scratch("out/zz-last")) == good.content)
        #expect(try contents(crafted.scratch("out/twice")) == first.content)
        #expect(try crafted.names("out/loop").isEmpty)
        #expect(try crafted.names("out/pair").count == 1)
        let descriptor = open(
            CraftedCopy.bytes(crafted.scratch("out/")).map { CChar(bitPattern: $0) }
                + [0x66, CChar(bitPattern: 0xFF), 0x6F, 0x0A, 0], O_RDONLY)
        #expect(descriptor >= 0)
        var read = [UInt8](repeating: 0, count: 200)
        #expect(Glibc.read(descriptor, &read, 200) == 100 && Array(read.prefix(100)) == oddContent)
        close(descriptor)
        #expect(!(try crafted.names("out").contains { $0.contains("partial") }))
    }

    @Test(
        "What is there is refused, and replaced with --force; symbolic links that are there are not followed")
    func whatIsThere() throws {
        let crafted = try CraftedCopy(mode: "overlay", size: 2 << 20)
        let extents = [FileExtent(fileOffset: 0, volumeOffset: 4096, count: 512)]
        let directory = crafted.add(.directory, CraftedCopy.bytes("directory"))
        let inner = crafted.file("inner", in: directory, size: 300, extents)
        let file = crafted.file("file", size: 200, extents)
        crafted.file("taken", size: 200, extents)
        try crafted.finish()
        let out = crafted.scratch("out")
        let outside = crafted.scratch("outside")
        let manager = FileManager.default
        for path in [out, out + "/taken", outside] {
            try manager.createDirectory(atPath: path, withIntermediateDirectories: false)
        }
        try Data("kept".utf8).write(to: URL(fileURLWithPath: out + "/file"))
        try manager.createSymbolicLink(atPath: out + "/directory", withDestinationPath: outside)
        let refused = try crafted.restore(to: "out")
        #expect(refused.status == 73, "\(refused)")
        #expect(try contents(out + "/file") == Array("kept".utf8))
        #expect(try manager.contentsOfDirectory(atPath: outside).isEmpty)
        let forced = try crafted.restore(to: "out", ["--force"])
        #expect(forced.status == 73 && forced.errors.contains("/taken"), "\(forced)")
        #expect(try contents(out + "/file") == file.content)
        #expect(try manager.contentsOfDirectory(atPath: outside).isEmpty)
        // A file that is a symbolic link is replaced itself.
        unlink(out + "/file")
        try Data("target".utf8).write(to: URL(fileURLWithPath: crafted.scratch("target")))
        try manager.createSymbolicLink(atPath: out + "/file", withDestinationPath: crafted.scratch("target"))
        unlink(out + "/directory")
        _ = try crafted.restore(to: "out", ["--force"])
        #expect(try contents(crafted.scratch("target")) == Array("target".utf8))
        #expect(try status(out + "/file").st_mode & S_IFMT == S_IFREG)
        #expect(try contents(out + "/directory/inner") == inner.content)
        // Into a directory that is there, one more.
        let more = try crafted.restore(["/directory/inner"], to: "out")
        #expect(more.isSuccess, "\(more)")
        #expect(try crafted.names("out") == ["directory", "file", "inner", "taken"])
    }

    @Test func whatIsNotThere() throws {
        let crafted = try CraftedCopy(mode: "overlay", size: 2 << 20)
        let none = try crafted.restore(to: "out")
        #expect(none.status == 66 && none.errors.contains("outboard toc"), "\(none)")
        crafted.file("file", size: 0, [])
        try crafted.finish()
        let missing = try crafted.restore(["/nothing", "/file"], to: "out")
        #expect(missing.status == 66, "\(missing)")
        #expect(try crafted.names("out") == ["file"])
        #expect(try crafted.restore(["/file"], to: "no/such/place").status == 73)
        #expect(
            try Outboard.run(["restore", "file", crafted.scratch("none"), "/", "--to", "x"]).status == 66)
        #expect(try Outboard.run(["restore", "file", crafted.copy, "--to", "x"]).status == 64)
    }
}
