import Blocks
import Foundation
import Glibc
import PhysicalCopy
import TestSupport
import Testing

/// `toc`, `ls` and `find` as whole processes, on file systems made by their own tools.
@Suite struct TableOfContentsCommandTests {
    /// A copy of a FAT volume with a few files, appended.
    private static func copy(in scratch: ScratchDirectory, options: [String] = []) throws -> String {
        let image = scratch("volume.img")
        try makeSparseFile(image, size: 32 << 20)
        try prepare(["mkfs.vfat", "-n", "LABEL", image])
        mkdir(scratch("tree"), 0o755)
        for number in 0..<40 {
            try Data("\(number)".utf8).write(to: URL(fileURLWithPath: scratch("tree/file-\(number).log")))
        }
        try Data("root:x:0".utf8).write(to: URL(fileURLWithPath: scratch("tree/passwd")))
        try prepare(["mcopy", "-i", image, "-s", scratch("tree"), "::/etc"])
        let host = try HostProcess(scratch)
        let made = try Outboard.run(
            ["copy", "--host", host.control, "--to", scratch("copy"), "--mode", "append"] + options)
        guard made.isSuccess else { throw TestFailure("\(made)") }
        host.stop()
        return scratch("copy")
    }

    private static func prepare(_ words: [String]) throws {
        let result = try runProgram(words[0], Array(words.dropFirst()))
        guard result.isSuccess else { throw TestFailure("\(result)") }
    }

    private static func object(_ result: ProgramResult) throws -> [String: Any] {
        let value = try JSONSerialization.jsonObject(with: Data(result.output.utf8))
        return try #require(value as? [String: Any], "\(result)")
    }

    private let scratch: ScratchDirectory
    init() throws { scratch = try ScratchDirectory() }

    @Test func aTableIsBuiltAndAsked() throws {
        let copy = try Self.copy(in: scratch)
        let built = try Outboard.run(["toc", copy, "--json"])
        #expect(built.isSuccess, "\(built)")
        let report = try Self.object(built)
        #expect(report["names"] as? Int ?? 0 >= 42)
        #expect((report["fileSystems"] as? [[String: Any]])?.first?["kind"] as? String ?? "" == "fat16")
        #expect((report["failures"] as? [String]) == [])
        // It is the copy's own now.
        #expect(try Outboard.run(["verify", copy]).isSuccess)
        #expect(access(copy + "/toc.sqlite", F_OK) == 0)
        #expect(access(copy + "/.toc.sqlite.new", F_OK) != 0)

        #expect(try Outboard.run(["ls", copy]).output == "etc\n")
        let files = try Outboard.run(["ls", copy, "/etc"]).output.split(separator: "\n")
        #expect(files.count == 41 && files.last == "passwd")
        #expect(try Outboard.run(["ls", copy, "etc/passwd"]).output == "passwd\n")
        let long = try Outboard.run(["ls", copy, "-l", "/etc/passwd"]).output
        #expect(long.hasPrefix("-") && long.contains(" 8 ") && long.hasSuffix(" passwd\n"), "\(long)")
        let tree = try Outboard.run(["ls", copy, "-R"]).output
        #expect(tree.hasPrefix("/:\netc\n\n/etc:\nfile-0.log\n"), "\(tree)")
        let listed = try Self.object(try Outboard.run(["ls", copy, "-R", "--json"]))
        #expect((listed["entries"] as? [[String: Any]])?.count == 42)

        let found = try Outboard.run(["find", copy, "file-1?.log"]).output.split(separator: "\n")
        #expect(found.count == 10 && found.allSatisfy { $0.hasPrefix("/etc/file-1") })
        #expect(try Outboard.run(["find", copy, "passw"]).output == "/etc/passwd\n")
        #expect(try Outboard.run(["find", copy, "passwd", "--print0"]).output == "/etc/passwd\0")
        let matches = try Self.object(try Outboard.run(["find", copy, "*", "--json"]))
        #expect(matches["matches"] as? Int == 42)
        let nothing = try Outboard.run(["find", copy, "no such name"])
        #expect(nothing.isSuccess && nothing.output.isEmpty)
        let problems = try Outboard.run(["toc", copy, "--problems"])
        #expect(problems.isSuccess && problems.output.isEmpty)
    }

    @Test("One that was killed leaves one file, and the next takes it away") func killed() throws {
        let copy = try Self.copy(in: scratch, options: Self.withoutToc)
        func names() throws -> Set<String> { Set(try FileManager.default.contentsOfDirectory(atPath: copy)) }
        let before = try names()
        // As long as the copy is read it is not put into it.
        var reader: PhysicalCopy? = try PhysicalCopy(copy)
        let process = try Outboard.start(["toc", copy])
        try waitUntil("it is built and waits") { process.errors.contains("waiting until nobody") }
        process.signal(SIGKILL)
        #expect(process.waitForExit() == .signal(SIGKILL))
        let left = try names().subtracting(before)
        #expect(left.count == 1 && left.first?.hasPrefix(".toc.sqlite.partial-") == true, "\(left)")
        withExtendedLifetime(reader) {}
        reader = nil
        let next = try Outboard.run(["toc", copy])
        #expect(next.isSuccess, "\(next)")
        #expect(try names() == before.union(["toc.sqlite"]))
    }

