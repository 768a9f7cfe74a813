import Agent
import Foundation
import HostControl
import TestSupport
import Testing

/// A real FIFREEZE, and who thaws it.
@Suite(.serialized, .enabled(if: LoopMount.isPossible, "\(LoopMount.reason)")) struct FreezeTests {
    private func guardian(of copy: ChildProcess) throws -> pid_t {
        let found = RunningProcesses.children(of: copy.identifier).first { child in
            RunningProcesses.command(of: child).dropFirst().first == "thaw-guard"
        }
        guard let found else { throw TestFailure("the copy has no guard") }
        return found
    }

    /// Held by the host's silence between FIFREEZE and FITHAW. With the guard killed, too, the mount stays frozen: so it
    /// is the guard that thaws.
    @Test(arguments: [true, false]) func aKillWhileFrozenThaws(hasGuard: Bool) throws {
        let volume = try LoopMount(size: 32 << 20)
        let scratch = volume.host.directory
        let mount = volume.mountPoint
        // Whatever becomes of this process, the mount does not stay frozen.
        let rescue = try ChildProcess(
            "/bin/sh", ["-c", "cat >/dev/null; fsfreeze -u '\(mount)'"], keepsInputOpen: true)
        defer {
            rescue.closeInput()
            _ = rescue.wait(seconds: 30)
        }
        let proxy = try ControlProxy(
            scratch("proxy.ctl"), to: volume.host.control, holding: SnapshotBeginMethod.name)
        defer { proxy.stop() }
        let copy = try Outboard.start([
            "copy", "--host", proxy.path, "--to", scratch("copy"), "--freeze", mount,
        ])
        #expect(proxy.awaitHeld(), "\(copy.errors)")
        #expect(try TestMount.isFrozen(mount))
        if !hasGuard { kill(try guardian(of: copy), SIGKILL) }
        copy.signal(SIGKILL)
        #expect(copy.waitForExit() == .signal(SIGKILL))
        if hasGuard {
            // The guard holds the copy's standard error until it is done.
            #expect(copy.wait(seconds: 30) != nil)
            #expect(try !TestMount.isFrozen(mount))
            #expect(try volume.canWrite())
        } else {
            #expect(try TestMount.isFrozen(mount))
            try LoopMount.succeed("fsfreeze", ["-u", mount])
        }
        #expect(!FileManager.default.fileExists(atPath: scratch("copy")))
        let next = try Outboard.run([
            "copy", "--host", volume.host.control, "--to", scratch("copy"), "--freeze", mount,
        ])
        #expect(next.isSuccess, "\(next)")
    }

    /// Killed before its own freeze, which would have been refused.
    @Test func aKillDoesNotThawWhatAnotherFroze() throws {
        let scratch = try ScratchDirectory()
        let mount = try TestMount(loop: 32 << 20, in: scratch)
        try makePatternFile(scratch("volume.img"), count: 4 << 20)
        let host = try HostProcess(scratch)
        let (standing, wentOn) = (try NamedPipe(scratch("standing")), try NamedPipe(scratch("went-on")))
        let copy = try Outboard.start([
            "copy", "--host", host.control, "--to", scratch("copy"), "--freeze", mount.path, "--pre-freeze",
            ": > \(standing.path); exec sleep 30", "--post-thaw", "echo > \(wentOn.path)",
        ])
        #expect(standing.awaitWriter(), "\(copy.errors)")
        try LoopMount.succeed("fsfreeze", ["-f", mount.path])
        copy.signal(SIGKILL)
        // The guard runs it last.
        #expect(wentOn.awaitWriter(), "\(copy.errors)")
        #expect(try TestMount.isFrozen(mount.path))
        try LoopMount.succeed("fsfreeze", ["-u", mount.path])
    }

    @Test func aFileSystemIsFrozenOnce() throws {
        let scratch = try ScratchDirectory()
        let mount = try TestMount(loop: 32 << 20, in: scratch)
        try makePatternFile(scratch("volume.img"), count: 4 << 20)
        let host = try HostProcess(scratch)
        let result = try Outboard.run([
            "copy", "--host", host.control, "--to", scratch("copy"), "--freeze", mount.path, "--freeze",
            mount.path + "/.",
        ])
        #expect(result.status == 64 && result.errors.contains("named twice"), "\(result)")
        #expect(try host.isIdle() && !TestMount.isFrozen(mount.path))
    }

    /// What the host must write while it makes the instant would wait for the thaw, and the thaw for the host.
    @Test(arguments: ["source", "cache", "cache by a loop device", "control", "to"])
    func aFreezeUnderTheCopysOwnFilesIsRefused(what: String) throws {
        let scratch = try ScratchDirectory()
        let mount = try TestMount(loop: 64 << 20, in: scratch)
        let source = what == "source" ? mount("volume.img") : scratch("volume.img")
        try makePatternFile(source, count: 4 << 20)
        var cache = what == "cache" ? mount("cache") : nil
        if what == "cache by a loop device" {
            try makeSparseFile(mount("behind"), size: 16 << 20)
            let made = try LoopMount.succeed("losetup", ["--find", "--show", mount("behind")])
            cache = made.output.trimmingCharacters(in: .whitespacesAndNewlines)
        }
        let host = try HostProcess(
            scratch, source: source, cache: cache,
            control: what == "control" ? mount("ctl") : nil)
        defer {
            host.stop()
            if let cache, cache.hasPrefix("/dev/") { _ = try? runProgram("losetup", ["--detach", cache]) }
        }
        let to = what == "to" ? mount("copy") : scratch("copy")
        let copy = [
            "copy", "--host", host.control, "--to", to, "--pre-freeze", "touch \(scratch("asked"))",
        ]
        let refused = try Outboard.run(copy + ["--freeze", mount.path], seconds: 20)
        #expect(refused.status == 64, "\(refused)")
        #expect(refused.errors.contains("\(mount.path): "), "\(refused)")
        let word = what == "to" ? "copy's directory" : what.split(separator: " ").first ?? ""
        #expect(refused.errors.contains("\(word) "), "\(refused)")
        #expect(try mount.canWrite())
        #expect(!FileManager.default.fileExists(atPath: scratch("asked")), "something was stopped before")
        #expect(!FileManager.default.fileExists(atPath: to))
        #expect(try host.isIdle())
        #expect(try Outboard.run(copy).isSuccess)
    }
}
