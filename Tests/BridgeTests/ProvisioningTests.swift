import Blocks
import Foundation
import SCSI
import TestSupport
import Testing

@testable import Bridge

@Suite struct ProvisioningTests {
    /// Units 0 (thin by its file), 1 (kept thick) and 2 (read-only) over 1 MiB files full of data.
    private func withUnits<Result>(
        blockSize: UInt32 = 512, _ body: (Bench, String) throws -> Result
    ) throws -> Result {
        let directory = FileManager.default.temporaryDirectory
            .appendingPathComponent("provisioning-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: false)
        defer { try? FileManager.default.removeItem(at: directory) }  // Leftovers do no harm.
        let units = try (0..<3).map { number in
            let path = directory.appendingPathComponent("\(number)").path
            try Data(pattern(1 << 20, seed: UInt64(number))).write(to: URL(fileURLWithPath: path))
            var unit = BridgeUnit(
                number: number, path: path, readOnly: number == 2, blockSize: blockSize)
            if number == 1 {
                unit.isThin = false
                unit.physicalBlockSize = 8 * blockSize
            }
            return unit
        }
        let device = try BridgeDevice(units: units, logger: Bench.quiet)
        defer { device.close() }
        return try body(Bench(device: device), directory.appendingPathComponent("0").path)
    }

    private func status(_ bench: Bench, _ lba: UInt64, _ unit: Int = 0, length: Int = 1024) -> [[UInt64]] {
        let outcome = bench.send(
            .block(.getLBAStatus(lba: LBA(lba), allocationLength: length)), unit)
        let data = outcome.dataIn
        guard outcome.isGood, data.count >= 8 else { return [] }
        func number(_ bytes: ArraySlice<UInt8>) -> UInt64 {
            var value: UInt64 = 0
            for byte in bytes { value = value << 8 | UInt64(byte) }
            return value
        }
        var extents: [[UInt64]] = []
        for start in stride(from: 8, to: data.count, by: 16) {
            let lba = number(data[start..<start + 8])
            let count = number(data[start + 8..<start + 12])
            extents.append([lba, count, UInt64(data[start + 12])])
        }
        return extents
    }

    private func unmap(_ bench: Bench, _ ranges: [(UInt64, UInt64)], _ unit: Int = 0) -> SCSIOutcome {
        let list = UnmapList(
            ranges.map { UnmapList.Range(lba: LBA($0.0), count: BlockCount($0.1)) }
        ).encoded()
        return bench.send(.block(.unmap(anchor: false, parameterListLength: list.count)), unit, data: list)
    }

    @Test(arguments: [512, 4096] as [UInt32])
    func unmapGivesSpaceBackAndLeavesZeros(_ blockSize: UInt32) throws {
        try withUnits(blockSize: blockSize) { bench, path in
            let each = UInt64(65536 / blockSize)
            let blocks = UInt64(1 << 20) / UInt64(blockSize)
            #expect(status(bench, 0) == [[0, blocks, 0]])
            let outcome = unmap(bench, [(each, each), (4 * each, 2 * each), (blocks, 0)])
            #expect(outcome.isGood)
            #expect(
                status(bench, each / 2) == [
                    [each / 2, each / 2, 0], [each, each, 1], [2 * each, 2 * each, 0],
                    [4 * each, 2 * each, 1], [6 * each, blocks - 6 * each, 0],
                ])
            // As many as there is space for.
            #expect(status(bench, 0, length: 40) == [[0, each, 0], [each, each, 1]])
            let data = try Data(contentsOf: URL(fileURLWithPath: path))
            let before = pattern(1 << 20, seed: 0)
            #expect(data[65536..<131072].allSatisfy { $0 == 0 })
            #expect(Array(data[..<65536]) == Array(before[..<65536]))
            #expect(Array(data[131072..<262144]) == Array(before[131072..<262144]))
        }
    }

    @Test func partsOfPagesReadAsZerosToo() throws {
        try withUnits { bench, _ in
            #expect(unmap(bench, [(3, 1)]).isGood)
            let read = bench.send(.read(BlockTransfer(.ten, lba: LBA(2), count: BlockCount(3)))).dataIn
            let before = pattern(1 << 20, seed: 0)
            #expect(Array(read[..<512]) == Array(before[1024..<1536]))
            #expect(read[512..<1024].allSatisfy { $0 == 0 })
            #expect(Array(read[1024...]) == Array(before[2048..<2560]))
        }
    }

