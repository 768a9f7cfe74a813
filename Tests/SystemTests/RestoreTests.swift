import Foundation
import TestSupport
import Testing

/// What a restore refuses, and that it leaves alone what is there then.
@Suite(.serialized) struct RestoreTests {
    private func names(_ scratch: ScratchDirectory) throws -> Set<String> {
        Set(try FileManager.default.contentsOfDirectory(atPath: scratch.path))
    }

    @Test("A damaged copy is not restored: nothing is written", arguments: ["overlay", "append"])
    func damage(mode: String) throws {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("volume.img"), count: 4 << 20)
        let host = try HostProcess(scratch)
        let made = try Outboard.run(
            ["copy", "--host", host.control, "--to", scratch("copy"), "--mode", mode])
        #expect(made.isSuccess, "\(made)")
        try makePatternFile(scratch("kept"), count: 4 << 20, seed: 9)
        let kept = try contents(scratch("kept"))
        let before = try names(scratch)
        let places = mode == "append" ? [12_345, (4 << 20) + 9] : [12_345, (4 << 20) - 1]
        for place in places {
            try flipByte(scratch("copy/data.img"), at: place)
            for destination in ["kept", "new"] {
                let result = try Outboard.run(
                    ["restore", "volume", scratch("copy"), "--to", scratch(destination), "--force"])
                #expect(result.status == 65, "\(place): \(result)")
                #expect(
                    result.errors.contains("data at \(place / 65_536 * 65_536)") || place > 4 << 20,
                    "\(result)")
            }
            #expect(try contents(scratch("kept")) == kept)
            #expect(try names(scratch) == before)
            try flipByte(scratch("copy/data.img"), at: place)
        }
        let restored = try Outboard.run(["restore", "volume", scratch("copy"), "--to", scratch("new")])
        #expect(restored.isSuccess, "\(restored)")
        #expect(try haveSameContents(scratch("new"), scratch("volume.img")))
    }

    /// A copy that a standing bridge with CHAP made on its unit 2, and that bridge.
    private func copyByStandingBridge(
        _ scratch: ScratchDirectory, mode: String
    ) throws -> (host: HostProcess, bridge: BridgeProcess) {
        try makePatternFile(scratch("volume.img"), count: 4 << 20)
        try makeSparseFile(scratch("unit"), size: 24 << 20)
        let chap = scratch("chap")
        #expect(
            FileManager.default.createFile(
                atPath: chap, contents: Data("backup a-long-secret-1\n".utf8),
                attributes: [.posixPermissions: 0o600]))
        let host = try HostProcess(scratch)
        let bridge = try BridgeProcess(
            units: ["0=\(host.source),ro", "1=\(host.cache),ro", "2=\(scratch("unit"))"],
            options: ["--chap-file", chap])
        let made = try Outboard.run([
            "copy", "--host", host.control, "--to", scratch("copy"), "--mode", mode, "--bridge", bridge.uri,
            "--chap-file", chap, "--source-unit", "0", "--cache-unit", "1", "--copy-unit", "2",
            // Overwritten after the instant: there are originals.
            "--post-thaw", "dd if=/dev/urandom bs=64k count=3 status=none | nbdcopy -- - '\(host.uri)'",
        ])
        #expect(made.isSuccess, "\(made)")
        return (host, bridge)
    }

    @Test(
        "A copy on a standing bridge's unit is shown, verified, restored", arguments: ["overlay", "append"])
    func standingBridge(mode: String) throws {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("expected"), count: 4 << 20)
        let (host, bridge) = try copyByStandingBridge(scratch, mode: mode)
        #expect(try !haveSameContents(scratch("volume.img"), scratch("expected")))
        let chap = ["--chap-file", scratch("chap")]
        let shown = try Outboard.run(["show", scratch("copy")])
        #expect(shown.isSuccess && shown.output.contains("unit 2 of \(bridge.uri)"), "\(shown)")
        #expect(try Outboard.run(["verify", scratch("copy")]).status == 77)
        let verified = try Outboard.run(["verify", scratch("copy")] + chap)
        #expect(verified.isSuccess, "\(verified)")
        let restore = ["restore", "volume", scratch("copy"), "--to"]
        #expect(try Outboard.run(restore + [scratch("new")]).status == 77)
        let restored = try Outboard.run(restore + [scratch("new")] + chap)
        #expect(restored.isSuccess, "\(restored)")
        #expect(try haveSameContents(scratch("new"), scratch("expected")))
        // Onto the live volume, too: the bridge has that open.
        let live = try Outboard.run(
            restore + [host.source, "--force", "--host", host.control] + chap)
        #expect(live.isSuccess, "\(live)")
        #expect(try haveSameContents(host.source, scratch("expected")))

        try flipByte(scratch("unit"), at: 100_000)
        #expect(try Outboard.run(["verify", scratch("copy")] + chap).status == 65)
        #expect(try Outboard.run(restore + [scratch("damaged")] + chap).status == 65)
        #expect(try !names(scratch).contains { $0.contains("damaged") })
        try flipByte(scratch("unit"), at: 100_000)

        let integrated = try Outboard.run(["integrate", scratch("copy")] + chap)
        #expect(integrated.isSuccess, "\(integrated)")
        let again = try Outboard.run(restore + [scratch("again")] + chap)
        #expect(again.isSuccess, "\(again)")
        #expect(try haveSameContents(scratch("again"), scratch("expected")))
        bridge.process.stop()
        #expect(try Outboard.run(["verify", scratch("copy")] + chap).status == 69)
        #expect(try Outboard.run(restore + [scratch("gone")] + chap).status == 69)
        #expect(try !names(scratch).contains { $0.contains("gone") })
    }

    @Test func aDestinationThatIsTooSmallKeepsItsContents() throws {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("volume.img"), count: 4 << 20)
        let host = try HostProcess(scratch)
        #expect(try Outboard.run(["copy", "--host", host.control, "--to", scratch("copy")]).isSuccess)
        try makePatternFile(scratch("small"), count: (4 << 20) - 512, seed: 9)
        let kept = try contents(scratch("small"))
        let before = try names(scratch)
        let result = try Outboard.run(
            ["restore", "volume", scratch("copy"), "--to", scratch("small"), "--force"])
        #expect(result.status == 73 && result.errors.contains("restore to a larger one"), "\(result)")
        #expect(try contents(scratch("small")) == kept)
        #expect(try names(scratch) == before)
    }

    @Test("A live volume is overwritten only as its host knows of it")
    func liveVolume() throws {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("volume.img"), count: 4 << 20)
        try makePatternFile(scratch("expected"), count: 4 << 20)
        let host = try HostProcess(scratch)
        #expect(try Outboard.run(["copy", "--host", host.control, "--to", scratch("copy")]).isSuccess)
        try makePatternFile(scratch("later"), count: 4 << 20, seed: 9)
        #expect(try runProgram("nbdcopy", [scratch("later"), host.uri]).isSuccess)
        func refused(_ options: [String], _ status: Int32, _ text: String) throws {
            let result = try Outboard.run(
                ["restore", "volume", scratch("copy"), "--to", host.source] + options)
            #expect(result.status == status && result.errors.contains(text), "\(result)")
            #expect(try haveSameContents(host.source, scratch("later")))
        }
        try refused([], 73, "--force")
        try refused(["--force"], 75, "--host")
        try refused(["--host", host.control], 64, "--force")
        try refused(["--force", "--host", scratch("none.ctl")], 69, "none.ctl")
        // An epoch that nobody released.
        #expect(try host.ask("snapshot.begin").contains("uuid"))
        try refused(["--force", "--host", host.control], 75, "not released")
        // The next copy clears it away.
        #expect(try Outboard.run(["copy", "--host", host.control, "--to", scratch("second")]).isSuccess)
        let restored = try Outboard.run(
            ["restore", "volume", scratch("copy"), "--to", host.source, "--force", "--host", host.control])
        #expect(restored.isSuccess, "\(restored)")
        #expect(try haveSameContents(host.source, scratch("expected")))
        #expect(try host.ask("volume.status").contains("\"isFrozen\":false"))
        #expect(try runProgram("nbdcopy", [host.uri, scratch("read")]).isSuccess)
        #expect(try haveSameContents(scratch("read"), scratch("expected")))
    }

    @Test(.enabled(if: Machine.canMount, "needs root and loop devices"))
    func blockDevices() throws {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("volume.img"), count: 4 << 20)
        let host = try HostProcess(scratch)
        let made = try Outboard.run(
            ["copy", "--host", host.control, "--to", scratch("copy"), "--mode", "append"])
        #expect(made.isSuccess, "\(made)")
        for (size, status) in [(4 << 20, Int32(0)), (2 << 20, 73)] {
            try makePatternFile(scratch("behind"), count: size, seed: 9)
            let kept = try contents(scratch("behind"))
            let loop = try runProgram("losetup", ["--find", "--show", scratch("behind")])
            try #require(loop.isSuccess, "\(loop)")
            let device = loop.output.trimmingCharacters(in: .whitespacesAndNewlines)
            let restore = ["restore", "volume", scratch("copy"), "--to", device]
            let refused = try Outboard.run(restore)
            let result = try Outboard.run(restore + ["--force"])
            #expect(try runProgram("losetup", ["--detach", device]).isSuccess)
            #expect(refused.status == 73, "\(refused)")
            #expect(result.status == status, "\(result)")
            #expect(try contents(scratch("behind")) == (status == 0 ? contents(scratch("volume.img")) : kept))
        }
    }
}
