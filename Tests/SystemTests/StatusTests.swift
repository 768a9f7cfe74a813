import Blocks
import Bridge
import Foundation
import HostControl
import TestSupport
import Testing

@testable import outboard

/// `outboard status` over real processes, living, dead and stuck, and a run directory that somebody has tampered with.
@Suite(.serialized) struct StatusTests {
    private struct Site {
        let scratch: ScratchDirectory
        let environment: [String: String]
        var run: String { scratch("run") }

        init() throws {
            scratch = try ScratchDirectory()
            environment = ["OUTBOARD_RUN_DIRECTORY": scratch("run")]
            try makePatternFile(scratch("volume.img"), count: 12 << 20)
        }

        func host(_ name: String = "volume", _ options: [String] = []) throws -> HostProcess {
            if name != "volume" { try makePatternFile(scratch(name + ".img"), count: 1 << 20) }
            return try HostProcess(scratch, name: name, options: options, environment: environment)
        }

        /// As long as nothing else is said, a busy machine may take its time.
        func status(_ arguments: [String] = []) throws -> ProgramResult {
            let patience = arguments.contains("--timeout") ? [] : ["--timeout", "60"]
            return try Outboard.run(["status"] + arguments + patience, environment: environment)
        }

        func report(_ arguments: [String] = [], exits: Int32 = 0) throws -> [String: [[String: Any]]] {
            let result = try status(arguments + ["--json"])
            #expect(result.status == exits, "\(result)")
            let object = try JSONSerialization.jsonObject(with: Data(result.output.utf8))
            return try #require(object as? [String: [[String: Any]]])
        }

        var names: [String] {
            get throws { try FileManager.default.contentsOfDirectory(atPath: run).sorted() }
        }
    }

    @Test func allThatRunsIsShownAndNothingElse() throws {
        let site = try Site()
        let nothing = try site.status()
        #expect(
            nothing.isSuccess && nothing.output == "nothing runs\n" && nothing.errors.isEmpty, "\(nothing)")
        let host = try site.host()
        try makeSparseFile(site.scratch("unit"), size: 1 << 20)
        let bridge = try Outboard.start(
            ["bridge", "--portal", "127.0.0.1:0", "--unit", "3=" + site.scratch("unit")],
            environment: site.environment)
        defer { bridge.stop() }
        _ = try #require(bridge.line { $0.hasPrefix("ready ") })
        let copy = try Outboard.start(
            [
                "copy", "--host", host.control, "--to", site.scratch("copy"), "--max-rate", "128KiB",
                "--no-toc",
            ],
            environment: site.environment)
        defer { copy.stop() }
        var found: [String: [[String: Any]]] = [:]
        try waitUntil("the copy tells of bytes") {
            found = try site.report()
            let status = found["copies"]?.first?["status"] as? [String: Any]
            return status?["phase"] as? String == "copying" && (status?["done"] as? Int ?? 0) > 0
        }
        let volume = try #require(found["hosts"]?.first?["status"] as? [String: Any])
        #expect(found["hosts"]?.count == 1 && volume["source"] as? String == host.source)
        #expect((volume["epoch"] as? [String: Any])?["isHeld"] as? Bool == true)
        #expect(found["hosts"]?.first?["process"] as? Int == Int(host.process.identifier))
        let unit = (found["bridges"]?.first?["status"] as? [String: Any])?["units"] as? [[String: Any]]
        #expect(found["bridges"]?.count == 1 && unit?.first?["path"] as? String == site.scratch("unit"))
        let progress = try #require(found["copies"]?.first?["status"] as? [String: Any])
        #expect(progress["to"] as? String == site.scratch("copy") && progress["total"] as? Int == 12 << 20)
        #expect(progress["hosts"] as? [String] == [host.control] && progress["cacheFill"] as? Double != nil)

        let text = try site.status(["--all"])
        #expect(text.isSuccess && text.errors.isEmpty, "\(text)")
        for words in ["HOST ", "BRIDGE ", "COPY ", host.control, "1 open, held", " of 12MiB", "copying"] {
            #expect(text.output.contains(words), "\(words): \(text)")
        }
        var modes = stat()
        #expect(stat(site.run, &modes) == 0 && modes.st_mode & 0o777 == 0o700)
        for name in try site.names {
            #expect(stat(site.run + "/" + name, &modes) == 0 && modes.st_mode & 0o777 == 0o600, "\(name)")
        }

