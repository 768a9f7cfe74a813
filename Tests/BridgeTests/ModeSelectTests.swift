import Blocks
import SCSI
import TestSupport
import Testing

@testable import Bridge

/// A store in memory that knows whether something would be lost by a loss of power.
private final class VolatileStore: BlockStore {
    private let memory: MemoryStore
    private let unsettled = Monitor(false)

    init(size: Int) { memory = MemoryStore(size: size) }

    var size: UInt64 { memory.size }
    var capabilities: StoreCapabilities { memory.capabilities }
    var isSettled: Bool { !unsettled.withLock { $0 } }

    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
        try memory.read(at: offset, into: buffer)
    }

    func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64, durable: Bool) throws(StoreError) {
        try memory.write(buffer, at: offset, durable: false)
        if durable { try flush() } else { unsettled.withLock { $0 = true } }
    }

    func writeZeroes(_ range: ByteRange, options: ZeroOptions) throws(StoreError) {
        try memory.writeZeroes(range, options: options)
        unsettled.withLock { $0 = !options.contains(.durable) }
    }

    func flush() throws(StoreError) { unsettled.withLock { $0 = false } }
}

@Suite struct ModeSelectTests {
    private func bench() throws -> Bench {
        try Bench([
            Bench.unit(0, MemoryStore(size: 64 * 512)),
            Bench.unit(1, MemoryStore(size: 64 * 4096), blockSize: 4096),
        ])
    }

    private func select(
        _ bench: Bench, _ list: [UInt8], _ form: CDBForm = .six, unit: Int = 0, on nexus: Nexus? = nil
    ) -> SCSIOutcome {
        bench.send(
            .modeSelect(ModeSelect(form, parameterListLength: list.count)), unit, data: list, on: nexus)
    }

    private func set(_ bench: Bench, _ pages: ModePage..., form: CDBForm = .six) -> SCSIOutcome {
        select(bench, ModeParameterList.encode(pages, form: form), form)
    }

    private func page(_ bench: Bench, _ code: UInt8, _ control: ModeSense.PageControl = .current) -> [UInt8] {
        var fields = ModeSense(.six, page: code, allocationLength: 255)
        fields.disableBlockDescriptors = true
        fields.control = control
        return Array(bench.send(.modeSense(fields)).dataIn.dropFirst(4))
    }

    private func isRefused(_ outcome: SCSIOutcome, byte: UInt16, bit: UInt8? = nil) -> Bool {
        outcome.failed(.illegalRequest, .invalidFieldInParameterList)
            && outcome.senseData?.specific == .fieldPointer(inCDB: false, byte: byte, bit: bit)
    }

    @Test func descriptorSenseIsGivenUntilTheReset() throws {
        let bench = try bench()
        func failure(_ unit: Int = 0) -> SCSIOutcome {
            bench.send(.read(BlockTransfer(.sixteen, lba: LBA(1 << 40), count: BlockCount(1))), unit)
        }
        #expect(failure().sense[0] == 0x70)
        #expect(set(bench, .control(descriptorSense: true)).isGood)
        let outcome = failure()
        #expect(outcome.sense[0] == 0x72 && outcome.failed(.illegalRequest, .logicalBlockAddressOutOfRange))
        #expect(outcome.senseData?.information == 1 << 40, "64 bits have a place there")
        #expect(bench.device.usesDescriptorSense(LogicalUnitNumber(0)!, bench.nexus))
        #expect(failure(1).sense[0] == 0x70, "the other unit is as it was")
        // What cannot be decoded is this unit's, too.
        #expect(bench.device.execute(bench.task([0xFF, 0, 0, 0, 0, 0])).sense[0] == 0x72)
        // REQUEST SENSE says itself which form it wants.
        #expect(bench.send(.requestSense(descriptorFormat: false, allocationLength: 96)).dataIn[0] == 0x70)
        #expect(page(bench, ModePage.control)[2] == 0x04)
        #expect(page(bench, ModePage.control, .defaults)[2] == 0)
        bench.device.resetLogicalUnit(LogicalUnitNumber(0)!, from: bench.nexus)
        #expect(bench.send(.testUnitReady).sense[0] == 0x70 && failure().sense[0] == 0x70)
    }

