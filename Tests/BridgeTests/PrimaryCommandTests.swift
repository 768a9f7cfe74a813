import AsyncIO
import Blocks
import Foundation
import SCSI
import TestSupport
import Testing

@testable import Bridge

@Suite struct PrimaryCommandTests {
    private func bench(settled: Bool = true) throws -> Bench {
        try Bench(
            [
                Bench.unit(0, MemoryStore(size: 64 * 512)),
                Bench.unit(3, MemoryStore(size: 16 * 4096), blockSize: 4096),
                Bench.unit(300, MemoryStore(size: 4096), readOnly: true),
            ], settled: settled)
    }

    @Test func inquiryTellsTheCopyManager() throws {
        let bench = try bench()
        let answer = bench.send(.inquiry(page: nil, allocationLength: 255))
        let inquiry = try StandardInquiry(decoding: answer.dataIn)
        #expect(inquiry.peripheralQualifier == 0 && inquiry.deviceType == 0 && inquiry.version == 6)
        #expect(inquiry.thirdPartyCopy && inquiry.commandQueueing)
        #expect(inquiry.vendor == "OUTBOARD")
        #expect(bench.send(.inquiry(page: nil, allocationLength: 5)).dataIn.count == 5)
        #expect(bench.send(.inquiry(page: nil, allocationLength: 0)).dataIn.isEmpty)
    }

    @Test func everyListedPageIsThereAndOthersAreRefused() throws {
        let bench = try bench()
        let list = bench.send(.inquiry(page: 0, allocationLength: 255)).dataIn
        let pages = Array(list[4...])
        #expect(pages == [0x00, 0x80, 0x83, 0x86, 0x87, 0x8F, 0xB0, 0xB1, 0xB2])
        for page in UInt8.min...UInt8.max {
            let outcome = bench.send(.inquiry(page: page, allocationLength: 4096), 3)
            #expect(outcome.isGood == pages.contains(page))
            if outcome.isGood {
                #expect(outcome.dataIn[1] == page)
                #expect(outcome.dataIn.count == 4 + Int(outcome.dataIn[2]) << 8 + Int(outcome.dataIn[3]))
            } else {
                #expect(outcome.refused(cdbByte: 2))
            }
        }
    }

    @Test func designatorsAreUniqueAndStable() throws {
        let (first, second) = (try bench(), try bench())
        var seen: Set<[UInt8]> = []
        for unit in [0, 3, 300] {
            let pages = try [first, second].map {
                try VPDPage(
                    decoding: $0.send(.inquiry(page: 0x83, allocationLength: 512), unit).dataIn,
                    expecting: 0x83)
            }
            #expect(pages[0] == pages[1])
            let descriptors = try pages[0].designationDescriptors()
            let naa = try #require(descriptors.first { $0.type == 3 })
            #expect(naa.designator.count == 8 && naa.designator[0] >> 4 == 3 && naa.association == 0)
            #expect(seen.insert(naa.designator).inserted)
        }
    }

    @Test func equalDesignatorsAreRefused() throws {
        let unit = try Bench.unit(4, MemoryStore(size: 512))
        #expect(throws: BridgeError.self) { try Bench([unit, unit]) }
    }

