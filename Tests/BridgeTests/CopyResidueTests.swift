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
    /// Source and target are the same bytes.
    let isShared: Bool
    /// Bytes of residue before each segment, and after the last.
    var residues = [0]
    /// Residual source data, and residual destination data.
    var unprocessed: [UInt8] = []
    var unwritten: [UInt8] = []

    /// - Returns: false for an unexpected inexact segment.
    mutating func copy(_ segment: SegmentDescriptor) -> Bool {
        defer {
            residues.append(unprocessed.count + unwritten.count)
            if isShared { source = target }
        }
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

    /// A residue that the same list would overwrite before it is written: nothing is moved.
    @Test func aResidueIsNotOverwrittenUnread() throws {
        let store = MemoryStore(pattern: Self.size, seed: 1)
        let bench = try Bench([
            Bench.unit(0, store), Bench.unit(1, MemoryStore(size: Self.size), blockSize: 4096),
        ])
        let before = try store.all
        func segment(_ from: UInt64, _ unit: UInt16, _ to: UInt64, blocks: UInt16 = 1) -> SegmentDescriptor {
            var segment = SegmentDescriptor(
                source: 0, sourceLBA: LBA(from), destination: unit, destinationLBA: LBA(to),
                amount: .blocks(blocks, ofDestination: false))
            segment.concatenate = true
            return segment
        }
        for (list, failed) in [
            // The data behind the residue; a residue that stays held; the second part of a residue.
            ([segment(0, 1, 0), segment(5, 0, 5)], 1),
            ([segment(0, 1, 0), segment(9, 1, 1), segment(3, 0, 9)], 2),
            ([segment(0, 1, 0), segment(9, 1, 0), segment(3, 0, 9)], 2),
        ] {
            let outcome = bench.copy(
                CopyParameterList(
                    listIdentifier: 1, cscds: [bench.cscd(0), bench.cscd(1)], segments: list))
            #expect(outcome.failed(.copyAborted, .invalidFieldInParameterList))
            #expect(outcome.failedSegment == failed)
            #expect(try store.all == before)
        }
        // Its own place is read first, and what lies behind the data may be written.
        let good = bench.copy(
            CopyParameterList(
                listIdentifier: 1, cscds: [bench.cscd(0), bench.cscd(1)],
                segments: [segment(6, 1, 0), segment(4, 0, 5)]))
        #expect(good.isGood)
        #expect(try store.all[2560..<3584] == before[3072..<3584] + before[2048..<2560])
    }

    @Test(arguments: [
        (512, 4096, false), (4096, 512, false), (512, 512, false), (4096, 4096, false),
        (512, 4096, true), (4096, 512, true), (512, 512, true), (4096, 4096, true),
    ])
    func segmentsOfAllKinds(blocks: (Int, Int, isShared: Bool)) throws {
        let isShared = blocks.isShared
        var generator = SeededGenerator(seed: UInt64(blocks.0 * 3 + blocks.1))
        func random(_ bound: Int) -> Int { Int(generator.next() >> 16) % bound }
        var (refused, unsafe) = (0, 0)
        for round in 0..<250 {
            var stores = (0..<2).map { MemoryStore(pattern: Self.size, seed: UInt64(round * 2 + $0)) }
            if isShared { stores[0] = stores[1] }
            let bench = try Bench([
                Bench.unit(0, stores[0], blockSize: UInt32(blocks.0), inode: isShared ? 7 : 8),
                Bench.unit(1, stores[1], blockSize: UInt32(blocks.1), inode: 7),
            ])
            let before = try stores[1].all
            let pads = (source: random(2) == 1, target: random(2) == 1)
            var model = ResidueModel(
                source: try stores[0].all, target: before, blocks: (source: blocks.0, target: blocks.1),
                pads: pads, isShared: isShared)
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
            if isShared, outcome.failed(.copyAborted, .invalidFieldInParameterList) {
                // Only if something was held when that segment began or when it ended.
                unsafe += 1
                // Segment 0 is told by a field that is zero.
                let at = max(outcome.failedSegment, 0)
                #expect(at <= failed ?? .max)
                #expect(model.residues.dropFirst(at).prefix(2).contains { $0 > 0 })
                #expect(try stores[1].all == before)
            } else if let failed {
                refused += 1
                #expect(outcome.failed(.copyAborted, .unexpectedInexactSegment))
                #expect(outcome.senseData?.commandSpecificInformation ?? 0 == UInt64(failed))
                #expect(try stores[1].all == before, "all is checked before anything is written")
            } else {
                #expect(outcome.isGood)
                #expect(try stores[1].all == model.target, "round \(round)")
            }
        }
        #expect(refused + unsafe < 240 && (refused > 10 || blocks.0 == blocks.1))
        #expect(unsafe < 80 && (unsafe > 2 || !isShared || blocks.0 == blocks.1), "\(unsafe) refused")
    }
}
