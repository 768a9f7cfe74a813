import Blocks
import Foundation
import SCSI
import TestSupport
import Testing

@testable import Bridge

/// Units over files in a scratch directory: 0 and 1 over a file each, and 2 over that of 1.
struct FileUnits {
    let directory: URL
    let device: BridgeDevice
    let bench: Bench

    init(bytes: Int, aliased: Bool = true) throws {
        directory = FileManager.default.temporaryDirectory.appendingPathComponent("copy-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
        var units: [BridgeUnit] = []
        for number in 0..<(aliased ? 3 : 2) {
            let file = directory.appendingPathComponent("\(min(number, 1))")
            if number < 2 { try Data(count: bytes).write(to: file) }
            var unit = BridgeUnit(number: number, path: file.path)
            unit.isLocked = number < 2
            units.append(unit)
        }
        device = try BridgeDevice(units: units, logger: Bench.quiet)
        bench = Bench(device: device)
    }

    func end() {
        device.close()
        // Scratch: whether it can be removed decides nothing.
        try? FileManager.default.removeItem(at: directory)
    }

    /// `count` blocks from one unit to another.
    func list(
        _ identifier: UInt8, from: (unit: Int, lba: UInt64), to: (unit: Int, lba: UInt64),
        blocks count: UInt32
    ) -> CopyParameterList {
        CopyParameterList(
            listIdentifier: identifier, cscds: [bench.cscd(from.unit), bench.cscd(to.unit)],
            segments: [
                SegmentDescriptor(
                    source: 0, sourceLBA: LBA(from.lba), destination: 1, destinationLBA: LBA(to.lba),
                    amount: .bytes(count * 512, sourceOffset: 0, destinationOffset: 0))
            ])
    }

    func write(_ unit: Int, _ byte: UInt8, lba: UInt64, blocks: UInt64) -> SCSIOutcome {
        bench.send(
            .write(BlockTransfer(.sixteen, lba: LBA(lba), count: BlockCount(blocks))), unit,
            data: [UInt8](repeating: byte, count: Int(blocks) * 512))
    }

    func read(_ unit: Int, lba: UInt64, blocks: UInt64) -> [UInt8] {
        bench.send(
            .read(BlockTransfer(.sixteen, lba: LBA(lba), count: BlockCount(blocks))), unit, expecting: 1 << 22
        ).dataIn
    }
}

func compareAndWrite(_ old: UInt8, _ new: UInt8, lba: UInt64, blocks: UInt64) -> (Command, [UInt8]) {
    let half = Int(blocks) * 512
    return (
        .block(.compareAndWrite(BlockTransfer(.sixteen, lba: LBA(lba), count: BlockCount(blocks)))),
        [UInt8](repeating: old, count: half) + [UInt8](repeating: new, count: half)
    )
}

/// Commands that read and write in one go, against copies that write the same blocks.
@Suite struct CopyLockTests {
    /// What the copy brings is there when both are done: either it came last, or it came first and nothing matched.
    @Test(arguments: [1, 2]) func compareAndWriteIsAtomic(asked: Int) throws {
        let files = try FileUnits(bytes: 4 << 20)
        defer { files.end() }
        #expect(files.write(0, 0x0F, lba: 0, blocks: 8192).isGood)
        // In every third round the command surely comes first, in every third the copy does.
        let sourceRanges = files.device.units[0].ranges
        for round in 0..<150 {
            let place = UInt64(round * 53 % 7900)
            #expect(files.write(1, 0, lba: place, blocks: 200).isGood)
            let held = ByteRange(offset: place * 512, count: 200 * 512)
            if round % 3 == 0 { sourceRanges.lock(held, exclusive: true) }
            let copy = Running(
                files.device,
                files.bench.copyTask(files.list(1, from: (0, place), to: (1, place), blocks: 200)))
            if round % 3 == 1 { #expect(copy.end().isGood) }
            let (command, data) = compareAndWrite(0, 0xCC, lba: place, blocks: 200)
            let outcome = files.bench.send(command, asked, data: data)
            if round % 3 == 0 { sourceRanges.unlock(held, exclusive: true) }
            #expect(outcome.isGood || outcome.failed(.miscompare, .miscompareDuringVerify))
            if round % 3 < 2 { #expect(outcome.isGood == (round % 3 == 0)) }
            #expect(copy.end().isGood)
            #expect(files.read(1, lba: place, blocks: 200).allSatisfy { $0 == 0x0F })
        }
    }

    /// In a column: the command has read, then comes the copy, then the command may write.
    @Test func theCopyWaitsForWhoIsBetweenReadingAndWriting() throws {
        for isOr in [false, true] {
            let source = FaultyStore(MemoryStore([UInt8](repeating: 0x0F, count: 4096)))
            let target = FaultyStore(MemoryStore(size: 4096))
            let locks = StorageLocks()
            let bench = try Bench([
                Bench.unit(0, source), Bench.unit(1, target, inode: 7, locks: locks),
                Bench.unit(2, target, inode: 7, locks: locks),
            ])
            target.hold()
            let (command, data) =
                isOr
                ? (
                    Command.block(.orWrite(BlockTransfer(.sixteen, lba: LBA(1), count: BlockCount(2)))),
                    [UInt8](repeating: 0xF0, count: 1024)
                ) : compareAndWrite(0, 0xCC, lba: 1, blocks: 2)
            let first = Running(bench.device, bench.task(command.encoded(), 2, data: data))
            target.awaitHeld()
            let copy = Running(
                bench.device,
                bench.copyTask(
                    CopyParameterList(
                        listIdentifier: 1, cscds: [bench.cscd(0), bench.cscd(1)],
                        segments: [
                            SegmentDescriptor(
                                source: 0, sourceLBA: LBA(0), destination: 1, destinationLBA: LBA(0),
                                amount: .blocks(8, ofDestination: false))
                        ])))
            source.awaitOperations(1)
            target.letOne()
            target.awaitHeld()
            target.release()
            #expect(first.end().isGood && copy.end().isGood)
            #expect(try target.all == [UInt8](repeating: 0x0F, count: 4096))
        }
    }

    /// Copies in both directions over the same blocks, and commands that exclude them, all at once: they end.
    @Test func nobodyWaitsForEver() throws {
        let files = try FileUnits(bytes: 8 << 20)
        defer { files.end() }
        let copies = (0..<6).map { index in
            let (from, to) = index % 2 == 0 ? (0, 1) : (2, 0)
            var list = files.list(
                UInt8(index), from: (from, UInt64(index)), to: (to, UInt64(index * 3)), blocks: 16000)
            list.segments = .init(repeating: list.segments[0], count: 6)
            return Running(files.device, files.bench.copyTask(list))
        }
        let writers = (0..<3).map { unit in
            let done = Monitor(false)
            BlockingThread.start {
                for round in 0..<200 {
                    let (command, data) = compareAndWrite(
                        0, 0, lba: UInt64(round * 71 % 16000), blocks: UInt64(1 + round % 255))
                    _ = files.bench.send(command, unit, data: data)
                }
                done.withLockAndNotify { $0 = true }
            }
            return done
        }
        for copy in copies { #expect(copy.end().isGood) }
        for writer in writers { writer.wait { $0 ? () : nil } }
        // All that was held was given back.
        for unit in files.device.units {
            let all = ByteRange(offset: 0, count: unit.store.size)
            let isFree = unit.ranges.tryLock(all, exclusive: true)
            #expect(isFree)
            if isFree { unit.ranges.unlock(all, exclusive: true) }
        }
    }

    @Test func unitsOverTheSameStorageShareTheirLock() throws {
        let files = try FileUnits(bytes: 1 << 20)
        defer { files.end() }
        let units = files.device.units
        #expect(units[1].ranges === units[2].ranges && units[0].ranges !== units[1].ranges)
    }

    /// Also when it ends early, by a failure or an abort.
    @Test func nothingStaysLocked() throws {
        let held = try HeldCopy(steps: 4)
        held.source.fail(at: UInt64(2 * HeldCopy.step), .io)
        #expect(held.bench.copy(held.list(1)).failed(.copyAborted, .thirdPartyDeviceFailure))
        for unit in held.bench.device.units {
            #expect(unit.ranges.tryLock(ByteRange(offset: 0, count: unit.store.size), exclusive: true))
        }
    }
}
