import Agent
import Foundation
import TestSupport
import Testing

@testable import outboard

/// What scripts rely on: exit statuses, what goes to which stream, `--json`; and what people read: `--help`, progress.
@Suite(.serialized) struct CommandLineTests {
    private static let commands: [(name: [String], options: [String])] = [
        (
            ["host"],
            [
                "--source", "--cache", "--socket", "--control", "--cache-size", "--chunk-size",
                "--durability",
                "--on-cache-full", "--listen", "--tls-certificate", "--tls-key", "--tls-ca", "--json",
            ]
        ),
        (["bridge"], ["--unit", "--portal", "--target", "--chap-file", "--config", "--json"]),
        (
            ["copy"],
            [
                "--host", "--to", "--mode", "--end", "--bridge", "--source-unit", "--cache-unit",
                "--copy-unit", "--freeze", "--pre-freeze", "--post-thaw", "--max-rate", "--force", "--resume",
                "--read-back", "--keep-epoch", "--json",
            ]
        ),
        (["show"], ["<copy>", "--json"]),
        (["verify"], ["<copy>", "--against", "--backup", "--json"]),
        (["release"], ["--host", "--epoch", "--json"]),
        (["integrate"], ["<copy>", "--json"]),
        (["restore", "volume"], ["<copy>", "--to", "--force", "--host", "--max-rate", "--json"]),
    ]

    @Test func helpTellsEveryOptionAndStatus() throws {
        let all = try Outboard.run(["--help"])
        #expect(all.isSuccess && all.errors.isEmpty && all.output.contains("EXIT STATUS"), "\(all)")
        for (name, options) in Self.commands {
            #expect(all.output.contains("\n  \(name[0]) "), "\(name): \(all)")
            let help = try Outboard.run(name + ["--help"])
            #expect(help.isSuccess && help.errors.isEmpty, "\(help)")
            #expect(help.output.contains("EXIT STATUS: 0 "), "\(help)")
            for option in options {
                #expect(help.output.contains("\n  \(option)"), "\(name) does not tell of \(option)")
            }
            for line in help.output.split(separator: "\n") where !line.hasPrefix("USAGE") {
                #expect(line.count <= 80, "\(name): \(line)")
            }
        }
    }

    @Test(arguments: [
        [], ["frobnicate"], ["host"], ["bridge"], ["copy"], ["show"], ["verify"], ["integrate"], ["restore"],
        ["restore", "volume"], ["restore", "volume", "x"], ["restore", "file", "x", "--to", "y"],
        ["restore", "volume", "x", "--to", "y", "--host", "z"], ["show", "x", "y"],
        ["host", "--source", "a", "--cache", "b", "--socket", "c", "--control", "d", "--chunk-size", "5000"],
        ["host", "--source", "a", "--cache", "b", "--socket", "c", "--control", "d", "--chunk-size", "2MiB"],
        ["host", "--source", "a", "--cache", "b", "--socket", "c", "--control", "d", "--cache-size", "1GB"],
        ["host", "--source", "a", "--cache", "b", "--socket", "c", "--control", "d", "--durability", "none"],
        ["host", "--source", "a", "--cache", "b", "--socket", "c", "--control", "d", "--tls-ca", "e"],
        ["host", "--source", "a", "--cache", "b", "--socket", "c", "--control", "d", "--listen", "[::1]:0"],
        ["bridge", "--unit", "a"], ["bridge", "--unit", "16384=a"], ["bridge", "--unit", "0="],
        ["bridge", "--unit", "0=a", "--portal", "127.0.0.1"],
        ["bridge", "--unit", "0=a", "--target", "no name"],
        ["copy", "--host", "a", "--to", "b", "--max-rate", "0"],
        ["copy", "--host", "a", "--to", "b", "--mode", "both"],
        ["copy", "--host", "a", "--to", "b", "--end", "never"],
        ["copy", "--host", "a", "--to", "b", "--copy-unit", "1"],
        ["copy", "--host", "a", "--to", "b", "--keep-epoch"], ["release"],
        ["verify", "--backup", "a", "--against", "b"], ["verify", "a", "--backup", "b"],
        ["copy", "--host", "a", "--to", "b", "--chap-file", "c"],
        ["copy", "--host", "a", "--to", "b", "--bridge", "iscsi://c/iqn.2026-01.d:e", "--copy-unit", "1"],
        [
            "copy", "--host", "a", "--to", "b", "--bridge", "nbd://c/d", "--source-unit", "0",
            "--cache-unit", "1", "--copy-unit", "2",
        ],
        ["copy", "--host", "one/a.ctl", "--host", "two/a.ctl", "--to", "b"],
    ])
    func aWrongCommandLineIsOnlyAUsageError(arguments: [String]) throws {
        let scratch = try ScratchDirectory()
        let result = try runProgram(Outboard.binary, arguments, directory: scratch.path)
        #expect(result.status == 64, "\(result)")
        #expect(result.output.isEmpty && !result.errors.isEmpty, "\(result)")
        #expect(try FileManager.default.contentsOfDirectory(atPath: scratch.path) == [])
    }

