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

    /// Each with a seed that finds it; `scripts/simulate --defects` looks for those of all.
    @Test(arguments: [
        ("preservesAfterWriting", 1), ("forgetsOneBit", 1),
    ])
    func aDefectIsFound(_ defect: String, seed: Int) throws {
        let run = try simulate("\(seed)", "1", defect)
        #expect(run.status == 1)
        #expect(run.output.contains("FAILED seed \(seed)"), "\(run)")
        #expect(try simulate("\(seed)", "1").isSuccess)
    }

    @Test func whatItIsAskedMustMakeSense() throws {
        for arguments in [["0"], ["1", "0"], ["1", "10001"], ["1", "1", "noDefect"], ["x", "1"]] {
            let run = try runProgram(
                Outboard.built("simulate"), arguments, environment: ["SWIFT_DETERMINISTIC_HASHING": "1"])
            #expect(run.status == 64, "\(run)")
        }
    }
}
