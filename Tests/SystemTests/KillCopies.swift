import Blocks
import Foundation
import PhysicalCopy
import TestSupport

/// Where a lane's copies are made, and the judge of what is there after a kill.
final class KillCopies {
    enum Verdict {
        case complete, refused
        case wrong(String)
    }

    let path: String
    private let directory: String
    private let scratch: ScratchDirectory
    private let environment: [String: String]
    /// The complete copy that is there.
    private var known: (uuid: String, data: [UInt8], isStanding: Bool)?
    /// The last rounds' writers, and when each round began: a copy that goes on may be the one of a round before.
    private var rounds: [(begun: Int64, oracles: [PrefixOracle])] = []
    /// Seconds that `integrate` takes when nobody interrupts it.
    private var wholeIntegrate = 0.03

    init(in directory: String, _ scratch: ScratchDirectory, environment: [String: String]) {
        self.directory = directory
        self.scratch = scratch
        self.environment = environment
        path = directory + "/copy"
    }

    func remove() throws {
        known = nil
        if FileManager.default.fileExists(atPath: path) { try FileManager.default.removeItem(atPath: path) }
    }

    /// Leaves the copy that is there only where the round replaces it, and where its data are its own.
    func prepare(_ scenario: KillScenario) throws {
        if !scenario.replaces || known == nil || known?.isStanding == true { try remove() }
    }

    private var drafts: [String] {
        get throws {
            try FileManager.default.contentsOfDirectory(atPath: directory).filter { $0.contains(".partial-") }
                .map { directory + "/" + $0 }
        }
    }

    /// Bytes that a copy in the making has noted as durable.
    /// - Parameter begun: those that were begun before are others.
    func notedBytes(since begun: Int64) throws -> UInt64 {
        try drafts.map { draft in
            guard let bytes = FileManager.default.contents(atPath: draft + "/" + ResumeRecord.fileName) else {
                return 0
            }
            let record = try JSONDecoder().decode(ResumeRecord.self, from: bytes)
            return record.epoch.institutedAt < begun ? 0 : record.durable.list.total
        }.max() ?? 0
    }

    private func data(_ isStanding: Bool) -> String { isStanding ? scratch("unit") : path + "/data.img" }

    private func run(_ words: [String]) throws -> ProgramResult {
        try Outboard.run(words, environment: environment, seconds: 60)
    }

    /// - Parameter saidDone: the copy ended with exit status 0.
    func judge(
        _ scenario: KillScenario, _ oracles: [PrefixOracle], begun: Int64, saidDone: Bool,
        _ tally: inout KillTally
    ) throws -> Verdict {
        rounds = rounds.suffix(7) + [(begun, oracles)]
        if saidDone { try expectNoLeftovers() }
        let verified = try run(["verify", path])
        guard verified.isSuccess else {
            if saidDone { return .wrong("a copy that was done does not verify: \(verified)") }
            if let known, !known.isStanding, FileManager.default.fileExists(atPath: path) {
                return .wrong("the copy that was there has become \(verified)")
            }
            return try refuse(scenario, &tally)
        }
        let manifest = try PhysicalCopy(path).manifest
        if let known, known.uuid == manifest.uuid {
            if saidDone { return .wrong("a copy that was done is not there") }
            return try haveSameBytes(contents(data(known.isStanding)), known.data)
                ? .complete : .wrong("the copy that was there has changed")
        }
        tally.completeCopies += 1
        if manifest.epoch.restarts != nil { tally.restartedCopies += 1 }
        // Killed before it had begun, a copy leaves what is to go on as it was.
        let instant = manifest.epoch.institutedAt
        guard let round = rounds.last(where: { $0.begun <= instant }),
            round.begun == begun || scenario.resumes
        else { return .wrong("a copy of an earlier instant") }
        let bytes = try volume(scenario)
        for oracle in round.oracles {
            let verdict = oracle.judge(
                Array(bytes[Int(oracle.region.offset)..<Int(oracle.region.end)]),
                within: oracle.bounds(at: instant))
            if !verdict.isConsistent { return .wrong("\(verdict)") }
        }
        known = (manifest.uuid, try contents(data(scenario.isStanding)), scenario.isStanding)
        return .complete
    }

    /// The volume's bytes as the copy gives them back.
    private func volume(_ scenario: KillScenario) throws -> [UInt8] {
        guard scenario.mode == "append" else { return try contents(data(scenario.isStanding)) }
        if scenario.integrates {
            let merged = try run(["integrate", path])
            guard merged.isSuccess else { throw TestFailure("\(merged)") }
            return try contents(data(scenario.isStanding))
        }
        let place = scratch("restored")
        defer { unlink(place) }
        let restored = try run(["restore", "volume", path, "--to", place])
        guard restored.isSuccess else { throw TestFailure("\(restored)") }
        return try contents(place)
    }

    /// What is no complete copy is refused by whatever command: under its name, and as the draft that a killed one left.
    private func refuse(_ scenario: KillScenario, _ tally: inout KillTally) throws -> Verdict {
        for (index, place) in try ([path] + drafts).enumerated() {
            let commands = commands(on: place)
            let command = commands[(scenario.refusal + index) % commands.count]
            let result = try runProgram(
                Outboard.binary, command, environment: environment, seconds: 20)
            tally.refusals += 1
            guard [65, 66, 73, 75].contains(result.status) else {
                return .wrong("what is no copy is not refused: \(result)")
            }
        }
        return .refused
    }

    private func commands(on copy: String) -> [[String]] {
        let out = scratch("out")
        return [
            ["show", copy], ["verify", copy], ["integrate", copy], ["ls", copy], ["find", copy, "*"],
            ["cat", copy, "/file"], ["toc", copy], ["mount", copy, out], ["backup", copy, "--to", out],
            ["restore", "volume", copy, "--to", out], ["restore", "file", copy, "/file", "--to", out],
            ["restore", "extents", copy, "--range", "0+512", "--to", out],
        ]
    }

    /// Merges, is killed, and merges again: the judge sees what comes of it.
    func killIntegrate(_ scenario: KillScenario, _ tally: inout KillTally) throws {
        let merging = try Outboard.start(["integrate", path], environment: environment)
        usleep(UInt32(scenario.moment * wholeIntegrate * 1e6))
        if merging.isRunning {
            merging.signal(SIGKILL)
            tally.kills["integrate", default: 0] += 1
        }
        _ = merging.waitForExit()
        let begun = MonotonicClock.now
        let again = try run(["integrate", path])
        wholeIntegrate = Double(MonotonicClock.now - begun) / 1e9
        guard again.isSuccess else { throw TestFailure("integrate after a kill: \(again)") }
    }

    /// After a complete copy nothing of those is left that were killed before.
    func expectNoLeftovers() throws {
        let names = try FileManager.default.contentsOfDirectory(atPath: directory)
        let temporary = try FileManager.default.contentsOfDirectory(atPath: scratch("tmp"))
        guard names == ["copy"], temporary.isEmpty else {
            throw TestFailure("temporary files are left: \(names), \(temporary)")
        }
    }
}
