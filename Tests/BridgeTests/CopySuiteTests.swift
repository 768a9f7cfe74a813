import Blocks
import Foundation
import Glibc
import SCSI
import TestSupport
import Testing

@testable import Bridge

/// A store of any size that costs no memory: each block of 4096 bytes holds one byte value, made from its number. What
/// is written must be what the blocks `shift` before hold, one write behind the other.
private final class EndlessStore: BlockStore {
    let size: UInt64
    private let shift: UInt64
    private let written = Monitor<(next: UInt64, wrong: Int)>((next: 0, wrong: 0))
    var capabilities: StoreCapabilities { [.writable] }

    init(size: UInt64, shift: UInt64 = 0) {
        self.size = size
        self.shift = shift
        written.withLock { $0.next = shift }
    }

    /// Where the last write ended, if all were right; else 0.
    var end: UInt64 { written.withLock { $0.wrong == 0 ? $0.next : 0 } }

    private static func byte(_ block: UInt64) -> Int32 { Int32((block &* 0x9E37_79B9) >> 16 & 0xFF) }

    private func each(_ offset: UInt64, _ count: Int, _ body: (UInt64, Range<Int>) -> Void) {
        var position = 0
        while position < count {
            let at = offset + UInt64(position)
            let part = min(count - position, Int(4096 - at % 4096))
            body(at / 4096, position..<position + part)
            position += part
        }
    }

    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
        each(offset, buffer.count) { memset(buffer.baseAddress! + $1.lowerBound, Self.byte($0), $1.count) }
    }

    func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64, durable: Bool) throws(StoreError) {
        withUnsafeTemporaryAllocation(byteCount: 4096, alignment: 16) { expected in
            written.withLock { state in
                if offset != state.next { state.wrong += 1 }
                each(offset, buffer.count) {
                    memset(expected.baseAddress!, Self.byte($0 - shift / 4096), $1.count)
                    if memcmp(buffer.baseAddress! + $1.lowerBound, expected.baseAddress!, $1.count) != 0 {
                        state.wrong += 1
                    }
                }
                state.next = offset + UInt64(buffer.count)
            }
        }
    }

    func writeZeroes(_ range: ByteRange, options: ZeroOptions) throws(StoreError) {
        throw StoreError(.notSupported)
    }
    func flush() throws(StoreError) {}
}

@Suite struct CopyLimitTests {
    /// 0Ah's field of 32 bits, used in full.
    @Test func oneSegmentOfAlmostFourGibibytes() throws {
        let length = UInt64(UInt32.max)
        let target = EndlessStore(size: length.roundedUp(to: 4096) + 8192, shift: 4096)
        let bench = try Bench([
            Bench.unit(0, EndlessStore(size: 1 << 32)), Bench.unit(1, target, blockSize: 4096),
        ])
        let list = CopyParameterList(
            longListIdentifier: 1, cscds: [bench.cscd(0), bench.cscd(1)],
            segments: [
                SegmentDescriptor(
                    source: 0, sourceLBA: LBA(0), destination: 1, destinationLBA: LBA(1),
                    amount: .bytes(.max, sourceOffset: 0, destinationOffset: 0))
            ])
        #expect(bench.copy(list).isGood)
        #expect(target.end == 4096 + length)
        #expect(try bench.report(1).transferCount == length)
        #expect(try CopyStatus(decoding: bench.results(.copyStatus, 1).dataIn).bytes == length)
    }

    /// The lists of LID4 have lengths of 16 bits: as many segments as fit, each with a CSCD descriptor of its own while
    /// there are as many.
    @Test func manySegmentsWithDescriptorsOfTheirOwn() throws {
        let stores = (0..<4).map { MemoryStore(pattern: 2048 * 512, seed: UInt64($0)) }
        let bench = try Bench(stores.enumerated().map { try Bench.unit($0, $1) })
        let model = try stores.map { try $0.all }
        var list = CopyParameterList(longListIdentifier: 1, cscds: [], segments: [])
        list.cscds = (0..<BridgeLimits.cscdDescriptors).map { bench.cscd($0 % 4) }
        let most = Int(UInt16.max) / 32
        // From unit 0 or 1 to unit 2 or 3.
        list.segments = (0..<most).map { index in
            let from = index / 2 * 4 % BridgeLimits.cscdDescriptors + index % 2
            let to = index / 2 * 4 % BridgeLimits.cscdDescriptors + 2 + index % 2
            return SegmentDescriptor(
                source: UInt16(from), sourceLBA: LBA(UInt64(2047 - index)), destination: UInt16(to),
                destinationLBA: LBA(UInt64(index)), amount: .bytes(512, sourceOffset: 0, destinationOffset: 0)
            )
        }
        #expect(bench.copy(list).isGood)
        for index in 0..<most {
            let (to, from) = (index * 512, (2047 - index) * 512)
            let copied = try stores[2 + index % 2].bytes(at: UInt64(to), count: 512)
            #expect(copied == Array(model[index % 2][from..<from + 512]))
        }
        #expect(try bench.report(1).segmentsProcessed == UInt16(most))
        list.cscds.append(bench.cscd(0))
        list.segments = []
        #expect(bench.copy(list).failed(.illegalRequest, .tooManyCSCDDescriptors))
    }

