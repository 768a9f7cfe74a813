import Blocks
import Foundation
import Glibc
import Testing

@testable import AsyncIO

@Suite struct StorageFileTests {
    /// Random reads, writes, gathers, zeroes and trims of any alignment against an array.
    @Test(arguments: scratchParents, [StorageMode.direct, .pageCache])
    func equalsAnArray(parent: String, mode: StorageMode) throws {
        for seed in UInt64(1)...4 {
            let scratch = ScratchDirectory(under: parent)
            let size = [1 << 20, (1 << 20) + 513, 4096, 100][Int(seed % 4)]
            let path = scratch.file("f", size: size, seed: seed)
            var expected = try ScratchDirectory.contents(path)
            let file = try StorageFile.open(path, access: .readWrite, mode: mode, lock: .exclusive)
            #expect(file.size == UInt64(size))
            var random = SplitMix(seed)
            for step in 0..<150 {
                let a = Int.random(in: 0..<size, using: &random)
                var b = Int.random(in: a...min(size, a + 200_000), using: &random)
                var start = a
                if Bool.random(using: &random) {
                    start = a / 4096 * 4096
                    b = min(size, (b + 4095) / 4096 * 4096)
                }
                let range = start..<b
                let byteRange = ByteRange(offset: UInt64(start), count: UInt64(range.count))
                let durable = step % 16 == 0
                switch random.next() % 6 {
                case 0, 1:
                    let data = random.bytes(range.count)
                    try file.write(data, at: UInt64(start), durable: durable)
                    expected.replaceSubrange(range, with: data)
                case 2:
                    let data = random.bytes(range.count)
                    try gather(data, cuts: 5, at: UInt64(start), to: file, durable: durable, using: &random)
                    expected.replaceSubrange(range, with: data)
                case 3:
                    let options: ZeroOptions = [[], .keepAllocated, .durable][step % 3]
                    try file.writeZeroes(byteRange, options: options)
                    expected.replaceSubrange(range, with: [UInt8](repeating: 0, count: range.count))
                case 4:
                    try file.trim(byteRange, durable: durable)
                    let now = try file.bytes(at: UInt64(start), count: range.count)
                    #expect(zip(now, expected[range]).allSatisfy { $0 == 0 || $0 == $1 })
                    expected.replaceSubrange(range, with: now)
                default:
                    let read = try file.bytes(at: UInt64(start), count: range.count)
                    #expect(read == Array(expected[range]), "seed \(seed) step \(step)")
                }
            }
            try file.flush()
            #expect(try file.bytes(at: 0, count: size) == expected, "seed \(seed)")
            #expect(try ScratchDirectory.contents(path) == expected, "seed \(seed)")
        }
    }

    private func gather(
        _ data: [UInt8], cuts: Int, at offset: UInt64, to file: StorageFile, durable: Bool,
        using random: inout SplitMix
    ) throws {
        let places =
            [0] + (0..<cuts).map { _ in Int.random(in: 0...data.count, using: &random) }.sorted()
            + [data.count]
        try data.withUnsafeBytes { bytes in
            let buffers = zip(places, places.dropFirst()).map {
                UnsafeRawBufferPointer(rebasing: bytes[$0..<$1])
            }
            try buffers.withUnsafeBufferPointer {
                try file.write(gathering: $0, at: offset, durable: durable)
            }
        }
    }

    /// Threads write neighbouring 512-byte parts of the same blocks: no part is lost.
    @Test func neighboursInOneBlockDoNotLoseWrites() throws {
        let scratch = ScratchDirectory()
        let size = 64 << 10
        let file = try StorageFile.open(
            scratch.file("f", size: size), access: .readWrite, mode: .direct, lock: .none)
        let part = 100
        let running = Monitor(4)
        for thread in 0..<4 {
            BlockingThread.start {
                for round in 1...8 {
                    for index in stride(from: thread, to: size / part, by: 4) {
                        let value = UInt8(truncatingIfNeeded: index &* 7 &+ round)
                        do throws(StoreError) {
                            try file.write([UInt8](repeating: value, count: part), at: UInt64(index * part))
                        } catch { Issue.record(error) }
                    }
                }
                running.withLockAndNotify { $0 -= 1 }
            }
        }
        running.wait { $0 == 0 ? () : nil }
        let end = try file.bytes(at: 0, count: size)
        for index in 0..<size / part {
            let value = UInt8(truncatingIfNeeded: index &* 7 &+ 8)
            #expect(end[index * part..<(index + 1) * part].allSatisfy { $0 == value })
        }
    }

