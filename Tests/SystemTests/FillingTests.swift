import Agent
import Blocks
import Foundation
import TestSupport
import Testing

/// Small file systems that fill up in the middle of copies, under the cache and under the copy, while a writer writes: it
/// sees no error and loses nothing; the copy says why it ended, and nothing of it stays.
@Suite(.serialized, .enabled(if: TestMount.isPossible, "\(TestMount.reason)")) struct FillingTests {
    private static let size = 12 << 20
    private static let kinds = ["tmpfs", "ext4", "xfs"]

    /// A host whose cache, a sparse file, may become larger than its disk has room.
    private final class Site {
        let disk: TestMount
        let host: HostProcess
        let writer: Writer
        var scratch: ScratchDirectory { host.directory }
        var copy: String { scratch("copies/copy") }

        /// - Parameter room: bytes for the cache.
        init(_ kind: String, room: UInt64, options: [String] = []) throws {
            let scratch = try ScratchDirectory()
            try makePatternFile(scratch("volume.img"), count: FillingTests.size)
            try FileManager.default.createDirectory(
                atPath: scratch("copies"), withIntermediateDirectories: false)
            disk = try TestMount(kind, size: 32 << 20, in: scratch)
            host = try HostProcess(
                scratch, cache: disk("cache"), options: ["--cache-size", "24MiB"] + options)
            try disk.leave(room)
            writer = try Writer(
                PrefixOracle(
                    seed: 21, region: ByteRange(offset: 0, count: UInt64(FillingTests.size)),
                    maximumLength: 64 << 10, flushInterval: 50), to: host.socket)
            writer.start()
            writer.waitForOperations(10)
        }

        /// The agent stands still from when the epoch is open until `isSo`: however slow the writer is, the copy has not
        /// ended by then.
        func startCopy(
            _ options: [String] = [], heldUntil what: String, _ isSo: () throws -> Bool
        ) throws -> ChildProcess {
            let process = try Outboard.start(["copy", "--host", host.control, "--to", copy] + options)
            // By the clock: neither an epoch's state nor a file system that is full is an event.
            try waitUntil("the epoch is open") {
                guard process.isRunning else { throw TestFailure("the copy ended: \(process.errors)") }
                return try host.status().epoch?.state == .open
            }
            process.signal(SIGSTOP)
            defer { process.signal(SIGCONT) }
            try waitUntil(what, seconds: 240, isSo)
            return process
        }

        func isVoid() throws -> Bool { try host.status().epoch?.state == .void }

        /// The writer noticed nothing, nothing is left of the copy, and the next one is right.
        func expectOrder(_ status: Int32) throws {
            writer.waitForOperations(writer.oracle.operations.count + 10)
            try CopyJudge.expectReasonAlone(scratch("copies"), status)
            #expect(try host.isIdle())
            unlink(disk("filler"))
            let next = try Outboard.run(["copy", "--host", host.control, "--to", copy])
            #expect(next.isSuccess, "\(next)")
            try writer.stop()
            try CopyJudge.expectRight(copy, [writer], in: scratch)
            #expect(host.stop() == .exit(0), "\(host.process.errors)")
            try CopyJudge.expectKept(host.source, [writer])
        }
    }

    @Test(arguments: kinds, ["overlay", "append"])
    func underTheCacheTheCopyIsAbandoned(kind: String, mode: String) throws {
        let site = try Site(kind, room: 2 << 20)
        let copy = try site.startCopy(["--mode", mode], heldUntil: "the epoch is void", site.isVoid)
        #expect(copy.wait() == .exit(75), "\(copy.errors)")
        #expect(copy.errors.contains("the cache failed: no space left"), "\(copy.errors)")
        try site.expectOrder(75)
    }

    /// Writes wait, and go on when somebody makes room; the copy is none the worse.
    @Test(arguments: kinds) func underTheCacheWritesWaitForRoom(kind: String) throws {
        let site = try Site(kind, room: 2 << 20, options: ["--on-cache-full", "block"])
        // Some file systems keep a little for themselves: it is full when nothing more comes.
        var (used, time) = (UInt64(0), MonotonicClock.now)
        let copy = try site.startCopy(heldUntil: "the cache's disk is full") {
            let now = try site.host.status().cacheUsed
            if now != used { (used, time) = (now, MonotonicClock.now) }
            guard try site.disk.space() < 1 << 20, MonotonicClock.now - time > 1_000_000_000 else {
                return false
            }
            unlink(site.disk("filler"))
            return true
        }
        #expect(copy.wait() == .exit(0), "\(copy.errors)")
        site.writer.waitForOperations(site.writer.oracle.operations.count + 10)
        try site.writer.stop()
        try CopyJudge.expectRight(site.copy, [site.writer], in: site.scratch)
        #expect(site.host.stop() == .exit(0), "\(site.host.process.errors)")
        try CopyJudge.expectKept(site.host.source, [site.writer])
    }

    /// Nobody makes room: after its patience the host lets the writes go and the copy be abandoned.
    @Test func underTheCacheWritesWaitForSoLong() throws {
        let site = try Site("tmpfs", room: 2 << 20, options: ["--on-cache-full", "block"])
        let copy = try site.startCopy(heldUntil: "the epoch is void", site.isVoid)
        #expect(copy.wait() == .exit(75), "\(copy.errors)")
        try site.expectOrder(75)
    }

    @Test(arguments: ["ext4", "xfs"], ["overlay", "append"])
    func underTheCopyItEndsWithItsReason(kind: String, mode: String) throws {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("volume.img"), count: Self.size)
        let host = try HostProcess(scratch)
        let writer = try Writer(
            PrefixOracle(
                seed: 22, region: ByteRange(offset: 0, count: UInt64(Self.size)), maximumLength: 64 << 10,
                flushInterval: 50), to: host.socket)
        writer.start()
        writer.waitForOperations(10)
        let disk = try TestMount(kind, size: 48 << 20, in: scratch)
        let copy = try CopyInProgress(of: host, in: disk.path, options: ["--mode", mode])
        try disk.fill()
        #expect(copy.process.wait() == .exit(73), "\(copy.process.errors)")
        #expect(copy.process.errors.contains("\(copy.destination): no space left"), "\(copy.process.errors)")
        #expect(try disk.names == ["copy", "filler"])
        writer.waitForOperations(writer.oracle.operations.count + 10)
        #expect(try host.isIdle())
        unlink(disk("filler"))
        let next = try Outboard.run([
            "copy", "--host", host.control, "--to", copy.destination, "--mode", mode,
        ])
        #expect(next.isSuccess, "\(next)")
        try writer.stop()
        try CopyJudge.expectRight(copy.destination, [writer], in: scratch)
        #expect(host.stop() == .exit(0), "\(host.process.errors)")
        try CopyJudge.expectKept(host.source, [writer])
    }
}
