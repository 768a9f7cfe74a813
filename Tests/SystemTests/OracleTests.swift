import Agent
import Blocks
import Foundation
import TestSupport
import Testing

/// The prefix oracle over real processes: writers number their writes through NBD while `outboard copy` runs; the
/// copy must be the volume after exactly k writes of each writer, for a k that the instant allows.
@Suite(.serialized) struct OracleTests {
    /// One run, all of it derived from the seed.
    struct Scenario: CustomStringConvertible {
        let seed: UInt64
        var mode: String { seed % 2 == 0 ? "overlay" : "append" }
        var end: String { seed / 2 % 2 == 0 ? "before-cache-copy" : "after-cache-copy" }
        var chunkSize: String { ["4KiB", "16KiB", "64KiB", "256KiB", "1MiB"][Int(seed / 4 % 5)] }
        var durability: String { seed % 7 == 3 ? "power" : "process" }
        var writers: UInt64 { seed / 20 % 2 == 0 ? 1 : 3 }
        /// Blocks of 512 bytes, but no multiple of any chunk size.
        var size: UInt64 { (3 << 20) + (seed % 7 + 1) * 512 }
        /// How the bytes of an append copy are read: by a restore (7A), or after `integrate`.
        var integrates: Bool { seed / 4 % 2 == 0 }

        var description: String {
            "seed \(seed): \(mode), \(end), chunks of \(chunkSize), \(durability), \(writers) writers, \(size) bytes"
        }
    }

    static let seeds = Array(0..<UInt64(Tier.isFull ? 200 : 20))

    @Test(arguments: seeds)
    func aCopyIsTheVolumeAfterExactlyKWrites(seed: UInt64) throws {
        let scenario = Scenario(seed: seed)
        // A copy during which nothing was overwritten proves nothing; a busy machine may need several tries.
        for _ in 0..<5 {
            let outcome = try Self.run(scenario)
            for verdict in outcome.verdicts { #expect(verdict.isConsistent, "\(scenario): \(verdict)") }
            if outcome.originals > 0 { return }
        }
        Issue.record("\(scenario): in five copies nothing was overwritten")
    }

    /// A host that does it wrong must be caught within some seeds: by the oracle, or already by the copy itself,
    /// which finds that the logical snapshot is not what the bridge reads and makes none. (`HostTests` has the oracle
    /// alone find each defect, with threads held at chosen places; there a skipped drain, too.)
    @Test(arguments: ["preservesAfterWriting", "forgetsOneBit"])
    func aBrokenHostIsCaught(defect: String) throws {
        for seed in 0..<UInt64(40) {
            do {
                let outcome = try Self.run(
                    Scenario(seed: seed), environment: ["OUTBOARD_DEFECT": defect])
                if outcome.verdicts.contains(where: { !$0.isConsistent }) { return }
            } catch let failure as TestFailure where failure.description.contains("its contents at") {
                return
            }
        }
        Issue.record("forty copies of a host that \(defect) passed as right")
    }

    struct Outcome {
        var verdicts: [PrefixOracle.Verdict]
        /// Entries of the log that the copy was made with.
        var originals: UInt64
    }

    static func run(
        _ scenario: Scenario, environment: [String: String] = [:]
    ) throws -> Outcome {
        let host = try HostProcess(
            size: scenario.size,
            [
                "--chunk-size", scenario.chunkSize, "--durability", scenario.durability, "--cache-size",
                "32MiB",
            ],
            environment: environment)
        let share = (scenario.size / scenario.writers).roundedDown(to: 512)
        let writers = try (0..<scenario.writers).map { index in
            let start = index * share
            let count = index == scenario.writers - 1 ? scenario.size - start : share
            return try Writer(
                PrefixOracle(
                    seed: scenario.seed << 8 | index, region: ByteRange(offset: start, count: count)),
                to: host.socket)
        }
        for writer in writers { writer.start() }
        for writer in writers { writer.waitForOperations(10) }

        let copy = host.directory("copy")
        let made = try Outboard.run([
            "copy", "--host", host.control, "--to", copy, "--mode", scenario.mode, "--end", scenario.end,
        ])
        for writer in writers { try writer.stop() }
        guard made.status == 0 else {
            throw TestFailure("\(scenario): outboard copy ended with \(made.status): \(made.errors)")
        }
        let bytes = try contents(of: copy, scenario, host.directory)
        guard host.stop() == .exit(0) else { throw TestFailure("\(scenario): the host failed") }
        let epoch = try CopiedEpoch(of: copy)
        let verdicts = writers.map { writer in
            let region = writer.oracle.region
            return writer.oracle.judge(
                Array(bytes[Int(region.offset)..<Int(region.end)]),
                within: writer.oracle.bounds(at: epoch.institutedAt))
        }
        return Outcome(verdicts: verdicts, originals: epoch.entries)
    }

    /// The volume's bytes as the copy gives them back.
    private static func contents(
        of copy: String, _ scenario: Scenario, _ directory: ScratchDirectory
    ) throws -> [UInt8] {
        var place = copy + "/data.img"
        if scenario.mode == "append" {
            if scenario.integrates {
                let integrated = try Outboard.run(["integrate", copy])
                guard integrated.status == 0 else { throw TestFailure("integrate: \(integrated.errors)") }
            } else {
                place = directory("restored")
                let restored = try Outboard.run(["restore", "volume", copy, "--to", place])
                guard restored.status == 0 else { throw TestFailure("restore: \(restored.errors)") }
            }
        }
        let verified = try Outboard.run(["verify", copy])
        guard verified.status == 0 else { throw TestFailure("verify: \(verified.errors)") }
        let data = try Data(contentsOf: URL(fileURLWithPath: place))
        guard data.count == scenario.size else { throw TestFailure("the copy has \(data.count) bytes") }
        return Array(data)
    }
}

/// What a copy's manifest says of its epoch.
struct CopiedEpoch: Decodable {
    /// The instant, nanoseconds since 1970.
    let institutedAt: Int64
    /// Originals that the copy was made with.
    let entries: UInt64

