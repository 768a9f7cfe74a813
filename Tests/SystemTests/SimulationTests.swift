import Foundation
import TestSupport
import Testing

/// The simulator (article Simulation) itself: that a seed is replayed, that defects are found. Many seeds are run by
/// scripts/simulate.
@Suite struct SimulationTests {
    private func simulate(_ arguments: String..., trace: Bool = false) throws -> ProgramResult {
        var environment = ["SWIFT_DETERMINISTIC_HASHING": "1", "MALLOC_ARENA_MAX": "1"]
        if trace { environment["SIMULATION_TRACE"] = "1" }
        return try runProgram(
            Outboard.built("simulate"), arguments, environment: environment, seconds: 600)
    }

    @Test func nothingIsFoundInTheFirstSeeds() throws {
        let run = try simulate("1", "20")
        #expect(run.isSuccess, "\(run)")
        #expect(run.output.contains("copyComplete"))
    }

    @Test func aSeedIsReplayedStepByStep() throws {
        func traces(_ output: String) -> [Substring] {
            output.split(separator: "\n").filter { $0.contains("turns, trace") }
        }
        let batch = traces(try simulate("10", "4", trace: true).output)
        #expect(batch.count == 4)
        // Alone it is the same as behind others.
        #expect(traces(try simulate("13", "1", trace: true).output) == batch.suffix(1))
    }

    /// Each within so many seeds; what finds it is nothing without it.
    @Test(arguments: Tier.isFull ? defects : Array(defects.prefix(2)))
    func aDefectIsFound(_ defect: String) throws {
        for first in stride(from: 1, to: Self.seedsOfADefect, by: 100) {
            let run = try simulate("\(first)", "100", defect)
            guard let line = run.output.split(separator: "\n").first(where: { $0.hasPrefix("FAILED seed ") })
            else { continue }
            let seed = try #require(line.dropFirst("FAILED seed ".count).split(separator: ":").first)
            print("\(defect): \(line)")
            #expect(try simulate("\(seed)", "1").isSuccess)
            return
        }
        Issue.record("\(defect) is not found by \(Self.seedsOfADefect) seeds")
    }

    private static let seedsOfADefect = 2000
    private static let defects: [String] = {
        let list = try? runProgram(Outboard.built("simulate"), ["--defects"])
        return list?.output.split(separator: "\n").map(String.init) ?? []
    }()

    @Test func theDefectsAreFifteen() { #expect(Self.defects.count == 15) }

    @Test func whatItIsAskedMustMakeSense() throws {
        for arguments in [["0"], ["1", "0"], ["1", "10001"], ["1", "1", "noDefect"], ["x", "1"]] {
            let run = try runProgram(
                Outboard.built("simulate"), arguments, environment: ["SWIFT_DETERMINISTIC_HASHING": "1"])
            #expect(run.status == 64, "\(run)")
        }
    }
}
