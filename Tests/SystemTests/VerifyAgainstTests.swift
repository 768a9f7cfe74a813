import Agent
import Blocks
import Foundation
import PhysicalCopy
import TestSupport
import Testing

/// `copy --keep-epoch`, `verify --against`, `release`: a copy is compared with the logical snapshot that it was made of, under
/// writers.
@Suite(.serialized) struct VerifyAgainstTests {
    private static let size = 16 << 20

    private struct Output: Decodable {
        struct Against: Decodable {
            struct Difference: Decodable, Hashable {
                var offset: UInt64
                var length: UInt64
                var firstByte: UInt64
            }
            var epoch: UInt64
            var bytes: UInt64
            var unusedBytes: UInt64
            var goneBytes: UInt64
            var different: [Difference]
        }
        var ok: Bool
        var findings: [Finding]
        var against: Against?
    }

    private func verify(_ copy: String, _ control: String, status: Int32) throws -> Output {
        let result = try Outboard.run(["verify", copy, "--against", control, "--json"])
        guard result.status == status else { throw TestFailure("not \(status): \(result)") }
        return try JSONDecoder().decode(Output.self, from: Data(result.output.utf8))
    }

    private func refused(_ arguments: [String], _ status: Int32, _ word: String) throws {
        let result = try Outboard.run(arguments)
        #expect(result.status == status && result.errors.contains(word), "\(arguments): \(result)")
    }

    /// A host with a writer in the volume's first quarter.
    private struct Site {
        let host: HostProcess
        let writer: Writer

        init() throws {
            let scratch = try ScratchDirectory()
            try makePatternFile(scratch("volume.img"), count: VerifyAgainstTests.size)
            host = try HostProcess(scratch, options: ["--cache-size", "64MiB", "--chunk-size", "16KiB"])
            let region = ByteRange(offset: 0, count: 4 << 20)
            let found = try contents(host.source)
            writer = try Writer(
                PrefixOracle(
                    seed: 3, region: region, maximumLength: 64 << 10, found: Array(found[..<(4 << 20)])),
                to: host.socket, initializes: false)
            writer.start()
            writer.waitForOperations(10)
        }

        func copy(_ name: String, _ options: [String]) throws -> ProgramResult {
            try Outboard.run(
                ["copy", "--host", host.control, "--to", host.directory(name)] + options)
        }

        func wait(for operations: Int) {
            writer.waitForOperations(writer.oracle.operations.count + operations)
        }
    }