    @Test func softwareWriteProtection() throws {
        let bench = try bench()
        func write() -> SCSIOutcome {
            bench.send(
                .write(BlockTransfer(.ten, lba: LBA(0), count: BlockCount(1))),
                data: [UInt8](repeating: 7, count: 512))
        }
        #expect(write().isGood)
        #expect(set(bench, .control(softwareWriteProtect: true), form: .ten).isGood)
        #expect(write().failed(.dataProtect, .softwareWriteProtected))
        #expect(
            bench.send(.writeSame16(WriteSame(lba: LBA(0), count: BlockCount(1), noDataOut: true)))
                .failed(.dataProtect, .softwareWriteProtected))
        let sense = bench.send(.modeSense(ModeSense(.six, page: ModePage.control, allocationLength: 255)))
            .dataIn
        #expect(sense[2] & 0x80 != 0, "WP")
        let list = CopyParameterList(
            listIdentifier: 1, cscds: [bench.cscd(1), bench.cscd(0)],
            segments: [
                SegmentDescriptor(
                    source: 0, sourceLBA: LBA(0), destination: 1, destinationLBA: LBA(0),
                    amount: .blocks(1, ofDestination: false))
            ])
        #expect(bench.copy(list).failed(.copyAborted, .softwareWriteProtected))
        #expect(set(bench, .control()).isGood && write().isGood)
    }

    /// What was admitted before goes on to its end, and is done when GOOD says that nothing is written any more.
    @Test func softwareWriteProtectionWaitsForWrites() throws {
        let store = FaultyStore(size: 64 * 512)
        let bench = try Bench([Bench.unit(0, store)])
        store.hold()
        let transfer = BlockTransfer(.ten, lba: LBA(0), count: BlockCount(1))
        let write = Running(
            bench.device,
            bench.task(Command.write(transfer).encoded(), data: [UInt8](repeating: 7, count: 512)))
        store.awaitHeld()
        // What only reads is not waited for.
        let read = Running(bench.device, bench.task(Command.read(transfer).encoded()))
        store.awaitHeld(2)
        let list = ModeParameterList.encode([.control(softwareWriteProtect: true)], form: .six)
        let fields = ModeSelect(.six, parameterListLength: list.count)
        let protecting = Running(
            bench.device, bench.task(Command.modeSelect(fields).encoded(), data: list))
        while bench.device.units[0].writeProtection == nil {}
        #expect(
            protecting.isRunning
                && !bench.send(.write(transfer), data: [UInt8](repeating: 1, count: 512)).isGood)
        store.release()
        #expect(protecting.end().isGood && write.end().isGood && read.end().isGood)
        #expect(try store.all.prefix(512) == ArraySlice(repeating: 7, count: 512))
    }

    /// Without a write cache, whatever a command wrote is on stable storage at its GOOD.
    @Test func withoutWriteCacheEveryWriteIsDurable() throws {
        let store = VolatileStore(size: 64 * 512)
        let bench = try Bench([Bench.unit(0, store)])
        let block = [UInt8](repeating: 9, count: 512)
        func transfer(_ lba: UInt64) -> BlockTransfer {
            BlockTransfer(.sixteen, lba: LBA(lba), count: BlockCount(1))
        }
        #expect(bench.send(.write(transfer(0)), data: block).isGood)
        #expect(!store.isSettled)
        #expect(set(bench, .caching(writeCache: false)).isGood)
        #expect(store.isSettled, "what was cached has been written")
        #expect(page(bench, ModePage.caching)[2] & 0x04 == 0)
        for (command, data) in [
            (Command.write(transfer(1)), block), (.block(.orWrite(transfer(2))), block),
            (.block(.writeAndVerify(transfer(3), .data)), block),
            (.block(.compareAndWrite(transfer(4))), [UInt8](repeating: 0, count: 512) + block),
            (.writeSame16(WriteSame(lba: LBA(5), count: BlockCount(2))), block),
            (.writeSame16(WriteSame(lba: LBA(5), count: BlockCount(2), noDataOut: true)), []),
            (.block(.writeSame10(WriteSame(lba: LBA(8), count: BlockCount(2)))), block),
        ] {
            #expect(bench.send(command, data: data).isGood, "\(command)")
            #expect(store.isSettled, "\(command)")
        }
        let list = CopyParameterList(
            listIdentifier: 1, cscds: [bench.cscd(0)],
            segments: [
                SegmentDescriptor(
                    source: 0, sourceLBA: LBA(0), destination: 0, destinationLBA: LBA(20),
                    amount: .blocks(4, ofDestination: false))
            ])
        #expect(bench.copy(list).isGood && store.isSettled)
    }

    @Test func changeableValuesAreTheOnesThatChange() throws {
        let bench = try bench()
        #expect(
            page(bench, ModePage.caching, .changeable) == [0x08, 18, 0x04] + [UInt8](repeating: 0, count: 17))
        #expect(
            page(bench, ModePage.control, .changeable)
                == [0x0A, 10, 0x04, 0, 0x08] + [UInt8](repeating: 0, count: 7))
        // Bit for bit: what is told as changeable is taken, all else is refused with its place.
        for code in [ModePage.caching, ModePage.control, ModePage.informationalExceptions] {
            let mask = page(bench, code, .changeable)
            for byte in 2..<mask.count {
                for bit in 0..<UInt8(8) {
                    var list = [0, 0, 0, 0] + page(bench, code)
                    list[4 + byte] ^= 1 << bit
                    let outcome = select(bench, list)
                    let isChangeable = mask[byte] & 1 << bit != 0
                    #expect(outcome.isGood == isChangeable, "page \(code) byte \(byte) bit \(bit)")
                    if !isChangeable { #expect(isRefused(outcome, byte: UInt16(4 + byte), bit: bit)) }
                }
            }
            #expect(select(bench, [0, 0, 0, 0] + page(bench, code, .defaults)).isGood)
        }
    }

    @Test func allOfAListOrNothing() throws {
        let bench = try bench()
        var list = ModeParameterList.encode([.control(descriptorSense: true)], form: .six)
        list += [ModePage.caching, 18, 0x05] + [UInt8](repeating: 0, count: 17)
        #expect(isRefused(select(bench, list), byte: 4 + 12 + 2, bit: 0))
        #expect(page(bench, ModePage.control)[2] == 0, "nor the page before")
    }

    @Test func wrongListsAreRefusedWithTheirPlace() throws {
        let bench = try bench()
        let control = ModeParameterList.encode([.control()], form: .six)
        #expect(select(bench, []).isGood)
        for count in 1..<control.count where count != 4 {
            #expect(
                select(bench, Array(control[..<count])).failed(.illegalRequest, .parameterListLengthError))
        }
        #expect(select(bench, [0, 1, 0, 0]).failed(.illegalRequest, .invalidFieldInParameterList))
        #expect(isRefused(select(bench, [0, 0, 0, 16] + [UInt8](repeating: 0, count: 16)), byte: 3))
        #expect(isRefused(select(bench, [0, 0, 0, 0, 0x05, 0]), byte: 4, bit: 5))
        #expect(isRefused(select(bench, [0, 0, 0, 0, 0x4A, 1, 0, 0, 0]), byte: 4, bit: 6))
        #expect(isRefused(select(bench, [0, 0, 0, 0, 0x0A, 1, 0]), byte: 5))
        // The block descriptor may say what is so, and nothing else.
        let blocks: [UInt8] = [0, 0, 0, 64, 0, 0, 2, 0]
        #expect(select(bench, [0, 0, 0, 8] + blocks).isGood)
        #expect(select(bench, [0, 0, 0, 8, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 2, 0]).isGood)
        #expect(isRefused(select(bench, [0, 0, 0, 8, 0, 0, 0, 63, 0, 0, 2, 0]), byte: 4))
        #expect(isRefused(select(bench, [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 16, 0]), byte: 9))
        let long: [UInt8] = [0, 0, 0, 0, 1, 0, 0, 16] + [0, 0, 0, 0, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 2, 0]
        #expect(select(bench, long, .ten).isGood)
        #expect(
            isRefused(select(bench, Array(long[..<14] + [0, 64] + long[16..<22] + [3, 0]), .ten), byte: 20))
        var fields = ModeSelect(.six, parameterListLength: control.count)
        fields.saves = true
        #expect(bench.send(.modeSelect(fields), data: control).refused(cdbByte: 1))
        fields.saves = false
        fields.isPageFormat = false
        #expect(bench.send(.modeSelect(fields), data: control).refused(cdbByte: 1))
    }

    @Test func theOtherNexusesAreTold() throws {
        let bench = try bench()
        let other = Bench.makeNexus(2)
        bench.device.openNexus(other)
        for unit in 0...1 { _ = bench.send(.testUnitReady, unit, on: other) }
        #expect(set(bench, .control()).isGood)
        #expect(bench.send(.testUnitReady, on: other).isGood, "nothing was changed")
        #expect(set(bench, .caching(writeCache: false)).isGood)
        #expect(bench.send(.testUnitReady).isGood && bench.send(.testUnitReady, 1, on: other).isGood)
        #expect(bench.send(.testUnitReady, on: other).failed(.unitAttention, .modeParametersChanged))
        #expect(bench.send(.testUnitReady, on: other).isGood)
    }
}
