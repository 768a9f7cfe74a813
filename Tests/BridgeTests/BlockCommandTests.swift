import Blocks
import SCSI
import TestSupport
import Testing

@testable import Bridge

@Suite struct BlockCommandTests {
    private func bench(_ blockSize: UInt32 = 512, blocks: Int = 64) throws -> (Bench, MemoryStore) {
        let store = MemoryStore(pattern: blocks * Int(blockSize), seed: 7)
        return (
            try Bench([
                Bench.unit(0, store, blockSize: blockSize),
                Bench.unit(1, MemoryStore(size: 8192), readOnly: true),
            ]), store
        )
    }

    @Test(arguments: [512, 4096] as [UInt32])
    func readsAndWritesInEveryForm(_ blockSize: UInt32) throws {
        let (bench, store) = try bench(blockSize)
        let size = Int(blockSize)
        for (index, form) in [CDBForm.six, .ten, .twelve, .sixteen].enumerated() {
            let data = pattern(3 * size, seed: UInt64(index))
            let transfer = BlockTransfer(form, lba: LBA(UInt64(5 * index)), count: BlockCount(3))
            let written = bench.send(.write(transfer), data: data)
            #expect(written.isGood && written.dataOutUsed == data.count)
            #expect(try store.bytes(at: UInt64(5 * index * size), count: data.count) == data)
            #expect(bench.send(.read(transfer)).dataIn == data)
        }
    }

    @Test func sixByteReadOfZeroBlocksMeans256() throws {
        let (bench, store) = try bench(blocks: 300)
        let outcome = bench.device.execute(bench.task([0x08, 0, 0, 1, 0, 0]))
        #expect(outcome.dataIn == (try store.bytes(at: 512, count: 256 * 512)))
    }

