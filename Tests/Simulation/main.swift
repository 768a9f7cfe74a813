import Foundation
import Glibc

// One batch of runs: `simulate FIRST COUNT [DEFECT]`. scripts/simulate starts as many as there are processors.
let arguments = CommandLine.arguments
guard arguments.count >= 3, let first = UInt64(arguments[1]), let count = UInt64(arguments[2]) else {
    print("usage: simulate FIRST COUNT [DEFECT]")
    exit(64)
}
let defect = arguments.count > 3 ? SeededDefect(rawValue: arguments[3]) : nil
var coverage = Coverage()
for seed in first..<first + count {
    let world = World(seed: seed, defect: defect)
    world.run()
    coverage.add(world.coverage)
    if let failure = world.failure {
        print("FAILED seed \(seed): \(failure)")
        exit(1)
    }
    if getenv("SIMULATION_TRACE") != nil { print("seed \(seed) trace \(world.scheduler.trace) turns \(world.scheduler.turnsTaken)") }
}
for (site, count) in coverage.counts.sorted(by: { $0.key < $1.key }) { print("\(site.rawValue) \(count)") }