    @Test func unmapChecksAllBeforeItDoesAnything() throws {
        try withUnits { bench, _ in
            #expect(
                unmap(bench, [(0, 8), (2048, 1)]).failed(.illegalRequest, .logicalBlockAddressOutOfRange))
            #expect(status(bench, 0) == [[0, 2048, 0]])
            let most = BridgeLimits.unmapDescriptors
            #expect(unmap(bench, Array(repeating: (0, 0), count: most)).isGood)
            #expect(
                unmap(bench, Array(repeating: (0, 0), count: most + 1)).failed(
                    .illegalRequest, .invalidFieldInParameterList))
            #expect(bench.send(.block(.unmap(anchor: false, parameterListLength: 0))).isGood)
            let short: [UInt8] = [0, 6, 0, 16, 0, 0, 0, 0]
            #expect(
                bench.send(.block(.unmap(anchor: false, parameterListLength: 8)), data: short).failed(
                    .illegalRequest, .parameterListLengthError))
            #expect(
                bench.send(.block(.unmap(anchor: true, parameterListLength: 0))).refused(cdbByte: 1))
            #expect(unmap(bench, [(0, 8)], 1).failed(.illegalRequest, .invalidOperationCode))
            #expect(unmap(bench, [(0, 8)], 2).failed(.dataProtect, .writeProtected))
        }
    }

    @Test func whatAUnitIsStandsInItsPages() throws {
        try withUnits { bench, _ in
            for (unit, thin) in [(0, true), (1, false), (2, false)] {
                let capacity = try Capacity(
                    decoding16: bench.send(.readCapacity16(allocationLength: 32), unit).dataIn)
                #expect(
                    capacity.physicalBlockExponent == (unit == 1 ? 3 : 0) && capacity.lowestAlignedLBA == 0)
                #expect(capacity.isProvisioned == thin && capacity.unmappedReadsZeros == thin)
                let b2 = bench.send(.inquiry(page: 0xB2, allocationLength: 64), unit).dataIn
                #expect(b2[5] == (thin ? 0xE4 : 0) && b2[6] == (thin ? 2 : 0))
                let told = bench.send(
                    .capabilityReport(.operationCodes(.code(.unmap), timeouts: false, allocationLength: 64)),
                    unit)
                #expect(told.dataIn[1] == (unit == 1 ? 1 : 3))
                let limits = try BlockLimits(
                    page: VPDPage(
                        decoding: bench.send(.inquiry(page: 0xB0, allocationLength: 64), unit).dataIn,
                        expecting: 0xB0))
                #expect(limits.maximumUnmapDescriptors == (thin ? UInt32(BridgeLimits.unmapDescriptors) : 0))
                #expect(limits.maximumCompareAndWrite == 255)
            }
        }
    }

    /// What cannot give space back, or is never written, is not thin because somebody says so.
    @Test func onlyWhatCanBeUnmappedIsThin() throws {
        var unit = BridgeUnit(number: 0, path: "memory")
        unit.isThin = true
        let storage = StorageKey(device: 1, inode: 1)
        func make(_ capabilities: StoreCapabilities) throws -> LogicalUnit {
            try LogicalUnit(
                unit, store: MemoryStore([UInt8](repeating: 0, count: 4096), capabilities: capabilities),
                storage: storage)
        }
        #expect(throws: BridgeError.self) { try make([.writable, .trims, .zeroesFast, .knowsAllocation]) }
        #expect(try make([.writable, .unmaps]).isThin, "a device, for instance")
        unit.isThin = nil
        #expect(
            try !make([.writable, .unmaps]).isThin && make([.writable, .unmaps, .knowsAllocation]).isThin)
        unit.isThin = true
        unit.readOnly = true
        #expect(throws: BridgeError.self) { try BridgeDevice(units: [unit], logger: Bench.quiet) }
    }

    /// Parts that the backing cannot give back are written: UNMAP is never a promise that is not kept.
    @Test func unmappedBlocksReadAsZerosEvenWhereNoSpaceIsGivenBack() throws {
        let store = MemoryStore(
            pattern(64 * 512, seed: 4), capabilities: [.writable, .unmaps, .knowsAllocation])
        let bench = try Bench([Bench.unit(0, store)])
        #expect(unmap(bench, [(1, 3)]).isGood)
        #expect(try store.bytes(at: 512, count: 3 * 512) == [UInt8](repeating: 0, count: 3 * 512))
    }

    @Test func writeSameUnmapsWhereItMay() throws {
        try withUnits { bench, _ in
            let zero = [UInt8](repeating: 0, count: 512)
            let same = WriteSame(lba: LBA(128), count: BlockCount(128), unmap: true)
            var plain = same
            plain.unmap = false
            for command in [Command.block(.writeSame10(same)), .writeSame16(same)] {
                #expect(bench.send(.writeSame16(plain), data: pattern(512, seed: 9)).isGood)
                #expect(status(bench, 128, length: 24).first?.last == 0)
                #expect(bench.send(command, data: zero).isGood)
                #expect(status(bench, 128, length: 24) == [[128, 128, 1]])
            }
            // Blocks that would not read as they were written are not unmapped.
            let block = pattern(512, seed: 8)
            #expect(bench.send(.writeSame16(same), data: block).isGood)
            let read = bench.send(.read(BlockTransfer(.ten, lba: LBA(255), count: BlockCount(1)))).dataIn
            #expect(read == block)
            #expect(bench.send(.writeSame16(same), 1, data: zero).refused(cdbByte: 1))
            #expect(bench.send(.block(.writeSame10(same)), 1, data: zero).refused(cdbByte: 1))
            var anchored = same
            anchored.anchor = true
            #expect(bench.send(.writeSame16(anchored), data: zero).refused(cdbByte: 1))
            // A thick unit keeps the space of zeros.
            #expect(bench.send(.writeSame16(plain), 1, data: zero).isGood)
            #expect(status(bench, 0, 1) == [[0, 2048, 0]])
        }
    }
}
