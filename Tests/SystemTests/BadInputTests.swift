import Foundation
import TestSupport
import Testing

/// Bad input gets a clear message and its exit status, and nothing is lost or half made.
@Suite(.serialized) struct BadInputTests {
    private func expect(
        _ arguments: [String], exits status: Int32, saying text: String,
        sourceLocation: SourceLocation = #_sourceLocation
    ) throws {
        let result = try Outboard.run(arguments)
        #expect(result.status == status, "\(result)", sourceLocation: sourceLocation)
        #expect(result.errors.contains(text), "\(result)", sourceLocation: sourceLocation)
        #expect(result.output.isEmpty, "\(result)", sourceLocation: sourceLocation)
    }

    private func hostArguments(_ scratch: ScratchDirectory, source: String, cache: String) -> [String] {
        [
            "host", "--source", scratch(source), "--cache", scratch(cache), "--socket", scratch("x.sock"),
            "--control", scratch("x.ctl"),
        ]
    }

    private func exists(_ path: String) -> Bool { FileManager.default.fileExists(atPath: path) }

    @Test func hostRefusesWhatItCannotServe() throws {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("volume.img"), count: 4 << 20)
        try expect(
            hostArguments(scratch, source: "absent", cache: "c"), exits: 66, saying: "No such file")
        #expect(!exists(scratch("c")))
        try expect(
            hostArguments(scratch, source: "volume.img", cache: "volume.img"), exits: 64,
            saying: "it is the source itself")
        #expect(link(scratch("volume.img"), scratch("same")) == 0)
        try expect(
            hostArguments(scratch, source: "volume.img", cache: "same"), exits: 64,
            saying: "it is the source itself")
        #expect(symlink(scratch("volume.img"), scratch("alias")) == 0)
        try expect(
            hostArguments(scratch, source: "alias", cache: "same"), exits: 64,
            saying: "it is the source itself")
        try makePatternFile(scratch("odd"), count: 1000)
        try expect(
            hostArguments(scratch, source: "odd", cache: "c"), exits: 65, saying: "not a multiple of 512")
        try makeSparseFile(scratch("none"), size: 0)
        try expect(
            hostArguments(scratch, source: "none", cache: "c"), exits: 65, saying: "not a multiple of 512")
        try expect(
            hostArguments(scratch, source: "", cache: "c"), exits: 66, saying: "is a directory")
        try expect(
            hostArguments(scratch, source: "volume.img", cache: "c") + ["--cache-size", "8KiB"], exits: 73,
            saying: "too small")
        #expect(!exists(scratch("c")), "a cache that was made for nothing stays")
        try makePatternFile(scratch("foreign"), count: 1 << 20)
        try expect(
            hostArguments(scratch, source: "volume.img", cache: "foreign"), exits: 65, saying: "not blank")
        #expect(!exists(scratch("x.sock")) && !exists(scratch("x.ctl")))
    }

    /// A blank file is a fine cache; the log must not be written over the source by another name.
    @Test(.enabled(if: Machine.canMount, "needs root and loop devices"))
    func aLoopDeviceOverTheSourceIsTheSource() throws {
        let scratch = try ScratchDirectory()
        try makeSparseFile(scratch("volume.img"), size: 16 << 20)
        let loop = try runProgram("losetup", ["--find", "--show", scratch("volume.img")])
        try #require(loop.isSuccess, "\(loop)")
        let device = loop.output.trimmingCharacters(in: .whitespacesAndNewlines)
        var arguments = hostArguments(scratch, source: "volume.img", cache: "")
        arguments[4] = device
        let first = try Outboard.run(arguments, seconds: 20)
        arguments.swapAt(2, 4)
        let second = try Outboard.run(arguments, seconds: 20)
        #expect(try runProgram("losetup", ["--detach", device]).isSuccess)
        for result in [first, second] {
            #expect(result.status == 64 && result.errors.contains("it is the source itself"), "\(result)")
        }
        #expect(try contents(scratch("volume.img")).allSatisfy { $0 == 0 })
    }

    @Test(.enabled(if: Machine.canMount, "needs root and loop devices"), arguments: [true, false])
    func aVolumeIsServedOnceByWhateverName(deviceFirst: Bool) throws {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("volume.img"), count: 4 << 20)
        let loop = try runProgram("losetup", ["--find", "--show", scratch("volume.img")])
        try #require(loop.isSuccess, "\(loop)")
        let device = loop.output.trimmingCharacters(in: .whitespacesAndNewlines)
        let names = deviceFirst ? [device, scratch("volume.img")] : [scratch("volume.img"), device]
        let host = try HostProcess(scratch, source: names[0])
        var arguments = hostArguments(scratch, source: "", cache: "c")
        arguments[2] = names[1]
        try expect(arguments, exits: 75, saying: "another host serves this volume")
        // Nor is it overwritten by its other name.
        #expect(try Outboard.run(["copy", "--host", host.control, "--to", scratch("copy")]).isSuccess)
        if deviceFirst {
            try expect(
                ["restore", "volume", scratch("copy"), "--to", names[1], "--force"], exits: 75,
                saying: names[1])
        }
        #expect(host.stop() == .exit(0))
        #expect(try Outboard.run(["verify", scratch("copy")]).isSuccess)
        #expect(try runProgram("losetup", ["--detach", device]).isSuccess)
    }

    @Test func aCacheKnowsItsVolumeAndASourceItsHost() throws {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("volume.img"), count: 4 << 20)
        try makePatternFile(scratch("other"), count: 4 << 20)
        let host = try HostProcess(scratch)
        try expect(
            hostArguments(scratch, source: "volume.img", cache: "c"), exits: 75, saying: "another host")
        try expect(
            hostArguments(scratch, source: "other", cache: "volume.cache"), exits: 75,
            saying: "another host uses this cache")
        // A copy makes the cache belong to its volume.
        let copied = try Outboard.run(["copy", "--host", host.control, "--to", scratch("copy")])
        #expect(copied.isSuccess, "\(copied)")
        #expect(host.stop() == .exit(0))
        try expect(
            hostArguments(scratch, source: "other", cache: "volume.cache"), exits: 65,
            saying: "belongs to another volume")
        #expect(truncate(scratch("volume.img"), 2 << 20) == 0)
        try expect(
            hostArguments(scratch, source: "volume.img", cache: "volume.cache"), exits: 65,
            saying: "says that the volume has")
    }

    @Test func copyRefusesBeforeAnythingIsMade() throws {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("volume.img"), count: 4 << 20)
        let host = try HostProcess(scratch)
        let copy = ["copy", "--host", host.control, "--to"]
        try expect(["copy", "--host", scratch("no.ctl"), "--to", scratch("a")], exits: 69, saying: "no.ctl")
        try "no socket".write(toFile: scratch("file"), atomically: true, encoding: .utf8)
        try expect(["copy", "--host", scratch("file"), "--to", scratch("a")], exits: 69, saying: "file")
        // Sockets that something else serves: one that hangs up, and one that answers in its own way.
        try expect(["copy", "--host", host.socket, "--to", scratch("a")], exits: 69, saying: "volume.sock")
        let foreign = try ChildProcess(
            "socat", ["UNIX-LISTEN:" + scratch("foreign"), "SYSTEM:read request; echo HTTP/1.1 400 Bad"])
        try waitUntil("socat listens") { exists(scratch("foreign")) }
        try expect(
            ["copy", "--host", scratch("foreign"), "--to", scratch("a")], exits: 69, saying: "foreign")
        foreign.stop()
        try FileManager.default.createDirectory(atPath: scratch("there"), withIntermediateDirectories: false)
        try expect(copy + [scratch("there")], exits: 73, saying: "not a copy")
        // What is no copy is not replaced even then; a copy is (as made next).
        try expect(copy + [scratch("there"), "--force"], exits: 73, saying: "not a copy")
        #expect(try Outboard.run(copy + [scratch("one")]).isSuccess)
        try expect(copy + [scratch("one")], exits: 73, saying: "--force")
        #expect(try Outboard.run(copy + [scratch("one"), "--force"]).isSuccess)
        let standing = ["--source-unit", "0", "--cache-unit", "1", "--copy-unit", "2"]
        try expect(
            copy + [scratch("a"), "--bridge", "iscsi://127.0.0.1:1/iqn.2026-01.net.example:none"] + standing,
            exits: 69, saying: "iscsi://127.0.0.1:1")
        try makeSparseFile(scratch("target"), size: 4 << 20)
        let bridge = try BridgeProcess(units: [
            "0=" + scratch("volume.img") + ",ro", "1=" + host.cache + ",ro", "2=" + scratch("target") + ",ro",
        ])
        try expect(
            copy + [
                scratch("a"), "--bridge", bridge.uri, "--source-unit", "0", "--cache-unit", "1",
                "--copy-unit", "7",
            ],
            exits: 66, saying: "7")
        try expect(
            copy + [scratch("a"), "--bridge", bridge.uri] + standing, exits: 77, saying: "2")
        #expect(!exists(scratch("a")))
        #expect(try host.ask("volume.status").contains("\"isFrozen\":false"))
        // After all that a copy still works.
        let made = try Outboard.run(copy + [scratch("a")])
        #expect(made.isSuccess, "\(made)")
    }

    @Test func aFlippedByteIsFound() throws {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("volume.img"), count: 2 << 20)
        let host = try HostProcess(scratch)
        let made = try Outboard.run(
            ["copy", "--host", host.control, "--to", scratch("copy"), "--mode", "append"])
        #expect(made.isSuccess, "\(made)")
        #expect(try Outboard.run(["verify", scratch("copy")]).isSuccess)
        for (member, place) in [("data.img", 12_345), ("data.img", (2 << 20) + 9), ("manifest.json", 40)] {
            try flipByte(scratch("copy/" + member), at: place)
            let found = try Outboard.run(["verify", scratch("copy")])
            #expect(found.status == 65, "\(member) at \(place): \(found)")
            try flipByte(scratch("copy/" + member), at: place)
        }
        #expect(try Outboard.run(["verify", scratch("copy")]).isSuccess)
    }

    @Test func restoreKeepsWhatIsThere() throws {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("volume.img"), count: 2 << 20)
        let host = try HostProcess(scratch)
        #expect(try Outboard.run(["copy", "--host", host.control, "--to", scratch("copy")]).isSuccess)
        try makePatternFile(scratch("kept"), count: 2 << 20, seed: 9)
        let restore = ["restore", "volume", scratch("copy"), "--to", scratch("kept")]
        try expect(restore, exits: 73, saying: "--force")
        try makePatternFile(scratch("fresh"), count: 2 << 20, seed: 9)
        #expect(try haveSameContents(scratch("kept"), scratch("fresh")))
        #expect(try Outboard.run(restore + ["--force"]).isSuccess)
        #expect(try haveSameContents(scratch("kept"), scratch("volume.img")))
        try expect(["restore", "volume", scratch("none"), "--to", scratch("r")], exits: 66, saying: "none")
        try expect(["show", scratch("none")], exits: 66, saying: "none")
    }
}
