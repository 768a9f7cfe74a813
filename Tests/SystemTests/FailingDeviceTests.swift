import Agent
import Blocks
import Foundation
import HostControl
import TestSupport
import Testing

/// Devices that fail: nbdkit's error and delay filters through nbdfuse, and loop devices whose backing file has no room.
/// What comes from the source reaches the application as it is; what comes from the cache or the copy never does.
@Suite(.serialized, .enabled(if: TestMount.isPossible, "\(TestMount.reason)")) struct FailingDeviceTests {
    private static let size: UInt64 = 8 << 20

    /// A file that exists while a filter is to inject errors.
    private struct Trigger {
        let path: String
        func pull() throws { try Data().write(to: URL(fileURLWithPath: path)) }
        func release() { unlink(path) }
    }

    private func makeScratch() throws -> (ScratchDirectory, Trigger) {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("volume.img"), count: Int(Self.size))
        for name in ["copies"] {
            try FileManager.default.createDirectory(atPath: scratch(name), withIntermediateDirectories: false)
        }
        return (scratch, Trigger(path: scratch("trigger")))
    }

    private func startWriter(_ host: HostProcess) throws -> Writer {
        let writer = try Writer(
            PrefixOracle(
                seed: 31, region: ByteRange(offset: 0, count: Self.size), maximumLength: 32 << 10,
                flushInterval: 50), to: host.socket)
        writer.start()
        writer.waitForOperations(10)
        return writer
    }

    private func copy(_ host: HostProcess, _ options: [String] = []) throws -> ProgramResult {
        try Outboard.run(["copy", "--host", host.control, "--to", host.directory("copies/copy")] + options)
    }

    /// The application noticed nothing, and the next copy, with devices that are well again, is right.
    /// - Parameter failed: exit status of the copy before, if that failed.
    private func expectOrder(
        _ host: HostProcess, _ writer: Writer, after failed: Int32?, source: String? = nil,
        _ options: [String] = []
    ) throws {
        writer.waitForOperations(writer.oracle.operations.count + 10)
        if let failed { try CopyJudge.expectReasonAlone(host.directory("copies"), failed) }
        let next = try copy(host, options)
        #expect(next.isSuccess, "\(next)")
        try writer.stop()
        try CopyJudge.expectRight(host.directory("copies/copy"), [writer], in: host.directory)
        #expect(host.stop() == .exit(0), "\(host.process.errors)")
        try CopyJudge.expectKept(source ?? host.source, [writer])
    }

    // MARK: The source

    @Test(arguments: ["EIO", "ENOSPC"], [false, true])
    func anErrorOfTheSourceReachesTheApplication(error: String, isEpochOpen: Bool) throws {
        let (scratch, trigger) = try makeScratch()
        let source = try FilteredFile(
            "source", on: scratch("volume.img"),
            ["--filter=error", "error=\(error)", "error-rate=100%", "error-file=\(trigger.path)"], in: scratch
        )
        let host = try HostProcess(scratch, source: source.path)
        let store = try NBDStore(.unixSocket(host.socket, export: ""), connections: 1)
        let line = try HostClient(path: host.control)
        if isEpochOpen { _ = try line.call(SnapshotBeginMethod.self, Empty()) }
        let block = [UInt8](repeating: 0x5A, count: 4096)
        try store.write(block, at: 0)
        try trigger.pull()
        let failure = #expect(throws: StoreError.self) { try store.write(block, at: 1 << 20) }
        #expect(failure?.code == (error == "EIO" ? .io : .noSpace), "\(failure as Any)")
        trigger.release()
        // It is over: so is the error. The epoch whose original could not be read is, too.
        try store.write(block, at: 1 << 20)
        try store.flush()
        #expect(try store.bytes(at: 1 << 20, count: 4096) == block)
        if isEpochOpen { #expect(try host.status().epoch?.state == .void) }
        line.close()
        #expect(try copy(host).isSuccess)
        withExtendedLifetime(source) {}
    }

    @Test(arguments: ["overlay", "append"])
    func readErrorsOfTheSourceEndTheCopyAlone(mode: String) throws {
        let (scratch, trigger) = try makeScratch()
        let source = try FilteredFile(
            "source", on: scratch("volume.img"),
            ["--filter=error", "error-pread-rate=100%", "error-pread-file=\(trigger.path)"], in: scratch)
        let host = try HostProcess(scratch, source: source.path)
        let writer = try startWriter(host)
        let copying = try CopyInProgress(of: host, rate: "1MiB", options: ["--mode", mode])
        try trigger.pull()
        // The bridge's reads fail, or the host's own of originals, whichever comes first.
        guard case .exit(let status) = copying.process.wait() else { throw TestFailure("no end") }
        #expect(status == 74 || status == 75, "\(copying.process.errors)")
        trigger.release()
        try expectOrder(host, writer, after: status, source: scratch("volume.img"))
        withExtendedLifetime(source) {}
    }

    /// A write that was answered and never reaches the disk: the next flush says so, and no copy is made of that.
    @Test func aSourceThatLosesItsWriteBackIsToldToTheApplication() throws {
        let scratch = try ScratchDirectory()
        let disk = try TestMount(memory: 16 << 20, in: scratch)
        try makeSparseFile(disk("behind"), size: Self.size)
        let device = try LoopDevice(over: disk("behind"))
        let host = try HostProcess(scratch, source: device.path)
        let store = try NBDStore(.unixSocket(host.socket, export: ""), connections: 1)
        try disk.leave(1 << 20)
        let block = [UInt8](repeating: 0x5A, count: 1 << 20)
        // Some of it may be written back, and fail, before the flush.
        let failure = #expect(throws: StoreError.self) {
            for place in 0..<UInt64(4) { try store.write(block, at: place << 20) }
            try store.flush()
        }
        #expect(failure?.code == .io || failure?.code == .noSpace, "\(failure as Any)")
        let refused = try Outboard.run(["copy", "--host", host.control, "--to", scratch("copy")])
        #expect(refused.status == 74, "\(refused)")
        #expect(!FileManager.default.fileExists(atPath: scratch("copy")))
        #expect(try store.bytes(at: 7 << 20, count: 4096) == [UInt8](repeating: 0, count: 4096))
        // Its own flush at the end fails, too.
        #expect(host.stop() == .exit(74), "\(host.process.errors)")
        withExtendedLifetime(device) {}
    }

    // MARK: The cache

    @Test(arguments: ["abandon", "block"])
    func errorsOfTheCacheNeverReachTheApplication(policy: String) throws {
        let (scratch, trigger) = try makeScratch()
        try makeSparseFile(scratch("behind"), size: 24 << 20)
        let cache = try FilteredFile(
            "cache", on: scratch("behind"),
            [
                "--filter=error", "error-pread-rate=3%", "error-pwrite-rate=3%",
                "error-pread-file=\(trigger.path)", "error-pwrite-file=\(trigger.path)",
            ], in: scratch)
        let host = try HostProcess(scratch, cache: cache.path, options: ["--on-cache-full", policy])
        let writer = try startWriter(host)
        try trigger.pull()
        var endings: [Int32: Int] = [:]
        for round in 0..<6 {
            let made = try copy(
                host, ["--mode", round % 2 == 0 ? "overlay" : "append", "--max-rate", "32MiB"])
            endings[made.status, default: 0] += 1
            #expect([0, 74, 75].contains(made.status), "\(made)")
            guard made.isSuccess else { continue }
            try CopyJudge.expectRight(host.directory("copies/copy"), [writer], in: scratch, "round \(round)")
            try FileManager.default.removeItem(atPath: host.directory("copies/copy"))
        }
        print("errorsOfTheCacheNeverReachTheApplication(\(policy)): copies ended \(endings)")
        #expect(endings.keys.contains { $0 != 0 }, "no error was injected")
        trigger.release()
        try expectOrder(host, writer, after: nil)
        withExtendedLifetime(cache) {}
    }

    /// Originals that were written and never reach the cache's disk: the log's flush says so, and there is no copy.
    @Test(arguments: ["process", "power"])
    func aCacheThatLosesItsWriteBackMakesNoCopy(durability: String) throws {
        let (scratch, _) = try makeScratch()
        let disk = try TestMount(memory: 32 << 20, in: scratch)
        try makeSparseFile(disk("behind"), size: 24 << 20)
        let device = try LoopDevice(over: disk("behind"))
        let host = try HostProcess(scratch, cache: device.path, options: ["--durability", durability])
        let writer = try startWriter(host)
        try disk.leave(1 << 20)
        let failed = try copy(host, ["--max-rate", "4MiB"])
        #expect(failed.status == 75, "\(failed)")
        unlink(disk("filler"))
        try expectOrder(host, writer, after: 75)
        withExtendedLifetime(device) {}
    }

    // MARK: The copy

    @Test func aCopyUnitThatFailsEndsTheCopyAlone() throws {
        let (scratch, trigger) = try makeScratch()
        try makeSparseFile(scratch("behind"), size: 24 << 20)
        let unit = try FilteredFile(
            "unit", on: scratch("behind"),
            [
                "--filter=error", "error-pwrite-rate=100%", "error-zero-rate=100%",
                "error-pwrite-file=\(trigger.path)", "error-zero-file=\(trigger.path)",
            ], in: scratch)
        let host = try HostProcess(scratch)
        let writer = try startWriter(host)
        let bridge = try BridgeProcess(units: ["0=\(host.source),ro", "1=\(host.cache),ro", "2=\(unit.path)"])
        let options = [
            "--bridge", bridge.uri, "--source-unit", "0", "--cache-unit", "1", "--copy-unit", "2", "--force",
        ]
        for mode in ["overlay", "append"] {
            let copying = try Outboard.start(
                [
                    "copy", "--host", host.control, "--to", scratch("copies/copy"), "--mode", mode,
                    "--max-rate", "2MiB",
                ]
                    + options)
            try waitUntil("an epoch is open") { try host.status().epoch?.state == .open }
            try trigger.pull()
            #expect(copying.wait() == .exit(74), "\(copying.errors)")
            #expect(try host.isIdle())
            trigger.release()
        }
        try expectOrder(host, writer, after: 74, options)
        withExtendedLifetime(unit) {}
    }

    /// The copy's file system lies on a loop device whose backing file has no room: it gets EIO where it was given blocks.
    @Test(arguments: ["overlay", "append"]) func aCopysDiskThatFailsEndsTheCopyAlone(mode: String) throws {
        let (scratch, _) = try makeScratch()
        let disk = try TestMount(memory: 64 << 20, in: scratch)
        try makeSparseFile(disk("image"), size: 48 << 20)
        try LoopMount.succeed("mkfs.ext4", ["-q", disk("image")])
        let place = scratch("failing")
        try FileManager.default.createDirectory(atPath: place, withIntermediateDirectories: false)
        try LoopMount.succeed("mount", ["-o", "loop", disk("image"), place])
        defer { LoopMount.unmount(place) }
        let host = try HostProcess(scratch)
        let writer = try startWriter(host)
        let copying = try CopyInProgress(of: host, in: place, options: ["--mode", mode])
        try disk.leave(0)
        let ending = copying.process.wait()
        #expect(ending == .exit(74) || ending == .exit(73), "\(copying.process.errors)")
        // Where nothing can be written, not even the reason can.
        let show = try Outboard.run(["show", copying.destination])
        #expect(show.status == 66 || show.status == 75, "\(show)")
        try expectOrder(host, writer, after: nil)
    }

    // MARK: Slow ones

    @Test func slowDevicesMakeRightCopies() throws {
        let (scratch, _) = try makeScratch()
        try makeSparseFile(scratch("behind"), size: 24 << 20)
        let source = try FilteredFile(
            "source", on: scratch("volume.img"), ["--filter=delay", "rdelay=1ms", "wdelay=2ms"], in: scratch)
        let cache = try FilteredFile(
            "cache", on: scratch("behind"), ["--filter=delay", "rdelay=1ms", "wdelay=3ms"], in: scratch)
        let host = try HostProcess(scratch, source: source.path, cache: cache.path)
        let writer = try startWriter(host)
        try expectOrder(host, writer, after: nil, source: scratch("volume.img"))
        withExtendedLifetime((source, cache)) {}
    }
}
