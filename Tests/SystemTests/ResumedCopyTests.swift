import Agent
import Blocks
import Foundation
import PhysicalCopy
import TestSupport
import Testing

/// Copies whose bridge or agent is killed in the raw pass, with writers all the while, and that go on by `--resume`.
@Suite(.serialized, .enabled(if: Tier.isFull, "the full tier: the first checkpoint comes after five seconds"))
struct ResumedCopyTests {
    private static let size = 64 << 20

    enum Victim: String, CaseIterable, Sendable { case bridge, agent }

    /// A volume that is overwritten in two places: one that is copied first, and one that is copied last.
    private struct Site {
        static let regions = [
            ByteRange(offset: 0, count: 2 << 20), ByteRange(offset: 60 << 20, count: 2 << 20),
        ]
        let host: HostProcess
        let writers: [Writer]
        let found: [UInt8]

        init() throws {
            let scratch = try ScratchDirectory()
            try makePatternFile(scratch("volume.img"), count: ResumedCopyTests.size)
            host = try HostProcess(scratch, options: ["--cache-size", "32MiB", "--chunk-size", "64KiB"])
            let found = try contents(host.source)
            self.found = found
            writers = try Self.regions.enumerated().map { [host] index, region in
                let oracle = PrefixOracle(
                    seed: UInt64(index) + 5, region: region, maximumLength: 64 << 10,
                    found: Array(found[Int(region.offset)..<Int(region.end)]))
                return try Writer(oracle, to: host.socket, initializes: false)
            }
            for writer in writers { writer.start() }
            waitForWrites(10)
        }

        func waitForWrites(_ count: Int) {
            for writer in writers { writer.waitForOperations(writer.oracle.operations.count + count) }
        }

        func judge(_ copy: String) throws {
            for writer in writers { try writer.stop() }
            let verified = try Outboard.run(["verify", copy])
            #expect(verified.isSuccess, "\(verified)")
            let restored = try Outboard.run(["restore", "volume", copy, "--to", host.directory("back")])
            #expect(restored.isSuccess, "\(restored)")
            var bytes = try contents(host.directory("back"))
            for writer in writers {
                let place = Int(writer.oracle.region.offset)..<Int(writer.oracle.region.end)
                let verdict = writer.oracle.judge(
                    Array(bytes[place]),
                    within: writer.oracle.bounds(at: try CopiedEpoch(of: copy).institutedAt))
                #expect(verdict.isConsistent, "\(verdict)")
                bytes.replaceSubrange(place, with: found[place])
            }
            #expect(bytes == found)
        }
    }

    /// What is noted of the copy in the making.
    private func noted(_ copy: CopyInProgress) throws -> ResumeRecord? {
        guard let draft = copy.names.first(where: { $0.hasPrefix(".copy.partial-") }),
            let bytes = FileManager.default.contents(atPath: "\(copy.directory)/\(draft)/resume.json")
        else { return nil }
        return try JSONDecoder().decode(ResumeRecord.self, from: bytes)
    }

    private struct Output: Decodable {
        struct Copy: Decodable {
            var resumedBytes: UInt64?
            var instant: Int64
        }
        var copies: [Copy]
    }

    /// Bytes that a process has had read from storage; nil when it is gone.
    private func readBytes(_ process: pid_t) -> UInt64? {
        guard let text = try? String(contentsOfFile: "/proc/\(process)/io", encoding: .utf8) else {
            return nil
        }
        return text.split(separator: "\n").first { $0.hasPrefix("read_bytes: ") }
            .flatMap { UInt64($0.dropFirst("read_bytes: ".count)) }
    }

    @Test(arguments: zip(Victim.allCases, ["overlay", "append"]))
    func killedInTheRawPassItGoesOn(victim: Victim, mode: String) throws {
        let site = try Site()
        let options = ["--mode", mode]
        let copy = try CopyInProgress(of: site.host, rate: "8MiB", options: options)
        try waitUntil("something is noted") {
            try noted(copy).map { $0.durable.list.total > 8 << 20 } ?? false
        }
        switch victim {
        case .bridge:
            kill(try copy.bridge(), SIGKILL)
            #expect(copy.process.wait(seconds: 30) == .exit(69), "\(copy.process.errors)")
            #expect(copy.process.errors.contains("--resume"), "\(copy.process.errors)")
        case .agent:
            copy.process.signal(SIGKILL)
            #expect(copy.process.waitForExit() == .signal(SIGKILL))
            try waitUntil("nobody holds the epoch") { try site.host.status().epoch?.isHeld == false }
        }
        let record = try #require(try noted(copy))
        let kept = record.durable.list.total
        #expect(try site.host.status().epoch?.uuid == record.epoch.uuid)

        // The table of contents was there, so the host was told: of what is overwritten now it keeps no originals.
        site.waitForWrites(300)
        let again = try Outboard.start(
            [
                "copy", "--host", site.host.control, "--to", copy.destination, "--max-rate", "8MiB",
                "--resume", "--json",
            ]
                + options)
        var bridge: pid_t?
        var read: UInt64 = 0
        // By the clock: the counter is gone with the process.
        while again.isRunning {
            bridge = bridge ?? RunningProcesses.children(of: again.identifier).first
            if let bridge, let now = readBytes(bridge) { read = max(read, now) }
            usleep(2_000)
        }
        #expect(again.wait() == .exit(0), "\(again.errors)")
        let outcome = try #require(
            try JSONDecoder().decode(Output.self, from: Data(again.output.utf8)).copies.first)
        #expect(outcome.resumedBytes == kept && outcome.instant == record.epoch.institutedAt)
        // Beside the rest: the samples by which source and copy are checked, and what it overlays or appends.
        let samples = UInt64(2 * (AgentLimits.samples + 2)) * AgentLimits.sampleBytes
        let originals = try CopiedEpoch(of: copy.destination).entries * (64 << 10)
        print("resumed: \(kept) bytes kept, \(read) read by the second bridge, \(originals) of originals")
        #expect(read > 0 && read <= UInt64(Self.size) - kept + samples + 2 * originals + (2 << 20))
        #expect(read < UInt64(Self.size))
        #expect(copy.names == ["copy"])
        #expect(try site.host.isIdle())
        try site.judge(copy.destination)
    }

    @Test func restartedHostsEpochsAreNotResumed() throws {
        let site = try Site()
        let copy = try CopyInProgress(of: site.host, rate: "8MiB")
        kill(try copy.bridge(), SIGKILL)
        #expect(copy.process.wait(seconds: 30) == .exit(69), "\(copy.process.errors)")
        for writer in site.writers { try writer.stop() }
        site.host.process.signal(SIGKILL)
        _ = site.host.process.waitForExit()
        let host = try HostProcess(
            site.host.directory, options: ["--cache-size", "32MiB", "--chunk-size", "64KiB"])
        let refused = try Outboard.run([
            "copy", "--host", host.control, "--to", copy.destination, "--resume",
        ])
        #expect(refused.status == 75 && refused.errors.contains("copy anew"), "\(refused)")
        #expect(copy.names.count == 1)
        let anew = try Outboard.run(["copy", "--host", host.control, "--to", copy.destination])
        #expect(anew.isSuccess, "\(anew)")
        #expect(try haveSameContents(copy.destination + "/data.img", host.source))
        #expect(copy.names == ["copy"])
    }
}
