import Blocks
import Foundation
import TestSupport
import Testing

/// Host, bridge and agent are killed (SIGKILL) at random moments while writers write and a copy is made. After each
/// kill: the source holds everything that was answered, what says that it is a complete copy is right, everything else
/// is refused, nothing is stuck. Half of the copies whose bridge or agent was the only victim go on by `--resume`.
///
/// `OUTBOARD_KILL_SEED=n` repeats the rounds up to that seed, as a failure names it; `OUTBOARD_KILLS=n` asks for so many.
@Suite(.serialized) struct KillTests {
    private static let lanes: UInt64 = 2
    /// Rounds of one volume, before a new one is made.
    private static let roundsOfALane: UInt64 = 40
    private static let variables = ProcessInfo.processInfo.environment

    private static let wantedKills =
        variables["OUTBOARD_KILLS"].flatMap { Int($0) } ?? (Tier.isFull ? 520 : 12)

    @Test func nothingIsLostWrongOrStuck() throws {
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
    }

    /// Volume after volume, until there were kills enough.
    private static func run(_ number: UInt64, _ tally: Monitor<KillTally>) throws {
        var first = number * roundsOfALane
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
        let lane = try KillLane(KillShape(seed: seed))
        for isStanding in [false, true] {
            let seed = (seed...).first { KillScenario(seed: $0, freezing: nil).isStanding == isStanding }!
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
