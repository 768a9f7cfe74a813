import AsyncIO
import Blocks
import Foundation
import Logging
import SCSI
import TestSupport
import Testing

@testable import Bridge

private func blocks(
    _ count: UInt16, from: (UInt16, UInt64), to: (UInt16, UInt64), ofDestination: Bool = false,
    cat: Bool = false
) -> SegmentDescriptor {
    var segment = SegmentDescriptor(
        source: from.0, sourceLBA: LBA(from.1), destination: to.0, destinationLBA: LBA(to.1),
        amount: .blocks(count, ofDestination: ofDestination))
    segment.concatenate = cat
    return segment
}

private func bytes(
    _ count: UInt32, from: (UInt16, UInt64, UInt16), to: (UInt16, UInt64, UInt16)
) -> SegmentDescriptor {
    SegmentDescriptor(
        source: from.0, sourceLBA: LBA(from.1), destination: to.0, destinationLBA: LBA(to.1),
        amount: .bytes(count, sourceOffset: from.2, destinationOffset: to.2))
}

/// Source 0 (512), destination 1 (4096), read-only 2 (512), source 3 (4096).
private struct Fixture {
    let stores: [MemoryStore]
    let bench: Bench

    init(_ logger: Logger = Bench.quiet) throws {
        stores = (0..<4).map { MemoryStore(pattern: 64 * 4096, seed: UInt64($0)) }
        bench = try Bench(
            [
                Bench.unit(0, stores[0]), Bench.unit(1, stores[1], blockSize: 4096),
                Bench.unit(2, stores[2], readOnly: true), Bench.unit(3, stores[3], blockSize: 4096),
            ], logger: logger)
    }

    func list(
        _ segments: [SegmentDescriptor], id: UInt8 = 1, usage: CopyParameterList.ListIDUsage = .hold,
        sourcePad: Bool = false, targetPad: Bool = false
    ) -> CopyParameterList {
        CopyParameterList(
            listIdentifier: id, usage: usage,
            cscds: [
                bench.cscd(0, pad: sourcePad), bench.cscd(1, pad: targetPad), bench.cscd(2),
                bench.cscd(3, pad: sourcePad),
            ], segments: segments)
    }

    func run(_ segments: [SegmentDescriptor], sourcePad: Bool = false, targetPad: Bool = false) -> SCSIOutcome
    {
        bench.copy(list(segments, sourcePad: sourcePad, targetPad: targetPad))
    }
}

@Suite struct CopyDataTests {
    @Test func copiesAcrossUnitsAndBlockSizes() throws {
        let fixture = try Fixture()
        var expected = try fixture.stores[1].all
        let source = try fixture.stores[0].all
        let other = try fixture.stores[3].all
        expected.replaceSubrange(4096..<4096 + 16 * 512, with: source[512..<512 + 16 * 512])
        expected.replaceSubrange(10 * 4096..<12 * 4096, with: source[8 * 512..<8 * 512 + 2 * 4096])
        expected.replaceSubrange(20 * 4096..<23 * 4096, with: other[0..<3 * 4096])
        expected.replaceSubrange(
            30 * 4096 + 100..<30 * 4096 + 100 + 5000, with: source[1024 + 7..<1024 + 5007])
        let outcome = fixture.run([
            blocks(16, from: (0, 1), to: (1, 1)),
            blocks(2, from: (0, 8), to: (1, 10), ofDestination: true),
            blocks(3, from: (3, 0), to: (1, 20)), blocks(0, from: (0, 0), to: (1, 0)),
            bytes(5000, from: (0, 2, 7), to: (1, 30, 100)), bytes(0, from: (0, 2, 7), to: (1, 30, 100)),
        ])
        #expect(outcome.isGood)
        #expect(try fixture.stores[1].all == expected)
        #expect(try fixture.stores[0].all == source)
    }

