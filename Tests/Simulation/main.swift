import Foundation

// One batch of runs: `simulate FIRST COUNT [DEFECT]`; what was met, a line each, or `FAILED seed N: why` and status 1.
// `simulate --sites` and `--defects` list what there is. scripts/simulate starts as many as there are processors.
let arguments = CommandLine.arguments
switch arguments.dropFirst().first {
case "--sites":
    for site in FaultSite.allCases { print(site.rawValue) }
    exit(0)
case "--defects":
    for defect in SeededDefect.allCases { print(defect.rawValue) }
    exit(0)
default: break
}
let defect = arguments.count > 3 ? SeededDefect(rawValue: arguments[3]) : nil
guard arguments.count >= 3, let first = UInt64(arguments[1]), let count = UInt64(arguments[2]),
    (1...10_000).contains(count), arguments.count == 3 || defect != nil
else {
    print("usage: simulate FIRST COUNT [DEFECT], or simulate --sites | --defects")
    exit(64)
}
guard getenv("SWIFT_DETERMINISTIC_HASHING") != nil else {
    print("simulate: SWIFT_DETERMINISTIC_HASHING must be set, so that a seed means the same every time")
    exit(64)
}
var coverage = Coverage()
for seed in first..<first + count {
    let world = World(seed: seed, defect: defect)
    world.run()
    coverage.add(world.coverage)
    world.trace("ended after \(world.scheduler.turnsTaken) turns, trace \(world.scheduler.trace)")
    if let failure = world.failure {
        print("FAILED seed \(seed): \(failure)")
        exit(1)
    }
}
for (site, count) in coverage.counts.sorted(by: { $0.key < $1.key }) { print("\(site.rawValue) \(count)") }
