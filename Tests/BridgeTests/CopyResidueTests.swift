import Blocks
import SCSI
import TestSupport
import Testing

@testable import Bridge

/// What SPC-2 says of segments that are no whole blocks at both ends (§7.2.7.2, table 30 and its note), with bytes in
/// two buffers where the bridge computes with places.
private struct ResidueModel {
    var source: [UInt8]
    var target: [UInt8]
    let blocks: (source: Int, target: Int)
    let pads: (source: Bool, target: Bool)
    /// Residual source data, and residual destination data.
    var unprocessed: [UInt8] = []
    var unwritten: [UInt8] = []

    /// - Returns: false for an unexpected inexact segment.
    mutating func copy(_ segment: SegmentDescriptor) -> Bool {
        var from = Int(segment.sourceLBA.value) * blocks.source
        var to = Int(segment.destinationLBA.value) * blocks.target
        let write: Int
        var isRange = true
        switch segment.amount {
        case .blocks(0, _), .bytes(0, _, _): return true
        case .blocks(let count, ofDestination: false):
            isRange = false
            process(Int(count) * blocks.source, from: &from, step: blocks.source)
            write = unwritten.count / blocks.target * blocks.target
        case .blocks(let count, ofDestination: true):
            write = Int(count) * blocks.target
            process(max(0, write - unwritten.count), from: &from, step: blocks.source)
        case .bytes(let count, let skip, let targetSkip):
            from += Int(skip)
            to += Int(targetSkip)
            write = Int(count)
            process(write, from: &from, step: 1)
        }
        target.replaceSubrange(to..<to + write, with: unwritten.prefix(write))
        unwritten.removeFirst(write)
        if segment.concatenate { return true }
        switch pads {
        case (false, false): return unprocessed.isEmpty && unwritten.isEmpty
        case (true, false): (unprocessed, unwritten) = ([], [])
        case (let isSourcePadded, true):
            if isSourcePadded { unprocessed = [] }
            if unwritten.isEmpty { return true }
            if isRange { return false }
            unwritten += [UInt8](repeating: 0, count: blocks.target - unwritten.count)
            target.replaceSubrange(to + write..<to + write + blocks.target, with: unwritten)
            unwritten = []
        }
        return true
    }

    private mutating func process(_ count: Int, from: inout Int, step: Int) {
        while unprocessed.count < count {
            unprocessed += source[from..<from + step]
            from += step
        }
        unwritten += unprocessed.prefix(count)
        unprocessed.removeFirst(count)
    }
}

@Suite struct CopyResidueTests {
    private static let size = 24 * 4096

    @Test(arguments: [(512, 4096), (4096, 512), (512, 512), (4096, 4096)])
    func segmentsOfAllKinds(blocks: (Int, Int)) throws {
        var generator = SeededGenerator(seed: UInt64(blocks.0 * 3 + blocks.1))
        func random(_ bound: Int) -> Int { Int(generator.next() >> 16) % bound }
        var refused = 0
        for round in 0..<250 {
            let stores = (0..<2).map { MemoryStore(pattern: Self.size, seed: UInt64(round * 2 + $0)) }
            let bench = try Bench([
                Bench.unit(0, stores[0], blockSize: UInt32(blocks.0)),
                Bench.unit(1, stores[1], blockSize: UInt32(blocks.1)),
            ])
            let before = try stores[1].all
            let pads = (source: random(2) == 1, target: random(2) == 1)
            var model = ResidueModel(
                source: try stores[0].all, target: before, blocks: (source: blocks.0, target: blocks.1),
                pads: pads)
            let segments = (0..<1 + random(6)).map { _ -> SegmentDescriptor in
                let amount: SegmentDescriptor.Amount =
                    random(3) == 0
                    ? .bytes(
                        UInt32(random(9000)), sourceOffset: UInt16(random(blocks.0)),
                        destinationOffset: UInt16(random(blocks.1)))
                    : .blocks(UInt16(random(6)), ofDestination: random(2) == 1)
                var segment = SegmentDescriptor(
                    source: 0, sourceLBA: LBA(UInt64(random(Self.size / 2 / blocks.0))), destination: 1,
                    destinationLBA: LBA(UInt64(random(Self.size / 2 / blocks.1))), amount: amount)
                segment.concatenate = random(3) > 0
                return segment
            }
            var failed: Int?
            for (index, segment) in segments.enumerated() where failed == nil && !model.copy(segment) {
                failed = index
            }
            let outcome = bench.copy(
                CopyParameterList(
                    listIdentifier: 1,
                    cscds: [bench.cscd(0, pad: pads.source), bench.cscd(1, pad: pads.target)],
                    segments: segments))
            if let failed {
                refused += 1
                #expect(outcome.failed(.copyAborted, .unexpectedInexactSegment))
                #expect(outcome.senseData?.commandSpecificInformation ?? 0 == UInt64(failed))
                #expect(try stores[1].all == before, "all is checked before anything is written")
            } else {
                #expect(outcome.isGood)
                #expect(try stores[1].all == model.target, "round \(round)")
            }
        }
        #expect(refused < 240 && (refused > 10 || blocks.0 == blocks.1))
    }
}
