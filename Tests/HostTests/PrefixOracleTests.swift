import Blocks
import Foundation
import HostControl
import OriginalImage
import Synchronization
import TestSupport
import Testing

@testable import Host

/// One numbered change of the volume.
private struct Change: Sendable {
    enum Kind: Sendable { case write, zero, trim }
    var kind: Kind
    var offset: Int
    var bytes: [UInt8]

    init(number: Int, seed: UInt64, size: Int, _ random: inout SeededGenerator) {
        let count = Int.random(in: 1...min(20_000, size / 3), using: &random)
        offset = Int.random(in: 0...(size - count), using: &random)
        switch Int.random(in: 0..<10, using: &random) {
        case 0: kind = .zero
        case 1: kind = .trim
        default: kind = .write
        }
        // Every byte depends on its address, the number and the seed.
        let start = offset
        bytes =
            kind == .write
            ? (0..<count).map {
                UInt8(truncatingIfNeeded: (start + $0) / 64 &+ number &* 37 &+ Int(seed)) | 1
            }
            : [UInt8](repeating: 0, count: count)
    }

    func apply(to contents: inout [UInt8]) {
        contents.replaceSubrange(offset..<offset + bytes.count, with: bytes)
    }
}

/// A sequential writer numbers its changes while an epoch begins, a raw copier reads the source without regard to
/// it, and the cache is laid over what it read. The result must be the volume after exactly k changes, with k
/// between the last one finished before institution and the last one issued before it returned.
private struct Oracle {
    let seed: UInt64
    let chunk: UInt64
    let size: Int
    var defects: Defects = []
    let issued = Monitor(0)
    let finished = Monitor(0)

    enum Verdict: Equatable {
        case consistent
        case wrong
    }

    func run() throws -> Verdict {
        let source = FaultyStore(size: size)
        let cache = FaultyStore(size: size * 2 + (4 << 20))
        // Where a defect could hide behind a fast machine, the thread yields at every step of the write path.
        let volume = try CopyOnWriteVolume(
            source: source, cache: cache, settings: Fixture.settings(chunk: chunk), defects: defects,
            hook: { _ in for _ in 0..<3 { sched_yield() } })
        var random = SeededGenerator(seed: seed)
        let changes = (0..<400).map { Change(number: $0, seed: seed, size: size, &random) }
        let stop = Monitor(false)
        let before = Int.random(in: 10..<60, using: &random)
        let copied = Monitor(0)
        let isStalled = Monitor(false)
        if seed % 2 == 1 || !defects.isEmpty {
            stall(source, after: before, isStalled, until: copied)
        }
        let writer = Worker { [issued, finished, isStalled] in
            for (number, change) in changes.enumerated() {
                if stop.withLock({ $0 }) { return }
                issued.withLockAndNotify { $0 = number + 1 }
                let range = ByteRange(offset: UInt64(change.offset), count: UInt64(change.bytes.count))
                switch change.kind {
                case .write: try volume.write(change.bytes, at: range.offset)
                case .zero: try volume.writeZeroes(range, options: [])
                case .trim:
                    // Advice may be ignored; the oracle's writer then zeroes, to know what is there.
                    try volume.trim(range, durable: false)
                    try volume.writeZeroes(range, options: [])
                }
                finished.withLockAndNotify { $0 = number + 1 }
                isStalled.withLockAndNotify { _ in }
            }
        }
        // Until the writer is far enough: in the middle of a write, if it is to stall.
        isStalled.wait { stalled -> Void? in
            let done = finished.withLock { $0 }
            return stalled || done >= before && seed % 2 == 0 && defects.isEmpty || done == changes.count
                ? () : nil
        }

        let lowest = finished.withLock { $0 }
        let epoch = try volume.begin()
        let highest = issued.withLock { $0 }
        var copy = [UInt8]()
        while copy.count < size {
            let count = min(10_000, size - copy.count)
            copy += try source.bytes(at: UInt64(copy.count), count: count)
            copied.withLockAndNotify { $0 = copy.count }
            guard copy.count > size / 2 else { continue }
            let goal = min(finished.withLock { $0 } + 3, changes.count)
            finished.wait { $0 >= goal ? () : nil }
        }
        // A defective host's snapshot may not even be readable; there the copy alone must tell.
        let seen = defects.isEmpty ? try volume.snapshot?.bytes(at: 0, count: size) : nil
        _ = try volume.end(epoch: UUID(uuidString: epoch.uuid)!)
        stop.withLock { $0 = true }
        writer.join()
        try overlay(cache, on: &copy)

        var state = [UInt8](repeating: 0, count: size)
        for number in 0...highest {
            if number >= lowest, state == copy, seen == copy || !defects.isEmpty { return .consistent }
            if number < changes.count { changes[number].apply(to: &state) }
        }
        return .wrong
    }

    /// Has the device be slow in one write: it is half done when the copier is half through. A host that drains
    /// waits for it, and the write for nothing but its own time-out.
    private func stall(
        _ source: FaultyStore, after before: Int, _ isStalled: Monitor<Bool>, until copied: Monitor<Int>
    ) {
        let patience: UInt64 = defects.contains(.skipsDrain) ? 5_000_000_000 : 30_000_000
        let finished = finished
        let half = size / 2
        source.midWrite.withLock {
            $0 = {
                guard finished.withLock({ $0 }) >= before else { return }
                let isFirst = isStalled.withLockAndNotify { stalled in
                    defer { stalled = true }
                    return !stalled
                }
                if isFirst { _ = copied.wait(nanoseconds: patience) { $0 >= half ? () : nil } }
            }
        }
    }

    private func overlay(_ cache: any BlockStore, on copy: inout [UInt8]) throws {
        let reader = try LogReader(cache, wantsBothSuperblocks: true)
        for entry in try reader.index().entries {
            let range = reader.geometry.range(of: entry.chunk)
            try copy.withUnsafeMutableBytes { bytes in
                let part = bytes[Int(range.offset)..<Int(range.end)]
                try reader.read(entry, into: UnsafeMutableRawBufferPointer(rebasing: part))
            }
        }
    }
}

@Suite struct PrefixOracleTests {
    static let shapes: [(chunk: UInt64, size: Int)] = [
        (4096, 200_000), (8192, 8192 * 20), (65536, 300_001), (1 << 20, 250_000),
    ]

    @Test(arguments: 0..<24) func theCopyIsOneInstant(seed: Int) throws {
        let shape = Self.shapes[seed % Self.shapes.count]
        let oracle = Oracle(seed: UInt64(seed), chunk: shape.chunk, size: shape.size)
        #expect(try oracle.run() == .consistent, "seed \(seed)")
    }

    /// Each defect must be noticed within some seeds, or the oracle is worth nothing.
    @Test(arguments: [Defects.preservesAfterWriting, .forgetsOneBit, .skipsDrain])
    func defectsAreNoticed(defect: Defects) throws {
        for seed in 0..<60 {
            let oracle = Oracle(seed: UInt64(seed), chunk: 4096, size: 200_000, defects: defect)
            if try oracle.run() == .wrong { return }
        }
        Issue.record("the defect \(defect.rawValue) passed 60 seeds")
    }
}
