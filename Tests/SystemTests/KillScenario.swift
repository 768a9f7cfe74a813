import Blocks
import Foundation
import TestSupport

/// What one round of the kills does, all of it derived from the seed; the moment alone is the machine's.
struct KillScenario: CustomStringConvertible {
    enum Victim: String, CaseIterable, Comparable {
        case host, bridge, agent
        /// The others with the agent, one right after the other.
        case hostAndAgent, agentAndHost, bridgeAndHost
        /// While it merges the originals of an append copy.
        case integrate
        /// So that the time is known that a copy takes, and complete ones replace what was left.
        case nobody

        static func < (a: Victim, b: Victim) -> Bool { a.rawValue < b.rawValue }
        var includesHost: Bool {
            self == .host || self == .hostAndAgent || self == .agentAndHost || self == .bridgeAndHost
        }
    }

    let seed: UInt64
    let victim: Victim
    /// When: in parts of the time that a whole copy takes.
    let moment: Double
    let mode: String
    let end: String
    /// By a bridge that outlives its copies, or by the copy's private one.
    let isStanding: Bool
    /// The copy that is there is replaced with `--force`; else it is removed before.
    let replaces: Bool
    let options: [String]
    /// Which commands are tried on what is no copy.
    let refusal: Int
    /// How the bytes of an append copy are read: after `integrate`, or by a restore.
    let integrates: Bool
    /// The same command with `--resume` follows where the host is not the victim.
    let resumes: Bool

    /// - Parameter victim: nil: the seed says it.
    init(seed: UInt64, freezing mountPoint: String?, victim given: Victim? = nil) {
        var generator = SeededGenerator(seed: seed &* 0x9E37_79B9)
        self.seed = seed
        let dice = Int.random(in: 0..<40, using: &generator)
        let drawn: Victim =
            switch dice {
            case 0..<12: .host
            case 12..<21: .bridge
            case 21..<31: .agent
            case 31, 32: .hostAndAgent
            case 33, 34: .agentAndHost
            case 35, 36: .bridgeAndHost
            case 37, 38: .integrate
            default: .nobody
            }
        victim = given ?? drawn
        moment = Double.random(in: 0...1, using: &generator)
        mode = victim == .integrate || Bool.random(using: &generator) ? "append" : "overlay"
        end = Bool.random(using: &generator) ? "before-cache-copy" : "after-cache-copy"
        isStanding = Int.random(in: 0..<3, using: &generator) == 0
        replaces = Bool.random(using: &generator)
        var options: [String] = []
        if Int.random(in: 0..<3, using: &generator) == 0 { options += ["--max-rate", "16MiB"] }
        if Int.random(in: 0..<2, using: &generator) == 0 { options.append("--no-toc") }
        if let mountPoint, Int.random(in: 0..<3, using: &generator) == 0 {
            options += ["--freeze", mountPoint]
        }
        self.options = options
        refusal = Int.random(in: 0..<1000, using: &generator)
        integrates = victim == .integrate || Bool.random(using: &generator)
        resumes = (victim == .bridge || victim == .agent) && Bool.random(using: &generator)
    }

    var description: String {
        "seed \(seed): \(victim) at \(moment), \(mode), \(end), \(isStanding ? "standing" : "private") bridge"
            + (replaces ? ", --force" : "") + (resumes ? ", then --resume" : "")
            + options.map { " " + $0 }.joined()
    }
}

/// What a lane's volume and host are like, of its first seed.
struct KillShape: CustomStringConvertible {
    let seed: UInt64
    let size: UInt64
    let hostOptions: [String]

    init(seed: UInt64) {
        var generator = SeededGenerator(seed: ~seed)
        self.seed = seed
        size =
            UInt64.random(in: 4...8, using: &generator) << 19 + 512
            * UInt64.random(in: 0..<7, using: &generator)
        let chunk = ["4KiB", "16KiB", "64KiB", "256KiB"].randomElement(using: &generator)!
        let durability = Int.random(in: 0..<3, using: &generator) == 0 ? "power" : "process"
        // In one lane of four, one that fills up now and then.
        let cache = Int.random(in: 0..<4, using: &generator) == 0 ? "1MiB" : "16MiB"
        hostOptions = ["--chunk-size", chunk, "--durability", durability, "--cache-size", cache]
    }

    var description: String { "\(size) bytes, \(hostOptions.joined(separator: " "))" }
}

/// What was counted over all rounds.
struct KillTally: CustomStringConvertible {
    var rounds = 0
    /// Processes that were killed while they ran.
    var kills: [String: Int] = [:]
    /// What the copy's epoch was right before: how far the copy had come.
    var phases: [String: Int] = [:]
    var completeCopies = 0
    /// Of those: that went on after a kill.
    var resumedCopies = 0
    var judgedSnapshots = 0
    var judgedSources = 0
    var answeredWrites = 0
    var flushedWrites = 0
    var refusals = 0
    /// Exit statuses of copies that were not killed themselves, with the victim.
    var endings: [String: Int] = [:]
    var openEpochs = 0
    /// Seconds that a host took to serve again.
    var longestRestart = 0.0

    var wrongCopies: [String] = []
    var lostWrites: [String] = []
    var stuck: [String] = []
    var foregroundErrors: [String] = []

    var killCount: Int { kills.values.reduce(0, +) }
    var failures: [String] { wrongCopies + lostWrites + stuck + foregroundErrors }

    mutating func add(_ other: KillTally) {
        rounds += other.rounds
        kills.merge(other.kills, uniquingKeysWith: +)
        phases.merge(other.phases, uniquingKeysWith: +)
        completeCopies += other.completeCopies
        resumedCopies += other.resumedCopies
        judgedSnapshots += other.judgedSnapshots
        judgedSources += other.judgedSources
        answeredWrites += other.answeredWrites
        flushedWrites += other.flushedWrites
        refusals += other.refusals
        endings.merge(other.endings, uniquingKeysWith: +)
        openEpochs += other.openEpochs
        longestRestart = max(longestRestart, other.longestRestart)
        wrongCopies += other.wrongCopies
        lostWrites += other.lostWrites
        stuck += other.stuck
        foregroundErrors += other.foregroundErrors
    }

    private static func list(_ counts: [String: Int]) -> String {
        counts.sorted { $0.key < $1.key }.map { "\($0.key) \($0.value)" }.joined(separator: ", ")
    }

    var description: String {
        """
        \(killCount) kills (\(Self.list(kills))) in \(rounds) rounds, with the copy's epoch \(Self.list(phases)): \(wrongCopies.count) wrong copies, \
        \(lostWrites.count) lost writes, \(stuck.count) stuck, \(foregroundErrors.count) foreground errors; \
        \(completeCopies) complete copies (\(resumedCopies) resumed), \(judgedSnapshots) snapshots and \(judgedSources) sources judged, \
        \(answeredWrites) answered writes (\(flushedWrites) flushed), \(refusals) refusals, \
        \(openEpochs) epochs open after a host's death; a host served again within \
        \((longestRestart * 1000).rounded() / 1000) s at most; copies ended \(Self.list(endings))
        """
    }
}