    @Test func rangesAreCheckedToTheLastBlock() throws {
        let (bench, _) = try bench()
        for (lba, count, isGood) in [
            (63, 1, true), (63, 2, false), (64, 0, false), (64, 1, false), (0, 64, true), (0, 65, false),
            (63, 0, true), (UInt64.max, 1, false), (UInt64.max, 0, false), (0x7FFF_FFFF_FFFF_FFFF, 2, false),
        ] as [(UInt64, UInt64, Bool)] {
            let transfer = BlockTransfer(.sixteen, lba: LBA(lba), count: BlockCount(count))
            let read = bench.send(.read(transfer))
            #expect(read.isGood == isGood, "\(lba) \(count)")
            let data = [UInt8](repeating: 0, count: Int(min(count, 65)) * 512)
            #expect(bench.send(.write(transfer), data: data).isGood == isGood)
            if !isGood { #expect(read.failed(.illegalRequest, .logicalBlockAddressOutOfRange)) }
        }
    }

    @Test func transferLimitIsTakenAndOneMoreIsNot() throws {
        let limit = UInt64(BridgeLimits.transferBytes / 4096)
        let bench = try Bench([
            Bench.unit(0, MemoryStore(size: BridgeLimits.transferBytes + 4096), blockSize: 4096)
        ])
        let page = try BlockLimits(
            page: VPDPage(
                decoding: bench.send(.inquiry(page: VPDPageCode.blockLimits, allocationLength: 64)).dataIn,
                expecting: VPDPageCode.blockLimits))
        #expect(UInt64(page.maximumTransfer) == limit)
        let most = bench.send(.read(BlockTransfer(.sixteen, lba: LBA(0), count: BlockCount(limit))))
        #expect(most.dataIn.count == BridgeLimits.transferBytes)
        let more = bench.send(.read(BlockTransfer(.twelve, lba: LBA(0), count: BlockCount(limit + 1))))
        #expect(more.refused(cdbByte: 6))
        let write = bench.send(.write(BlockTransfer(.ten, lba: LBA(0), count: BlockCount(limit + 1))))
        #expect(write.refused(cdbByte: 7))
    }

    @Test func protectionIsRefused() throws {
        let (bench, _) = try bench()
        var transfer = BlockTransfer(.ten, lba: LBA(0), count: BlockCount(1))
        transfer.protect = 1
        #expect(bench.send(.read(transfer)).refused(cdbByte: 1))
        #expect(bench.send(.write(transfer), data: pattern(512, seed: 1)).refused(cdbByte: 1))
    }

    @Test func shortDataOutWritesWholeBlocksAndTellsWhatWasWanted() throws {
        let (bench, store) = try bench()
        let before = try store.bytes(at: 1024, count: 512)
        let data = pattern(1024 + 100, seed: 9)
        let outcome = bench.send(
            .write(BlockTransfer(.ten, lba: LBA(0), count: BlockCount(3))), data: data)
        #expect(outcome.isGood && outcome.dataOutUsed == 3 * 512)
        #expect(try store.bytes(at: 0, count: 1024) == Array(data[..<1024]))
        #expect(try store.bytes(at: 1024, count: 512) == before)
    }

    @Test func readOnlyUnitIsNeverWritten() throws {
        let (bench, _) = try bench()
        let data = [UInt8](repeating: 1, count: 512)
        let write = bench.send(
            .write(BlockTransfer(.ten, lba: LBA(0), count: BlockCount(1))), 1, data: data)
        #expect(write.failed(.dataProtect, .writeProtected))
        let same = bench.send(.writeSame16(WriteSame(lba: LBA(0), count: BlockCount(1))), 1, data: data)
        #expect(same.failed(.dataProtect, .writeProtected))
        #expect(
            bench.send(.synchronizeCache(SynchronizeCache(.ten, lba: LBA(0), count: BlockCount(0))), 1).isGood
        )
        let mode = bench.send(.modeSense(ModeSense(.six, page: 8, allocationLength: 64)), 1)
        #expect(mode.dataIn[2] & 0x80 != 0)
        #expect(
            bench.send(.modeSense(ModeSense(.six, page: 8, allocationLength: 64)), 0).dataIn[2] & 0x80 == 0)
    }

    @Test func writeSameRepeatsZerosAndRefuses() throws {
        let (bench, store) = try bench()
        let block = pattern(512, seed: 3)
        let outcome = bench.send(.writeSame16(WriteSame(lba: LBA(2), count: BlockCount(3))), data: block)
        #expect(outcome.isGood && outcome.dataOutUsed == 512)
        #expect(try store.bytes(at: 1024, count: 3 * 512) == block + block + block)
        let tail = try store.bytes(at: 5 * 512, count: 512)
        #expect(tail != block)
        // Without data.
        let zeros = WriteSame(lba: LBA(60), count: BlockCount(4), noDataOut: true)
        #expect(bench.send(.writeSame16(zeros)).isGood)
        #expect(try store.bytes(at: 60 * 512, count: 4 * 512) == [UInt8](repeating: 0, count: 2048))
        #expect(try store.bytes(at: 59 * 512, count: 512) != [UInt8](repeating: 0, count: 512))

        let beyond = WriteSame(lba: LBA(63), count: BlockCount(2))
        #expect(
            bench.send(.writeSame16(beyond), data: block).failed(
                .illegalRequest, .logicalBlockAddressOutOfRange))
        let unmap = WriteSame(lba: LBA(0), count: BlockCount(1), unmap: true)
        #expect(bench.send(.writeSame16(unmap), data: block).refused(cdbByte: 1))
        let short = WriteSame(lba: LBA(0), count: BlockCount(1))
        for count in [0, 1, 511, 513, 1024] {
            let data = [UInt8](repeating: 0, count: count)
            for command in [Command.writeSame16(short), .block(.writeSame10(short))] {
                #expect(bench.send(command, data: data).failed(.illegalRequest, .invalidFieldInCDB))
            }
        }
        // No blocks are not all blocks (WSNZ).
        let none = WriteSame(lba: LBA(0), count: BlockCount(0))
        #expect(bench.send(.writeSame16(none), data: block).refused(cdbByte: 10))
        #expect(bench.send(.block(.writeSame10(none)), data: block).refused(cdbByte: 7))
    }

    @Test func writeSameOfManyPatternsIsWhole() throws {
        let blocks = 3 * BridgeLimits.patternBytes / 512 + 5
        let store = MemoryStore(size: (blocks + 1) * 512)
        let bench = try Bench([Bench.unit(0, store)])
        let block = pattern(512, seed: 4)
        let outcome = bench.send(
            .writeSame16(WriteSame(lba: LBA(0), count: BlockCount(UInt64(blocks)))), data: block)
        #expect(outcome.isGood)
        let all = try store.all
        #expect((0..<blocks).allSatisfy { Array(all[$0 * 512..<$0 * 512 + 512]) == block })
        #expect(all.suffix(512).allSatisfy { $0 == 0 })
    }

    @Test func synchronizeCacheChecksItsRange() throws {
        let (bench, _) = try bench()
        for (form, lba, count, isGood) in [
            (.ten, 0, 0, true), (.sixteen, 63, 1, true), (.ten, 63, 2, false), (.sixteen, 64, 0, false),
            (.sixteen, UInt64.max, 1, false),
        ] as [(CDBForm, UInt64, UInt64, Bool)] {
            let fields = SynchronizeCache(form, lba: LBA(lba), count: BlockCount(count))
            #expect(bench.send(.synchronizeCache(fields)).isGood == isGood)
        }
    }

    @Test(arguments: [
        (StoreError.Code.io, SenseKey.mediumError, AdditionalSenseCode.unrecoveredReadError),
        (.corrupt, .mediumError, .unrecoveredReadError), (.gone, .notReady, .logicalUnitNotReady),
    ])
    func readFailuresBecomeSense(
        _ code: StoreError.Code, _ key: SenseKey, _ sense: AdditionalSenseCode
    ) throws {
        let store = FaultyStore(size: 8192)
        let bench = try Bench([Bench.unit(0, store)])
        store.fail(at: 1024, code)
        let outcome = bench.send(.read(BlockTransfer(.ten, lba: LBA(1), count: BlockCount(4))))
        #expect(outcome.failed(key, sense))
        #expect(bench.send(.read(BlockTransfer(.ten, lba: LBA(4), count: BlockCount(4)))).isGood)
    }

    @Test(arguments: [
        (StoreError.Code.io, SenseKey.mediumError, AdditionalSenseCode.writeError),
        (.noSpace, .dataProtect, .spaceAllocationFailedWriteProtect),
        (.readOnly, .dataProtect, .writeProtected),
    ])
    func writeFailuresBecomeSense(
        _ code: StoreError.Code, _ key: SenseKey, _ sense: AdditionalSenseCode
    ) throws {
        let store = FaultyStore(size: 8192)
        let bench = try Bench([Bench.unit(0, store)])
        store.fail(at: 1024, code)
        let data = pattern(2048, seed: 1)
        let transfer = BlockTransfer(.ten, lba: LBA(1), count: BlockCount(4))
        #expect(bench.send(.write(transfer), data: data).failed(key, sense))
        let zeros = WriteSame(lba: LBA(0), count: BlockCount(8))
        #expect(
            bench.send(.writeSame16(zeros), data: [UInt8](repeating: 0, count: 512)).failed(key, sense))
    }

    @Test func lastPartialBlockIsPaddedAndTakesOnlyZeros() throws {
        let store = MemoryStore(pattern: 1024 + 100, seed: 5)
        let bench = try Bench([Bench.unit(0, store)])
        #expect(bench.device.summaries[0].paddingBytes == 412)
        let last = BlockTransfer(.ten, lba: LBA(2), count: BlockCount(1))
        let padding = [UInt8](repeating: 0, count: 412)
        #expect(bench.send(.read(last)).dataIn == (try store.bytes(at: 1024, count: 100)) + padding)
        let data = pattern(100, seed: 6)
        #expect(bench.send(.write(last), data: data + padding).isGood)
        #expect(try store.bytes(at: 1024, count: 100) == data)
        let lost = bench.send(.write(last), data: pattern(512, seed: 8))
        #expect(lost.failed(.dataProtect, .spaceAllocationFailedWriteProtect))
        #expect(try store.bytes(at: 1024, count: 100) == data, "nothing of a refused write is there")
        #expect(
            bench.send(.writeSame16(WriteSame(lba: LBA(1), count: BlockCount(2), noDataOut: true))).isGood)
        #expect(try store.bytes(at: 512, count: 612) == [UInt8](repeating: 0, count: 612))
    }
}