    @Test func whatIsNotThereSaysSo() throws {
        let copy = try Self.copy(in: scratch, options: Self.withoutToc)
        for command in [["ls", copy], ["find", copy, "x"], ["toc", copy, "--problems"]] {
            let result = try Outboard.run(command)
            #expect(result.status == 66, "\(result)")
            #expect(result.errors.contains("outboard toc \(copy) builds one"), "\(result)")
        }
        #expect(try Outboard.run(["toc", copy]).isSuccess)
        #expect(try Outboard.run(["ls", copy, "/none"]).status == 66)
        #expect(try Outboard.run(["find", copy, ""]).status == 64)
        #expect(try Outboard.run(["find", copy, "a/b"]).status == 64)
        #expect(try Outboard.run(["ls", scratch("none")]).status == 66)
        let another = "UPDATE info SET value = 'another' WHERE key = 'epoch'"
        #expect(try runProgram("sqlite3", [copy + "/toc.sqlite", another]).isSuccess)
        for command in [
            ["ls", copy], ["find", copy, "x"], ["toc", copy, "--problems"], ["cat", copy, "/x"],
        ] {
            let result = try Outboard.run(command)
            #expect(result.status == 65, "\(result)")
            #expect(result.errors.contains("of another copy"), "\(result)")
            #expect(result.errors.contains("outboard toc \(copy) builds it anew"), "\(result)")
        }
        // A damaged one is found by those who use it, and replaced.
        let handle = try FileHandle(forWritingTo: URL(fileURLWithPath: copy + "/toc.sqlite"))
        try handle.write(contentsOf: Data(count: 4096))
        try handle.close()
        #expect(try Outboard.run(["ls", copy]).status == 65)
        #expect(try Outboard.run(["verify", copy]).status == 65)
        #expect(try Outboard.run(["toc", copy]).isSuccess)
        #expect(try Outboard.run(["verify", copy]).isSuccess)
        #expect(try Outboard.run(["ls", copy]).output == "etc\n")
    }

    /// The program's own `copy` would make one.
    private static let withoutToc: [String] = {
        let help = try? Outboard.run(["copy", "--help"])
        return help?.output.contains("--no-toc") == true ? ["--no-toc"] : []
    }()

    /// A volume without any file system: that is said, and no failure.
    @Test func aVolumeOfUnknownContentIsNotListed() throws {
        let image = scratch("volume.img")
        try makePatternFile(image, count: 4 << 20)
        let host = try HostProcess(scratch)
        let made = try Outboard.run(
            ["copy", "--host", host.control, "--to", scratch("copy")] + Self.withoutToc)
        #expect(made.isSuccess, "\(made)")
        host.stop()
        let built = try Outboard.run(["toc", scratch("copy")])
        #expect(built.isSuccess && built.output.contains("cannot be listed"), "\(built)")
        let listed = try Outboard.run(["ls", scratch("copy")])
        #expect(listed.errors.contains("cannot be listed"), "\(listed)")
        #expect(try Outboard.run(["ls", scratch("copy"), "/etc"]).status == 66)
    }

    /// The process that reads, asked by hand for what cannot be.
    @Test func theReadingProcessEndsByItself() throws {
        let gone = try Outboard.run(["read-file-systems", "--nbd", "nbd+unix:///?socket=/none", "--layout"])
        #expect(gone.status == 69, "\(gone)")
        #expect(try Outboard.run(["read-file-systems", "--nbd", "x"]).status == 64)
        let image = scratch("volume.img")
        try makePatternFile(image, count: 4 << 20)
        let host = try HostProcess(scratch)
        let absent = try Outboard.run(["read-file-systems", "--nbd", host.uri, "--range", "1TiB+1"])
        #expect(absent.status == 66, "\(absent)")
        host.stop()
    }

    /// It is bounded in memory, leaves no core, and is ended when it burns time without finding anything: here its
    /// timer's signals are ours, and what it waits for is a server that never says a word.
    @Test func theReadingProcessIsBounded() throws {
        let listener = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        #expect(listener >= 0)
        defer { close(listener) }
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        let path = scratch("silent")
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: Array(path.utf8)) }
        let bound = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(listener, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        #expect(bound == 0 && listen(listener, 1) == 0)
        let child = try Outboard.start([
            "read-file-systems", "--nbd", "nbd+unix:///?socket=\(path)", "--layout",
        ])
        defer { child.stop() }
        var waiting = pollfd(fd: listener, events: Int16(POLLIN), revents: 0)
        while poll(&waiting, 1, 100) == 0 { try #require(child.isRunning, "it ended before it asked") }
        let connection = acceptConnection(listener)
        #expect(connection >= 0)
        defer { close(connection) }
        let limits = try String(contentsOfFile: "/proc/\(child.identifier)/limits", encoding: .utf8)
        func soft(_ name: String) -> Substring? {
            limits.split(separator: "\n").first { $0.hasPrefix(name) }?.dropFirst(name.count)
                .split(separator: " ").first
        }
        #expect(soft("Max core file size") == "0")
        #expect(soft("Max data size") == "\(512 << 20)")
        for _ in 0..<1000 where child.isRunning {
            child.signal(SIGPROF)
            _ = child.waitForExit(seconds: 0.05)
        }
        #expect(child.waitForExit(seconds: 10) == .exit(75))
    }
}
