import Blocks
import Foundation
import Glibc
import Testing

@testable import AsyncIO

@Suite struct CopyEngineTests {
    private struct Step {
        var from: Int, source: Int, to: Int, target: Int, length: Int
    }

    /// Random plans over three files, overlapping as they come, equal a byte-wise reference.
    @Test(arguments: scratchParents, [StorageMode.direct, .pageCache])
    func equalsTheReference(parent: String, mode: StorageMode) throws {
        for seed in UInt64(1)...10 {
            var random = SplitMix(seed)
            let scratch = ScratchDirectory(under: parent)
            let sizes = [300_000, 262_144, 100_001]
            let paths = sizes.enumerated().map {
                scratch.file("f\($0)", size: $1, seed: seed * 10 + UInt64($0))
            }
            var expected = try paths.map { try ScratchDirectory.contents($0) }
            let files = try paths.map {
                try StorageFile.open($0, access: .readWrite, mode: mode, lock: .exclusive)
            }
            let unit = [1, 512, 4096][Int(seed % 3)]
            let steps = (0..<60).map { _ in step(sizes, unit, &random) }
            for step in steps {
                let data = Array(expected[step.from][step.source..<step.source + step.length])
                expected[step.to].replaceSubrange(step.target..<step.target + step.length, with: data)
            }
            let engine = try CopyEngine(depth: 1 + Int(seed), chunkSize: 4096 << (seed % 4))
            let progress = CopyProgress()
            try engine.run(plan(steps, files), flush: true, progress: progress)
            #expect(progress.segmentsCompleted == 60)
            #expect(progress.bytesWritten == UInt64(steps.map(\.length).reduce(0, +)))
            for (path, bytes) in zip(paths, expected) {
                #expect(try ScratchDirectory.contents(path) == bytes, "seed \(seed)")
            }
        }
    }

    private func step(_ sizes: [Int], _ unit: Int, _ random: inout SplitMix) -> Step {
        let from = Int.random(in: 0..<3, using: &random)
        let to = Int.random(in: 0..<3, using: &random)
        let most = min(sizes[from], sizes[to])
        let length = Int.random(in: 0...min(most, 90_000), using: &random) / unit * unit
        return Step(
            from: from, source: Int.random(in: 0...sizes[from] - length, using: &random) / unit * unit,
            to: to, target: Int.random(in: 0...sizes[to] - length, using: &random) / unit * unit,
            length: length)
    }

    private func plan(_ steps: [Step], _ files: [StorageFile]) -> [CopySegment] {
        steps.map {
            CopySegment(
                source: files[$0.from], sourceOffset: UInt64($0.source), target: files[$0.to],
                targetOffset: UInt64($0.target), length: UInt64($0.length))
        }
    }

    private struct Pair {
        var source: StorageFile
        var target: StorageFile
        var data: [UInt8]
        var whole: [CopySegment] { pieces(of: data.count) }
        func pieces(of size: Int) -> [CopySegment] {
            stride(from: 0, to: data.count, by: size).map {
                CopySegment(
                    source: source, sourceOffset: UInt64($0), target: target, targetOffset: UInt64($0),
                    length: UInt64(min(size, data.count - $0)))
            }
        }
        var isCopied: Bool { get throws { try target.bytes(at: 0, count: data.count) == data } }
    }

    private func pair(_ scratch: ScratchDirectory, size: Int = 1 << 20) throws -> Pair {
        let source = scratch.file("source", size: size, seed: 5)
        let target = scratch.file("target", size: size)
        return Pair(
            source: try .open(source, access: .readOnly, mode: .direct, lock: .none),
            target: try .open(target, access: .readWrite, mode: .direct, lock: .none),
            data: try ScratchDirectory.contents(source))
    }

