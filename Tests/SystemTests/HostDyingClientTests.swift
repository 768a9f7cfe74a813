import Agent
import Blocks
import Foundation
import HostControl
import TestSupport
import Testing

/// Clients die in every way and at any moment: the host serves on, and each of their requests is done or not, never half.
@Suite(.serialized) struct HostDyingClientTests {
    private static let clientsOfAWave = 8
    private static let waves = Tier.isFull ? 125 : 5
    private static let region = UInt64(clientsOfAWave) * DyingClient.slot

    /// The host, and an oracle's writer that uses the second half of the volume all the time.
    private final class Site {
        let host: HostProcess
        let writer: Writer
        let line: HostClient
        let store: NBDStore
        /// As qemu takes it.
        let tls: String
        var content: [UInt8]
        private let descriptors: Int

        init() throws {
            let scratch = try ScratchDirectory()
            try TestCertificates.make(in: scratch)
            let region = HostDyingClientTests.region
            try makePatternFile(scratch("volume.img"), count: Int(region) + (2 << 20))
            // Each first write of an epoch waits for the disk: requests are under way when their clients die.
            host = try HostProcess(
                scratch,
                options: ["--cache-size", "64MiB", "--chunk-size", "64KiB", "--durability", "power"]
                    + TestCertificates.hostOptions(in: scratch))
            guard let uri = try host.status().uris.first(where: { $0.hasPrefix("nbds:") }),
                let port = uri.split(separator: ":").last
            else { throw TestFailure("the host is not on TCP") }
            tls = "driver=nbd,server.type=inet,server.host=localhost,server.port=\(port),tls-creds=t"
            content = Array(try contents(host.source).prefix(Int(region)))
            store = try NBDStore(.unixSocket(host.socket, export: ""), connections: 1)
            line = try HostClient(path: host.control)
            writer = try Writer(
                PrefixOracle(
                    seed: 5, region: ByteRange(offset: region, count: 2 << 20), maximumLength: 16 << 10,
                    flushInterval: 50), to: host.socket)
            _ = try store.bytes(at: 0, count: 512)
            descriptors = RunningProcesses.count("fd", of: host.process.identifier)
            writer.start()
        }

        /// By the clock: what a process gives back is no event for others. Snapshot and status come and go.
        func awaitRelease(_ wave: Int) throws {
            try waitUntil("the host has let go of wave \(wave)", seconds: 60) {
                RunningProcesses.count("fd", of: host.process.identifier) <= descriptors
            }
        }
    }

    @Test func aThousandClientsDie() throws {
        let site = try Site()
        var generator = SeededGenerator(seed: 2026)
        var fates: [String: Int] = [:]
        var threads = 0
        for wave in 0..<Self.waves {
            let done = try Self.run(wave, site, &generator)
            fates.merge(done, uniquingKeysWith: +)
            if wave == Self.waves / 5 {
                threads = RunningProcesses.count("task", of: site.host.process.identifier)
            }
        }
        print(
            "HostDyingClientTests: \(Self.waves * Self.clientsOfAWave) clients died; their writes: \(fates)")
        // Each of these must have been seen, or the test shows nothing.
        for fate in ["answered, done", "sent, done", "sentInPart, not done"] {
            #expect(fates[fate, default: 0] > 0, "\(fate): \(fates)")
        }
        try waitUntil("the host has given back the threads", seconds: 60) {
            RunningProcesses.count("task", of: site.host.process.identifier) <= threads + 8
        }
        try site.writer.stop()
        site.line.close()
        #expect(site.host.stop() == .exit(0), "\(site.host.process.errors)")
        let oracle = site.writer.oracle
        let bytes = try contents(site.host.source)[Int(oracle.region.offset)...]
        #expect(oracle.judgeSource(Array(bytes)).isConsistent)
        #expect(oracle.operations.count > Self.waves)
    }

