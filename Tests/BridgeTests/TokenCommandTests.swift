import AsyncIO
import Blocks
import Foundation
import SCSI
import TestSupport
import Testing

@testable import Bridge

/// POPULATE TOKEN and WRITE USING TOKEN where nothing stands against them, and how they are told.
@Suite struct TokenCommandTests {
    private func bytes(_ bench: TokenBench, _ unit: Int) throws -> [UInt8] {
        let store = bench.bench.device.units[unit].store
        return try store.bytes(at: 0, count: Int(store.size))
    }

    @Test func aTokenWritesWhatItRepresents() throws {
        let bench = try TokenBench()
        let source = try bytes(bench, 0)
        var wanted = try bytes(bench, 1)
        let token = try bench.token(0, [(10, 2), (100, 0), (4, 3)])
        let told = try bench.information()
        #expect(told.report.status == .completed && told.report.serviceAction == 0x10)
        #expect(told.report.transferCount == 5 && told.report.transferCountUnits == 0xF1)
        #expect(told.report.updateDelay == CopyOperationReport.noMoreUpdates)
        let read = try RODToken(decoding: token)
        #expect(read.bytesRepresented == 5 * 512 && read.capacity.blockLength == 512)
        #expect(read.creator.designation == bench.bench.device.units[0].naa)

        #expect(bench.write(token, 1, [(50, 1), (0, 0), (20, 4)]).isGood)
        let data = source[5120..<6144] + source[2048..<3584]
        wanted.replaceSubrange(50 * 512..<51 * 512, with: data.prefix(512))
        wanted.replaceSubrange(20 * 512..<24 * 512, with: data.dropFirst(512))
        #expect(try bytes(bench, 1) == wanted)
        #expect(try bytes(bench, 0) == source)
        let report = try bench.information(8, 1)
        #expect(report.report.status == .completed && report.report.serviceAction == 0x11)
        #expect(report.report.transferCount == 5 && report.report.transferCountUnits == 0xF1)
        #expect(report.token == nil)
        // The same by RECEIVE COPY STATUS (LID4).
        let status = bench.bench.send(
            .copy(.status(listIdentifier: 8, allocationLength: 255)), 1, on: bench.alpha)
        #expect(try CopyOperationReport(decoding: status.dataIn) == report.report)
    }

