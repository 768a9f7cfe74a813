import Blocks
import SCSI
import TestSupport
import Testing

@testable import Bridge

@Suite struct BlockCommandCompareTests {
    private func bench() throws -> (Bench, MemoryStore) {
        let store = MemoryStore(pattern: 4096 * 512, seed: 5)
        return (
            try Bench([
                Bench.unit(0, store), Bench.unit(1, MemoryStore(size: 8192), readOnly: true),
            ]), store
        )
    }

    private func transfer(_ form: CDBForm, _ lba: UInt64, _ count: UInt64) -> BlockTransfer {
        BlockTransfer(form, lba: LBA(lba), count: BlockCount(count))
    }

    @Test(arguments: [CDBForm.ten, .twelve, .sixteen])
    func verifyComparesWithDataOfEachAndOfOneBlock(_ form: CDBForm) throws {
        let (bench, store) = try bench()
        let place = transfer(form, 7, 3000)
        var data = try store.bytes(at: 7 * 512, count: 3000 * 512)
        #expect(bench.send(.block(.verify(place, .medium))).isGood)
        let same = bench.send(.block(.verify(place, .data)), data: data)
        #expect(same.isGood && same.dataOutUsed == data.count)
        data[2999 * 512 + 511] ^= 1
        #expect(
            bench.send(.block(.verify(place, .data)), data: data).failed(
                .miscompare, .miscompareDuringVerify))
        data[2999 * 512 + 511] ^= 1
        for short in [512, 2999 * 512, data.count - 1] {
            let outcome = bench.send(.block(.verify(place, .data)), data: Array(data.prefix(short)))
            #expect(outcome.failed(.illegalRequest, .invalidFieldInCDB), "blocks nobody compared")
        }
        let block = pattern(512, seed: 1)
        #expect(
            bench.send(.writeSame16(WriteSame(lba: LBA(7), count: BlockCount(3000))), data: block).isGood)
        #expect(bench.send(.block(.verify(place, .oneBlock)), data: block).isGood)
        #expect(bench.send(.block(.verify(transfer(form, 7, 3001), .oneBlock)), data: block).senseData != nil)
        #expect(bench.send(.block(.verify(transfer(form, 4096, 0), .medium))).senseData != nil)
        #expect(bench.send(.block(.verify(transfer(form, 4090, 7), .medium))).senseData != nil)
        #expect(bench.device.execute(bench.task([0x2F, 0x04, 0, 0, 0, 0, 0, 0, 1, 0])).refused(cdbByte: 1))
    }

    @Test(arguments: [CDBForm.ten, .twelve, .sixteen])
    func writeAndVerifyWrites(_ form: CDBForm) throws {
        let (bench, store) = try bench()
        let data = pattern(2 * 512, seed: 2)
        for check in [ByteCheck.medium, .data] {
            let outcome = bench.send(.block(.writeAndVerify(transfer(form, 9, 2), check)), data: data)
            #expect(outcome.isGood && outcome.dataOutUsed == data.count)
            #expect(try store.bytes(at: 9 * 512, count: 1024) == data)
        }
        // Less than the CDB says: what came whole is written and verified, the rest is told as overflow.
        let rest = try store.bytes(at: 10 * 512, count: 512)
        let short = bench.send(
            .block(.writeAndVerify(transfer(form, 9, 2), .data)), data: pattern(700, seed: 6))
        #expect(short.isGood && short.dataOutUsed == 1024)
        #expect(try store.bytes(at: 9 * 512, count: 1024) == pattern(700, seed: 6).prefix(512) + rest)
        let readOnly = bench.send(.block(.writeAndVerify(transfer(form, 0, 2), .medium)), 1, data: data)
        #expect(readOnly.failed(.dataProtect, .writeProtected))
    }

    @Test func compareAndWriteWritesOnlyWhereItIsEqual() throws {
        let (bench, store) = try bench()
        let old = try store.bytes(at: 1024, count: 1024)
        let new = pattern(1024, seed: 3)
        var wrong = old
        wrong[700] ^= 0x10
        let place = transfer(.sixteen, 2, 2)
        let failed = bench.send(.block(.compareAndWrite(place)), data: wrong + new)
        #expect(failed.failed(.miscompare, .miscompareDuringVerify))
        #expect((failed.senseData?.information ?? 0) == 700)
        #expect(try store.bytes(at: 1024, count: 1024) == old)
        let done = bench.send(.block(.compareAndWrite(place)), data: old + new)
        #expect(done.isGood && done.dataOutUsed == 2048)
        #expect(try store.bytes(at: 1024, count: 1024) == new)
        // Data that are not twice the blocks.
        #expect(bench.send(.block(.compareAndWrite(place)), data: new).refused(cdbByte: 13))
        #expect(
            bench.send(.block(.compareAndWrite(transfer(.sixteen, 4095, 2))), data: old + new).failed(
                .illegalRequest, .logicalBlockAddressOutOfRange))
        #expect(bench.send(.block(.compareAndWrite(transfer(.sixteen, 4095, 0)))).isGood)
        #expect(
            bench.send(.block(.compareAndWrite(place)), 1, data: old + new).failed(
                .dataProtect, .writeProtected))
    }

    /// Four initiators count in one block by compare and write: no step is lost.
    @Test func compareAndWriteIsAtomic() throws {
        let (bench, store) = try bench()
        try store.write([UInt8](repeating: 0, count: 512), at: 0)
        let steps = 100
        let left = Monitor(4)
        for _ in 0..<4 {
            let started = BlockingThread.start {
                var done = 0
                while done < steps {
                    let old = bench.send(.read(BlockTransfer(.ten, lba: LBA(0), count: BlockCount(1)))).dataIn
                    var new = old
                    let value = Int(old[0]) << 8 + Int(old[1]) + 1
                    (new[0], new[1]) = (UInt8(value >> 8), UInt8(value & 0xFF))
                    let place = BlockTransfer(.sixteen, lba: LBA(0), count: BlockCount(1))
                    if bench.send(.block(.compareAndWrite(place)), data: old + new).isGood { done += 1 }
                }
                left.withLockAndNotify { $0 -= 1 }
            }
            #expect(started)
        }
        left.wait { $0 == 0 ? () : nil }
        let count = try store.bytes(at: 0, count: 2)
        #expect(Int(count[0]) << 8 + Int(count[1]) == 4 * steps)
    }

    /// They wait for who reads the block, and end when they are aborted.
    @Test func whoWaitsForABlockCanBeAborted() throws {
        let (bench, store) = try bench()
        let before = try store.all
        let unit = bench.device.units[0]
        let place = transfer(.sixteen, 2, 1)
        let data = pattern(512, seed: 8)
        let range = ByteRange(offset: 1024, count: 512)
        for (command, data) in [
            (BlockCommand.compareAndWrite(place), Array(before[1024..<1536]) + data),
            (.orWrite(place), data), (.writeAndVerify(place, .data), data),
        ] {
            unit.ranges.lock(range, exclusive: false)
            let running = Running(
                bench.device, bench.task(Command.block(command).encoded(), data: data))
            while unit.ranges.waiting == 0 {}
            running.task.abort()
            #expect(running.end().status == .taskAborted)
            #expect(unit.ranges.waiting == 0)
            unit.ranges.unlock(range, exclusive: false)
        }
        #expect(try store.all == before)
    }

    @Test func orWriteAddsBits() throws {
        let (bench, store) = try bench()
        let old = try store.bytes(at: 512, count: 1024)
        let bits = pattern(1024, seed: 4)
        let outcome = bench.send(.block(.orWrite(transfer(.sixteen, 1, 2))), data: bits)
        #expect(outcome.isGood && outcome.dataOutUsed == 1024)
        #expect(try store.bytes(at: 512, count: 1024) == zip(old, bits).map { $0 | $1 })
        #expect(
            bench.send(.block(.orWrite(transfer(.sixteen, 0, 1))), 1, data: bits).failed(
                .dataProtect, .writeProtected))
    }

    @Test func commandsWithoutData() throws {
        let (bench, _) = try bench()
        for form in [CDBForm.ten, .sixteen] {
            #expect(bench.send(.block(.prefetch(transfer(form, 5, 9), immediate: true))).isGood)
            #expect(bench.send(.block(.prefetch(transfer(form, 5, 0), immediate: false))).isGood)
            #expect(bench.send(.block(.prefetch(transfer(form, 4096, 0), immediate: false))).senseData != nil)
            #expect(bench.send(.block(.prefetch(transfer(form, 4095, 2), immediate: false))).senseData != nil)
        }
        for (start, eject, power, isGood) in [
            (true, false, 0, true), (false, false, 0, false), (true, true, 0, false), (true, false, 3, false),
        ] as [(Bool, Bool, UInt8, Bool)] {
            let command = BlockCommand.startStop(start: start, loadOrEject: eject, powerCondition: power)
            #expect(bench.send(.block(command)).isGood == isGood)
        }
        #expect(bench.send(.block(.preventAllow(prevent: 1))).isGood)
        #expect(bench.send(.block(.preventAllow(prevent: 2))).refused(cdbByte: 4))
    }
}