        // The dead are not shown, and the next one who enters clears them away.
        copy.signal(SIGKILL)
        _ = copy.waitForExit()
        host.process.signal(SIGKILL)
        _ = host.process.waitForExit()
        let left = try site.report()
        #expect(
            left["hosts"]?.isEmpty == true && left["copies"]?.isEmpty == true && left["bridges"]?.count == 1)
        bridge.stop()
        let other = try site.host("other")
        #expect(try site.names.count == 1)
        other.stop()
        #expect(try site.names.isEmpty)
    }

    @Test func whatIsStuckKeepsNobodyWaiting() throws {
        let site = try Site()
        let host = try site.host()
        let other = try site.host("other")
        host.process.signal(SIGSTOP)
        defer { host.process.signal(SIGCONT) }
        let found = try site.report(["--timeout", "8"], exits: 69)
        let hosts = try #require(found["hosts"])
        let stuck = try #require(hosts.first { $0["control"] as? String == host.control })
        #expect(stuck["failure"] as? String == "it does not answer" && stuck["status"] == nil)
        let well = try #require(hosts.first { $0["control"] as? String == other.control })
        #expect(well["failure"] == nil && well["status"] != nil)
        let text = try site.status(["--timeout", "0.5"])
        #expect(text.status == 69 && text.output.contains("it does not answer"), "\(text)")
        #expect(try site.status([other.control]).isSuccess)
        #expect(try site.status([host.control, "--timeout", "0.5"]).status == 69)
        #expect(try site.status([site.scratch("none.ctl")]).status == 69)
        #expect(try site.status(["--all", other.control]).status == 64)
        #expect(try site.status(["--timeout", "0"]).status == 64)
        host.process.signal(SIGCONT)
        #expect(try site.status().isSuccess)
    }

    /// A host that tells of a failed flush, and says it in a way that could mislead a terminal.
    @Test func aFailedFlushHasItsStatus() throws {
        let site = try Site()
        let host = try site.host()
        let line = try host.ask("volume.status").replacing(
            #""isFrozen":false"#,
            with: #""isFrozen":true,"flushFailure":"a flush failed\u001b[2J\u202e","secondsToFull":75.5"#)
        try line.write(toFile: site.scratch("answer"), atomically: false, encoding: .utf8)
        let fake = try ChildProcess(
            "socat",
            [
                "UNIX-LISTEN:" + site.scratch("fake.ctl") + ",fork",
                "SYSTEM:'read request; cat \(site.scratch("answer")); echo'",
            ])
        defer { fake.stop() }
        try waitUntil("socat listens") {
            FileManager.default.fileExists(atPath: site.scratch("fake.ctl"))
        }
        let text = try site.status([site.scratch("fake.ctl"), host.control])
        #expect(text.status == 74, "\(text)")
        #expect(text.output.contains("frozen; FLUSH FAILED: a flush failed?[2J?"), "\(text)")
        #expect(text.output.contains(" 1:15 "), "\(text)")
    }

    @Test func aDirectoryOfOthersIsNotUsed() throws {
        let site = try Site()
        func expect(_ words: String, after change: () throws -> Void) throws {
            try FileManager.default.createDirectory(atPath: site.run, withIntermediateDirectories: false)
            try change()
            let status = try site.status()
            #expect(status.status == 77 && status.errors.contains(words), "\(status)")
            // It serves nevertheless, and says why it is not shown.
            let host = try site.host()
            host.stop()
            #expect(host.process.wait() == .exit(0))
            #expect(host.process.errors.contains(words), "\(host.process.errors)")
            _ = try runProgram("rm", ["-rf", site.run])
        }
        var cases: [(String, () throws -> Void)] = [
            ("written by others", { chmod(site.run, 0o770) }),
            ("written by others", { chmod(site.run, 0o702) }),
            (
                "cannot be opened",
                {
                    rename(site.run, site.scratch("elsewhere"))
                    symlink(site.scratch("elsewhere"), site.run)
                }
            ),
        ]
        if geteuid() == 0 { cases.append(("another user's", { chown(site.run, 65534, 65534) })) }
        for (words, change) in cases { try expect(words, after: change) }
    }

    @Test func whatIsNoEntryIsLeftAlone() throws {
        let site = try Site()
        let host = try site.host()
        let victim = site.scratch("victim")
        try "mine".write(toFile: victim, atomically: false, encoding: .utf8)
        func put(_ name: String, _ bytes: Data = Data("{}".utf8)) throws {
            try bytes.write(to: URL(fileURLWithPath: site.run + "/" + name))
        }
        try put("notes.txt")
        try put("strange.json")
        try put("host-1-\(String(repeating: "a", count: 8)).txt")
        #expect(symlink(victim, site.run + "/host-1-aaaaaaaa.json") == 0)
        #expect(mkfifo(site.run + "/host-1-bbbbbbbb.json", 0o600) == 0)
        // Of a living process, and no entry or a huge one.
        let held = site.run + "/copy-1-cccccccc.json"
        try Data(repeating: 0x7B, count: RunDirectory.entryBytes).write(to: URL(fileURLWithPath: held))
        let lock = open(held, O_RDONLY | O_CLOEXEC)
        defer { close(lock) }
        #expect(flock(lock, LOCK_EX) == 0)
        let found = try site.report()
        #expect(found["hosts"]?.count == 1 && found["copies"]?.isEmpty == true)
        // Nobody's entry of a dead process is cleared away, and only that.
        try put("host-1-dddddddd.json")
        let other = try site.host("other")
        let names = Set(try site.names)
        #expect(!names.contains("host-1-dddddddd.json"))
        #expect(
            names.isSuperset(of: [
                "notes.txt", "strange.json", "host-1-aaaaaaaa.json", "host-1-bbbbbbbb.json",
                "copy-1-cccccccc.json",
            ]))
        #expect(try String(contentsOfFile: victim, encoding: .utf8) == "mine")
        for process in [host, other] { process.stop() }
    }

    @Test func tablesAreAligned() {
        let lines = StatusReport.table(["A", "LONG"], [["x", "1"], ["long\ncell", ""]])
        #expect(lines == ["A          LONG", "x          1", "long?cell  -"])
        #expect(StatusReport().lines == ["nothing runs"])
    }
}