    /// Ten in the background of one nexus, each asked for while it runs: what is told only grows.
    @Test func progressOfTenInTheBackground() throws {
        let files = try FileUnits(bytes: 20 << 20, aliased: false)
        defer { files.end() }
        #expect(files.write(0, 0x5A, lba: 0, blocks: 40960).isGood)
        for index in 0..<UInt64(10) {
            var list = files.list(0, from: (0, index * 4096), to: (1, index * 4096), blocks: 1024)
            list = CopyParameterList(
                longListIdentifier: UInt32(index) << 24, cscds: list.cscds,
                segments: (0..<UInt64(4)).flatMap { part -> [SegmentDescriptor] in
                    var segment = list.segments[0]
                    segment.sourceLBA = LBA(index * 4096 + part * 1024)
                    segment.destinationLBA = segment.sourceLBA
                    return .init(repeating: segment, count: 8)
                })
            list.isImmediate = true
            #expect(files.bench.copy(list).isGood)
        }
        var last = [CopyOperationReport?](repeating: nil, count: 10)
        while last.contains(where: { $0?.status.isInProgress ?? true }) {
            for index in 0..<10 {
                let report = try files.bench.report(UInt32(index) << 24)
                if let before = last[index] {
                    #expect(report.transferCount >= before.transferCount)
                    #expect(report.segmentsProcessed >= before.segmentsProcessed)
                    #expect(before.status.isInProgress || report == before, "an end is final")
                }
                last[index] = report
            }
        }
        for report in last {
            #expect(report?.status == .completed && report?.segmentsProcessed == 32)
            #expect(report.map { $0.transferCount == 32 * 1024 * 512 } == true)
        }
        #expect(files.read(1, lba: 0, blocks: 8192).allSatisfy { $0 == 0x5A })
    }
}

/// Whatever ends a copy, at whatever moment: nothing of it runs when that is answered.
@Suite struct CopyAbortTests {
    enum Way: CaseIterable {
        case task, nexus, sourceReset, targetReset, abortCommand
    }

    private static let bytes = 3 << 20

    private func segments(_ generator: inout SeededGenerator, _ bench: Bench) -> [SegmentDescriptor] {
        (0..<60).map { _ in
            let count = Int(generator.next() >> 16) % (1 << 19)
            let at = UInt64(generator.next() >> 16) % UInt64((Self.bytes - count) / 512)
            return SegmentDescriptor(
                source: 0, sourceLBA: LBA(at), destination: 1, destinationLBA: LBA(at),
                amount: .blocks(UInt16(count / 512), ofDestination: false))
        }
    }

