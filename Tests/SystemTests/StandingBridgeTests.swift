import AsyncIO
import Blocks
import Foundation
import PhysicalCopy
import TestSupport
import Testing

/// Copies by a bridge that somebody else runs, with CHAP.
@Suite(.serialized) struct StandingBridgeTests {
    private static let size = 6 << 20
    /// Unit 0: the source; 1: the cache; 2: for the copy; 3: another volume of the same size; 4: unit 2's
    /// like, read-only; 5: a block too small.
    private struct Site {
        let host: HostProcess
        let bridge: BridgeProcess
        let chap: String
        var directory: ScratchDirectory { host.directory }
        var copyFile: String { directory("copy-unit") }

        init() throws {
            let scratch = try ScratchDirectory()
            try makePatternFile(scratch("volume.img"), count: StandingBridgeTests.size)
            try makePatternFile(scratch("other"), count: StandingBridgeTests.size, seed: 2)
            for name in ["copy-unit", "read-only"] { try makeSparseFile(scratch(name), size: 32 << 20) }
            try makeSparseFile(scratch("small"), size: UInt64(StandingBridgeTests.size) - 512)
            chap = scratch("chap")
            // One file for both ends; an iSCSI name holds a colon.
            try Self.write("iqn.2026-01.net.example:agent a-long-enough-secret\n", chap)
            host = try HostProcess(scratch, options: ["--cache-size", "16MiB", "--chunk-size", "16KiB"])
            bridge = try BridgeProcess(
                units: [
                    "0=\(host.source),ro", "1=\(host.cache),ro", "2=" + scratch("copy-unit"),
                    "3=\(scratch("other")),ro", "4=\(scratch("read-only")),ro", "5=\(scratch("small"))",
                ], options: ["--chap-file", chap])
        }

        static func write(_ text: String, _ path: String) throws {
            try text.write(toFile: path, atomically: true, encoding: .utf8)
            guard chmod(path, 0o600) == 0 else { throw TestFailure("chmod \(path)") }
        }

        func copy(
            to name: String = "copy", source: Int = 0, copy: Int = 2, uri: String? = nil, chap: String? = nil,
            options: [String] = []
        ) throws -> ProgramResult {
            try Outboard.run(
                [
                    "copy", "--host", host.control, "--to", directory(name), "--bridge", uri ?? bridge.uri,
                    "--source-unit", "\(source)", "--cache-unit", "1", "--copy-unit", "\(copy)",
                    "--chap-file", chap ?? self.chap,
                ] + options)
        }

        /// - Parameter later: it is refused after the instant, which is told at the destination.
        func expectRefusal(
            _ result: ProgramResult, _ status: Int32, _ words: String, later: Bool = false
        ) throws {
            #expect(result.status == status, "\(result)")
            #expect(result.errors.contains(words), "\(result)")
            #expect(FileManager.default.fileExists(atPath: directory("copy")) == later)
            #expect(
                try AbandonedCopy.find(directory("copy"))?.postMortem.exitStatus == (later ? status : nil))
            #expect(try host.isIdle())
            var file = stat()
            #expect(stat(copyFile, &file) == 0 && file.st_blocks == 0, "something was copied")
        }
    }

    @Test(arguments: ["overlay", "append"], ["before-cache-copy", "after-cache-copy"])
    func itCopiesAmongItsUnits(mode: String, end: String) throws {
        let site = try Site()
        let writer = try Writer(
            PrefixOracle(
                seed: 11, region: ByteRange(offset: 0, count: UInt64(Self.size)), maximumLength: 16 << 10),
            to: site.host.socket)
        writer.start()
        writer.waitForOperations(10)
        let made = try site.copy(options: ["--mode", mode, "--end", end])
        try writer.stop()
        #expect(made.status == 0, "\(made)")
        // The data are the bridge's: without its secret they are not to be had.
        let refused = try Outboard.run(["verify", site.directory("copy")])
        #expect(refused.status == 77, "\(refused)")
        let verified = try Outboard.run(["verify", site.directory("copy"), "--chap-file", site.chap])
        #expect(verified.status == 0, "\(verified)")
        let restored = try Outboard.run([
            "restore", "volume", site.directory("copy"), "--to", site.directory("back"), "--chap-file",
            site.chap,
        ])
        #expect(restored.status == 0, "\(restored)")

        // At the bridge they verify, and merge.
        let copy = try PhysicalCopy(site.directory("copy"))
        let store = try StorageFile.open(
            site.copyFile, access: .readOnly, mode: .pageCache, lock: .none)
        let opener: DataOpener = { (_, _) throws(CopyError) in store }
        let report = try copy.verify(opener)
        #expect(report.isClean, "\(report.findings)")
        let bytes = try copy.openVolume(opener).bytes(at: 0, count: Self.size)
        let verdict = writer.oracle.judge(
            bytes, within: writer.oracle.bounds(at: try CopiedEpoch(of: copy.directory).institutedAt))
        #expect(verdict.isConsistent, "\(verdict)")
        #expect(try contents(site.directory("back")) == bytes)
    }

    @Test func anotherVolumeIsNoSource() throws {
        let site = try Site()
        try site.expectRefusal(site.copy(source: 3), 66, "source unit", later: true)
    }

    @Test func aReadOnlyUnitIsNoDestination() throws {
        let site = try Site()
        try site.expectRefusal(site.copy(copy: 4), 77, "read-only")
    }

    @Test func theSourceIsNoDestination() throws {
        let site = try Site()
        try site.expectRefusal(site.copy(copy: 0), 64, "overwrite")
    }

    @Test func aUnitThatIsTooSmallIsNoDestination() throws {
        let site = try Site()
        try site.expectRefusal(site.copy(copy: 5), 73, "bytes, and the copy needs")
        try site.expectRefusal(site.copy(copy: 5, options: ["--mode", "append"]), 73, "and the copy needs")
    }

    @Test func aUnitThatHoldsSomethingIsKeptUnlessForced() throws {
        let site = try Site()
        #expect(try site.copy().isSuccess)
        let refused = try site.copy(to: "again")
        #expect(refused.status == 73 && refused.errors.contains("--force"), "\(refused)")
        let forced = try site.copy(to: "again", options: ["--force"])
        #expect(forced.isSuccess, "\(forced)")
    }

    @Test func wrongCredentialsAreNotPermitted() throws {
        let site = try Site()
        let wrong = site.directory("wrong")
        try Site.write("agent another-long-secret\n", wrong)
        try site.expectRefusal(site.copy(chap: wrong), 77, site.bridge.portal)
        try Site.write("agent\n", wrong)
        try site.expectRefusal(site.copy(chap: wrong), 64, "is not `name secret`")
        #expect(chmod(wrong, 0o640) == 0)
        try site.expectRefusal(site.copy(chap: wrong), 77, "chmod 600")
        try site.expectRefusal(site.copy(chap: site.directory("none")), 66, "none: No such file")
    }

    @Test func aMissingUnitIsMissingInput() throws {
        let site = try Site()
        try site.expectRefusal(site.copy(source: 9), 66, "9")
        try site.expectRefusal(site.copy(copy: 9), 66, "9")
    }

    @Test func aBridgeThatIsNotThereIsUnavailable() throws {
        let site = try Site()
        site.bridge.process.stop()
        try site.expectRefusal(site.copy(), 69, site.bridge.portal)
    }
}
