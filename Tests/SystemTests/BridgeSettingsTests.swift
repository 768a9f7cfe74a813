import Foundation
import TestSupport
import Testing

/// `bridge.yaml`, `--check-config`, and what is refused before anything is served.
@Suite(.serialized) struct BridgeSettingsTests {
    private static let agent = "iqn.2026-01.net.example:agent"
    private static let other = "iqn.2026-01.net.example:other"

    private let scratch: ScratchDirectory

    init() throws {
        scratch = try ScratchDirectory()
        for unit in 0...2 {
            try makePatternFile(scratch("unit\(unit)"), count: 1 << 20, seed: UInt64(unit))
        }
        try write("agent.chap", "agent the-agents-own-secret\n", mode: 0o600)
        try write("other.chap", "other the-others-own-secret\n", mode: 0o600)
    }

    private func write(_ name: String, _ text: String, mode: mode_t = 0o644) throws {
        try text.write(toFile: scratch(name), atomically: true, encoding: .utf8)
        guard chmod(scratch(name), mode) == 0 else { throw TestFailure("chmod \(name)") }
    }

    /// Two initiators: unit 0 for both, 1 for the agent, 2 for the other.
    private func writeConfiguration(portal: String = "127.0.0.1:0") throws {
        try write(
            "bridge.yaml",
            """
            portals: ["\(portal)"]
            target: iqn.2026-01.net.example:configured
            initiators:
              - {name: "\(Self.agent)", chap_file: agent.chap}
              - {name: "\(Self.other)", chap_file: other.chap}
            units:
              - {number: 0, path: unit0, read_only: true}
              - {number: 1, path: unit1, block_size: 4096, initiators: ["\(Self.agent)"]}
              - {number: 2, path: unit2, initiators: ["\(Self.other)"]}

            """)
    }

    private func check(_ options: [String] = []) throws -> ProgramResult {
        try Outboard.run(["bridge", "--check-config", "--config", scratch("bridge.yaml")] + options)
    }

    /// The initiator's own tools see what the file says, each with its own secret only.
    @Test func eachInitiatorSeesItsUnits() throws {
        try writeConfiguration()
        let bridge = try Outboard.start(["bridge", "--config", scratch("bridge.yaml")])
        defer { bridge.stop() }
        let ready = try #require(bridge.line { $0.hasPrefix("ready ") }, "\(bridge.errors)")
        let words = ready.split(separator: " ")
        func capacity(_ initiator: String, _ user: String, unit: Int) throws -> ProgramResult {
            try runProgram(
                "iscsi-readcapacity16",
                ["-i", initiator, "iscsi://\(user)@\(words[1])/\(words[2])/\(unit)"])
        }
        let agent = "agent%the-agents-own-secret"
        let other = "other%the-others-own-secret"
        for (name, user, units) in [(Self.agent, agent, [0, 1]), (Self.other, other, [0, 2])] {
            for unit in 0...2 {
                let result = try capacity(name, user, unit: unit)
                #expect(result.isSuccess == units.contains(unit), "\(name) \(unit): \(result)")
            }
        }
        // By another's secret, or by a name that nobody listed.
        #expect(try !capacity(Self.agent, other, unit: 0).isSuccess)
        #expect(try !capacity("iqn.2026-01.net.example:stranger", agent, unit: 0).isSuccess)
        #expect(bridge.stop() == .exit(0), "\(bridge.errors)")
        for secret in ["agents-own", "others-own"] {
            #expect(!bridge.errors.contains(secret) && !bridge.output.contains(secret))
        }
    }