    /// The system takes one request at a time, refuses now and then, is interrupted, transfers less than asked.
    @Test func copesWithTheSystem() throws {
        let scratch = ScratchDirectory()
        let pair = try pair(scratch)
        var random = SplitMix(1)
        let script = (0..<4096).map { _ in Int(random.next() % 8) }
        let calls = Monitor(0)
        @Sendable func roll() -> Int {
            calls.withLock {
                $0 += 1
                return script[$0 % 4096]
            }
        }
        var system = SystemCalls.live
        let live = SystemCalls.live
        system.ioSubmit = { context, count, blocks in
            switch roll() {
            case 0: return .failure(Errno(EAGAIN))
            case 1: return .failure(Errno(EINTR))
            case 2: return .success(0)
            default: break
            }
            if let block = blocks[0], block.pointee.u.c.nbytes > 4096, roll() < 4 {
                block.pointee.u.c.nbytes = 4096
            }
            return live.ioSubmit(context, roll() < 4 ? 1 : count, blocks)
        }
        system.ioGetEvents = { context, events, time in
            roll() == 0 ? .failure(Errno(EINTR)) : live.ioGetEvents(context, events, time)
        }
        let engine = try CopyEngine(depth: 8, chunkSize: 16 << 10, system: system)
        try engine.run(pair.pieces(of: 100_352), flush: true)
        #expect(try pair.isCopied)
    }

    /// The nth write fails: its segment is told, those before are written, the engine lives on.
    @Test(arguments: [0, 1, 5, 9])
    func tellsWhichSegmentFailed(segment: Int) throws {
        let scratch = ScratchDirectory()
        let pair = try pair(scratch)
        let bad = UInt64(segment) * 100_352 + 16_384
        var system = SystemCalls.live
        let live = SystemCalls.live
        let fd = pair.target.descriptor
        system.ioSubmit = { context, count, blocks in
            let block = blocks[0]!.pointee
            if block.aio_fildes == fd, block.u.c.offset == Int64(bad) { return .failure(Errno(EIO)) }
            return live.ioSubmit(context, 1, blocks)
        }
        let engine = try CopyEngine(depth: 16, chunkSize: 16 << 10, system: system)
        let progress = CopyProgress()
        #expect {
            try engine.run(pair.pieces(of: 100_352), flush: false, progress: progress)
        } throws: {
            let failure = $0 as? CopyFailure
            return failure?.segment == segment && failure?.reason == .write && failure?.errno == EIO
                && failure?.offset == bad
        }
        #expect(progress.segmentsCompleted == segment)
        #expect(
            try pair.target.bytes(at: 0, count: segment * 100_352)
                == Array(pair.data[..<(segment * 100_352)]))
        try engine.run(
            [
                CopySegment(
                    source: pair.source, sourceOffset: 0, target: pair.target, targetOffset: 0, length: 4096)
            ], flush: false)
    }

    /// Cancelled with requests in flight: ends at once, and only when all events have come.
    @Test func cancels() throws {
        let scratch = ScratchDirectory()
        let pair = try pair(scratch)
        let engine = try CopyEngine(depth: 8, chunkSize: 4096)
        let progress = CopyProgress()
        #expect {
            try engine.run(
                pair.pieces(of: 40_960), flush: true, progress: progress,
                isCancelled: { progress.bytesWritten > 100_000 })
        } throws: { ($0 as? CopyFailure)?.reason == .cancelled }
        let done = progress.segmentsCompleted * 40_960
        #expect(done > 0 && done < 1 << 20)
        #expect(try pair.target.bytes(at: 0, count: done) == Array(pair.data[..<done]))
        try engine.run(pair.whole, flush: true)
        #expect(try pair.isCopied)
    }

    @Test func endsAtACutSource() throws {
        let scratch = ScratchDirectory()
        let pair = try pair(scratch)
        #expect(truncate(pair.source.path, 500_000) == 0)
        let engine = try CopyEngine(depth: 4, chunkSize: 65_536)
        #expect {
            try engine.run(pair.pieces(of: 65_536), flush: false)
        } throws: {
            let failure = $0 as? CopyFailure
            return failure?.reason == .read && failure?.segment == 500_000 / 65_536
        }
    }

    @Test func usedUpRequestsAreTold() throws {
        var system = SystemCalls.live
        system.ioSetup = { _, _ in .failure(Errno(EAGAIN)) }
        #expect {
            _ = try CopyEngine(depth: 4, chunkSize: 4096, system: system)
        } throws: {
            ($0 as? StorageError)?.kind == .exhausted && "\($0)".contains("aio-max-nr")
        }
    }

    /// Flush falls back to a plain call, and its failure is told.
    @Test func flushes() throws {
        let scratch = ScratchDirectory()
        let pair = try pair(scratch)
        let synced = Monitor(0)
        var system = SystemCalls.live
        let live = SystemCalls.live
        system.ioSubmit = { context, count, blocks in
            blocks[0]!.pointee.aio_lio_opcode == 3
                ? .failure(Errno(EINVAL)) : live.ioSubmit(context, count, blocks)
        }
        system.fdatasync = { _ in
            synced.withLock {
                $0 += 1
                return $0
            } == 1 ? .failure(Errno(EINTR)) : .failure(Errno(EIO))
        }
        let engine = try CopyEngine(depth: 4, chunkSize: 65_536, system: system)
        try engine.run(pair.whole, flush: false)
        #expect(synced.withLock { $0 } == 0)
        #expect {
            try engine.run(pair.whole, flush: true)
        } throws: { ($0 as? CopyFailure)?.reason == .flush && ($0 as? CopyFailure)?.errno == EIO }
        #expect(synced.withLock { $0 } == 2)
    }

    /// Writes of parts of blocks beside what the engine writes are not lost, and neither are the engine's.
    @Test func sharesBlocksWithOtherWriters() throws {
        let scratch = ScratchDirectory()
        let pair = try pair(scratch, size: 256 << 10)
        let ended = Monitor(false)
        let target = pair.target
        BlockingThread.start {
            for round in 0..<300 {
                do throws(StoreError) {
                    try target.write(
                        [UInt8](repeating: UInt8(truncatingIfNeeded: round), count: 700), at: 8292)
                } catch { Issue.record(error) }
            }
            ended.withLockAndNotify { $0 = true }
        }
        let engine = try CopyEngine(depth: 4, chunkSize: 4096)
        let places: [Range<UInt64>] = [0..<8192, 9000..<109_000, 109_000..<262_144]
        let around = places.map { place in
            CopySegment(
                source: pair.source, sourceOffset: place.lowerBound, target: target,
                targetOffset: place.lowerBound, length: UInt64(place.count))
        }
        while !ended.withLock({ $0 }) { try engine.run(around, flush: false) }
        var expected = pair.data
        expected.replaceSubrange(
            8292..<8992, with: [UInt8](repeating: UInt8(truncatingIfNeeded: 299), count: 700))
        let end = try target.bytes(at: 0, count: 256 << 10)
        #expect(end[..<8192] == expected[..<8192])
        #expect(end[8292..<8992] == expected[8292..<8992])
        #expect(end[9000...] == expected[9000...])
    }
}

