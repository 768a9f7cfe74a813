import Blocks
import OriginalImage
import SCSI
import TestSupport
import Testing

@testable import Agent

@Suite struct PlanningTests {
    @Test("Commands cover the runs exactly, in order, within every limit", arguments: 1...60)
    func covers(seed: UInt64) throws {
        var random = SeededGenerator(seed: seed)
        let blocks: [UInt64] = [512, 4096]
        let (source, destination) = (
            blocks.randomElement(using: &random)!, blocks.randomElement(using: &random)!
        )
        let block = max(source, destination)
        var place: UInt64 = 0
        let runs = (0..<Int.random(in: 0...30, using: &random)).map { _ -> CopyRun in
            let count = UInt64.random(in: 0...40_000, using: &random) * block
            place += UInt64.random(in: 0...10, using: &random) * block
            defer { place += count }
            return CopyRun(
                source: UInt64.random(in: 0...1_000_000, using: &random) * block, destination: place,
                count: count)
        }
        let limits = PlanLimits(
            segments: Int.random(in: 1...20, using: &random),
            segmentBytes: block * UInt64.random(in: 1...100_000, using: &random),
            listBytes: 64 + Int.random(in: 32...400, using: &random), commands: 1,
            hasBlockToBlock: Bool.random(using: &random), hasBlockToBlockWithOffset: true)
        let commandBytes = UInt64.random(in: 1...200, using: &random) * (1 << 20)
        let plan = try #require(
            CommandPlan(
                runs, sourceBlock: source, destinationBlock: destination, limits: limits,
                commandBytes: commandBytes))
        var moved: [CopyRun] = []
        for command in plan {
            #expect(!command.segments.isEmpty && command.segments.count <= limits.segments)
            let list = 64 + command.segments.reduce(0) { $0 + $1.encoded().count }
            #expect(list <= limits.listBytes)
            var bytes: UInt64 = 0
            for segment in command.segments {
                let count: UInt64
                switch segment.amount {
                case .blocks(let number, ofDestination: false):
                    #expect(source == destination && limits.hasBlockToBlock)
                    count = UInt64(number) * source
                case .bytes(let number, 0, 0): count = UInt64(number)
                default: throw AgentError(.software, doing: "", to: "", because: "a foreign segment")
                }
                #expect(count > 0 && count <= limits.segmentBytes)
                bytes += count
                let run = CopyRun(
                    source: segment.sourceLBA.value * source,
                    destination: segment.destinationLBA.value * destination, count: count)
                if let last = moved.last, last.source + last.count == run.source,
                    last.destination + last.count == run.destination
                {
                    moved[moved.count - 1].count += run.count
                } else {
                    moved.append(run)
                }
            }
            #expect(bytes == command.bytes && bytes <= max(commandBytes, limits.segmentBytes))
        }
        var expected: [CopyRun] = []
        for run in runs where run.count > 0 {
            if let last = expected.last, last.source + last.count == run.source,
                last.destination + last.count == run.destination
            {
                expected[expected.count - 1].count += run.count
            } else {
                expected.append(run)
            }
        }
        #expect(moved == expected)
        #expect(plan.total == runs.reduce(0) { $0 + $1.count })
    }

    @Test func impossiblePlans() {
        func plan(_ change: (inout PlanLimits) -> Void, _ source: UInt64 = 512) -> CommandPlan? {
            var limits = PlanLimits(
                segments: 8, segmentBytes: 1 << 20, listBytes: 1024, commands: 1, hasBlockToBlock: true,
                hasBlockToBlockWithOffset: false)
            change(&limits)
            return CommandPlan([], sourceBlock: source, destinationBlock: 512, limits: limits)
        }
        #expect(plan { _ in } != nil)
        #expect(plan({ _ in }, 4096) == nil)
        #expect(plan { $0.segments = 0 } == nil)
        #expect(plan { $0.segmentBytes = 511 } == nil)
        #expect(plan { $0.listBytes = 64 + 27 } == nil)
        #expect(plan { $0.listBytes = 0 } == nil)
        #expect(plan { $0.hasBlockToBlock = false } == nil)
    }

    @Test("Samples lie within the volume and hold both its ends")
    func samples() {
        for size: UInt64 in [
            1, 511, 4096, 100_000, 4 << 20, (4 << 20) + 1, (4 << 20) + 70_000, 1 << 30, 1 << 45,
        ] {
            let places = samplePlaces(of: size, block: 4096, count: 64)
            #expect(places.allSatisfy { $0.count > 0 && $0.end <= size })
            #expect(places.first?.offset == 0 && places.last?.end == size)
            // What they could cover is compared whole; else nobody can know where.
            if size <= 4 << 20 {
                #expect(zip(places, places.dropFirst()).allSatisfy { $0.end == $1.offset })
            }
            if size >= 1 << 30 { #expect(places != samplePlaces(of: size, block: 4096, count: 64)) }
        }
    }

    @Test func pacing() {
        var pacer = Pacer(rate: 1 << 20)
        #expect(pacer.commandBytes == 1 << 20)
        #expect(pacer.take(1 << 20, now: 1000) == 0)
        #expect(pacer.take(1 << 20, now: 1000) == 1_000_000_000)
        #expect(pacer.take(1 << 20, now: 10_000_000_000) == 0)
        var free = Pacer(rate: nil)
        #expect(free.take(.max, now: 0) == 0)
    }
}