    @Test func checkConfigTellsWhatWouldBeServedAndServesNothing() throws {
        try writeConfiguration()
        let text = try check()
        #expect(text.status == 0, "\(text)")
        for line in [
            "target iqn.2026-01.net.example:configured on 127.0.0.1:0",
            "initiator \(Self.agent), with CHAP",
            "unit 0: \(scratch("unit0")), read-only, 2048 blocks of 512 bytes, for all",
            "unit 1: \(scratch("unit1")), writable and thin, 256 blocks of 4096 bytes, for \(Self.agent)",
        ] { #expect(text.output.contains(line + "\n"), "\(text)") }
        #expect(!text.output.contains("own-secret"))

        struct Output: Decodable {
            var portals: [String]
            var initiators: [Initiator]
            var units: [Unit]
            struct Initiator: Decodable { var name: String, chap: Bool }
            struct Unit: Decodable { var number: Int, readOnly: Bool, thin: Bool, initiators: [String]? }
        }
        let json = try check(["--json"])
        let output = try JSONDecoder().decode(Output.self, from: Data(json.output.utf8))
        #expect(output.portals == ["127.0.0.1:0"] && output.initiators.allSatisfy(\.chap))
        #expect(output.units.map(\.readOnly) == [true, false, false])
        #expect(output.units.map(\.thin) == [false, true, true])
        #expect(output.units.map(\.initiators) == [nil, [Self.agent], [Self.other]])

        // While a bridge has the writable units locked, it is answered, too.
        let bridge = try Outboard.start(["bridge", "--config", scratch("bridge.yaml")])
        defer { bridge.stop() }
        _ = try #require(bridge.line { $0.hasPrefix("ready ") }, "\(bridge.errors)")
        let beside = try check()
        #expect(beside.status == 0, "\(beside)")

        unlink(scratch("unit2"))
        let missing = try check()
        #expect(missing.status == 66 && missing.errors.contains("unit 2"), "\(missing)")
    }

    @Test func whatIsWrongInTheFileIsToldWithItsLine() throws {
        let units = "units: [{number: 0, path: unit0}]\n"
        let cases: [(text: String, words: [String])] = [
            (units + "chapfile: agent.chap\n", ["line 2", "'chapfile'"]),
            ("units:\n  - number: 0\n    path: unit0\n    readonly: true\n", ["line 4", "'readonly'"]),
            ("initiators:\n  - {name: \"\(Self.agent)\", secret: x}\n" + units, ["line 2", "'secret'"]),
            ("units:\n  - {number: 0, path: unit0, read_only: maybe}\n", ["line 2", "'read_only'"]),
            ("units:\n  - {number: zero, path: unit0}\n", ["line 2", "'number'"]),
            ("units:\n  - {number: 0}\n", ["line 2", "without a path"]),
            ("units: unit0\n", ["line 1", "'units' is not a list"]),
            ("units:\n  - {number: 0, path: unit0, block_size: 513}\n", ["513"]),
            ("units:\n  - {number: 0, path: unit0, physical_block_size: 1536}\n", ["1536"]),
            ("units:\n  - {number: 0, path: unit0, thin: maybe}\n", ["line 2", "'thin'"]),
            ("units:\n  - {number: 0, path: unit0, read_only: true, thin: true}\n", ["line 2", "'thin'"]),
            ("portal: here\n" + units, ["line 1", "'here'"]),
            ("portal: \"[::1]:0\"\nportals: [\"127.0.0.1:0\"]\n" + units, ["line 1", "'portals'"]),
            ("portals: []\n" + units, ["line 1", "names none"]),
            (
                "units:\n  - {number: 0, path: unit0, initiators: [\"\(Self.agent)\"]}\n",
                ["line 2", "not among"]
            ),
            (
                "chap_file: agent.chap\ninitiators:\n  - {name: \"\(Self.agent)\"}\n" + units,
                ["line 3", "its own chap_file"]
            ),
            ("initiators:\n  - {name: agent}\n" + units, ["not an iSCSI name"]),
            ("target: [\n" + units, ["bridge.yaml"]), ("", ["empty"]),
            ("units: [{number: 0, path: unit0}, {number: 0, path: unit1}]\n", ["twice"]),
        ]
        for (text, words) in cases {
            try write("bridge.yaml", text)
            let result = try check()
            #expect(result.status == 64, "\(text)\(result)")
            for word in words { #expect(result.errors.contains(word), "\(text)\(result)") }
            #expect(result.output.isEmpty)
        }
    }

    /// What says that it is thin and cannot be is refused, asked or started; memory that is sealed stands for
    /// a file system that cannot punch holes.
    @Test func whatCannotBeThinIsRefused() throws {
        // <linux/memfd.h>, <linux/fcntl.h>: MFD_ALLOW_SEALING, F_ADD_SEALS, F_SEAL_WRITE.
        let (allowSealing, addSeals, sealWrite) = (UInt32(2), Int32(1033), Int32(8))
        let symbol = try #require(dlsym(nil, "memfd_create"))
        let create = unsafeBitCast(symbol, to: (@convention(c) (UnsafePointer<CChar>, UInt32) -> Int32).self)
        let memory = create("sealed", allowSealing)
        defer { close(memory) }
        #expect(memory >= 0 && ftruncate(memory, 1 << 20) == 0 && fcntl(memory, addSeals, sealWrite) == 0)
        let file = "/proc/\(getpid())/fd/\(memory)"
        try write("bridge.yaml", "units: [{number: 0, path: \(file), thin: true}]\n")
        for options in [
            ["--check-config", "--config", scratch("bridge.yaml")], ["--unit", "0=\(file),thin"],
        ] {
            let result = try Outboard.run(["bridge", "--portal", "127.0.0.1:0"] + options)
            #expect(result.status == 64 && result.errors.contains("cannot be thin"), "\(result)")
        }
        let other = try Outboard.run(["bridge", "--check-config", "--unit", "0=\(file)"])
        #expect(other.output.contains("\(memory), writable, 2048"), "\(other)")
        let thick = try Outboard.run(["bridge", "--check-config", "--unit", "0=\(scratch("unit0")),thick"])
        #expect(thick.output.contains("unit0, writable, 2048"), "\(thick)")
    }

    @Test func filesThatOthersMayUseAreRefused() throws {
        try writeConfiguration()
        for mode in [mode_t(0o640), 0o604, 0o620, 0o602] {
            chmod(scratch("other.chap"), mode)
            let result = try check()
            #expect(result.status == 77 && result.errors.contains("chmod 600"), "\(result)")
        }
        chmod(scratch("other.chap"), 0o400)
        #expect(try check().status == 0)
        for mode in [mode_t(0o664), 0o646] {
            chmod(scratch("bridge.yaml"), mode)
            let result = try check()
            #expect(result.status == 77 && result.errors.contains("chmod go-w"), "\(result)")
        }
        try write("bridge.yaml", "units: [{number: 0, path: unit0}]\nchap_file: agent.chap\n")
        try write("agent.chap", "agent short\n", mode: 0o600)
        let short = try check()
        #expect(short.status == 64 && !short.errors.contains("short\n"), "\(short)")
        // A pipe without a writer would be waited for.
        unlink(scratch("agent.chap"))
        #expect(mkfifo(scratch("agent.chap"), 0o600) == 0)
        #expect(try check().status == 64)
    }

    @Test func anOpenPortalIsRefusedUnlessMeant() throws {
        let unit = ["--unit", "0=" + scratch("unit0")]
        func refused(_ options: [String]) throws -> Bool {
            let result = try Outboard.run(["bridge", "--check-config"] + options)
            #expect([0, 77].contains(result.status), "\(result)")
            return result.status == 77 && result.errors.contains("--insecure")
        }
        for portal in [
            "0.0.0.0:3260", "[::]:3260", "192.0.2.1:3260", "example.net:3260", "[::ffff:192.0.2.1]:1",
        ] {
            #expect(try refused(unit + ["--portal", portal]), "\(portal)")
            #expect(try refused(unit + ["--portal", "127.0.0.1:0", "--portal", portal]), "\(portal)")
            #expect(try !refused(unit + ["--portal", portal, "--insecure"]), "\(portal)")
            #expect(try !refused(unit + ["--portal", portal, "--chap-file", scratch("agent.chap")]))
        }
        for portal in ["127.0.0.1:0", "127.8.9.1:0", "[::1]:0", "localhost:0", "[::ffff:127.0.0.1]:0"] {
            #expect(try !refused(unit + ["--portal", portal]), "\(portal)")
        }
        // One initiator without a secret is enough.
        try writeConfiguration(portal: "0.0.0.0:0")
        #expect(try check().status == 0)
        let text = try String(contentsOfFile: scratch("bridge.yaml"), encoding: .utf8)
        try write("bridge.yaml", text.replacingOccurrences(of: ", chap_file: other.chap", with: ""))
        let result = try check()
        #expect(result.status == 77 && result.errors.contains(Self.other), "\(result)")
        // And it is refused when it would serve, not only when it is asked.
        let served = try Outboard.run(["bridge", "--config", scratch("bridge.yaml")])
        #expect(served.status == 77, "\(served)")
    }

    /// The example of the documentation is one that works.
    @Test func theDocumentedExampleIsRight() throws {
        var root = URL(fileURLWithPath: #filePath)
        for _ in 0..<3 { root.deleteLastPathComponent() }
        let article = try String(
            contentsOf: root.appendingPathComponent("Sources/Bridge/Bridge.docc/Configuration.md"),
            encoding: .utf8)
        let example = try #require(article.components(separatedBy: "```yaml\n").dropFirst().first)
        try write("bridge.yaml", try #require(example.components(separatedBy: "```").first))
        for name in ["volume.img", "volume.cache", "monday.img"] {
            try makePatternFile(scratch(name), count: 1 << 20)
        }
        try write("database.chap", "database the-database-has-its-own\n", mode: 0o600)
        let result = try check()
        #expect(result.status == 0 && result.output.contains("unit 2: "), "\(result)")
    }

    /// The second line of a CHAP file: an initiator that asks for the target's proof gets the right one.
    @Test func theTargetProvesItselfToo() throws {
        try write("mutual.chap", "agent the-agents-own-secret\ntarget the-targets-own-secret\n", mode: 0o600)
        let bridge = try BridgeProcess(
            units: ["0=" + scratch("unit0")], options: ["--chap-file", scratch("mutual.chap")])
        func capacity(_ secret: String) throws -> ProgramResult {
            let target = "target_user=target&target_password=\(secret)"
            return try runProgram(
                "iscsi-readcapacity16",
                ["iscsi://agent%the-agents-own-secret@\(bridge.portal)/\(bridge.target)/0?\(target)"])
        }
        #expect(try capacity("the-targets-own-secret").isSuccess)
        #expect(try !capacity("not-the-targets-secret").isSuccess)
    }

    @Test func itListensOnSeveralPortals() throws {
        let bridge = try Outboard.start([
            "bridge", "--portal", "127.0.0.1:0", "--portal", "127.0.0.2:0", "--unit", "0=" + scratch("unit0"),
        ])
        defer { bridge.stop() }
        let ready = try #require(bridge.line { $0.hasPrefix("ready ") }, "\(bridge.errors)")
        let words = ready.split(separator: " ")
        let portals = words[1].split(separator: ",")
        #expect(portals.count == 2 && portals[1].hasPrefix("127.0.0.2:"))
        for portal in portals {
            let result = try runProgram("iscsi-readcapacity16", ["iscsi://\(portal)/\(words[2])/0"])
            #expect(result.isSuccess, "\(result)")
        }
        #expect(bridge.stop() == .exit(0))
    }
}
