import Blocks
import Foundation
import TestSupport
import Testing

/// No secret in what is said, at whatever level, in a list of processes, in an environment or in what is left on a disk;
/// least of all when the file that holds it is of no use.
@Suite(.serialized) struct SecretsTests {
    private static let own = "Zx9-the-agents-own-secret"
    private static let mutual = "Qv7-the-bridges-own-secret"
    private static let short = "Wk5-short"
    private static let all = [own, mutual, short]

    /// What a process may not say, or be seen to have been given.
    private static func expectNone(in text: String, _ what: String) {
        for secret in all where text.contains(secret) { Issue.record("\(what) tells \(secret)") }
    }

    private static func expectNone(in result: ProgramResult) {
        expectNone(in: result.output, "standard output of \(result.command)")
        expectNone(in: result.errors, "standard error of \(result.command)")
    }

    /// What everybody on the machine, and whoever may look into the process, can see of it.
    private static func expectNone(of process: pid_t, _ name: String) throws {
        func file(_ name: String) -> Data {
            FileManager.default.contents(atPath: "/proc/\(process)/\(name)") ?? Data()
        }
        // Right after its start there is none yet.
        try waitUntil("\(name) has a command line") { !file("cmdline").isEmpty }
        for member in ["cmdline", "environ", "comm"] {
            expectNone(
                in: String(decoding: file(member), as: UTF8.self), "/proc/PID/\(member) of \(name)")
        }
    }

    private static func write(_ text: String, _ path: String, mode: mode_t = 0o600) throws {
        try text.write(toFile: path, atomically: false, encoding: .utf8)
        guard chmod(path, mode) == 0 else { throw TestFailure("chmod") }
    }

    @Test(arguments: ["text", "json"])
    func aCopyTellsNone(format: String) throws {
        let loud = ["--log-level", "trace", "--log-format", format]
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("volume.img"), count: 4 << 20)
        try makeSparseFile(scratch("unit"), size: 4 << 20)
        try Self.write("agent \(Self.own)\ntarget \(Self.mutual)\n", scratch("chap"))
        let host = try HostProcess(scratch, options: loud)
        let bridge = try BridgeProcess(
            units: ["0=\(host.source),ro", "1=\(host.cache),ro", "2=\(scratch("unit"))"],
            options: ["--chap-file", scratch("chap")] + loud)
        let standing = [
            "--bridge", bridge.uri, "--source-unit", "0", "--cache-unit", "1", "--copy-unit", "2",
        ]
        let copy = try CopyInProgress(of: host, options: loud)
        try Self.expectNone(of: copy.process.identifier, "copy")
        let child = try copy.bridge()
        try Self.expectNone(of: child, "a private bridge")
        // Its one-time secret is 32 hexadecimal digits that nobody is told.
        let command = FileManager.default.contents(atPath: "/proc/\(child)/cmdline") ?? Data()
        #expect(!String(decoding: command, as: UTF8.self).contains(/[0-9a-f]{16}/))
        #expect(copy.process.wait() == .exit(0), "\(copy.process.errors)")
        #expect(!copy.process.errors.isEmpty)
        Self.expectNone(in: copy.process.output + copy.process.errors, "copy")
        #expect(!copy.process.errors.contains(/agent-[0-9a-f]{8}/))

        let made = try Outboard.start(
            ["copy", "--host", host.control, "--to", scratch("there"), "--chap-file", scratch("chap")]
                + ["--max-rate", "4MiB"] + standing + loud)
        try Self.expectNone(of: made.identifier, "copy")
        #expect(made.wait() == .exit(0), "\(made.errors)")
        Self.expectNone(in: made.output + made.errors, "copy")
        let manifest = try String(contentsOfFile: scratch("there/manifest.json"), encoding: .utf8)
        Self.expectNone(in: manifest, "the manifest")
        for command in [
            ["verify", scratch("there")], ["show", scratch("there")],
            ["restore", "volume", scratch("there"), "--to", scratch("back")] + loud,
        ] {
            let chap = command[0] == "show" ? [] : ["--chap-file", scratch("chap")]
            let result = try Outboard.run(command + chap)
            #expect(result.isSuccess, "\(result)")
            Self.expectNone(in: result)
        }
        try Self.write("agent \(Self.mutual)\n", scratch("wrong"))
        let wrong = try Outboard.run(
            ["copy", "--host", host.control, "--to", scratch("no"), "--chap-file", scratch("wrong")]
                + standing + loud)
        #expect(wrong.status == 77, "\(wrong)")
        Self.expectNone(in: wrong)