    @Test func overlappingSegmentsInOrder() throws {
        let fixture = try Fixture()
        var model = try fixture.stores[0].all
        var generator = SeededGenerator(seed: 21)
        var segments: [SegmentDescriptor] = []
        for _ in 0..<200 {
            let count = Int(generator.next() >> 8) % 40
            let from = Int(generator.next() >> 8) % 472
            let to = Int(generator.next() >> 8) % 472
            segments.append(blocks(UInt16(count), from: (0, UInt64(from)), to: (0, UInt64(to))))
            // What memmove does.
            let moved = Array(model[from * 512..<(from + count) * 512])
            model.replaceSubrange(to * 512..<(to + count) * 512, with: moved)
        }
        #expect(fixture.run(segments).isGood)
        #expect(try fixture.stores[0].all == model)
    }

    /// SPC-2 table 30: what becomes of a residue.
    @Test func inexactSegments() throws {
        // 9 blocks of 512 to a unit of 4096: one block and a residue of 512 bytes.
        let segment = blocks(9, from: (0, 0), to: (1, 0))
        let source = try Fixture().stores[0].all
        for (sourcePad, targetPad) in [(false, false), (false, true), (true, false), (true, true)] {
            let fixture = try Fixture()
            let before = try fixture.stores[1].all
            let outcome = fixture.run([segment], sourcePad: sourcePad, targetPad: targetPad)
            let after = try fixture.stores[1].all
            if !sourcePad, !targetPad {
                #expect(outcome.failed(.copyAborted, .unexpectedInexactSegment))
                #expect(after == before)
                continue
            }
            #expect(outcome.isGood)
            #expect(after[0..<4096] == source[0..<4096])
            if targetPad {
                #expect(after[4096..<4608] == source[4096..<4608])
                #expect(after[4608..<8192].allSatisfy { $0 == 0 })
                #expect(after[8192...] == before[8192...])
            } else {
                #expect(after[4096...] == before[4096...])
            }
        }
    }

    @Test func concatenatedResiduesGoInFrontOfTheNext() throws {
        let fixture = try Fixture()
        let source = try fixture.stores[0].all
        var expected = try fixture.stores[1].all
        // 9 + 7 blocks of 512 make two of 4096; the last residue is dropped.
        expected.replaceSubrange(0..<4096, with: source[0..<4096])
        expected.replaceSubrange(
            5 * 4096..<6 * 4096, with: source[4096..<4608] + source[100 * 512..<107 * 512])
        let outcome = fixture.run([
            blocks(9, from: (0, 0), to: (1, 0), cat: true), blocks(8, from: (0, 100), to: (1, 5), cat: true),
        ])
        #expect(outcome.isGood)
        #expect(try fixture.stores[1].all == expected)
    }

    @Test func sourceResidueOfCountsInDestinationBlocks() throws {
        let fixture = try Fixture()
        let source = try fixture.stores[3].all
        var expected = try fixture.stores[0].all
        // Three blocks of 512 need one of 4096; what is left feeds the next segment, which reads nothing.
        expected.replaceSubrange(0..<1536, with: source[0..<1536])
        expected.replaceSubrange(10 * 512..<12 * 512, with: source[1536..<2560])
        let outcome = fixture.run([
            blocks(3, from: (3, 0), to: (0, 0), ofDestination: true, cat: true),
            blocks(2, from: (3, 9), to: (0, 10), ofDestination: true, cat: true),
        ])
        #expect(outcome.isGood)
        #expect(try fixture.stores[0].all == expected)
        #expect(
            fixture.run([blocks(3, from: (3, 0), to: (0, 0), ofDestination: true)]).failed(
                .copyAborted, .unexpectedInexactSegment))
    }

    @Test func emptyListsAreGood() throws {
        let fixture = try Fixture()
        #expect(fixture.bench.send(.extendedCopy(parameterListLength: 0)).isGood)
        #expect(fixture.run([]).isGood)
        #expect(fixture.bench.copy(CopyParameterList(listIdentifier: 3, cscds: [], segments: [])).isGood)
    }
}

