import Blocks
import Foundation
import OriginalImage
import TestSupport
import Testing

@testable import PhysicalCopy

/// A restore plan against what the volume was, byte by byte.
@Suite struct RestorePlanTests {
    /// Pieces that overlap in the volume at will, and lie in `targets` targets with holes between.
    private func randomPieces(
        of size: Int, targets: Int, _ random: inout SeededGenerator
    ) -> [RestorePiece] {
        var pieces: [RestorePiece] = []
        for target in 0..<targets {
            var position: UInt64 = 0
            for _ in 0..<Int.random(in: 0...6, using: &random) {
                let start = Int.random(in: 0..<size, using: &random)
                let most = Bool.random(using: &random) ? 700 : 60_000
                let count = Int.random(in: 1...min(most, size - start), using: &random)
                if Bool.random(using: &random) { position += UInt64.random(in: 0...9000, using: &random) }
                let range = ByteRange(offset: UInt64(start), count: UInt64(count))
                pieces.append(RestorePiece(volume: range, target: target, offset: position))
                position += UInt64(count)
            }
        }
        return pieces
    }

    /// What each target shall hold: 0 where nothing was asked for.
    private func model(_ pieces: [RestorePiece], _ volume: [UInt8], targets: Int) -> [[UInt8]] {
        var result = (0..<targets).map { target in
            let end = pieces.filter { $0.target == target }.map { $0.offset + $0.volume.count }.max() ?? 0
            return [UInt8](repeating: 0, count: Int(end))
        }
        for piece in pieces {
            let start = Int(piece.offset)
            result[piece.target].replaceSubrange(
                start..<start + Int(piece.volume.count),
                with: volume[Int(piece.volume.offset)..<Int(piece.volume.end)])
        }
        return result
    }

    private func blank(_ model: [[UInt8]]) -> [[UInt8]] { model.map { $0.map { _ in 0 } } }

    /// No byte of a target comes twice.
    private func areDisjoint(_ runs: [RestoreRun]) -> Bool {
        Dictionary(grouping: runs, by: \.target).values.allSatisfy { runs in
            let sorted = runs.sorted { $0.offset < $1.offset }
            return zip(sorted, sorted.dropFirst()).allSatisfy { $0.offset + $0.count <= $1.offset }
        }
    }

    private func apply(_ runs: [RestoreRun], _ image: [UInt8], to targets: inout [[UInt8]]) {
        for run in runs {
            let place = Int(run.offset)..<Int(run.offset + run.count)
            targets[run.target].replaceSubrange(
                place, with: image[Int(run.source)..<Int(run.source + run.count)])
        }
    }

    private func zero(_ zeros: [RestorePiece], in targets: inout [[UInt8]]) {
        for piece in zeros {
            let place = Int(piece.offset)..<Int(piece.offset + piece.volume.count)
            targets[piece.target].replaceSubrange(place, with: repeatElement(0, count: place.count))
        }
    }

    @Test("Runs of an append copy and of the same copy integrated give the volume's bytes", arguments: 1...30)
    func runs(seed: UInt64) throws {
        var random = SeededGenerator(seed: seed)
        let parent = TemporaryDirectory()
        let sample = try SampleCopy(
            in: parent.path, seed: seed, size: Int.random(in: 1...150_000, using: &random),
            preserved: Int.random(in: 1...12, using: &random))
        let pieces = randomPieces(of: sample.instant.count, targets: 5, &random)
        let plan = RestorePlan(pieces.shuffled(using: &random))
        let expected = model(pieces, sample.instant, targets: 5)
        #expect(plan.bytes == pieces.reduce(0) { $0 + $1.volume.count })
        for isIntegrated in [false, true] {
            if isIntegrated {
                try PhysicalCopy(sample.directory, for: .changing).integrate(SampleCopy.open)
            }
            let copy = try PhysicalCopy(sample.directory)
            let store = try copy.openData(SampleCopy.open)
            let image = try store.bytes(at: 0, count: Int(store.size))
            var found = blank(expected)
            let reader = try copy.manifest.originals.map { _ in try copy.logReader(in: store) }
            let map = try copy.map(reader)
            let runs = plan.dataRuns(in: map)
            #expect(areDisjoint(runs))
            apply(runs, image, to: &found)
            if let reader {
                let index = try reader.index()
                let originals = plan.originals(in: map)
                #expect(areDisjoint(originals.runs))
                apply(originals.runs, image, to: &found)
                zero(originals.zeros, in: &found)
                let touched = index.entries.filter { entry in
                    pieces.contains { $0.volume.overlaps(reader.geometry.range(of: entry.chunk)) }
                }
                #expect(originals.entries == touched.sorted { $0.chunk < $1.chunk })
                try copy.requireWhole(in: store, touching: plan, originals.entries, slices: true)
            }
            #expect(found == expected, "integrated: \(isIntegrated)")
        }
    }