    @Test(arguments: Way.allCases) func atAnyMoment(way: Way) throws {
        var early = 0
        for seed in 0..<8 {
            var generator = SeededGenerator(seed: UInt64(seed * 7 + 1))
            let files = try FileUnits(bytes: Self.bytes, aliased: false)
            defer { files.end() }
            let device = files.device
            let source = seededBytes(Self.bytes, seed: UInt64(seed)).map { $0 | 1 }
            try Data(source).write(to: files.directory.appendingPathComponent("0"))
            let nexus = Bench.makeNexus(UInt64(100 + seed))
            device.openNexus(nexus)
            for unit in 0..<2 { _ = files.bench.send(.testUnitReady, unit, on: nexus) }
            let state = try #require(device.nexusStates.first { $0.nexus === nexus })
            var list = CopyParameterList(
                longListIdentifier: 1, cscds: [files.bench.cscd(0), files.bench.cscd(1)],
                segments: segments(&generator, files.bench))
            list.isImmediate = way != .task && seed % 2 == 0
            var moment = (generator.next() >> 16) % (12 << 20)
            // Every other copy cannot come to its end: a block of it is held until it has ended early.
            let held =
                seed % 4 < 2
                ? ByteRange(offset: list.segments[30].destinationLBA.value * 512, count: 512) : nil
            if let held {
                device.units[1].ranges.lock(held, exclusive: true)
                moment %= Self.bytes(of: list, before: held) + 1
            }
            let copy = Running(device, files.bench.copyTask(list, on: nexus))
            var record: CopyRecord?
            while record == nil { record = state.find(1, at: device.units[0]) }
            let begun = try #require(record)
            while begun.isRunning, begun.bytesWritten < moment {}
            end(way, copy, files, nexus)
            #expect(!begun.isRunning)
            // What is there now stays, and is the copy's or what was there before, block by block.
            let file = files.directory.appendingPathComponent("1")
            let after = try [UInt8](Data(contentsOf: file))
            let isDone = begun.report(descriptorFormat: false).status == .completed
            if !isDone { early += 1 }
            #expect(held == nil || !isDone)
            if let held { device.units[1].ranges.unlock(held, exclusive: true) }
            expectPieces(after, source)
            for unit in device.units {
                let all = ByteRange(offset: 0, count: unit.store.size)
                let isFree = unit.ranges.tryLock(all, exclusive: true)
                #expect(isFree)
                if isFree { unit.ranges.unlock(all, exclusive: true) }
            }
            _ = copy.end()
            #expect(device.reservations.tasks(at: 0).isEmpty && device.reservations.tasks(at: 1).isEmpty)
            #expect(device.running.withLock { $0 } == 0)
            device.close()
            #expect(try [UInt8](Data(contentsOf: file)) == after, "\(way), seed \(seed)")
        }
        #expect(early >= 4)
    }

    /// Bytes of the segments that come before the first one that writes what is held.
    private static func bytes(of list: CopyParameterList, before held: ByteRange) -> UInt64 {
        var bytes: UInt64 = 0
        for segment in list.segments {
            guard case .blocks(let count, _) = segment.amount else { break }
            let range = ByteRange(offset: segment.destinationLBA.value * 512, count: UInt64(count) * 512)
            if range.overlaps(held) { break }
            bytes += range.count
        }
        return bytes
    }

    private func end(_ way: Way, _ copy: Running, _ files: FileUnits, _ nexus: Nexus) {
        switch way {
        case .task:
            copy.task.abort()
            _ = copy.end()
        case .nexus:
            copy.task.abort()
            files.device.closeNexus(nexus)
            _ = copy.end()
        case .sourceReset: files.device.resetLogicalUnit(LogicalUnitNumber(0)!, from: files.bench.nexus)
        case .targetReset: files.device.resetLogicalUnit(LogicalUnitNumber(1)!, from: files.bench.nexus)
        case .abortCommand:
            let outcome = files.bench.abortCopy(1, on: nexus)
            #expect(outcome.isGood || outcome.refused(cdbByte: 2))
        }
    }

    /// Each block is the source's or zeros.
    private func expectPieces(_ target: [UInt8], _ source: [UInt8]) {
        let zeros = [UInt8](repeating: 0, count: 512)
        let wrong = target.withUnsafeBytes { target in
            source.withUnsafeBytes { source in
                stride(from: 0, to: target.count, by: 512).filter { place in
                    memcmp(target.baseAddress! + place, source.baseAddress! + place, 512) != 0
                        && memcmp(target.baseAddress! + place, zeros, 512) != 0
                }
            }
        }
        #expect(wrong.isEmpty)
    }

    /// PREEMPT AND ABORT ends a copy in the background, too, before it answers.
    @Test func preemptedInTheBackground() throws {
        let held = try HeldCopy(steps: 50)
        let bench = held.bench
        let victim = try bench.secondRegistrant(at: 1)
        held.source.hold()
        #expect(bench.copy(held.list(1, immediate: true), on: victim).isGood)
        held.source.awaitHeld()
        let done = Monitor<Int?>(nil)
        BlockingThread.start {
            // The target's reservation; the command was sent to the source.
            let outcome = bench.send(
                .reservation(.persistentOut(PersistentReserveOut(.preemptAndAbort, type: .writeExclusive))),
                1,
                data: ReservationParameters(key: 1, serviceActionKey: 2).encoded())
            done.withLockAndNotify { $0 = outcome.isGood ? held.source.operations : -1 }
        }
        held.awaitAborted(at: 1)
        #expect(done.withLock { $0 } == nil, "it waits for what is being written")
        held.source.release()
        #expect(done.wait { $0 } == 1)
        #expect(try bench.report(1, on: victim).status == .terminated)
    }
}