@Suite struct CopyRefusalTests {
    /// Every refusal leaves every byte as it was: the first segment would have written.
    private func expectRefused(
        _ bad: SegmentDescriptor, _ key: SenseKey, _ code: AdditionalSenseCode,
        edit: (Bench, inout CopyParameterList) -> Void = { _, _ in },
        _ location: SourceLocation = #_sourceLocation
    ) throws {
        let fixture = try Fixture()
        let before = try fixture.stores.map { try $0.all }
        var list = fixture.list([blocks(8, from: (0, 0), to: (1, 0)), bad])
        edit(fixture.bench, &list)
        let outcome = fixture.bench.copy(list)
        #expect(
            outcome.failed(key, code), "\(String(describing: outcome.senseData))", sourceLocation: location)
        if key == .copyAborted {
            #expect(outcome.failedSegment == 1, sourceLocation: location)
        }
        #expect(try fixture.stores.map { try $0.all } == before, sourceLocation: location)
    }

    @Test func rangesAreCheckedBeforeAnythingIsCopied() throws {
        // The pointer tells which of the two: see below.
        let under = AdditionalSenseCode.noAdditionalSense
        let over = under
        try expectRefused(blocks(8, from: (0, 505), to: (1, 1)), .copyAborted, under)
        try expectRefused(blocks(8, from: (0, .max), to: (1, 1)), .copyAborted, under)
        try expectRefused(blocks(0, from: (0, 513), to: (1, 1)), .copyAborted, under)
        try expectRefused(blocks(16, from: (0, 0), to: (1, 63)), .copyAborted, over)
        try expectRefused(blocks(8, from: (0, 0), to: (1, 1 << 52)), .copyAborted, over)
        try expectRefused(blocks(8, from: (0, 0), to: (1, .max)), .copyAborted, over)
        try expectRefused(bytes(.max, from: (0, 0, 0), to: (1, 0, 0)), .copyAborted, under)
        try expectRefused(bytes(4096, from: (0, 0, 0), to: (1, 63, 1)), .copyAborted, over)
        try expectRefused(bytes(512, from: (0, 511, 1), to: (1, 0, 0)), .copyAborted, under)
        try expectRefused(
            bytes(1, from: (0, 0, 512), to: (1, 0, 0)), .copyAborted, .invalidFieldInParameterList)
        try expectRefused(
            bytes(1, from: (0, 0, 0), to: (1, 0, 4096)), .copyAborted, .invalidFieldInParameterList)
    }

    @Test func readOnlyUnitIsNeverADestination() throws {
        try expectRefused(blocks(8, from: (0, 0), to: (2, 0)), .copyAborted, .writeProtected)
        try expectRefused(blocks(0, from: (0, 0), to: (2, 0)), .copyAborted, .writeProtected)
    }

    @Test func indexesBeyondTheList() throws {
        for index in [4, 5, 0xFFFF] as [UInt16] {
            try expectRefused(blocks(8, from: (index, 0), to: (1, 0)), .copyAborted, .unreachableCopyTarget)
            try expectRefused(blocks(8, from: (0, 0), to: (index, 0)), .copyAborted, .unreachableCopyTarget)
        }
    }

    /// Only the whole designator names a unit: by length, by content, by kind (the class of CVE-2020-28374).
    @Test func designatorsNameByExactLengthAndContent() throws {
        let edits: [(String, (inout DesignationDescriptor) -> Void)] = [
            ("cut", { $0.designator.removeLast() }),
            ("empty", { $0.designator = [] }),
            ("first half", { $0.designator = Array($0.designator[..<4]) }),
            ("filled up", { $0.designator += [0] }),
            ("twice", { $0.designator += $0.designator }),
            ("last bit", { $0.designator[7] ^= 1 }),
            ("first bit", { $0.designator[0] ^= 0x80 }),
            ("type", { $0.type = DesignationDescriptor.DesignatorType.eui64 }),
            ("code set", { $0.codeSet = DesignationDescriptor.CodeSet.ascii }),
            ("association", { $0.association = DesignationDescriptor.Association.targetPort }),
        ]
        for (name, edit) in edits {
            for index in [0, 1] {
                try expectRefused(
                    blocks(8, from: (0, 0), to: (1, 0)), .copyAborted, .copyTargetDeviceNotReachable,
                    edit: { _, list in
                        _ = name
                        list.segments.insert(blocks(0, from: (3, 0), to: (3, 0)), at: 0)
                        list.segments.remove(at: 1)
                        edit(&list.cscds[index].designation)
                    })
            }
        }
    }

    @Test func fieldsOfTheDevices() throws {
        let segment = blocks(8, from: (3, 0), to: (1, 0))
        try expectRefused(
            segment, .copyAborted, .incorrectCopyTargetDeviceType,
            edit: { $1.cscds[3].deviceType = 5 })
        try expectRefused(
            segment, .copyAborted, .copyTargetDeviceNotReachable, edit: { $1.cscds[3].isNullDevice = true })
        for size in [0, 512, 4097] as [UInt32] {
            let fixture = try Fixture()
            var list = fixture.list([segment])
            list.cscds[3].diskBlockLength = size
            let outcome = fixture.bench.copy(list)
            #expect(outcome.failed(.illegalRequest, .invalidFieldInParameterList))
            #expect(
                outcome.senseData?.specific
                    == .fieldPointer(inCDB: false, byte: UInt16(16 + 3 * 32 + 29), bit: nil))
        }
        // Reserved in SPC-4: ignored. And what no segment uses need not be there.
        let fixture = try Fixture()
        var list = fixture.list([segment])
        list.cscds[3].luIDType = 3
        list.cscds[0].designation.designator = [1]
        #expect(fixture.bench.copy(list).isGood)
    }

    @Test func limitsAreReportedAndEnforced() throws {
        let fixture = try Fixture()
        let answer = fixture.bench.results(.operatingParameters)
        let told = try CopyOperatingParameters(decoding: answer.dataIn)
        #expect(told.maximumCSCDDescriptors >= 1024 && told.maximumSegmentDescriptors >= 1024)
        #expect(told.maximumConcurrentCopies >= 8 && told.totalConcurrentCopies >= 8)
        #expect(told.maximumSegmentLength == .max && told.maximumInlineDataLength == 0)
        #expect(told.implementedDescriptorTypes == [0x02, 0x0A, 0xE4] && told.supportsNoListIdentifier)

        var list = fixture.list([])
        list.cscds = .init(repeating: fixture.bench.cscd(0), count: Int(told.maximumCSCDDescriptors))
        list.segments = (0..<UInt64(told.maximumSegmentDescriptors)).map {
            bytes(512, from: (UInt16($0 % 1024), $0 % 256, 0), to: (0, 256 + $0 % 256, 0))
        }
        #expect(list.encoded().count - 16 == Int(told.maximumDescriptorListLength))
        #expect(fixture.bench.copy(list).isGood)
        let status = fixture.bench.results(.copyStatus, 1)
        #expect(try CopyStatus(decoding: status.dataIn).segmentsProcessed == told.maximumSegmentDescriptors)
        let all = try fixture.stores[0].all
        #expect(all[..<(256 * 512)] == all[(256 * 512)...])

        var segments = fixture.list([])
        segments.segments = .init(
            repeating: blocks(1, from: (0, 0), to: (0, 1)), count: Int(told.maximumSegmentDescriptors) + 1)
        #expect(fixture.bench.copy(segments).failed(.illegalRequest, .tooManySegmentDescriptors))
        var devices = fixture.list([])
        devices.cscds = .init(repeating: fixture.bench.cscd(0), count: Int(told.maximumCSCDDescriptors) + 1)
        #expect(fixture.bench.copy(devices).failed(.illegalRequest, .tooManyCSCDDescriptors))
        list.segments.append(list.segments[0])
        #expect(fixture.bench.copy(list).failed(.illegalRequest, .parameterListLengthError))
        var inline = fixture.list([])
        inline.inlineData = [0]
        #expect(fixture.bench.copy(inline).failed(.illegalRequest, .inlineDataLengthExceeded))
    }

    @Test func hostileListsNeverTrap() throws {
        let fixture = try Fixture()
        var generator = SeededGenerator(seed: 5)
        let good = fixture.list([
            blocks(8, from: (0, 0), to: (1, 0)), bytes(5000, from: (3, 1, 2), to: (0, 3, 4)),
        ]).encoded()
        for length in 0...good.count {
            // Shorter than it says, in the CDB or in what came.
            let cut = fixture.bench.device.execute(
                fixture.bench.task(
                    Command.extendedCopy(parameterListLength: length).encoded(), data: good))
            let short = fixture.bench.device.execute(
                fixture.bench.task(
                    Command.extendedCopy(parameterListLength: good.count).encoded(),
                    data: Array(good[..<length])))
            #expect(cut.isGood == (length == 0 || length == good.count))
            #expect(short.isGood == (length == good.count))
        }
        for round in 0..<20_000 {
            var list = good
            for _ in 0...Int(generator.next() >> 8) % 6 {
                list[Int(generator.next() >> 8) % list.count] = UInt8(
                    truncatingIfNeeded: generator.next() >> 9)
            }
            if round % 4 == 0 { list = list.map { _ in UInt8(truncatingIfNeeded: generator.next() >> 9) } }
            let outcome = fixture.bench.device.execute(
                fixture.bench.task(
                    Command.extendedCopy(parameterListLength: list.count).encoded(), data: list))
            #expect(outcome.isGood || outcome.senseData != nil)
        }
    }
}