    @Test("Applied to a stream as its pieces pass, a plan gives the same", arguments: 1...30)
    func stream(seed: UInt64) throws {
        var random = SeededGenerator(seed: seed)
        let parent = TemporaryDirectory()
        let sample = try SampleCopy(
            in: parent.path, seed: seed, size: Int.random(in: 1...150_000, using: &random))
        let pieces = randomPieces(of: sample.instant.count, targets: 5, &random)
        let plan = RestorePlan(pieces)
        let expected = model(pieces, sample.instant, targets: 5)
        let copy = try PhysicalCopy(sample.directory)
        let store = try copy.openData(SampleCopy.open)
        var found = blank(expected)
        func pass(_ range: ByteRange, _ bytes: [UInt8]) {
            for piece in plan.pieces(in: range) {
                let start = Int(piece.volume.offset - range.offset)
                found[piece.target].replaceSubrange(
                    Int(piece.offset)..<Int(piece.offset + piece.volume.count),
                    with: bytes[start..<start + Int(piece.volume.count)])
            }
        }
        var position: UInt64 = 0
        while position < copy.manifest.data.length {
            let count = min(
                UInt64.random(in: 1...20_000, using: &random), copy.manifest.data.length - position)
            pass(
                ByteRange(offset: position, count: count),
                try store.bytes(at: position, count: Int(count)))
            position += count
        }
        let reader = try copy.logReader(in: store)
        for entry in try reader.index().entries {
            var bytes = [UInt8](repeating: 0, count: reader.geometry.length(of: entry.chunk))
            try bytes.withUnsafeMutableBytes { try reader.read(entry, into: $0) }
            pass(reader.geometry.range(of: entry.chunk), bytes)
        }
        #expect(found == expected)
    }

    @Test("What of a range is wanted is found as by looking at every piece", arguments: 1...40)
    func lookup(seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        let pieces = randomPieces(of: 100_000, targets: Int.random(in: 0...9, using: &random), &random)
        let plan = RestorePlan(pieces)
        for _ in 0..<50 {
            let start = UInt64.random(in: 0..<100_000, using: &random)
            let range = ByteRange(
                offset: start, count: UInt64.random(in: 0...min(30_000, 100_000 - start), using: &random))
            let found = plan.pieces(in: range)
            let wanted = pieces.compactMap { $0.part(in: range) }
            #expect(Set(found) == Set(wanted) && found.count == wanted.count)
            #expect(zip(found, found.dropFirst()).allSatisfy { $0.volume.offset <= $1.volume.offset })
            #expect(plan.wants(range) == !wanted.isEmpty)
        }
    }

    @Test func extentsThatOverlapAreRestoredOnce() {
        func range(_ offset: UInt64, _ count: UInt64) -> ByteRange { ByteRange(offset: offset, count: count) }
        let plan = RestorePlan(
            extents: [
                range(100, 50), range(10, 20), range(120, 100), range(30, 5), range(60, 0), range(12, 3),
            ])
        #expect(
            plan.pieces == [
                RestorePiece(volume: range(10, 25), offset: 10),
                RestorePiece(volume: range(100, 120), offset: 100),
            ])
        #expect(plan.bytes == 145)
        #expect(RestorePlan(extents: []).pieces.isEmpty)
    }

    @Test("A damaged original that is touched is found; so is a damaged slice, where slices are looked at")
    func damage() throws {
        let parent = TemporaryDirectory()
        let sample = try SampleCopy(in: parent.path, seed: 5, preserved: 3)
        let copy = try PhysicalCopy(sample.directory)
        let store = try SampleCopy.open(copy.dataLocation, true)
        let reader = try copy.logReader(in: store)
        let base = try #require(copy.manifest.originals?.offset)
        let map = try copy.map(reader)
        let entry = try #require(map.entries.first { !$0.isZero })
        let touching = RestorePlan(extents: [reader.geometry.range(of: entry.chunk)])
        let other = RestorePlan(
            extents: (0..<reader.geometry.chunkCount).filter { $0 != entry.chunk }.map(
                reader.geometry.range(of:)))
        func check(_ plan: RestorePlan, slices: Bool) throws {
            let originals = plan.originals(in: map)
            try copy.requireWhole(in: store, touching: plan, originals.entries, slices: slices)
        }
        let place = base + entry.position + 7
        let byte = try store.bytes(at: place, count: 1)[0]
        try store.write([byte ^ 1], at: place)
        #expect(throws: CopyError.self) { try check(touching, slices: false) }
        try check(other, slices: true)
        try store.write([byte], at: place)
        // Anywhere in the slice.
        let size = try copy.dataChecksums().sliceSize
        let start = reader.geometry.range(of: entry.chunk).offset.roundedDown(to: size)
        let data = try store.bytes(at: start, count: 1)[0]
        try store.write([data ^ 1], at: start)
        try check(touching, slices: false)
        #expect(throws: CopyError.self) { try check(touching, slices: true) }
    }
}