    @Test(arguments: ["overlay", "append"]) func whileTheEpochIsOpen(mode: String) throws {
        let site = try Site()
        let keep = ["--mode", mode, "--end", "after-cache-copy", "--keep-epoch"]
        let made = try site.copy("copy", keep)
        #expect(made.isSuccess && made.output.contains("outboard release"), "\(made)")
        let epoch = try #require(try site.host.status().epoch)
        #expect(epoch.state == .open && !epoch.isHeld)
        let copy = site.host.directory("copy")
        // What is overwritten now is in the logical snapshot as it was.
        site.wait(for: 50)
        let same = try verify(copy, site.host.control, status: 0)
        #expect(same.ok && same.against?.bytes == UInt64(Self.size) && same.against?.goneBytes == 0)
        #expect(same.against?.epoch == epoch.number && same.against?.different == [])
        let told = try Outboard.run(["verify", copy, "--against", site.host.control])
        #expect(told.isSuccess && told.output.contains("the logical snapshot of epoch"), "\(told)")

        // Behind the host's back, so that it keeps no original: what the copy says of itself is right nevertheless.
        let place = (9 << 20) + 5_000
        try flipByte(site.host.source, at: place)
        #expect(try Outboard.run(["verify", copy]).isSuccess)
        let other = try verify(copy, site.host.control, status: 65)
        #expect(!other.ok && other.findings.isEmpty)
        #expect(
            other.against?.different == [.init(offset: 9 << 20, length: 65_536, firstByte: UInt64(place))])
        let words = try Outboard.run(["verify", copy, "--against", site.host.control])
        #expect(
            words.status == 65 && words.errors.contains("first byte that differs is \(place)"), "\(words)")
        try flipByte(site.host.source, at: place)

        try refused(
            ["release", "--host", site.host.control, "--epoch", UUID().uuidString], 66, epoch.uuid)
        let released = try Outboard.run(["release", "--host", site.host.control, "--epoch", epoch.uuid])
        #expect(released.isSuccess && released.output.contains("epoch \(epoch.number)"), "\(released)")
        #expect(try site.host.isIdle())
        let again = try Outboard.run(["release", "--host", site.host.control, "--json"])
        #expect(again.isSuccess && again.output == "{}\n", "\(again)")
        try refused(["verify", copy, "--against", site.host.control], 75, "--keep-epoch")
        try CopyJudge.expectRight(copy, stopped(site), in: site.host.directory)
    }

    private func stopped(_ site: Site) throws -> [Writer] {
        try site.writer.stop()
        return [site.writer]
    }

    @Test func whatCannotBeComparedOrReleased() throws {
        let site = try Site()
        try refused(
            ["copy", "--host", site.host.control, "--to", site.host.directory("x"), "--keep-epoch"], 64,
            "after-cache-copy")
        #expect(try site.copy("copy", ["--end", "after-cache-copy", "--keep-epoch"]).isSuccess)
        let copy = site.host.directory("copy")
        let other = try HostProcess(size: UInt64(Self.size))
        try refused(["verify", copy, "--against", other.control], 66, "another volume")
        try refused(["verify", copy, "--against", site.host.directory("nobody")], 69, "nobody")

        // The next copy releases what was kept; while it runs nobody else may.
        let next = try CopyInProgress(of: site.host, rate: "1MiB")
        try refused(["release", "--host", site.host.control], 75, "a copy is running")
        try refused(["verify", copy, "--against", site.host.control], 75, "is over")
        next.process.signal(SIGINT)
        #expect(next.process.wait() == .exit(75))
        #expect(next.process.errors.contains("or kept"), "\(next.process.errors)")
        #expect(try site.host.isIdle())

        // A copy that fails keeps nothing.
        let failed = try site.copy(
            "copy", ["--end", "after-cache-copy", "--keep-epoch", "--post-thaw", "false", "--force"])
        #expect(!failed.isSuccess, "\(failed)")
        #expect(try site.host.isIdle())
        _ = try stopped(site)
    }

    /// Of a copy of what is in use the rest is not compared.
    @Test func aCopyOfWhatIsInUse() throws {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("file"), count: 1 << 20)
        try makePatternFile(scratch("volume.img"), count: Self.size)
        let formatted = try runProgram("mkfs.ext4", ["-q", "-F", scratch("volume.img")])
        #expect(formatted.isSuccess, "\(formatted)")
        let host = try HostProcess(scratch)
        let made = try Outboard.run([
            "copy", "--host", host.control, "--to", scratch("copy"), "--used-only", "--end",
            "after-cache-copy", "--keep-epoch",
        ])
        #expect(made.isSuccess, "\(made)")
        let same = try verify(scratch("copy"), host.control, status: 0)
        let against = try #require(same.against)
        #expect(against.unusedBytes > 8 << 20 && against.bytes + against.unusedBytes == UInt64(Self.size))
    }

    /// A cache that was full, so that the host began anew: what was copied again has the sums of what was copied again, from
    /// the bridge.
    @Test func aRestartedCopySumsUp() throws {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("volume.img"), count: Self.size)
        let host = try HostProcess(
            scratch,
            options: ["--cache-size", "2MiB", "--chunk-size", "64KiB", "--on-cache-full", "restart-from"])
        let found = try contents(host.source)
        let copy = try CopyInProgress(of: host, rate: "4MiB", options: ["--no-toc", "--json"])
        let store = try NBDStore(.unixSocket(host.socket, export: ""), connections: 1)
        let chunk = 65_536
        for place in 0..<60 {
            let new = [UInt8](repeating: UInt8(place + 1), count: chunk)
            try store.write(new, at: UInt64(place * chunk))
        }
        #expect(copy.process.wait() == .exit(0), "\(copy.process.errors)")
        struct Output: Decodable { var copies: [CopyOutcome] }
        let output = try JSONDecoder().decode(Output.self, from: Data(copy.process.output.utf8))
        let outcome = try #require(output.copies.first)
        #expect((outcome.restarts ?? 0) > 0 && (outcome.copiedAgainBytes ?? 0) > 0, "\(outcome)")
        #expect(outcome.readBackBytes == 0)
        #expect(try Outboard.run(["verify", copy.destination]).isSuccess)
        // As of one moment between two of the writes.
        let bytes = try contents(copy.destination + "/data.img")
        var expected = found
        var written = 0
        while written < 60, bytes[written * chunk] == UInt8(written + 1) {
            let place = written * chunk
            expected.replaceSubrange(
                place..<place + chunk, with: repeatElement(UInt8(written + 1), count: chunk))
            written += 1
        }
        #expect(written > 0 && bytes == expected, "\(written) were written by the instant")
    }
}