@Suite struct CopyResultsTests {
    @Test func statusIsHeldUntilAskedForAndIsTheNexusOwn() throws {
        let fixture = try Fixture()
        let bench = fixture.bench
        let other = Bench.makeNexus(2)
        bench.device.openNexus(other)
        #expect(bench.send(.testUnitReady, on: other).failed(.unitAttention, .powerOnOrReset))
        #expect(bench.results(.copyStatus, 1).refused(cdbByte: 2))
        #expect(
            fixture.run([blocks(8, from: (0, 0), to: (1, 0)), blocks(0, from: (0, 0), to: (1, 0))]).isGood)
        #expect(bench.results(.copyStatus, 2).refused(cdbByte: 2))
        #expect(bench.results(.copyStatus, 1, on: other).refused(cdbByte: 2))
        let status = try CopyStatus(decoding: bench.results(.copyStatus, 1).dataIn)
        #expect(status.state == .completed && status.segmentsProcessed == 2)
        #expect(status.bytes == 4096 && !status.heldDataDiscarded)
        #expect(bench.results(.copyStatus, 1).refused(cdbByte: 2))
    }

    @Test func noListIdentifier() throws {
        let fixture = try Fixture()
        var list = fixture.list([blocks(8, from: (0, 0), to: (1, 0))], id: 0, usage: .none)
        #expect(fixture.bench.copy(list).isGood)
        #expect(fixture.bench.results(.copyStatus, 0).refused(cdbByte: 2))
        list.listIdentifier = 7
        #expect(fixture.bench.copy(list).failed(.illegalRequest, .invalidFieldInParameterList))
        var reserved = list.encoded()
        reserved[1] = 0x08
        let outcome = fixture.bench.device.execute(
            fixture.bench.task(
                Command.extendedCopy(parameterListLength: reserved.count).encoded(), data: reserved))
        #expect(outcome.failed(.illegalRequest, .invalidFieldInParameterList))
    }

    @Test func otherResultsAreRefused() throws {
        let bench = try Fixture().bench
        for action in UInt8(0)...31 where ![0, 3, 4, 5, 7, 8].contains(action) {
            #expect(bench.results(CopyResultsServiceAction(rawValue: action), 1).refused(cdbByte: 1))
        }
        #expect(bench.results(.failedSegmentDetails, 1).refused(cdbByte: 2))
    }

    @Test func failureTellsSegmentReasonAndHowFar() throws {
        let source = FaultyStore(size: 64 * 512)
        let target = MemoryStore(size: 64 * 512)
        let bench = try Bench([Bench.unit(0, source), Bench.unit(1, target)])
        source.fail(at: 20 * 512, .io)
        let list = CopyParameterList(
            listIdentifier: 9, cscds: [bench.cscd(0), bench.cscd(1)],
            segments: [
                blocks(4, from: (0, 0), to: (1, 0)), blocks(8, from: (0, 16), to: (1, 16)),
                blocks(4, from: (0, 32), to: (1, 32)),
            ])
        let outcome = bench.copy(list)
        let sense = try #require(outcome.senseData)
        #expect(sense.key == .copyAborted && sense.code == .thirdPartyDeviceFailure)
        #expect(sense.commandSpecificInformation == 1 && sense.information == nil)
        let status = try CopyStatus(decoding: bench.results(.copyStatus, 9).dataIn)
        #expect(status.state == .failed && status.segmentsProcessed == 1)
        #expect(status.bytes == 4 * 512)
        let details = try FailedSegmentDetails.decode(bench.results(.failedSegmentDetails, 9).dataIn)
        #expect(details?.status == 2 && details?.sense == outcome.sense)
        #expect(bench.results(.failedSegmentDetails, 9).refused(cdbByte: 2), "held once")
    }

    /// The residue of a segment that was begun, in blocks of the destination.
    @Test func failureTellsTheResidueInBlocks() throws {
        let held = try HeldCopy(steps: 3)
        held.source.fail(at: UInt64(HeldCopy.step), .io)
        var list = held.list(1)
        list.segments = [bytes(UInt32(2 * HeldCopy.step + 100), from: (0, 0, 0), to: (1, 1, 7))]
        let sense = try #require(held.bench.copy(list).senseData)
        #expect(sense.commandSpecificInformation ?? 0 == 0)
        #expect(sense.information == UInt64(HeldCopy.step / 512 + 1))
    }

    @Test func auditTellsWhoFromToAndHowMuch() throws {
        let lines = LogLines()
        let fixture = try Fixture(lines.logger)
        #expect(fixture.run([blocks(8, from: (0, 0), to: (1, 0))]).isGood)
        #expect(!fixture.run([blocks(8, from: (0, 0), to: (2, 0))]).isGood)
        #expect(lines.all.count == 2)
        #expect(lines.all[0]["initiator"] == "iqn.2000-01.org.example:initiator")
        #expect(lines.all[0]["from"] == "0" && lines.all[0]["to"] == "1")
        #expect(lines.all[0]["bytes"] == "4096" && lines.all[0]["result"] == "done")
        #expect(lines.all[1]["result"] == "copyAborted 2700h in segment 0" && lines.all[1]["bytes"] == "0")
    }
}

/// What was logged.
final class LogLines: LogHandler, Sendable {
    private let lines = Monitor<[[String: String]]>([])
    var all: [[String: String]] { lines.withLock { $0 } }
    var logger: Logger { Logger(label: "test") { _ in self } }

    func log(event: LogEvent) {
        var line = (event.metadata ?? [:]).mapValues { "\($0)" }
        line["message"] = "\(event.message)"
        lines.withLock { $0.append(line) }
    }

    subscript(metadataKey _: String) -> Logger.Metadata.Value? {
        get { nil }
        set {}
    }
    var metadata: Logger.Metadata {
        get { [:] }
        set {}
    }
    var logLevel: Logger.Level {
        get { .trace }
        set {}
    }
}