    @Test func aTokenIsUsedInParts() throws {
        let bench = try TokenBench()
        let source = try bytes(bench, 0)
        let token = try bench.token(0, [(0, 3), (8, 5)])
        let data = source[0..<1536] + source[4096..<6656]
        for offset in 0..<8 {
            #expect(bench.write(token, 1, [(UInt64(7 - offset), 1)], offset: UInt64(offset)).isGood)
        }
        let target = try bytes(bench, 1)
        for offset in 0..<8 {
            #expect(
                target[(7 - offset) * 512..<(8 - offset) * 512]
                    == (data.dropFirst(offset * 512).prefix(512)))
        }
    }

    @Test func unequalBlockSizes() throws {
        let bench = try TokenBench()
        let source = try bytes(bench, 0)
        // 24 blocks of 512 bytes are three of 4096, of which two are taken.
        let token = try bench.token(0, [(1, 7), (16, 17)])
        #expect(bench.write(token, 6, [(3, 2)], offset: 1).isGood)
        let data = source[512..<4096] + source[8192..<16896]
        #expect(try bytes(bench, 6)[3 * 4096..<5 * 4096] == data.dropFirst(4096).prefix(8192))
        #expect(try bench.information(8, 6).report.transferCount == 2)
        // And the other way; the offset is in blocks of the unit that is written.
        let wide = try bench.token(6, [(0, 2)])
        #expect(bench.write(wide, 1, [(5, 1)], offset: 15).isGood)
        #expect(try bytes(bench, 1)[2560..<3072] == bytes(bench, 6)[7680..<8192])
        #expect(bench.write(wide, 1, [(5, 1)], offset: 16).refused(listByte: 534))
    }

    @Test func zeros() throws {
        let bench = try TokenBench()
        var wanted = try bytes(bench, 1)
        #expect(bench.write(RODToken.blockDeviceZero, 1, [(3, 2), (9, 1)], offset: 1 << 50).isGood)
        for range in [1536..<2560, 4608..<5120] {
            wanted.replaceSubrange(range, with: repeatElement(0, count: range.count))
        }
        #expect(try bytes(bench, 1) == wanted)
        #expect(try bench.information(8, 1).report.transferCount == 3)
        // Nothing but that very token.
        var other = RODToken.blockDeviceZero
        other[511] = 1
        #expect(bench.write(other, 1, [(3, 2)]).refusedToken(.unsupportedTokenType))
        #expect(bench.write(RODToken.blockDeviceZero, 4, [(3, 2)]).failed(.dataProtect, .writeProtected))
    }

    @Test func throughTheEngine() throws {
        let directory = try ScratchDirectory()
        var units: [BridgeUnit] = []
        for number in 0..<2 {
            let path = directory("unit\(number)")
            try Data(pattern(8 << 20, seed: UInt64(number))).write(to: URL(fileURLWithPath: path))
            units.append(BridgeUnit(number: number, path: path))
        }
        let device = try BridgeDevice(units: units, logger: Bench.quiet)
        let bench = Bench(device: device)
        let list = PopulateTokenList(TokenBench.ranges([(1, 9000), (10_001, 5000)])).encoded()
        let made = bench.send(
            .token(.populate(listIdentifier: 1, parameterListLength: list.count)), data: list)
        #expect(made.isGood)
        let told = bench.send(.token(.information(listIdentifier: 1, allocationLength: 1024))).dataIn
        let token = Array(CopyOperationReport.trailer(in: told).dropFirst(6))
        let write = WriteUsingTokenList(token: token, TokenBench.ranges([(16, 14_000)])).encoded()
        let task = bench.task(
            Command.token(.write(listIdentifier: 2, parameterListLength: write.count)).encoded(), 1,
            data: write)
        #expect(device.execute(task).isGood)
        let (source, target) = (device.units[0].store, device.units[1].store)
        #expect(try target.bytes(at: 8192, count: 9000 * 512) == source.bytes(at: 512, count: 9000 * 512))
        #expect(
            try target.bytes(at: 8192 + 9000 * 512, count: 5000 * 512)
                == source.bytes(at: 10_001 * 512, count: 5000 * 512))
        // An engine that writes to what a token of an instant represents ends it, too.
        let back = WriteUsingTokenList(token: RODToken.blockDeviceZero, TokenBench.ranges([(0, 1)])).encoded()
        #expect(
            bench.send(.token(.write(listIdentifier: 3, parameterListLength: back.count)), data: back).isGood)
        #expect(device.execute(task).isGood)
        let copy = bench.copy(
            CopyParameterList(
                listIdentifier: 1, cscds: [bench.cscd(0), bench.cscd(1)],
                segments: [
                    SegmentDescriptor(
                        source: 1, sourceLBA: LBA(0), destination: 0, destinationLBA: LBA(9000),
                        amount: .blocks(2, ofDestination: false))
                ]))
        #expect(copy.isGood)
        #expect(device.execute(task).refusedToken(.tokenRevoked))
    }

    @Test func inTheBackground() throws {
        let held = FaultyStore(size: 64 << 10)
        var stores: [any BlockStore] = (0..<6).map { MemoryStore(pattern: 64 << 10, seed: UInt64($0)) }
        stores[0] = held
        let bench = try TokenBench(stores)
        let token = try bench.token(0, [(0, 128)])
        held.hold()
        #expect(bench.bench.device.execute(bench.writeTask(token, 1, [(0, 128)], immediate: true)).isGood)
        held.awaitHeld()
        let running = try bench.information(8, 1)
        #expect(running.report.status == .inBackground && running.report.transferCount == 0)
        // Its identifier is taken meanwhile.
        #expect(bench.write(token, 1, [(0, 1)]).failed(.illegalRequest, .operationInProgress))
        held.release()
        while try bench.information(8, 1).report.status.isInProgress {}
        #expect(try bench.information(8, 1).report.status == .completed)
        #expect(try bytes(bench, 1) == held.all)
    }

    @Test func lists() throws {
        let bench = try TokenBench()
        let token = try bench.token(0, [(0, 8)])
        // No list does nothing.
        for command in [
            TokenCommand.populate(listIdentifier: 1, parameterListLength: 0),
            .write(listIdentifier: 1, parameterListLength: 0),
        ] { #expect(bench.bench.send(.token(command), on: bench.alpha).isGood) }
        #expect(
            bench.bench.send(
                .token(.information(listIdentifier: 1, allocationLength: 64)), on: bench.alpha
            ).refused(cdbByte: 2))
        // Fewer bytes than the CDB says.
        let list = PopulateTokenList(TokenBench.ranges([(0, 1)])).encoded()
        #expect(
            bench.bench.send(
                .token(.populate(listIdentifier: 1, parameterListLength: list.count + 1)), data: list,
                on: bench.alpha
            ).failed(.illegalRequest, .parameterListLengthError))
        // Beyond the unit's end, which has 128 blocks.
        for range: (UInt64, UInt64) in [(128, 1), (127, 2), (129, 0), (UInt64.max, 1), (1 << 55, 1)] {
            let refused = bench.populate(0, PopulateTokenList(TokenBench.ranges([range])))
            #expect(refused.failed(.illegalRequest, .logicalBlockAddressOutOfRange))
            #expect(
                bench.write(token, 1, [range]).failed(.illegalRequest, .logicalBlockAddressOutOfRange))
        }
        #expect(bench.populate(0, PopulateTokenList(TokenBench.ranges([(128, 0)]))).isGood)
        // More than the token represents.
        #expect(bench.write(token, 1, [(0, 9)]).refused(listByte: 534))
        #expect(bench.write(token, 1, [(0, 8)], offset: 1).refused(listByte: 534))
        #expect(bench.write(token, 1, [(0, 1)], offset: 9).refused(listByte: 8))
        #expect(bench.write(token, 1, [(0, 1)], offset: 1 << 60).refused(listByte: 8))
        #expect(bench.write(token, 1, [(0, 8)]).isGood)
        // One range more than are taken.
        let many = (0...UInt64(BridgeLimits.tokenRanges)).map { ($0 % 2, UInt64(0)) }
        #expect(
            bench.populate(0, PopulateTokenList(TokenBench.ranges(many))).failed(
                .illegalRequest, .tooManySegmentDescriptors))
        #expect(bench.populate(0, PopulateTokenList(TokenBench.ranges(many.dropLast()))).isGood)
    }

    /// The audit log has one line for each, and a token is never in it.
    @Test func audit() throws {
        let bench = try TokenBench()
        let token = try bench.token(0, [(0, 8)])
        #expect(bench.write(token, 1, [(0, 8)]).isGood)
        #expect(!bench.write(token, 1, [(0, 9)]).isGood)
        #expect(!bench.write(token, 4, [(0, 1)]).isGood)
        let lines = bench.lines.all
        #expect(
            lines.map { $0["message"] } == ["POPULATE TOKEN"]
                + [String](repeating: "WRITE USING TOKEN", count: 3))
        #expect(lines[0]["from"] == "0" && lines[0]["of"] == "4096" && lines[0]["result"] == "done")
        #expect(lines[1]["from"] == "0" && lines[1]["to"] == "1" && lines[1]["bytes"] == "4096")
        #expect(lines[1]["initiator"] == TokenBench.alpha && lines[1]["list"] == "8")
        #expect(lines[2]["result"] == "illegalRequest 2600h, byte 534")
        #expect(lines[3]["result"] == "dataProtect 2700h")
    }

    @Test func whatPage8FhTells() throws {
        let bench = try TokenBench()
        func page(_ unit: Int) throws -> [UInt16: ThirdPartyCopyPage.Descriptor] {
            let outcome = bench.bench.send(
                .inquiry(page: VPDPageCode.thirdPartyCopy, allocationLength: 4096), unit, on: bench.alpha)
            let page = try VPDPage(decoding: outcome.dataIn, expecting: VPDPageCode.thirdPartyCopy)
            return Dictionary(
                uniqueKeysWithValues: try ThirdPartyCopyPage(page: page).descriptors.map { ($0.type, $0) })
        }
        let writable = try page(0)
        #expect(writable.keys.sorted() == [0, 1, 4, 8, 0xD, 0x106, 0x108, 0x8001, 0xC001])
        let commands = try #require(writable[1]?.body)
        #expect(
            commands.prefix(7) == [UInt8(commands.count - 1 - padding(commands)), 0x83, 5, 0, 1, 0x10, 0x11])
        let limits = try #require(writable[0]?.body)
        #expect(UInt32(bigEndianBytes: limits[8..<12]) >> 16 == 0)
        #expect(UInt32(bigEndianBytes: limits[12..<16]) == BridgeLimits.tokenDefaultSeconds)
        // What is told is what is done.
        for (unit, types) in [0: 5, 4: 1, 5: 3] as [Int: Int] {
            let rods = try #require(try page(unit)[0x108]).rodTypes()
            #expect(rods.count == types)
            let all: [RODType] = [
                .accessUponReference, .pointInTimeDefault, .pointInTimeChangeVulnerable,
                .pointInTimePersistent, .pointInTimeAny, .blockDeviceZero, RODType(rawValue: 0),
            ]
            for type in all {
                var list = PopulateTokenList(TokenBench.ranges([(0, 1)]))
                list.type = type
                let isMade = rods.contains { $0.type == type && $0.isMade }
                let outcome = bench.populate(unit, list)
                #expect(isMade ? outcome.isGood : outcome.refused(listByte: 8))
            }
        }
    }

    private func padding(_ commands: [UInt8]) -> Int { commands.count - 1 - Int(commands[0]) }
}