    /// The one object on one line that a command printed.
    private func object(_ result: ProgramResult, status: Int32 = 0) throws -> [String: Any] {
        #expect(result.status == status, "\(result)")
        return try object(line: result.output)
    }

    private func object(line: String) throws -> [String: Any] {
        #expect(line.split(separator: "\n").count == 1, "\(line)")
        return try #require(try JSONSerialization.jsonObject(with: Data(line.utf8)) as? [String: Any])
    }

    @Test func jsonIsOneObjectWithTheResult() throws {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("volume.img"), count: 2 << 20)
        let host = try Outboard.start([
            "host", "--source", scratch("volume.img"), "--cache", scratch("cache"), "--socket",
            scratch("nbd"), "--control", scratch("ctl"), "--json",
        ])
        defer { host.stop() }
        let place = try object(line: try #require(host.line { _ in true }))
        #expect(place["control"] as? String == scratch("ctl") && place["size"] as? Int == 2 << 20, "\(place)")
        #expect((place["uris"] as? [String])?.first?.hasPrefix("nbd+unix:///?socket=") == true, "\(place)")
        try makeSparseFile(scratch("unit"), size: 1 << 20)
        let bridge = try Outboard.start([
            "bridge", "--unit", "3=" + scratch("unit"), "--portal", "127.0.0.1:0", "--json",
        ])
        defer { bridge.stop() }
        let served = try object(line: try #require(bridge.line { _ in true }))
        #expect((served["units"] as? [[String: Any]])?.first?["number"] as? Int == 3, "\(served)")

        let copy = scratch("copy")
        let made = try object(
            Outboard.run(["copy", "--host", scratch("ctl"), "--to", copy, "--mode", "append", "--json"]))
        let copies = try #require(made["copies"] as? [[String: Any]])
        #expect(copies.count == 1 && copies[0]["bytes"] as? Int == 2 << 20, "\(made)")
        let shown = try object(Outboard.run(["show", copy, "--json"]))
        let instant = (shown["epoch"] as? [String: Any])?["institutedAt"] as? Int
        #expect(instant != nil && instant == copies[0]["instant"] as? Int, "\(made) \(shown)")
        let verified = try object(Outboard.run(["verify", copy, "--json"]))
        #expect(verified["ok"] as? Bool == true && (verified["findings"] as? [Any])?.count == 0)
        let restored = try object(
            Outboard.run(["restore", "volume", copy, "--to", scratch("back"), "--json"]))
        #expect(restored["instant"] as? Int == instant, "\(restored)")
        let integrated = try object(Outboard.run(["integrate", copy, "--json"]))
        #expect(integrated["state"] as? String == "integrated", "\(integrated)")

        let file = try #require(FileHandle(forUpdatingAtPath: copy + "/data.img"))
        try file.write(contentsOf: Data([0x55, 0xAA]))
        try file.close()
        let damaged = try object(Outboard.run(["verify", copy, "--json"]), status: 65)
        #expect(damaged["ok"] as? Bool == false && (damaged["findings"] as? [Any])?.count == 1, "\(damaged)")
    }

    @Test func aResultThatNobodyGotIsAnError() throws {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("volume.img"), count: 1 << 20)
        let host = try HostProcess(scratch)
        #expect(try Outboard.run(["copy", "--host", host.control, "--to", scratch("copy")]).isSuccess)
        for command in ["show", "verify", "integrate"] {
            func run(_ to: String) throws -> ProgramResult {
                try runProgram(
                    "bash", ["-c", "'\(Outboard.binary)' \(command) '\(scratch("copy"))' --json \(to)"])
            }
            let full = try run("> /dev/full")
            #expect(full.status == 74 && full.errors.contains("standard output"), "\(full)")
            // Who does not want to read it has not missed it.
            let deaf = try run("| true; exit ${PIPESTATUS[0]}")
            #expect(deaf.isSuccess && deaf.errors.isEmpty, "\(deaf)")
        }
    }