    @Test func reportLUNsListsAllForms() throws {
        let bench = try bench()
        let all = bench.send(.reportLUNs(select: 0, allocationLength: 1024))
        #expect(try ReportLUNs.decode(all.dataIn).units.map(\.number) == [0, 3, 300])
        #expect(bench.send(.reportLUNs(select: 2, allocationLength: 1024)).dataIn == all.dataIn)
        #expect(
            bench.send(.reportLUNs(select: 1, allocationLength: 1024)).dataIn == [0, 0, 0, 0, 0, 0, 0, 0])
        #expect(bench.send(.reportLUNs(select: 3, allocationLength: 1024)).refused(cdbByte: 2))
        #expect(bench.send(.reportLUNs(select: 0, allocationLength: 16)).dataIn.count == 16)
        // Even of a unit that is not there.
        #expect(bench.send(.reportLUNs(select: 0, allocationLength: 1024), 9).dataIn == all.dataIn)
    }

    @Test func absentUnit() throws {
        let bench = try bench()
        let inquiry = bench.send(.inquiry(page: nil, allocationLength: 96), 9)
        #expect(inquiry.isGood && inquiry.dataIn[0] == 0x7F && inquiry.dataIn[5] & 0x08 == 0)
        let sense = bench.send(.requestSense(descriptorFormat: false, allocationLength: 96), 9)
        #expect(SenseData(decoding: sense.dataIn)?.code == .logicalUnitNotSupported)
        for command in [
            Command.testUnitReady, .readCapacity10,
            .read(BlockTransfer(.ten, lba: LBA(0), count: BlockCount(1))),
            .extendedCopy(parameterListLength: 0),
        ] {
            #expect(bench.send(command, 9).failed(.illegalRequest, .logicalUnitNotSupported))
        }
        let odd = SCSITask(
            nexus: bench.nexus, lun: LogicalUnitNumber(rawValue: 0x0001_0001_0000_0000),
            cdb: [0, 0, 0, 0, 0, 0], dataOut: [], expectedDataIn: 0, expectedDataOut: 0)
        #expect(bench.device.execute(odd).failed(.illegalRequest, .logicalUnitNotSupported))
    }

    @Test func capacityInBothForms() throws {
        let bench = try bench()
        let short = try Capacity(decoding10: bench.send(.readCapacity10, 3).dataIn)
        #expect(short == Capacity(lastLBA: LBA(15), blockLength: 4096))
        let outcome = bench.send(.readCapacity16(allocationLength: 32), 3)
        #expect(outcome.dataIn.count == 32)
        #expect(try Capacity(decoding16: outcome.dataIn) == short)
    }

    @Test func unitAttentionOnceForEachUnitAndNexus() throws {
        let bench = try bench(settled: false)
        #expect(bench.send(.inquiry(page: nil, allocationLength: 96)).isGood)
        #expect(bench.send(.reportLUNs(select: 0, allocationLength: 96)).isGood)
        #expect(bench.send(.testUnitReady).failed(.unitAttention, .powerOnOrReset))
        #expect(bench.send(.testUnitReady).isGood)
        #expect(bench.send(.readCapacity10, 3).failed(.unitAttention, .powerOnOrReset))
        #expect(bench.send(.readCapacity10, 3).isGood)
        // REQUEST SENSE takes it, too.
        let sense = bench.send(.requestSense(descriptorFormat: true, allocationLength: 96), 300)
        #expect(sense.isGood && SenseData(decoding: sense.dataIn)?.code == .powerOnOrReset)
        #expect(bench.send(.testUnitReady, 300).isGood)
        let none = bench.send(.requestSense(descriptorFormat: false, allocationLength: 96), 300)
        #expect(SenseData(decoding: none.dataIn)?.key == .noSense)

        let other = Bench.makeNexus(2)
        bench.device.openNexus(other)
        #expect(bench.send(.testUnitReady, on: other).failed(.unitAttention, .powerOnOrReset))
        #expect(bench.send(.testUnitReady, on: other).isGood)
        bench.device.resetLogicalUnit(LogicalUnitNumber(0)!, from: other)
        #expect(bench.send(.testUnitReady).failed(.unitAttention, .busDeviceReset))
        #expect(bench.send(.testUnitReady, on: other).failed(.unitAttention, .busDeviceReset))
        #expect(bench.send(.testUnitReady, 3).isGood)
    }

    @Test func closedNexusIsNotServed() throws {
        let bench = try bench()
        bench.device.closeNexus(bench.nexus)
        #expect(bench.send(.testUnitReady).status == .taskAborted)
    }

    @Test func modeSenseForms() throws {
        let bench = try bench()
        let six = bench.send(.modeSense(ModeSense(.six, page: 0x3F, allocationLength: 255)))
        #expect(six.dataIn[0] == UInt8(six.dataIn.count - 1) && six.dataIn[3] == 8)
        #expect(six.dataIn[12] == 0x08 && six.dataIn[14] & 0x04 != 0, "caching page with WCE")
        var fields = ModeSense(.ten, page: 0x08, allocationLength: 512)
        fields.longLBAAccepted = true
        let ten = bench.send(.modeSense(fields), 3)
        #expect(ten.dataIn[7] == 16 && ten.dataIn[4] & 1 == 1)
        fields.disableBlockDescriptors = true
        fields.control = .changeable
        let changeable = bench.send(.modeSense(fields))
        #expect(changeable.dataIn[7] == 0 && changeable.dataIn[10] == 0x04, "WCE")
        fields.control = .saved
        #expect(bench.send(.modeSense(fields)).failed(.illegalRequest, .savingParametersNotSupported))
        #expect(bench.send(.modeSense(ModeSense(.six, page: 0x05, allocationLength: 99))).refused(cdbByte: 2))
        var subpage = ModeSense(.six, page: 0x08, allocationLength: 99)
        subpage.subpage = 1
        #expect(bench.send(.modeSense(subpage)).refused(cdbByte: 3))
    }

    @Test func everyOtherOperationCodeIsRefused() throws {
        let bench = try bench()
        let known = Set(OperationTable.all.map(\.code.rawValue))
        for code in UInt8.min...UInt8.max where !known.contains(code) {
            let outcome = bench.device.execute(bench.task([code] + [UInt8](repeating: 0, count: 15)))
            #expect(outcome.failed(.illegalRequest, .invalidOperationCode), "\(code)")
        }
    }

    @Test func randomCommandsNeverTrap() throws {
        let bench = try bench()
        var generator = SeededGenerator(seed: 11)
        let codes = Set(OperationTable.all.map(\.code.rawValue)).sorted()
        for _ in 0..<20_000 {
            var cdb = (0..<16).map { _ in
                generator.next() % 3 == 0 ? UInt8(truncatingIfNeeded: generator.next() >> 9) : 0
            }
            cdb[0] = codes[Int(generator.next() >> 8) % codes.count]
            let data = (0..<Int(generator.next() >> 8) % 200).map { _ in
                UInt8(truncatingIfNeeded: generator.next() >> 9)
            }
            let cut = Array(cdb.prefix(Int(generator.next() >> 8) % 17))
            for cdb in [cdb, cut] {
                let outcome = bench.device.execute(
                    bench.task(cdb, [0, 3, 300, 9].randomElement(using: &generator)!, data: data))
                #expect(outcome.isGood || outcome.senseData != nil || outcome.status == .reservationConflict)
            }
        }
    }
}

