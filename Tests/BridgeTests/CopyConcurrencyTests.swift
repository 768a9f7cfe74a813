import AsyncIO
import Blocks
import Foundation
import Glibc
import SCSI
import TestSupport
import Testing

@testable import Bridge

/// A command on a thread of its own.
final class Running: Sendable {
    let task: SCSITask
    private let outcome = Monitor<SCSIOutcome?>(nil)

    init(_ device: BridgeDevice, _ task: SCSITask) {
        self.task = task
        let started = BlockingThread.start { [self] in
            let outcome = device.execute(task)
            self.outcome.withLockAndNotify { $0 = outcome }
        }
        precondition(started, "no thread for a test")
    }

    /// Waits for the end.
    func end() -> SCSIOutcome { outcome.wait { $0 } }
    var isRunning: Bool { outcome.withLock { $0 == nil } }
}

@Suite struct CopyConcurrencyTests {
    private static let step = BridgeLimits.serialBuffer

    /// Two units; the source's reads can be held. The copy has `steps` steps of the serial mover, one a segment.
    private struct Held {
        let source: FaultyStore
        let target: MemoryStore
        let bench: Bench
        let list: CopyParameterList

        init(steps: Int) throws {
            source = FaultyStore(size: steps * step)
            target = MemoryStore(size: steps * step)
            bench = try Bench([Bench.unit(0, source), Bench.unit(1, target)])
            let blocks = UInt64(step / 512)
            list = CopyParameterList(
                listIdentifier: 1, cscds: [bench.cscd(0), bench.cscd(1)],
                segments: (0..<UInt64(steps)).map {
                    SegmentDescriptor(
                        source: 0, sourceLBA: LBA($0 * blocks), destination: 1,
                        destinationLBA: LBA($0 * blocks),
                        amount: .bytes(UInt32(step), sourceOffset: 0, destinationOffset: 0))
                })
        }

        func status() throws -> CopyStatus {
            try CopyStatus(decoding: bench.results(.copyStatus, 1).dataIn)
        }
    }

    @Test func progressOnlyGrowsWhileItRuns() throws {
        let held = try Held(steps: 6)
        held.source.hold()
        let copy = Running(held.bench.device, held.bench.copyTask(held.list))
        var last = CopyStatus(state: .inProgress, segmentsProcessed: 0, bytes: 0)
        for done in 0..<6 {
            held.source.awaitHeld()
            let status = try held.status()
            #expect(status.state == .inProgress && status.segmentsProcessed == UInt16(done))
            #expect(status.bytes == UInt64(done * Self.step))
            #expect(status.transferCount >= last.transferCount)
            last = status
            held.source.letOne()
        }
        #expect(copy.end().isGood)
        let final = try held.status()
        #expect(final.state == .completed && final.segmentsProcessed == 6)
        #expect(final.bytes == UInt64(6 * Self.step))
    }

    @Test func identifierInUseIsRefusedAndOthersRun() throws {
        let held = try Held(steps: 2)
        held.source.hold()
        let copy = Running(held.bench.device, held.bench.copyTask(held.list))
        held.source.awaitHeld()
        #expect(held.bench.copy(held.list).failed(.illegalRequest, .operationInProgress))
        // Another nexus has identifiers of its own; and ordinary commands go on.
        let other = Bench.makeNexus(2)
        held.bench.device.openNexus(other)
        #expect(held.bench.send(.testUnitReady, on: other).failed(.unitAttention, .powerOnOrReset))
        let second = Running(held.bench.device, held.bench.copyTask(held.list, on: other))
        held.source.awaitHeld(2)
        #expect(held.bench.send(.readCapacity10).isGood)
        #expect(held.bench.results(.failedSegmentDetails, 1).dataIn == [0, 0, 0, 0])
        held.source.release()
        #expect(copy.end().isGood && second.end().isGood)
        #expect(held.bench.copy(held.list).isGood, "free again")
    }

    @Test func abortStopsTheCopy() throws {
        let held = try Held(steps: 50)
        held.source.hold()
        let copy = Running(held.bench.device, held.bench.copyTask(held.list))
        held.source.awaitHeld()
        copy.task.abort()
        held.source.release()
        #expect(copy.end().status == .taskAborted)
        let status = try held.status()
        #expect(status.state == .failed && status.bytes == UInt64(Self.step))
        // The last step was under way; behind it nothing was touched.
        #expect(held.source.operations <= 1)
        #expect(held.bench.copy(held.list).isGood)
    }

