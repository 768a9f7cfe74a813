import Blocks
import Foundation
import TestSupport
import Testing

/// Host, bridge and agent are killed (SIGKILL) at random moments while writers write and a copy is made. After each
/// kill: the source holds everything that was answered, what says that it is a complete copy is right, everything else
/// is refused, nothing is stuck. Half of the copies whose bridge or agent was the only victim go on by `--resume`.
///
/// Volume after volume (``KillShape``): plain files; a loop device with cache and copies on a small file system that really
/// fills; a source behind nbdkit's delay and error filters, where alone a writer may be told an error, the source's own;
/// with each of the policies for a full cache, and caches that are. Some copies are so slow that the host has been told of
/// what is durable before the kill, and that they go on from there.
///
/// `OUTBOARD_KILL_SEED=n` repeats the rounds up to that seed, as a failure names it; `OUTBOARD_KILLS=n` asks for so many,
/// `OUTBOARD_KILL_VOLUME=n` begins with that volume.
@Suite(.serialized) struct KillTests {
    private static let lanes: UInt64 = 2
    /// Rounds of one volume, before a new one is made.
    private static let roundsOfALane: UInt64 = 40
    private static let variables = ProcessInfo.processInfo.environment

    private static let wantedKills =
        variables["OUTBOARD_KILLS"].flatMap { Int($0) } ?? (Tier.isFull ? 520 : 12)

    /// As many go over all kinds of volumes.
    private static let isWhole = Tier.isFull && wantedKills >= 500
    private static let firstVolume = variables["OUTBOARD_KILL_VOLUME"].flatMap { UInt64($0) } ?? 0

    @Test func nothingIsLostWrongOrStuck() throws {
        if !TestMount.isPossible {
            print("LEFT OUT kills on a small file system and over nbdkit's filters: \(TestMount.reason)")
        }
        let started = MonotonicClock.now
        let replayed = Self.variables["OUTBOARD_KILL_SEED"].flatMap { UInt64($0) }
        let tally = Monitor(KillTally())
        let running = Monitor(Int(Self.lanes))
        for lane in 0..<Self.lanes {
            BlockingThread.start(stackSize: 8 << 20) {
                var failure: String?
                do {
                    if let replayed {
                        try Self.replay(replayed, tally)
                    } else {
                        try Self.run(lane, tally)
                    }
                } catch { failure = "lane \(lane): \(error)" }
                if let failure { tally.withLock { $0.stuck.append(failure) } }
                running.withLockAndNotify { $0 -= 1 }
            }
        }
        running.wait { $0 == 0 ? () : nil }
        let all = tally.withLock { $0 }
        let seconds = Double(MonotonicClock.now - started) / 1e9
        print("KillTests: \(all); \((seconds * 10).rounded() / 10) s")
        for failure in all.failures { Issue.record("\(failure)") }
        #expect(replayed != nil || all.killCount >= Self.wantedKills)
        // Rounds in which all fails before it begins would show nothing.
        #expect(all.completeCopies > 0 && all.judgedSources > 0 && all.answeredWrites > all.rounds)
        // The median: one may meet a machine that does something else.
        #expect(all.medianRestart < 1)
        if Self.isWhole, replayed == nil { expectAll(all) }
    }

    /// What the shapes are for has happened.
    private func expectAll(_ all: KillTally) {
        #expect(all.resumedFromMore > 0 && all.restartedCopies > 0)
        // Where it is abandoned, it is the small file system's disk that is full for certain.
        for policy in ["block", "restart-from"] + (TestMount.isPossible ? ["abandon"] : []) {
            #expect(all.fills.contains { $0.key.hasSuffix(policy) && $0.value > 0 }, "\(policy)")
        }
        #expect(!TestMount.isPossible || all.fullDisks > 0)
    }

    /// Volume after volume, until there were kills enough.
    private static func run(_ number: UInt64, _ tally: Monitor<KillTally>) throws {
        var first = (firstVolume + number) * roundsOfALane
        while true {
            let lane = try lane(first, tally)
            for seed in first..<first + roundsOfALane {
                guard tally.withLock({ $0.killCount < wantedKills && $0.failures.count < 10 }) else {
                    return tally.withLock { $0.add(lane.finish()) }
                }
                let round = lane.run(seed)
                tally.withLock { $0.add(round) }
            }
            tally.withLock { $0.add(lane.finish()) }
            first += lanes * roundsOfALane
        }
    }

    /// A new one, with two rounds in which nobody is killed.
    private static func lane(_ seed: UInt64, _ tally: Monitor<KillTally>) throws -> KillLane {
        let lane = try KillLane(KillShape(seed: seed, number: seed / roundsOfALane))
        for isStanding in [false, true] {
            let seed = (seed...).first {
                KillScenario(seed: $0, lane.shape, freezing: nil).isStanding == isStanding
            }!
            let round = lane.run(seed, victim: .nobody)
            tally.withLock { $0.add(round) }
        }
        return lane
    }

    private static func replay(_ seed: UInt64, _ tally: Monitor<KillTally>) throws {
        let first = seed - seed % roundsOfALane
        for _ in 0..<5 {
            let lane = try lane(first, tally)
            for seed in max(first, seed - min(seed, 5))...seed {
                let round = lane.run(seed)
                tally.withLock { $0.add(round) }
            }
            tally.withLock { $0.add(lane.finish()) }
        }
    }
}