@Suite struct ConfigurationTests {
    private func withDirectory<Result>(_ body: (String) throws -> Result) throws -> Result {
        let directory = FileManager.default.temporaryDirectory.appendingPathComponent(
            "bridge-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
        // Scratch: whether it can be removed decides nothing.
        defer { try? FileManager.default.removeItem(at: directory) }
        return try body(directory.path)
    }

    @Test func unitsOverFiles() throws {
        try withDirectory { directory in
            let (from, to) = (directory + "/from", directory + "/to")
            let bytes = pattern(1 << 20, seed: 1)
            try Data(bytes).write(to: URL(fileURLWithPath: from))
            try StorageFile.create(to, size: 1 << 20, preallocate: false)
            let units = [
                BridgeUnit(number: 1, path: to, blockSize: 4096),
                BridgeUnit(number: 0, path: from, readOnly: true, name: "source"),
            ]
            let device = try BridgeDevice(units: units, logger: Bench.quiet)
            #expect(device.summaries.map(\.number) == [0, 1])
            #expect(device.summaries[0].name == "source" && device.summaries[1].name == to)
            // What is written is nobody else's; what is read may be.
            #expect(throws: BridgeError.self) { try BridgeDevice(units: [units[0]], logger: Bench.quiet) }
            let second = try BridgeDevice(units: [units[1]], logger: Bench.quiet)
            #expect(second.summaries[0].designator == device.summaries[0].designator)
            second.close()

            let bench = Bench(device: device)
            let list = CopyParameterList(
                listIdentifier: 1, cscds: [bench.cscd(0), bench.cscd(1)],
                segments: [
                    SegmentDescriptor(
                        source: 0, sourceLBA: LBA(0), destination: 1, destinationLBA: LBA(0),
                        amount: .blocks(2048, ofDestination: false))
                ])
            #expect(bench.copy(list).isGood)
            device.close()
            #expect(try Array(Data(contentsOf: URL(fileURLWithPath: to))) == bytes)
        }
    }

    @Test func contradictionsAreRefused() throws {
        try withDirectory { directory in
            let path = directory + "/file"
            try StorageFile.create(path, size: 4096, preallocate: false)
            try StorageFile.create(path + "0", size: 0, preallocate: false)
            for (units, part) in [
                ([BridgeUnit(number: 0, path: path), BridgeUnit(number: 0, path: path)], "twice"),
                ([BridgeUnit(number: 16384, path: path)], "16383"),
                ([BridgeUnit(number: -1, path: path)], "16383"),
                ([BridgeUnit(number: 0, path: path, blockSize: 1024)], "1024"),
                ([BridgeUnit(number: 0, path: path + "0")], "empty"),
                ([BridgeUnit(number: 0, path: path + "-")], "unit 0"),
                ([BridgeUnit(number: 0, path: directory)], "directory"),
            ] {
                do {
                    _ = try BridgeDevice(units: units, logger: Bench.quiet)
                    Issue.record("\(units) was taken")
                } catch {
                    #expect("\(error)".contains(part), "\(error)")
                }
            }
        }
    }
}
