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
        var includesBridge: Bool { self == .bridge || self == .bridgeAndHost }
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
    /// Of the copy; one that goes on does so at full speed.
    let rate: String?
    let options: [String]
    /// Which commands are tried on what is no copy.
    let refusal: Int
    /// How the bytes of an append copy are read: after `integrate`, or by a restore.
    let integrates: Bool
    /// The same command with `--resume` follows where the host is not the victim.
    let resumes: Bool
    /// So slow that the kill comes when a part is noted as durable, and the host has been told of it.
    let isSlow: Bool
    /// How much room a small file system has left when the copy begins: from nothing to more than it needs.
    let room: Double

    /// - Parameter victim: nil: the seed says it.
    init(seed: UInt64, _ shape: KillShape, freezing mountPoint: String?, victim given: Victim? = nil) {
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
        let isPaced = Int.random(in: 0..<3, using: &generator) == 0
        if Int.random(in: 0..<2, using: &generator) == 0 { options.append("--no-toc") }
        if let mountPoint, Int.random(in: 0..<3, using: &generator) == 0 {
            options += ["--freeze", mountPoint]
        }
        self.options = options
        refusal = Int.random(in: 0..<1000, using: &generator)
        integrates = victim == .integrate || Bool.random(using: &generator)
        let goesOn = Bool.random(using: &generator)
        // The first checkpoint comes after five seconds.
        isSlow =
            Tier.isFull && shape.isRoomy && [.host, .bridge, .agent].contains(victim)
            && Int.random(in: 0..<8, using: &generator) == 0
        resumes = (victim == .bridge || victim == .agent) && (goesOn || isSlow)
        rate = isSlow ? "256KiB" : isPaced ? "16MiB" : nil
        room = Double.random(in: 0...1, using: &generator)
    }

    /// Whether devices and file systems fail as those of the shape can.
    var isBurdened: Bool { victim != .nobody && victim != .integrate }

    var description: String {
        "seed \(seed): \(victim) at \(moment), \(mode), \(end), \(isStanding ? "standing" : "private") bridge"
            + (replaces ? ", --force" : "") + (resumes ? ", then --resume" : "")
            + (rate.map { ", \($0)/s" } ?? "") + options.map { " " + $0 }.joined()
    }
}