    @Test func progressIsForTerminalsOnly() throws {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("volume.img"), count: 6 << 20)
        let host = try HostProcess(scratch)
        let copy = ["copy", "--host", host.control, "--max-rate", "3MiB", "--to"]
        let quiet = try Outboard.run(copy + [scratch("quiet")])
        #expect(quiet.isSuccess && quiet.errors.isEmpty, "\(quiet)")
        let line = ([Outboard.binary] + copy + [scratch("shown")]).joined(separator: " ")
        let terminal = try runProgram("script", ["-qec", line, "/dev/null"])
        #expect(terminal.isSuccess, "\(terminal)")
        let drawn = terminal.output.split(separator: "\r").filter { $0.contains("copying [") }
        #expect(drawn.contains { $0.contains("B/s ETA ") && $0.contains(" cache 0%") }, "\(terminal)")
        #expect(drawn.contains { $0.contains("] 100% 6MiB") }, "\(terminal)")
    }

    @Test func theProgressLineTellsAll() {
        func line(_ fill: Double?, _ left: Double?) -> String {
            ProgressBar.line(
                phase: "copying", done: 5 << 20, total: 20 << 20, seconds: 2, cacheFill: fill,
                secondsToFull: left)
        }
        let copied = "copying [######------------------] 25% 5MiB 2.50MiB/s ETA 6s"
        #expect(line(nil, nil) == copied)
        #expect(line(0.418, nil) == copied + " cache 41%")
        #expect(line(0.418, 750.4) == copied + " cache 41%, full in 12:30")
        #expect(line(1, 3727) == copied + " cache 100%, full in 1:02:07")
        // Of a host that tells what cannot be.
        #expect(line(7, -1) == copied + " cache 100%, full in 0s")
    }

    /// A cache that fills while a copy runs: when it is full stands on the terminal.
    @Test func theForecastIsOnTheProgressLine() throws {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("volume.img"), count: 32 << 20)
        let host = try HostProcess(scratch, options: ["--chunk-size", "4KiB"])
        // In the place of script's shell, which may have an exit status of its own for Control-C.
        let copy = ["exec", Outboard.binary, "copy", "--host", host.control, "--max-rate", "256KiB", "--to"]
        let terminal = try ChildProcess(
            "script", ["-qefc", (copy + [scratch("shown")]).joined(separator: " "), "/dev/null"],
            keepsInputOpen: true)
        defer { terminal.stop() }
        try waitUntil("the epoch is open") { try host.status().epoch?.state == .open }
        let store = try NBDStore(.unixSocket(host.socket, export: ""))
        // From the end, so that the copy is never there before.
        var place = UInt64(32 << 20)
        try waitUntil("the forecast is on the terminal") {
            place -= 4096
            try store.write([UInt8](repeating: 1, count: 4096), at: place)
            return terminal.output.contains(", full in ")
        }
        let told = try #require(terminal.output.firstMatch(of: /cache \d+%, full in [\d:]+s?/))
        #expect(terminal.output[..<told.range.lowerBound].contains("copying ["), "\(terminal.output)")
        // Control-C.
        terminal.write("\u{3}")
        #expect(terminal.wait() == .exit(75), "\(terminal.output)")
    }

    @Test func whatIsInUseSaysSoByItsStatus() throws {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("volume.img"), count: 1 << 20)
        try makePatternFile(scratch("other"), count: 1 << 20)
        let host = try HostProcess(scratch)
        for (socket, control) in [(host.socket, scratch("x")), (scratch("x"), host.control)] {
            let result = try Outboard.run([
                "host", "--source", scratch("other"), "--cache", scratch("c"), "--socket", socket,
                "--control", control,
            ])
            #expect(result.status == 75 && result.output.isEmpty, "\(result)")
        }
        let unit = try Outboard.run(["bridge", "--portal", "127.0.0.1:0", "--unit", "0=" + host.source])
        #expect(unit.status == 75 && unit.errors.contains("another process holds it"), "\(unit)")
        let bridge = try BridgeProcess(units: ["0=\(host.source),ro"])
        let second = try Outboard.run([
            "bridge", "--portal", bridge.portal, "--unit", "0=" + scratch("other"),
        ])
        #expect(second.status == 73 && second.errors.contains("Address already in use;"), "\(second)")
        let left = try FileManager.default.contentsOfDirectory(atPath: scratch.path)
        #expect(Set(left) == ["volume.img", "volume.cache", "volume.sock", "volume.ctl", "other"])
    }
}