    /// - Returns: how many writes had which fate.
    private static func run(
        _ wave: Int, _ site: Site, _ generator: inout SeededGenerator
    ) throws -> [String: Int] {
        let epoch = try site.line.call(SnapshotBeginMethod.self, Empty())
        let clients = (0..<clientsOfAWave).map { slot in
            let manners = DyingClient.Manner.allCases
            let manner = manners[(wave * clientsOfAWave + slot) % manners.count]
            return DyingClient(
                manner, slot: UInt64(slot) * DyingClient.slot,
                byte: UInt8((wave * clientsOfAWave + slot) % 251 + 1))
        }
        for client in clients { try client.begin(site.host, tls: site.tls, using: &generator) }
        for client in clients { client.stop() }
        // A moment of its own for each: some have only begun by then, others have all done.
        for client in clients.shuffled(using: &generator) {
            usleep(UInt32.random(in: 0..<20_000, using: &generator))
            client.die()
        }
        try site.awaitRelease(wave)
        let snapshot = try NBDStore(.unixSocket(site.host.socket, export: "snapshot"), connections: 1)
        let before = try snapshot.bytes(at: 0, count: Int(region))
        #expect(haveSameBytes(before, site.content), "wave \(wave): the snapshot")
        let end = EpochParameters(epoch: epoch.uuid)
        _ = try site.line.call(CacheReleaseMethod.self, end)

        let now = try site.store.bytes(at: 0, count: Int(region))
        var expected = site.content
        var fates: [String: Int] = [:]
        for client in clients {
            for write in client.log {
                let place = Int(write.range.offset)..<Int(write.range.end)
                let isDone = isFilled(now, in: place, with: write.byte)
                if isDone {
                    expected.replaceSubrange(place, with: repeatElement(write.byte, count: place.count))
                }
                fates["\(write.fate), \(isDone ? "done" : "not done")", default: 0] += 1
                let isRight =
                    switch write.fate {
                    case .answered: isDone
                    case .sent: true
                    case .sentInPart: !isDone
                    }
                #expect(isRight, "wave \(wave), \(client.manner): \(write)")
            }
        }
        // What is not done whole is not begun.
        #expect(haveSameBytes(now, expected), "wave \(wave): a write is done in part")
        site.content = now
        return fates
    }

    /// Certainly with all its writes in flight: on a source whose every write takes 10 ms, one after another.
    @Test(.enabled(if: LoopMount.isPossible, "host tier only: the slow source needs root and /dev/fuse"))
    func clientsDieInMidWriteOfASlowSource() throws {
        let deaths = 60
        let scratch = try ScratchDirectory()
        try makeSparseFile(scratch("backing"), size: 32 << 20)
        let slow = try FilteredFile(
            "slow", on: scratch("backing"), ["--filter=delay", "wdelay=10ms", "rdelay=5ms"], in: scratch)
        let host = try HostProcess(scratch, source: slow.path, options: ["--cache-size", "16MiB"])
        let process = host.process.identifier
        let store = try NBDStore(.unixSocket(host.socket, export: ""), connections: 1)
        let writes = (0..<64).flatMap { ["-c", "aio_write -q -P 0x5a \($0 * 64)k 4k"] }
        // Its connection is there; the control connections come and go.
        _ = try store.bytes(at: 0, count: 512)
        let descriptors = RunningProcesses.count("fd", of: process)
        var threads = 0
        var inFlight: [UInt64] = []
        for death in 1...deaths {
            let before = try host.status().counters
            let client = try ChildProcess(
                "qemu-io", ["-f", "raw", "-t", "none"] + writes + ["-c", "sleep 600000", host.uri])
            // One has come through, so the others are in flight.
            try waitUntil("client \(death) writes", seconds: 30) {
                guard client.isRunning else { throw TestFailure("the client ended: \(client.errors)") }
                return try host.status().counters.writes > before.writes
            }
            client.signal(SIGKILL)
            inFlight.append(64 - min(64, try host.status().counters.writes - before.writes))
            _ = client.waitForExit()
            // What it had sent whole is done, and nothing of it stays.
            try waitUntil("the host has let go of client \(death)", seconds: 30) {
                RunningProcesses.count("fd", of: process) <= descriptors
            }
            guard death % 10 == 0 else { continue }
            // Behind the region of those that die.
            let content = [UInt8](repeating: UInt8(truncatingIfNeeded: death), count: 4096)
            try store.write(content, at: 16 << 20)
            #expect(try store.bytes(at: 16 << 20, count: 4096) == content)
            // Pools have grown to what they need by now.
            if death == 20 { threads = RunningProcesses.count("task", of: process) }
        }
        #expect(inFlight.count { $0 >= 32 } > deaths * 9 / 10, "\(inFlight)")
        try waitUntil("the host has given back the threads", seconds: 30) {
            RunningProcesses.count("task", of: process) <= threads
        }
        #expect(host.stop() == .exit(0), "\(host.process.errors)")
        withExtendedLifetime(slow) {}
    }
}