    @Test func knowsHoles() throws {
        let scratch = ScratchDirectory()
        let path = "\(scratch.path)/sparse"
        try StorageFile.create(path, size: 1 << 20, preallocate: false)
        let file = try StorageFile.open(path, access: .readWrite, mode: .pageCache, lock: .none)
        try file.write([UInt8](repeating: 1, count: 64 << 10), at: 256 << 10)
        try file.flush()
        let extents = try file.allocation(of: ByteRange(offset: 0, count: 1 << 20), limit: 10)
        let counts: [UInt64] = [256 << 10, 64 << 10, 704 << 10]
        #expect(extents.map(\.count) == counts)
        #expect(extents.map(\.isHole) == [true, false, true])
        #expect(try file.allocation(of: ByteRange(offset: 0, count: 1 << 20), limit: 1).count == 1)
    }

    @Test func refusesWhatIsNoStorage() throws {
        let scratch = ScratchDirectory()
        let fifo = "\(scratch.path)/fifo"
        #expect(mkfifo(fifo, 0o600) == 0)
        for (path, kind) in [
            (fifo, StorageError.Kind.unsuitable), (scratch.path, .unsuitable), ("/dev/null", .unsuitable),
            ("\(scratch.path)/absent", .missing),
        ] {
            #expect {
                _ = try StorageFile.open(path, access: .readOnly, mode: .direct, lock: .none)
            } throws: {
                ($0 as? StorageError)?.kind == kind && "\($0)".contains(path)
            }
        }
        let small = scratch.file("small", size: 100)
        #expect {
            _ = try StorageFile.open(
                small, access: .readOnly, mode: .pageCache, lock: .none, minimumSize: 101)
        } throws: { ($0 as? StorageError)?.kind == .tooSmall }
        #expect {
            try StorageFile.create(small, size: 1, preallocate: false)
        } throws: { ($0 as? StorageError)?.kind == .exists }
    }

    @Test func locksExclude() throws {
        let scratch = ScratchDirectory()
        let path = scratch.file("f", size: 4096)
        let first = try StorageFile.open(path, access: .readWrite, mode: .direct, lock: .exclusive)
        #expect {
            _ = try StorageFile.open(path, access: .readWrite, mode: .direct, lock: .exclusive)
        } throws: { ($0 as? StorageError)?.kind == .locked }
        let reader = try StorageFile.open(path, access: .readOnly, mode: .direct, lock: .none)
        #expect(reader.identity == first.identity)
        #expect(throws: StoreError(.readOnly)) { try reader.write([1], at: 0) }
        first.close()
        #expect(throws: StoreError(.gone)) { try first.bytes(at: 0, count: 1) }
        let second = try StorageFile.open(path, access: .readWrite, mode: .direct, lock: .exclusive)
        second.close()
    }

    /// Interruptions are repeated, short transfers continued, refusals worked around, errors told.
    @Test(arguments: [StorageMode.direct, .pageCache])
    func copesWithTheSystem(mode: StorageMode) throws {
        let scratch = ScratchDirectory()
        let path = scratch.file("f", size: 256 << 10, seed: 9)
        let calls = Monitor(0)
        var system = SystemCalls.live
        let live = SystemCalls.live
        // Direct transfers end at whole blocks, even short ones.
        let most = mode == .direct ? 4096 : 5000
        @Sendable func nth() -> Int {
            calls.withLock {
                $0 += 1
                return $0
            }
        }
        system.pread = { fd, buffer, offset in
            if nth() % 2 == 1 { return .failure(Errno(EINTR)) }
            return live.pread(fd, UnsafeMutableRawBufferPointer(rebasing: buffer.prefix(most)), offset)
        }
        system.pwritev = { fd, vectors, offset, durable in
            if durable { return .failure(Errno(EOPNOTSUPP)) }
            if nth() % 2 == 1 { return .failure(Errno(EINTR)) }
            var first = vectors[0]
            first.iov_len = min(first.iov_len, most)
            return withUnsafePointer(to: first) {
                live.pwritev(fd, UnsafeBufferPointer(start: $0, count: 1), offset, false)
            }
        }
        system.fallocate = { _, _, _, _ in .failure(Errno(EOPNOTSUPP)) }
        let file = try StorageFile(
            path, access: .readWrite, mode: mode, lock: .none, minimumSize: nil, system: system)
        var expected = try ScratchDirectory.contents(path)
        #expect(try file.bytes(at: 777, count: 50_000) == Array(expected[777..<50_777]))
        var random = SplitMix(4)
        let data = random.bytes(40_000)
        try file.write(data, at: 8192, durable: true)
        expected.replaceSubrange(8192..<48_192, with: data)
        try file.writeZeroes(ByteRange(offset: 100, count: 9000), options: [])
        expected.replaceSubrange(100..<9100, with: [UInt8](repeating: 0, count: 9000))
        #expect(throws: StoreError(.notSupported)) {
            try file.writeZeroes(ByteRange(offset: 0, count: 4096), options: .onlyIfFast)
        }
        #expect(try file.bytes(at: 0, count: 256 << 10) == expected)
        #expect(truncate(path, 4096) == 0)
        #expect(throws: StoreError(.io, errno: ENODATA)) { try file.bytes(at: 8192, count: 10) }
    }

    /// A device at its end writes nothing without an error.
    @Test func zerosThatAreNotWrittenAreAnError() throws {
        let scratch = ScratchDirectory()
        let path = scratch.file("f", size: 64 << 10, seed: 3)
        var system = SystemCalls.live
        system.fallocate = { _, _, _, _ in .failure(Errno(EOPNOTSUPP)) }
        // After some tries it is told, so that a loop without end ends here, too.
        let calls = Monitor(0)
        system.pwrite = { _, _, _ in
            calls.withLock { calls in
                calls += 1
                return calls < 100 ? .success(0) : .failure(Errno(EPIPE))
            }
        }
        let file = try StorageFile(
            path, access: .readWrite, mode: .pageCache, lock: .none, minimumSize: nil, system: system)
        #expect(throws: StoreError(.io, errno: EIO)) {
            try file.writeZeroes(ByteRange(offset: 4096, count: 8192), options: [])
        }
    }

    /// The system tells once that data were lost, to whoever asks first; all others must hear of it, too.
    @Test func whatAFlushLostStaysLost() throws {
        let scratch = ScratchDirectory()
        let bytes = [UInt8](repeating: 1, count: 4096)
        let failing = Monitor(0)
        @Sendable func fail() -> Bool {
            failing.withLock { left in
                left -= 1
                return left == 0
            }
        }
        var system = SystemCalls.live
        let live = SystemCalls.live
        system.fdatasync = { fail() ? .failure(Errno(EIO)) : live.fdatasync($0) }
        system.pwritev = { fd, vectors, offset, durable in
            durable && fail() ? .failure(Errno(EIO)) : live.pwritev(fd, vectors, offset, durable)
        }
        system.ioSubmit = { context, count, blocks in
            blocks[0]!.pointee.aio_lio_opcode == 3 && fail()
                ? .failure(Errno(EIO)) : live.ioSubmit(context, count, blocks)
        }
        let lost = StoreError(.io, errno: EIO)
        let source = try StorageFile.open(
            scratch.file("source", size: 8192), access: .readOnly, mode: .pageCache, lock: .none)
        for way in 0..<3 {
            let path = scratch.file("f\(way)", size: 64 << 10)
            let file = try StorageFile(
                path, access: .readWrite, mode: .pageCache, lock: .none, minimumSize: nil, system: system)
            let engine = try CopyEngine(depth: 1, chunkSize: 4096, system: system)
            let copy = [
                CopySegment(source: source, sourceOffset: 0, target: file, targetOffset: 0, length: 4096)
            ]
            try file.write(bytes, at: 0)
            try file.flush()
            failing.withLock { $0 = 1 }
            switch way {
            case 0: #expect(throws: lost) { try file.flush() }
            case 1: #expect(throws: lost) { try file.write(bytes, at: 0, durable: true) }
            default: #expect(throws: CopyFailure.self) { try engine.run(copy, flush: true) }
            }
            #expect(throws: lost) { try file.flush() }
            #expect(throws: lost) {
                try file.writeZeroes(ByteRange(offset: 0, count: 4096), options: .durable)
            }
            #expect(throws: CopyFailure.self) { try engine.run(copy, flush: true) }
            // What needs no promise goes on.
            try file.write(bytes, at: 4096)
            #expect(try file.bytes(at: 4096, count: 4096) == bytes)
            // Until nobody wants any more what was lost: told once more then, and not after.
            failing.withLock { $0 = 2 }
            #expect(throws: lost) { try file.forgetLostData() }
            #expect(throws: lost) { try file.flush() }
            failing.withLock { $0 = 1 }
            try file.forgetLostData()
            try file.flush()
            _ = try engine.run(copy, flush: true)
        }
    }

    /// Those who flush at the same time hear the same.
    @Test func flushesAtOnceShareWhatTheyHear() throws {
        let scratch = ScratchDirectory()
        let gate = Monitor<(calls: Int, isOpen: Bool)>((0, false))
        var system = SystemCalls.live
        system.fdatasync = { _ in
            let isFirst = gate.withLockAndNotify { gate -> Bool in
                gate.calls += 1
                return gate.calls == 1
            }
            // The second is through before the first has told what happened.
            if isFirst { gate.wait { $0.isOpen ? () : nil } }
            return isFirst ? .failure(Errno(EIO)) : .success(0)
        }
        let file = try StorageFile(
            scratch.file("f", size: 4096), access: .readWrite, mode: .pageCache, lock: .none,
            minimumSize: nil, system: system)
        let outcomes = Monitor<[Bool]>([])
        for _ in 0..<2 {
            BlockingThread.start {
                var isGood = true
                do throws(StoreError) { try file.flush() } catch { isGood = false }
                outcomes.withLockAndNotify { $0.append(isGood) }
            }
        }
        gate.wait { $0.calls > 0 ? () : nil }
        // A flush that did not wait for the first would be through by now or soon.
        _ = outcomes.wait(nanoseconds: 200_000_000) { $0.isEmpty ? nil : () }
        gate.withLockAndNotify { $0.isOpen = true }
        #expect(outcomes.wait { $0.count == 2 ? $0 : nil } == [false, false])
    }

    /// A new file is flushed, and then the directory that has its name; what cannot be flushed is not there.
    @Test func aFileGrowsWhileItIsOpen() throws {
        let scratch = ScratchDirectory()
        let path = scratch.file("f", size: 5000, seed: 3)
        let before = try ScratchDirectory.contents(path)
        let synced = Monitor<[UInt64]>([])
        var system = SystemCalls.live
        let live = SystemCalls.live
        system.fsync = { fd in
            synced.withLock { [size = UInt64(lseek(fd, 0, SEEK_END))] in $0.append(size) }
            return live.fsync(fd)
        }
        let file = try StorageFile(
            path, access: .readWrite, mode: .pageCache, lock: .exclusive, minimumSize: nil, system: system)
        try file.grow(to: 5000)
        try file.grow(to: 100)
        #expect(file.size == 5000 && synced.withLock { $0 }.isEmpty)
        try file.grow(to: 12_288)
        #expect(file.size == 12_288 && synced.withLock { $0 } == [12_288])
        #expect(try file.bytes(at: 0, count: 12_288) == before + [UInt8](repeating: 0, count: 12_288 - 5000))
        try file.write([7], at: 12_287, durable: true)
        // What somebody else made longer is not cut.
        #expect(truncate(path, 50_000) == 0)
        try file.grow(to: 20_000)
        #expect(file.size == 20_000)
        #expect(try ScratchDirectory.contents(path).count == 50_000)
        #expect(try file.bytes(at: 12_287, count: 2) == [7, 0])
        #expect(throws: StoreError(.noSpace, errno: EFBIG)) { try file.grow(to: UInt64(Int64.max) + 1) }
    }

    @Test func whatCannotGrowSaysSo() throws {
        let scratch = ScratchDirectory()
        let path = scratch.file("f", size: 4096)
        let direct = try StorageFile.open(path, access: .readWrite, mode: .direct, lock: .none)
        if direct.isDirect {
            #expect(throws: StoreError(.notSupported)) { try direct.grow(to: 8192) }
        }
        let readOnly = try StorageFile.open(path, access: .readOnly, mode: .pageCache, lock: .none)
        #expect(throws: StoreError(.readOnly)) { try readOnly.grow(to: 8192) }
        for (isFlush, error) in [(false, ENOSPC), (true, EIO)] {
            var system = SystemCalls.live
            if isFlush {
                system.fsync = { _ in .failure(Errno(error)) }
            } else {
                system.truncate = { _, _ in .failure(Errno(error)) }
            }
            let file = try StorageFile(
                path, access: .readWrite, mode: .pageCache, lock: .none, minimumSize: nil, system: system)
            #expect(throws: StoreError.self) { try file.grow(to: 8192) }
            #expect(file.size == 4096)
            // A flush that has failed is not forgotten.
            if isFlush {
                #expect(throws: StoreError.self) { try file.flush() }
            } else {
                try file.flush()
            }
        }
    }

    @Test func aNewFilesNameIsFlushed() throws {
        let scratch = ScratchDirectory()
        let flushed = Monitor<[UInt64]>([])
        var system = SystemCalls.live
        system.fsync = { fd in
            var status = stat()
            fstat(fd, &status)
            flushed.withLock { $0.append(UInt64(status.st_ino)) }
            return .success(0)
        }
        let path = "\(scratch.path)/new"
        try StorageFile.create(path, size: 8192, preallocate: false, system: system)
        func inode(_ path: String) throws -> UInt64 {
            var status = stat()
            try #require(stat(path, &status) == 0)
            return UInt64(status.st_ino)
        }
        #expect(try flushed.withLock { $0 } == [inode(path), inode(scratch.path)])
        let calls = Monitor(0)
        system.fsync = { _ in
            let isFirst = calls.withLock { calls -> Bool in
                calls += 1
                return calls == 1
            }
            return isFirst ? .success(0) : .failure(Errno(EIO))
        }
        #expect {
            try StorageFile.create("\(scratch.path)/lost", size: 1, preallocate: false, system: system)
        } throws: { ($0 as? StorageError)?.errno == EIO }
        #expect(access("\(scratch.path)/lost", F_OK) != 0)
    }
}
