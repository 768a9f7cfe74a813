import Agent
import Blocks
import Foundation
import PhysicalCopy
import TestSupport
import Testing

/// A destination that runs out of space when much of the work is done.
@Suite(.serialized, .enabled(if: TestMount.isPossible, "\(TestMount.reason)")) struct FullDiskTests {
    private static let size = 12 << 20

    private func makeHost() throws -> HostProcess {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("volume.img"), count: Self.size)
        return try HostProcess(scratch)
    }

    /// It says what to do where; nothing but that is left; the host serves on, and is ready for the next copy.
    private func expectOrder(
        _ failed: ChildProcess, naming path: String, on disk: TestMount, _ left: [String], _ host: HostProcess
    ) throws {
        #expect(failed.wait(seconds: 60) == .exit(73), "\(failed.errors)")
        #expect(
            failed.errors.contains("\(path): no space left; free some space there and try again\n"),
            "\(failed.errors)")
        #expect(try disk.names == left)
        #expect(try host.isIdle())
        let store = try NBDStore(.unixSocket(host.socket, export: ""))
        let block = [UInt8](repeating: 0x5A, count: 4096)
        try store.write(block, at: UInt64(Self.size) - 4096)
        #expect(try store.bytes(at: UInt64(Self.size) - 4096, count: 4096) == block)
    }

    private func copyAgain(to path: String, _ host: HostProcess, mode: String = "overlay") throws {
        let again = try Outboard.run(["copy", "--host", host.control, "--to", path, "--mode", mode])
        #expect(again.isSuccess, "\(again)")
        #expect(try haveSameContents(path + "/data.img", host.source))
    }

    @Test(arguments: ["overlay", "append"])
    func inTheRawPass(mode: String) throws {
        let host = try makeHost()
        let disk = try TestMount(memory: 16 << 20, in: host.directory)
        let copy = try CopyInProgress(of: host, in: disk.path, options: ["--mode", mode])
        try disk.fill()
        try expectOrder(copy.process, naming: copy.destination, on: disk, ["copy", "filler"], host)
        #expect(try AbandonedCopy.find(copy.destination)?.postMortem.exitStatus == 73)
        try FileManager.default.removeItem(atPath: disk("filler"))
        try copyAgain(to: copy.destination, host)
        #expect(try disk.names == ["copy"])
    }

    @Test func inTheOriginalImages() throws {
        let host = try makeHost()
        let disk = try TestMount(memory: 16 << 20, in: host.directory)
        let copy = try CopyInProgress(of: host, in: disk.path, rate: "4MiB", options: ["--mode", "append"])
        let store = try NBDStore(.unixSocket(host.socket, export: ""))
        for place in 0..<UInt64(8) { try store.write([UInt8](repeating: 1, count: 1 << 20), at: place << 20) }
        try expectOrder(copy.process, naming: copy.destination, on: disk, ["copy"], host)
        try copyAgain(to: copy.destination, host)
    }

    @Test(arguments: ["overlay", "append"])
    func inARestore(mode: String) throws {
        let host = try makeHost()
        let made = host.directory("made")
        let result = try Outboard.run(["copy", "--host", host.control, "--to", made, "--mode", mode])
        #expect(result.isSuccess, "\(result)")
        let disk = try TestMount(memory: 16 << 20, in: host.directory)
        let restore = try Outboard.start([
            "restore", "volume", made, "--to", disk("restored"), "--max-rate", "2MiB",
        ])
        // Direct I/O and the page cache alike tell nobody of a write: only the file's blocks do.
        try waitUntil("bytes are restored") {
            try disk.names.contains { name in
                var status = stat()
                return stat(disk(name), &status) == 0 && status.st_blocks > 0
            }
        }
        try disk.fill()
        try expectOrder(restore, naming: disk("restored"), on: disk, ["filler"], host)
    }

    /// `cp --sparse` makes holes of zeros, which come to need space when originals are written onto them.
    @Test func inIntegrate() throws {
        let host = try makeHost()
        let instant = try contents(host.source)
        let copy = try CopyInProgress(of: host, options: ["--mode", "append"])
        let store = try NBDStore(.unixSocket(host.socket, export: ""))
        let zeros = [UInt8](repeating: 0, count: 1 << 20)
        for place in UInt64(4)..<12 { try store.write(zeros, at: place << 20) }
        #expect(copy.process.wait() == .exit(0), "\(copy.process.errors)")
        let disk = try TestMount(memory: 16 << 20, in: host.directory)
        try LoopMount.succeed("cp", ["-r", "--sparse=always", copy.destination, disk("copy")])

        let integrate = ["integrate", disk("copy")]
        let full = try Outboard.run(integrate)
        #expect(full.status == 73, "\(full)")
        #expect(full.errors.contains(disk("copy")) && full.errors.contains("free some space"), "\(full)")
        // It is as good as before for a restore, and says what to do.
        let verified = try Outboard.run(["verify", disk("copy")])
        #expect(verified.status == 65 && verified.errors.contains("run integrate again"), "\(verified)")
        let restored = host.directory("restored")
        try LoopMount.succeed(Outboard.binary, ["restore", "volume", disk("copy"), "--to", restored])
        #expect(try contents(restored) == instant)

        try disk.grow(to: 64 << 20)
        let done = try Outboard.run(integrate)
        #expect(done.isSuccess, "\(done)")
        #expect(try contents(disk("copy/data.img")) == instant)
        #expect(try Outboard.run(["verify", disk("copy")]).isSuccess)
        #expect(
            try FileManager.default.contentsOfDirectory(atPath: disk("copy")).sorted() == [
                "checksums.integrated", "data.img", "manifest.json", "toc.sqlite",
            ])
    }
}
