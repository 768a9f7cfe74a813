import Foundation
import PhysicalCopy
import TestSupport
import Testing

/// However `outboard copy` or a host is stopped, what it stopped goes on.
@Suite(.serialized) struct StopTests {
    /// Starts a copy that stands in its first hook, and tells by the pipe when its last one ran.
    private func standing(
        _ scratch: ScratchDirectory, _ host: HostProcess
    ) throws -> (copy: ChildProcess, wentOn: NamedPipe) {
        let (standing, wentOn) = (try NamedPipe(scratch("standing")), try NamedPipe(scratch("went-on")))
        let copy = try Outboard.start([
            "copy", "--host", host.control, "--to", scratch("copy"), "--pre-freeze",
            ": > \(standing.path); exec sleep 30", "--post-thaw", "echo > \(wentOn.path)",
        ])
        #expect(standing.awaitWriter(), "\(copy.errors)")
        return (copy, wentOn)
    }

    private func exists(_ path: String) -> Bool { FileManager.default.fileExists(atPath: path) }

    @Test func threeSignalsStillThaw() throws {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("volume.img"), count: 4 << 20)
        let host = try HostProcess(scratch)
        let (copy, wentOn) = try standing(scratch, host)
        for number in [SIGTERM, SIGINT, SIGHUP] { copy.signal(number) }
        #expect(copy.waitForExit() == .exit(75), "\(copy.errors)")
        #expect(wentOn.awaitWriter(seconds: 0), "\(copy.errors)")
        #expect(!exists(scratch("copy")))
    }

    @Test func aKilledCopyThaws() throws {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("volume.img"), count: 4 << 20)
        let host = try HostProcess(scratch)
        let (copy, wentOn) = try standing(scratch, host)
        copy.signal(SIGKILL)
        _ = copy.waitForExit()
        #expect(wentOn.awaitWriter(), "\(copy.errors)")
    }

    /// A restore that goes slowly, when bytes have been restored.
    private func restoreInProgress(_ copy: String, _ directory: String) throws -> ChildProcess {
        // At this rate it takes minutes, and a worker waits for its turn most of the time.
        let restore = try Outboard.start([
            "restore", "volume", copy, "--to", directory + "/there", "--force", "--max-rate", "64KiB",
        ])
        // By the clock, as in CopyInProgress.
        try waitUntil("bytes are restored") {
            try FileManager.default.contentsOfDirectory(atPath: directory).contains { name in
                var status = stat()
                return stat("\(directory)/\(name)", &status) == 0 && status.st_blocks > 0
            }
        }
        return restore
    }

    private func copyAndSite() throws -> (scratch: ScratchDirectory, directory: String) {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("volume.img"), count: 8 << 20)
        let host = try HostProcess(scratch)
        let made = try Outboard.run(["copy", "--host", host.control, "--to", scratch("copy")])
        #expect(made.isSuccess, "\(made)")
        let directory = scratch("site")
        try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: false)
        return (scratch, directory)
    }

    @Test func whatAKilledRestoreLeftIsRemovedByTheNext() throws {
        let (scratch, directory) = try copyAndSite()
        // Of a process that lives: ours.
        let draft = try FileDraft(for: directory + "/there")
        let living = try #require(draft.path.split(separator: "/").last.map(String.init))
        let restore = try restoreInProgress(scratch("copy"), directory)
        let bridges = RunningProcesses.children(of: restore.identifier)
        #expect(!bridges.isEmpty)
        restore.signal(SIGKILL)
        #expect(restore.waitForExit() == .signal(SIGKILL))
        // By the clock: they are no children of ours.
        try waitUntil("the bridge has ended") { bridges.allSatisfy(RunningProcesses.hasEnded) }
        let left = Set(try FileManager.default.contentsOfDirectory(atPath: directory)).subtracting([living])
        #expect(left.count == 1 && left.first?.hasPrefix(".there.partial-") == true, "\(left)")
        let next = try Outboard.run(["restore", "volume", scratch("copy"), "--to", directory + "/there"])
        #expect(next.isSuccess, "\(next)")
        #expect(Set(try FileManager.default.contentsOfDirectory(atPath: directory)) == [living, "there"])
        draft.abandon()
    }

    @Test(arguments: [false, true]) func aSignalEndsARestoreInOrder(isThere: Bool) throws {
        let (scratch, directory) = try copyAndSite()
        if isThere { try makeSparseFile(directory + "/there", size: 8 << 20) }
        let restore = try restoreInProgress(scratch("copy"), directory)
        restore.signal(SIGINT)
        #expect(restore.wait(seconds: 60) == .exit(75), "\(restore.errors)")
        #expect(restore.errors.contains("restored in part only") == isThere, "\(restore.errors)")
        #expect(restore.errors.contains("nothing half made was left") == !isThere, "\(restore.errors)")
        let left = try FileManager.default.contentsOfDirectory(atPath: directory)
        #expect(left == (isThere ? ["there"] : []))
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
        close(open(scratch("standing"), O_RDONLY | O_CLOEXEC))
        copy.signal(SIGHUP)
        // A copy that is stopped ends its hook, which then never opens its end.
        let go = open(scratch("go"), O_RDWR | O_CLOEXEC)
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

    /// A freeze of one connection, and the shutdown of another.
    @Test func aShutdownDuringAFreezeThawsAndEnds() throws {
        let host = try HostProcess(size: 4 << 20)
        let owner = try UnixLine(host.control)
        let answer = try owner.ask(
            #"{"jsonrpc":"2.0","id":1,"method":"volume.freeze","params":{"timeout":300}}"# + "\n")
        #expect(answer.contains("result"), "\(answer)")
        #expect(try host.ask("volume.status").contains("\"isFrozen\":true"))
        let ended = try host.ask("host.shutdown", #"{"force":false}"#)
        #expect(ended.contains("result"), "\(ended)")
        #expect(host.process.wait() == .exit(0), "\(host.process.errors)")
        #expect(host.process.errors.contains("the volume was frozen; it is thawed"), "\(host.process.errors)")
        withExtendedLifetime(owner) {}
    }
}