    @Test func lostNexusStopsItsCopiesAndNoOthers() throws {
        let held = try Held(steps: 50)
        let other = Bench.makeNexus(2)
        held.bench.device.openNexus(other)
        _ = held.bench.send(.testUnitReady, on: other)
        held.source.hold()
        let mine = Running(held.bench.device, held.bench.copyTask(held.list))
        let theirs = Running(held.bench.device, held.bench.copyTask(held.list, on: other))
        held.source.awaitHeld(2)
        let closing = Monitor(false)
        let started = BlockingThread.start {
            held.bench.device.closeNexus(held.bench.nexus)
            closing.withLockAndNotify { $0 = true }
        }
        precondition(started)
        // It waits for the copy, which waits for its read.
        while held.bench.device.nexusStates.contains(where: { $0.nexus === held.bench.nexus }) {}
        #expect(!closing.withLock { $0 })
        held.source.release()
        #expect(mine.end().status == .taskAborted)
        closing.wait { $0 ? () : nil }
        #expect(theirs.end().isGood)
    }

    /// What one nexus may run leaves the transport threads for COPY STATUS; others have their own.
    @Test func limitsOfConcurrentCopies() throws {
        let held = try Held(steps: 1)
        let parameters = try CopyOperatingParameters(
            decoding: held.bench.results(.operatingParameters).dataIn)
        let each = Int(parameters.maximumConcurrentCopies)
        let total = Int(parameters.totalConcurrentCopies)
        #expect(each < SCSITargetLimits.nexusThreads && each <= total)
        held.source.hold()
        var running: [Running] = []
        var nexuses: [Nexus] = []
        while running.count < total {
            if running.count % each == 0 {
                nexuses.append(Bench.makeNexus(UInt64(2 + nexuses.count)))
                held.bench.device.openNexus(nexuses[nexuses.count - 1])
                _ = held.bench.send(.testUnitReady, on: nexuses.last)
            }
            var list = held.list
            list.listIdentifier = UInt32(running.count)
            running.append(Running(held.bench.device, held.bench.copyTask(list, on: nexuses.last)))
            held.source.awaitHeld(running.count)
            guard running.count == each else { continue }
            list.listIdentifier = 255
            #expect(held.bench.copy(list, on: nexuses[0]).status == .taskSetFull)
            list.usage = .none
            list.listIdentifier = 0
            #expect(held.bench.copy(list, on: nexuses[0]).status == .taskSetFull)
        }
        // None is left for a nexus that has none.
        #expect(held.bench.copy(held.list).status == .taskSetFull)
        held.source.release()
        for copy in running { #expect(copy.end().isGood) }
        for nexus in nexuses + [held.bench.nexus] { #expect(held.bench.copy(held.list, on: nexus).isGood) }
    }
}

/// The same with the copy engine over files.
@Suite struct EngineCopyTests {
    private static let size = 24 << 20

    private func withFiles<Result>(_ count: Int, _ body: (String) throws -> Result) throws -> Result {
        let directory = FileManager.default.temporaryDirectory.appendingPathComponent(
            "engine-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
        // Scratch: whether it can be removed decides nothing.
        defer { try? FileManager.default.removeItem(at: directory) }
        for index in 0..<count {
            let bytes = seededBytes(Self.size, seed: UInt64(index))
            try Data(bytes).write(to: directory.appendingPathComponent("\(index)"))
        }
        return try body(directory.path)
    }

    private func contents(_ directory: String, _ index: Int) throws -> [UInt8] {
        try Array(Data(contentsOf: URL(fileURLWithPath: "\(directory)/\(index)")))
    }

    @Test func manyCopiesOfTwoSessionsAtOnce() throws {
        try withFiles(5) { directory in
            let device = try BridgeDevice(
                units: (0..<5).map {
                    BridgeUnit(
                        number: $0, path: "\(directory)/\($0)", readOnly: $0 == 0,
                        blockSize: $0 % 2 == 0 ? 512 : 4096)
                }, logger: Bench.quiet)
            let bench = Bench(device: device)
            let other = Bench.makeNexus(2)
            device.openNexus(other)
            for unit in 0..<5 { _ = bench.send(.testUnitReady, unit, on: other) }
            // Each of 12 copies brings 2 MiB of unit 0 into units 1 to 4, in segments of 64 KiB.
            let part = 2 << 20
            let copies = (0..<12).map { index -> Running in
                let segments = (0..<32).flatMap { piece -> [SegmentDescriptor] in
                    let offset = UInt64(index * part + piece * 65536)
                    return [1, 2, 3, 4].map { unit in
                        SegmentDescriptor(
                            source: 0, sourceLBA: LBA(offset / 512), destination: UInt16(unit),
                            destinationLBA: LBA(offset / (unit % 2 == 0 ? 512 : 4096)),
                            amount: .blocks(128, ofDestination: false))
                    }
                }
                let list = CopyParameterList(
                    listIdentifier: UInt8(index), cscds: (0..<5).map { bench.cscd($0) },
                    segments: segments)
                return Running(
                    device, bench.copyTask(list, on: index % 2 == 0 ? bench.nexus : other))
            }
            for copy in copies { #expect(copy.end().isGood) }
            let status = try CopyStatus(decoding: bench.results(.copyStatus, 2).dataIn)
            #expect(status.segmentsProcessed == 128 && status.bytes == UInt64(4 * part))
            device.close()
            let source = try contents(directory, 0)
            for unit in 1..<5 { #expect(try contents(directory, unit) == source) }
        }
    }

    /// What later segments have done already is not counted for the one that failed. Needs root, to mount a
    /// tmpfs that fills.
    @Test func aFailedSegmentsResidueIsItsOwn() throws {
        try withFiles(0) { directory in
            let place = "\(directory)/full"
            #expect(mkdir(place, 0o700) == 0)
            guard getuid() == 0, mount("none", place, "tmpfs", 0, "size=9m") == 0 else {
                print("SKIPPED aFailedSegmentsResidueIsItsOwn: no tmpfs can be mounted here (errno \(errno))")
                return
            }
            defer { umount(place) }
            // 3 MiB of the target have their space, the first has none and gets none.
            let mebibyte = 1 << 20
            try Data(count: 4 * mebibyte).write(to: URL(fileURLWithPath: "\(place)/source"))
            let file = open("\(place)/target", O_RDWR | O_CREAT, 0o600)
            #expect(ftruncate(file, off_t(4 * mebibyte)) == 0)
            #expect(posix_fallocate(file, off_t(mebibyte), off_t(3 * mebibyte)) == 0)
            close(file)
            let filler = open("\(place)/filler", O_RDWR | O_CREAT, 0o600)
            let zeros = [UInt8](repeating: 0, count: 4096)
            while write(filler, zeros, zeros.count) > 0 {}
            close(filler)
            let device = try BridgeDevice(
                units: [
                    BridgeUnit(number: 0, path: "\(place)/source", readOnly: true),
                    BridgeUnit(number: 1, path: "\(place)/target"),
                ], logger: Bench.quiet)
            defer { device.close() }
            let bench = Bench(device: device)
            let blocks = UInt64(mebibyte / 512)
            let list = CopyParameterList(
                listIdentifier: 1, cscds: [bench.cscd(0), bench.cscd(1)],
                segments: (0..<4).map {
                    SegmentDescriptor(
                        source: 0, sourceLBA: LBA($0 * blocks), destination: 1,
                        destinationLBA: LBA($0 * blocks),
                        amount: .blocks(UInt16(blocks), ofDestination: false))
                })
            let sense = try #require(bench.copy(list).senseData)
            #expect(sense.code == .spaceAllocationFailedWriteProtect)
            #expect(sense.commandSpecificInformation ?? 0 == 0)
            // Nothing of it was written, whatever was of later ones.
            #expect(sense.information == nil, "\(sense)")
        }
    }

    @Test func overlapsOffsetsPaddingAndPartialBlocks() throws {
        try withFiles(2) { directory in
            // The last block of both is partial.
            for index in 0..<2 {
                #expect(truncate("\(directory)/\(index)", off_t(Self.size - 100)) == 0)
            }
            var model = try (0..<2).map { try contents(directory, $0) + [UInt8](repeating: 0, count: 100) }
            let device = try BridgeDevice(
                units: (0..<2).map { BridgeUnit(number: $0, path: "\(directory)/\($0)") }, logger: Bench.quiet
            )
            let bench = Bench(device: device)
            var generator = SeededGenerator(seed: 77)
            var segments: [SegmentDescriptor] = []
            for _ in 0..<60 {
                let count = Int(generator.next() >> 8) % (5 << 20)
                let from = Int(generator.next() >> 8) % (Self.size - 100 - count)
                let to = Int(generator.next() >> 8) % (Self.size - 100 - count)
                let (a, b) = (Int(generator.next() >> 20) % 2, Int(generator.next() >> 20) % 2)
                segments.append(
                    SegmentDescriptor(
                        source: UInt16(a), sourceLBA: LBA(UInt64(from / 512)), destination: UInt16(b),
                        destinationLBA: LBA(UInt64(to / 512)),
                        amount: .bytes(
                            UInt32(count), sourceOffset: UInt16(from % 512),
                            destinationOffset: UInt16(to % 512))))
                let moved = Array(model[a][from..<from + count])
                model[b].replaceSubrange(to..<to + count, with: moved)
            }
            // The last, partial block too, in whole blocks.
            let last = UInt64(Self.size / 512 - 8)
            segments.append(blocksOfTen(from: (0, last), to: (1, last)))
            model[1].replaceSubrange((Self.size - 8 * 512)..., with: model[0][(Self.size - 8 * 512)...])
            let list = CopyParameterList(
                listIdentifier: 1, cscds: [bench.cscd(0), bench.cscd(1)], segments: segments)
            #expect(bench.copy(list).isGood)
            device.close()
            for index in 0..<2 {
                #expect(try contents(directory, index) == Array(model[index].dropLast(100)))
            }
        }
    }

    private func blocksOfTen(from: (UInt16, UInt64), to: (UInt16, UInt64)) -> SegmentDescriptor {
        SegmentDescriptor(
            source: from.0, sourceLBA: LBA(from.1), destination: to.0, destinationLBA: LBA(to.1),
            amount: .blocks(8, ofDestination: false))
    }

    @Test func statusWhileTheEngineRunsOnlyGrows() throws {
        try withFiles(2) { directory in
            let device = try BridgeDevice(
                units: (0..<2).map { BridgeUnit(number: $0, path: "\(directory)/\($0)") }, logger: Bench.quiet
            )
            let bench = Bench(device: device)
            let list = CopyParameterList(
                listIdentifier: 1, cscds: [bench.cscd(0), bench.cscd(1)],
                segments: (0..<384).map { index in
                    blocksOf(65536, at: UInt64(index) * 128)
                })
            let copy = Running(device, bench.copyTask(list))
            var last = CopyStatus(state: .inProgress, segmentsProcessed: 0, bytes: 0)
            while copy.isRunning {
                let outcome = bench.results(.copyStatus, 1)
                // Not begun yet, or its end was told once.
                guard outcome.isGood else { continue }
                let status = try CopyStatus(decoding: outcome.dataIn)
                #expect(status.segmentsProcessed >= last.segmentsProcessed)
                #expect(status.transferCount >= last.transferCount)
                last = status
            }
            #expect(copy.end().isGood)
            device.close()
            #expect(try contents(directory, 1) == contents(directory, 0))
        }
    }

    private func blocksOf(_ bytes: Int, at block: UInt64) -> SegmentDescriptor {
        SegmentDescriptor(
            source: 0, sourceLBA: LBA(block), destination: 1, destinationLBA: LBA(block),
            amount: .blocks(UInt16(bytes / 512), ofDestination: false))
    }

    @Test func abortStopsTheEngine() throws {
        try withFiles(2) { directory in
            let device = try BridgeDevice(
                units: (0..<2).map { BridgeUnit(number: $0, path: "\(directory)/\($0)") }, logger: Bench.quiet
            )
            let bench = Bench(device: device)
            // 4096 times 24 MiB: 96 GiB would take long.
            let whole = SegmentDescriptor(
                source: 0, sourceLBA: LBA(0), destination: 1, destinationLBA: LBA(0),
                amount: .bytes(UInt32(Self.size), sourceOffset: 0, destinationOffset: 0))
            let list = CopyParameterList(
                listIdentifier: 1, cscds: [bench.cscd(0), bench.cscd(1)],
                segments: .init(repeating: whole, count: 4096))
            let copy = Running(device, bench.copyTask(list))
            while true {
                let outcome = bench.results(.copyStatus, 1)
                if outcome.isGood, try CopyStatus(decoding: outcome.dataIn).transferCount > 0 { break }
            }
            copy.task.abort()
            #expect(copy.end().status == .taskAborted)
            device.close()
        }
    }

    @Test func depthIsShared() {
        #expect(EnginePool.depth(running: 1, wanted: 1) == 1)
        #expect(EnginePool.depth(running: 1, wanted: 5000) == AsyncIOLimits.defaultDepth)
        for running in 1...BridgeLimits.concurrentCopies {
            let depth = EnginePool.depth(running: running, wanted: 5000)
            #expect(depth >= 1 && depth * running <= BridgeLimits.engineDepth)
        }
    }
}