        for (process, name) in [(host.process, "host"), (bridge.process, "bridge")] {
            try Self.expectNone(of: process.identifier, name)
            process.stop()
            #expect(process.wait() == .exit(0) && !process.errors.isEmpty)
            Self.expectNone(in: process.output + process.errors, name)
        }
    }

    /// What is wrong with a file, and what of it a clumsy message might repeat.
    private static let badFiles: [(name: String, text: String, mode: mode_t)] = [
        ("secret alone", own + "\n", 0o600), ("no name", " \(own)\n", 0o600),
        ("short", "agent \(short)\n", 0o600), ("readable", "agent \(own)\n", 0o644),
        ("group", "agent \(own)\n", 0o640), ("same", "agent \(own)\ntarget \(own)\n", 0o600),
        ("second line", "agent \(own)\n\(mutual)\n", 0o600),
        ("short second", "agent \(own)\ntarget \(short)\n", 0o600),
        ("empty name", "agent \(own)\n:\(mutual)\n", 0o600),
        ("swapped", "\(own)\n\(mutual) agent", 0o600), ("nul", "agent\0\(own)\n", 0o600),
        ("too long", "agent \(own)\n" + String(repeating: mutual + "\n", count: 4000), 0o600),
    ]

    @Test func aBadFileIsNotRepeated() throws {
        let scratch = try ScratchDirectory()
        try makeSparseFile(scratch("unit"), size: 1 << 20)
        try FileManager.default.createDirectory(
            atPath: scratch(Self.own), withIntermediateDirectories: false)
        for (number, bad) in Self.badFiles.enumerated() {
            let path = scratch("chap\(number)")
            try Self.write(bad.text, path, mode: bad.mode)
            let yaml = scratch("yaml\(number)")
            try Self.write(
                "chap_file: \(path)\nunits:\n  - {number: 0, path: \(scratch("unit"))}\n", yaml)
            for command in [
                ["bridge", "--unit", "0=" + scratch("unit"), "--chap-file", path, "--portal", "127.0.0.1:0"],
                ["bridge", "--config", yaml, "--check-config"],
            ] {
                let result = try Outboard.run(command + ["--log-level", "trace"])
                #expect([64, 77].contains(result.status), "\(bad.name): \(result)")
                #expect(result.errors.contains(path), "\(bad.name): \(result)")
                Self.expectNone(in: result)
            }
            // The agent takes a short secret, and does not look at a second line.
            let copy = try Outboard.run([
                "copy", "--host", scratch("none"), "--to", scratch("copy"), "--chap-file", path, "--bridge",
                "iscsi://127.0.0.1:1/iqn.2026-01.net.example:none", "--source-unit", "0", "--cache-unit", "1",
                "--copy-unit", "2", "--log-format", "json",
            ])
            #expect([64, 69, 77].contains(copy.status), "\(bad.name): \(copy)")
            Self.expectNone(in: copy)
        }
    }

    @Test func aSecretInTheWrongPlaceIsNotRepeated() throws {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("volume.img"), count: 1 << 20)
        try makeSparseFile(scratch("unit"), size: 1 << 20)
        let units = "units:\n  - {number: 0, path: \(scratch("unit"))}\n"
        for (number, text) in [
            "chap: {name: agent, secret: \(Self.own)}\n" + units,
            "initiators:\n  - {name: \"iqn.2026-01.net.example:a\", secret: \(Self.own)}\n" + units,
            "chap_file: [agent, \(Self.own)]\n" + units, "agent \(Self.own)\n", "'\(Self.own)",
        ].enumerated() {
            try Self.write(text, scratch("yaml\(number)"))
            let result = try Outboard.run(["bridge", "--config", scratch("yaml\(number)"), "--check-config"])
            #expect(result.status == 64, "\(result)")
            Self.expectNone(in: result)
        }
        for uri in [
            "iscsi://agent%\(Self.own)@127.0.0.1:1/iqn.2026-01.net.example:a",
            "iscsi://agent:\(Self.own)@127.0.0.1:x/iqn.2026-01.net.example:a", "iscsi://\(Self.own)",
            "iscsi://agent:\(Self.own)/iqn.2026-01.net.example:a",
        ] {
            let result = try Outboard.run([
                "copy", "--host", scratch("none"), "--to", scratch("copy"), "--bridge", uri, "--source-unit",
                "0", "--cache-unit", "1", "--copy-unit", "2", "--log-level", "trace",
            ])
            #expect([64, 69].contains(result.status), "\(result)")
            Self.expectNone(in: result)
        }

        // A key that is none, and one that does not go with its certificate.
        try Self.write(
            "-----BEGIN PRIVATE KEY-----\n\(Self.own)\n-----END PRIVATE KEY-----\n", scratch("key"))
        let made = try runProgram(
            "openssl",
            [
                "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", scratch("other"), "-out",
                scratch("cert"), "-subj", "/CN=x",
            ])
        #expect(made.isSuccess, "\(made)")
        // Else it is refused as a key, before anybody looks into it.
        chmod(scratch("cert"), 0o600)
        for key in ["key", "cert"] {
            let host = try Outboard.run([
                "host", "--source", scratch("volume.img"), "--cache", scratch("c"), "--socket", scratch("s"),
                "--control", scratch("k"), "--listen", "127.0.0.1:0", "--tls-certificate", scratch("cert"),
                "--tls-key", scratch(key), "--tls-ca", scratch("cert"), "--log-level", "trace",
            ])
            #expect(host.status == 66, "\(host)")
            #expect(!host.errors.contains("BEGIN"), "\(host)")
            Self.expectNone(in: host)
        }
    }
}
