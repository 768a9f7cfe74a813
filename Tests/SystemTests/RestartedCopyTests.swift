import Agent
import Blocks
import Foundation
import HostControl
import PhysicalCopy
import TestSupport
import Testing

/// Copies whose cache is far too small, of hosts that begin anew (`--on-cache-full restart-from`), with a writer all the while:
/// each is the volume as of the later instant. The agent is stopped until the cache has been full, so that no machine is too
/// fast or too slow for that.
@Suite(.serialized) struct RestartedCopyTests {
    private static let size: UInt64 = 4 << 20
    private static let hot = ByteRange(offset: 0, count: 64 << 10)

    /// A volume with two places: one that a writer never leaves alone, and one that is written when the cache shall be full.
    private final class Site {
        let host: HostProcess
        /// Its region is a single chunk, so that it never fills the cache.
        let writer: Writer
        let oracle: PrefixOracle
        private let store: NBDStore
        var writers: [PrefixOracle] { [writer.oracle, oracle] }
        var copies: String { host.directory("copies") }

        init(seed: UInt64) throws {
            let scratch = try ScratchDirectory()
            try makePatternFile(scratch("volume.img"), count: Int(RestartedCopyTests.size))
            // Room for seven originals.
            host = try HostProcess(
                scratch,
                options: [
                    "--cache-size", "512KiB", "--chunk-size", "64KiB", "--on-cache-full", "restart-from",
                ])
            let hot = RestartedCopyTests.hot
            let found = try contents(host.source)
            writer = try Writer(
                PrefixOracle(
                    seed: seed << 1, region: hot, maximumLength: 2 << 10, found: Array(found[..<Int(hot.end)])
                ),
                to: host.socket, initializes: false)
            oracle = PrefixOracle(
                seed: seed << 1 | 1, region: ByteRange(offset: hot.end, count: UInt64(found.count) - hot.end),
                maximumLength: 32 << 10, found: Array(found[Int(hot.end)...]))
            store = try NBDStore(.unixSocket(host.socket, export: ""), connections: 1)
            writer.start()
            writer.waitForOperations(10)
        }

        /// Writes, once or more, until it is so.
        func write(until isDone: () throws -> Bool) throws {
            let deadline = MonotonicClock.now + 60_000_000_000
            repeat {
                var isFirst = true
                try oracle.run(on: store) {
                    defer { isFirst = false }
                    return !isFirst
                }
                guard MonotonicClock.now < deadline else {
                    throw TestFailure("the cache does not become full")
                }
            } while try !isDone()
        }

        /// The agent stands still while the host begins anew.
        func restart(under copy: CopyInProgress) throws {
            copy.process.signal(SIGSTOP)
            defer { copy.process.signal(SIGCONT) }
            let before = try host.status().epoch
            // It may be done already.
            guard before?.state == .open else { return }
            try write { try host.status().epoch?.uuid != before?.uuid }
        }

        /// - Returns: the copy's epoch.
        func judge(_ copy: String, _ seed: UInt64) throws -> EpochDescription {
            try writer.stop()
            let verified = try Outboard.run(["verify", copy])
            #expect(verified.isSuccess, "seed \(seed): \(verified)")
            let back = host.directory("back")
            let restored = try Outboard.run(["restore", "volume", copy, "--to", back])
            #expect(restored.isSuccess, "seed \(seed): \(restored)")
            let bytes = try contents(back)
            let epoch = try PhysicalCopy(copy).manifest.epoch
            for oracle in writers {
                let verdict = oracle.judge(
                    Array(bytes[Int(oracle.region.offset)..<Int(oracle.region.end)]),
                    within: oracle.bounds(at: epoch.institutedAt))
                #expect(verdict.isConsistent, "seed \(seed): \(verdict)")
            }
            #expect(try host.isIdle())
            #expect(host.stop() == .exit(0), "\(host.process.errors)")
            let source = try contents(host.source)
            for oracle in writers {
                let verdict = oracle.judgeSource(
                    Array(source[Int(oracle.region.offset)..<Int(oracle.region.end)]))
                #expect(verdict.isConsistent, "seed \(seed): \(verdict)")
            }
            return epoch
        }
    }

    private struct Output: Decodable {
        struct Copy: Decodable {
            var instant: Int64
            var epoch: UInt64
            var restarts: UInt64?
            var firstInstant: Int64?
            var copiedAgainBytes: UInt64?
        }
        var copies: [Copy]
    }

    @Test(arguments: Tier.isFull ? Array(0..<UInt64(6)) : [0, 3])
    func theCopyIsAsOfTheLaterInstant(seed: UInt64) throws {
        // A copy that was done before it could be stopped proves nothing.
        for _ in 0..<5 where try isRestarted(seed) { return }
        Issue.record("seed \(seed): in five copies the host did not begin anew")
    }

    private func isRestarted(_ seed: UInt64) throws -> Bool {
        let site = try Site(seed: seed)
        let copy = try CopyInProgress(
            of: site.host, rate: "1MiB",
            options: [
                "--json", "--mode", seed % 2 == 0 ? "overlay" : "append", "--end",
                seed / 2 % 2 == 0 ? "before-cache-copy" : "after-cache-copy",
            ])
        let begun = try #require(try site.host.status().epoch)
        let before = site.oracle.operations.count
        try site.restart(under: copy)
        if seed % 3 == 0 {
            // Once more, as soon as it has noticed.
            try waitUntil("the agent has noticed") {
                copy.process.errors.contains("has begun anew") || !copy.process.isRunning
            }
            try site.restart(under: copy)
        }
        #expect(copy.process.wait(seconds: 120) == .exit(0), "seed \(seed): \(copy.process.errors)")
        let told = try #require(
            try JSONDecoder().decode(Output.self, from: Data(copy.process.output.utf8)).copies.first)
        let epoch = try site.judge(copy.destination, seed)
        #expect(epoch.restarts == told.restarts && copy.names == ["copy"], "seed \(seed)")
        guard let restarts = epoch.restarts else { return false }
        #expect(epoch.number == begun.number + restarts && epoch.number == told.epoch, "seed \(seed)")
        #expect(epoch.institutedAt == told.instant && epoch.uuid != begun.uuid, "seed \(seed)")
        #expect(told.firstInstant == begun.institutedAt && begun.institutedAt < told.instant, "seed \(seed)")
        #expect(told.copiedAgainBytes ?? 0 > 0, "seed \(seed)")
        // What was written between the two instants is in the copy.
        #expect(site.oracle.bounds(at: told.instant).lowerBound > before, "seed \(seed)")
        #expect(copy.process.errors.contains("be as of a later instant"), "\(copy.process.errors)")
        #expect(!copy.process.errors.contains("cannot go on"), "\(copy.process.errors)")
        #expect(try Outboard.run(["show", copy.destination]).output.contains("cache was full"))
        return true
    }

    /// Nobody waits for a copy that cannot keep up.
    @Test func aHostThatBeginsAnewTooOftenGivesTheCopyUp() throws {
        let site = try Site(seed: 20)
        let copy = try CopyInProgress(of: site.host, rate: "1MiB")
        copy.process.signal(SIGSTOP)
        try site.write { try site.host.status().epoch?.state == .void }
        copy.process.signal(SIGCONT)
        #expect(copy.process.wait() == .exit(75), "\(copy.process.errors)")
        try CopyJudge.expectReasonAlone(site.copies, 75)
        #expect(try site.host.isIdle())
        let next = try Outboard.run(["copy", "--host", site.host.control, "--to", copy.destination])
        #expect(next.isSuccess, "\(next)")
        _ = try site.judge(copy.destination, 20)
    }
}
