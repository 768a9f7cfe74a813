import Foundation
import TestSupport
import Testing

/// However `outboard copy` is stopped, what it stopped goes on.
@Suite(.serialized) struct StopTests {
    /// Starts a copy that stands in its first hook.
    private func standing(_ scratch: ScratchDirectory, _ host: HostProcess) throws -> ChildProcess {
        #expect(mkfifo(scratch("standing"), 0o600) == 0)
        let copy = try Outboard.start([
            "copy", "--host", host.control, "--to", scratch("copy"), "--pre-freeze",
            ": > \(scratch("standing")); exec sleep 30", "--post-thaw", "echo > \(scratch("went-on"))",
        ])
        // Opening waits until the hook opens its end.
        close(open(scratch("standing"), O_RDONLY))
        return copy
    }

    private func exists(_ path: String) -> Bool { FileManager.default.fileExists(atPath: path) }

    @Test func threeSignalsStillThaw() throws {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("volume.img"), count: 4 << 20)
        let host = try HostProcess(scratch)
        let copy = try standing(scratch, host)
        for number in [SIGTERM, SIGINT, SIGHUP] { copy.signal(number) }
        #expect(copy.waitForExit() == .exit(75), "\(copy.errors)")
        #expect(exists(scratch("went-on")), "\(copy.errors)")
        #expect(!exists(scratch("copy")))
    }

    @Test func aKilledCopyThaws() throws {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("volume.img"), count: 4 << 20)
        let host = try HostProcess(scratch)
        let copy = try standing(scratch, host)
        copy.signal(SIGKILL)
        _ = copy.waitForExit()
        let deadline = Date(timeIntervalSinceNow: 60)
        while !exists(scratch("went-on")), Date() < deadline { usleep(10_000) }
        #expect(exists(scratch("went-on")), "\(copy.errors)")
    }

    @Test func hooksDoNotMixWithTheResult() throws {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("volume.img"), count: 4 << 20)
        let host = try HostProcess(scratch)
        // A reader that went away ends a writer by SIGPIPE (141 by the shell), unless the shell inherited it ignored.
        let result = try Outboard.run([
            "copy", "--host", host.control, "--to", scratch("copy"), "--json", "--pre-freeze",
            "echo said; read line; kill -PIPE $$; echo deaf", "--post-thaw", "echo also",
        ])
        #expect(result.status == 74 && result.errors.contains("signal 13"), "\(result)")
        #expect(result.errors.contains("said\n") && !result.errors.contains("deaf\n"), "\(result)")
        let done = try Outboard.run([
            "copy", "--host", host.control, "--to", scratch("copy"), "--json", "--pre-freeze", "echo said",
            "--post-thaw", "echo also",
        ])
        #expect(done.isSuccess && done.errors.contains("said\n") && done.errors.contains("also\n"), "\(done)")
        #expect(try JSONSerialization.jsonObject(with: Data(done.output.utf8)) is [String: Any], "\(done)")
    }

    @Test func nohupIsRespected() throws {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("volume.img"), count: 4 << 20)
        let host = try HostProcess(scratch)
        for name in ["standing", "go"] { #expect(mkfifo(scratch(name), 0o600) == 0) }
        let copy = try ChildProcess(
            "/bin/sh",
            [
                "-c", #"trap '' HUP; exec "$@""#, "sh", Outboard.binary, "copy", "--host", host.control,
                "--to",
                scratch("copy"), "--pre-freeze", ": > \(scratch("standing")); : < \(scratch("go"))",
            ])
        close(open(scratch("standing"), O_RDONLY))
        copy.signal(SIGHUP)
        // A copy that is stopped ends its hook, which then never opens its end.
        let go = open(scratch("go"), O_RDWR)
        defer { close(go) }
        #expect(copy.waitForExit() == .exit(0), "\(copy.errors)")
    }

    @Test func anyPathIsTakenAsItIs() throws {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("volume.img"), count: 4 << 20)
        let host = try HostProcess(scratch)
        let copied = try Outboard.run(["copy", "--host", host.control, "--to", scratch("copy,nolock")])
        #expect(copied.isSuccess, "\(copied)")
        for name in ["disk,ro", "disk,nolock", "disk"] { try makeSparseFile(scratch(name), size: 4 << 20) }
        for name in ["disk,ro", "disk,nolock"] {
            let restored = try Outboard.run([
                "restore", "volume", scratch("copy,nolock"), "--to", scratch(name), "--force",
            ])
            #expect(restored.isSuccess, "\(restored)")
            #expect(try haveSameContents(scratch(name), scratch("volume.img")))
        }
        #expect(try contents(scratch("disk")).allSatisfy { $0 == 0 })
    }
}