/// A file system that really fills: needs root, to mount a tmpfs of its own.
@Suite struct FullFileSystemTests {
    @Test func noSpaceIsToldAndNothingHangs() throws {
        guard getuid() == 0 else {
            print("SKIPPED noSpaceIsToldAndNothingHangs: needs root to mount a tmpfs")
            return
        }
        let scratch = ScratchDirectory()
        let place = "\(scratch.path)/full"
        #expect(mkdir(place, 0o700) == 0)
        guard mount("none", place, "tmpfs", 0, "size=1m") == 0 else {
            print("SKIPPED noSpaceIsToldAndNothingHangs: no tmpfs can be mounted here (errno \(errno))")
            return
        }
        defer { umount(place) }
        let size: UInt64 = 4 << 20
        try StorageFile.create("\(place)/target", size: size, preallocate: false)
        #expect {
            try StorageFile.create("\(place)/other", size: size, preallocate: true)
        } throws: { ($0 as? StorageError)?.kind == .exhausted }
        #expect(access("\(place)/other", F_OK) != 0)
        for mode in [StorageMode.direct, .pageCache] {
            let target = try StorageFile.open(
                "\(place)/target", access: .readWrite, mode: mode, lock: .none)
            let source = try StorageFile.open(
                scratch.file("source-\(mode)", size: Int(size), seed: 1), access: .readOnly, mode: mode,
                lock: .none)
            let engine = try CopyEngine(depth: 8, chunkSize: 64 << 10)
            #expect {
                try engine.run(
                    [
                        CopySegment(
                            source: source, sourceOffset: 0, target: target, targetOffset: 0, length: size)
                    ], flush: true)
            } throws: {
                ($0 as? CopyFailure)?.reason == .write && ($0 as? CopyFailure)?.errno == ENOSPC
            }
            #expect {
                try target.write([UInt8](repeating: 1, count: 2 << 20), at: 2 << 20)
            } throws: { ($0 as? StoreError)?.code == .noSpace }
            try target.writeZeroes(ByteRange(offset: 0, count: size), options: [])
        }
    }
}