    private struct Manifest: Decodable { let epoch: CopiedEpoch }

    init(of copy: String) throws {
        let data = try Data(contentsOf: URL(fileURLWithPath: copy + "/manifest.json"))
        self = try JSONDecoder().decode(Manifest.self, from: data).epoch
    }
}

/// A thread with a connection of its own that writes until it is stopped.
final class Writer: Sendable {
    let oracle: PrefixOracle
    private let store: NBDStore
    private let pause: UInt32
    private let state = Monitor((stopping: false, done: false, failure: StoreError?.none))

    /// - Parameters:
    ///   - initializes: puts there first what the oracle has as the region's first contents.
    ///   - pause: before each operation, microseconds.
    init(_ oracle: PrefixOracle, to socket: String, initializes: Bool = true, pause: UInt32 = 0) throws {
        self.oracle = oracle
        self.pause = pause
        store = try NBDStore(.unixSocket(socket, export: ""), connections: 1)
        if initializes { try oracle.initialize(store) }
    }

    func start() {
        BlockingThread.start(stackSize: 4 << 20) { [self] in
            var failure: StoreError?
            do throws(StoreError) {
                try oracle.run(on: store) {
                    if pause > 0 { usleep(pause) }
                    return state.withLockAndNotify { $0.stopping }
                }
            } catch { failure = error }
            state.withLockAndNotify {
                $0.done = true
                $0.failure = failure
            }
        }
    }

    func waitForOperations(_ count: Int) {
        state.wait { $0.done || oracle.operations.count >= count ? () : nil }
    }

    /// Has it finish its write, and throws what made it fail, if anything did.
    func stop() throws {
        state.withLockAndNotify { $0.stopping = true }
        let outcome = state.wait { state in state.done ? .some(state.failure) : nil }
        if let outcome { throw outcome }
    }
}
