import Blocks
import Testing

@testable import SCSI

@Suite struct CopyTests {
    static let limits = CopyListLimits(
        cscdDescriptors: 4, segmentDescriptors: 3, descriptorListBytes: 256, inlineDataBytes: 0,
        supportsNoListIdentifier: true)

    static func list() -> CopyParameterList {
        let source = CSCDDescriptor(designation: .naaLocallyAssigned(1), diskBlockLength: 512)
        var destination = CSCDDescriptor(designation: .eui64(2), diskBlockLength: 4096)
        destination.pad = true
        var first = SegmentDescriptor(
            source: 0, sourceLBA: LBA(0x1_0000_0000), destination: 1, destinationLBA: LBA(5),
            amount: .blocks(0x0102, ofDestination: true))
        first.concatenate = true
        let second = SegmentDescriptor(
            source: 1, sourceLBA: LBA(6), destination: 0, destinationLBA: LBA(7),
            amount: .bytes(0xFFFF_FFFF, sourceOffset: 0x0A0B, destinationOffset: 0x0C0D))
        return CopyParameterList(listIdentifier: 9, cscds: [source, destination], segments: [first, second])
    }

    @Test func goldenList() throws {
        let list = Self.list()
        let bytes = list.encoded()
        #expect(bytes.count == 16 + 64 + 28 + 32)
        #expect(bytes[0..<16] == [9, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0, 60, 0, 0, 0, 0])
        #expect(bytes[16..<32] == [0xE4, 0, 0, 0, 1, 3, 0, 8, 0x30, 0, 0, 0, 0, 0, 0, 1])
        #expect(bytes[44..<48] == [0, 0, 2, 0])
        #expect(bytes[76..<80] == [4, 0, 0x10, 0])
        #expect(
            bytes[80..<108] == [
                2, 3, 0, 24, 0, 0, 0, 1, 0, 0, 1, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5,
            ])
        #expect(
            bytes[108..<140] == [
                10, 0, 0, 28, 0, 1, 0, 0, 255, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, 7,
                10, 11, 12, 13,
            ])
        #expect(try CopyParameterList(decoding: bytes, limits: Self.limits) == list)
    }

    @Test func limitIsTakenAndOneMoreIsNot() throws {
        let one = Self.list()
        var list = one
        list.cscds += one.cscds
        list.segments = [one.segments[0], one.segments[0], one.segments[0]]
        #expect(try CopyParameterList(decoding: list.encoded(), limits: Self.limits) == list)
        var more = list
        more.segments.append(one.segments[0])
        #expect(throws: sense(.tooManySegmentDescriptors, 8)) {
            try CopyParameterList(decoding: more.encoded(), limits: Self.limits)
        }
        more = list
        more.cscds.append(one.cscds[0])
        #expect(throws: sense(.tooManyCSCDDescriptors, 2)) {
            try CopyParameterList(decoding: more.encoded(), limits: Self.limits)
        }
        var limits = Self.limits
        limits.descriptorListBytes = 212
        #expect(try CopyParameterList(decoding: list.encoded(), limits: limits) == list)
        list.segments[2] = one.segments[1]
        #expect(throws: CheckCondition(.parameterListLengthError)) {
            try CopyParameterList(decoding: list.encoded(), limits: limits)
        }
        // A list over every limit is told its length first.
        #expect(throws: CheckCondition(.parameterListLengthError)) {
            try CopyParameterList(decoding: more.encoded(), limits: limits)
        }
        list = one
        list.inlineData = [1]
        #expect(throws: sense(.inlineDataLengthExceeded, 12)) {
            try CopyParameterList(decoding: list.encoded(), limits: Self.limits)
        }
    }

    static func longList() -> CopyParameterList {
        let short = list()
        var list = CopyParameterList(
            longListIdentifier: 0x0102_0304, usage: .discard, cscds: short.cscds, segments: short.segments)
        list.isImmediate = true
        list.priority = 5
        return list
    }

    @Test func goldenLongList() throws {
        var list = Self.longList()
        let bytes = list.encoded()
        #expect(
            bytes[0..<48] == [
                1, 0x15, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
                0xFF, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 60,
                0, 0,
            ])
        #expect(bytes[48...] == Self.list().encoded()[16...])
        #expect(try CopyParameterList(.lid4, decoding: bytes, limits: Self.limits) == list)
        list.isImmediate = false
        list.wantsSense = true
        #expect(list.encoded()[15] == 2)
        #expect(try CopyParameterList(.lid4, decoding: list.encoded(), limits: Self.limits) == list)
        for length in 0..<bytes.count {
            #expect(throws: CheckCondition(.parameterListLengthError)) {
                try CopyParameterList(.lid4, decoding: Array(bytes[..<length]), limits: Self.limits)
            }
        }
        for place in bytes.indices {
            for value: UInt8 in [0, 1, 0x7F, 0x80, 0xFF] {
                var bad = bytes
                bad[place] = value
                // Any answer but a trap.
                _ = try? CopyParameterList(.lid4, decoding: bad, limits: Self.limits)
            }
        }
    }

    @Test func wrongFieldsOfALongListAreShown() throws {
        let cases: [(Int, UInt8, AdditionalSenseCode, Int)] = [
            (0, 0, .invalidFieldInParameterList, 0), (3, 0x1F, .invalidFieldInParameterList, 2),
            (16, 0xFE, .invalidFieldInParameterList, 16), (43, 63, .invalidFieldInParameterList, 42),
            (43, 160, .tooManyCSCDDescriptors, 42), (45, 97, .tooManySegmentDescriptors, 44),
            (47, 1, .inlineDataLengthExceeded, 46), (48, 0xE0, .unsupportedCSCDDescriptorType, 48),
            (112, 3, .unsupportedSegmentDescriptorType, 112),
        ]
        for (place, value, code, byte) in cases {
            var bytes = Self.longList().encoded()
            bytes[place] = value
            #expect(throws: sense(code, byte), "\(place)") {
                try CopyParameterList(.lid4, decoding: bytes, limits: Self.limits)
            }
        }
    }

    @Test func operationReport() throws {
        var report = CopyOperationReport(serviceAction: 0x10, status: .completedPartially)
        report.operations = 0x0102
        report.updateDelay = 0x0304_0506
        report.completionStatus = 2
        report.sense = [0x70, 0, 3]
        report.transferCountUnits = CopyOperationReport.blocks
        report.transferCount = 0x0708_090A_0B0C_0D0E
        report.segmentsProcessed = 0x0F10
        let bytes = report.encoded(followedBy: [0xAA, 0xBB])
        #expect(
            bytes == [
                0, 0, 0, 33, 0x10, 3, 1, 2, 3, 4, 5, 6, 2, 3, 3, 0xF1, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 0,
                0,
                0, 0, 0, 0, 0x70, 0, 3, 0xAA, 0xBB,
            ])
        #expect(try CopyOperationReport(decoding: bytes) == report)
        #expect(CopyOperationReport.trailer(in: bytes) == [0xAA, 0xBB])
        for length in 0..<35 {
            #expect(throws: MalformedParameterData.self) {
                try CopyOperationReport(decoding: Array(bytes[..<length]))
            }
        }
    }

    private func sense(_ code: AdditionalSenseCode, _ byte: Int) -> CheckCondition {
        CheckCondition(.invalidFieldInParameterList(byte: byte, code: code))
    }

    @Test func everyTruncationIsALengthError() {
        let bytes = Self.list().encoded()
        for length in 0..<bytes.count {
            #expect(throws: CheckCondition(.parameterListLengthError)) {
                try CopyParameterList(decoding: Array(bytes[..<length]), limits: Self.limits)
            }
        }
    }

    @Test func flippedBytesNeverTrap() {
        let bytes = Self.list().encoded()
        for place in bytes.indices {
            for value: UInt8 in [0, 1, 0x7F, 0x80, 0xFF] {
                var bad = bytes
                bad[place] = value
                _ = try? CopyParameterList(decoding: bad, limits: Self.limits)  // Any answer but a trap.
            }
        }
    }

    @Test func wrongFieldsAreShown() {
        let cases: [(Int, UInt8, AdditionalSenseCode, Int)] = [
            (16, 0xE0, .unsupportedCSCDDescriptorType, 16),
            (23, 21, .invalidFieldInParameterList, 23),
            (80, 3, .unsupportedSegmentDescriptorType, 80),
            (83, 23, .invalidFieldInParameterList, 82),
            (3, 63, .invalidFieldInParameterList, 2),
        ]
        for (place, value, code, byte) in cases {
            var bytes = Self.list().encoded()
            bytes[place] = value
            #expect(throws: sense(code, byte)) {
                try CopyParameterList(decoding: bytes, limits: Self.limits)
            }
        }
    }

    @Test func listIdentifierUsage() throws {
        var list = Self.list()
        list.usage = .none
        #expect(throws: CheckCondition(.invalidFieldInParameterList(byte: 0))) {
            try CopyParameterList(decoding: list.encoded(), limits: Self.limits)
        }
        list.listIdentifier = 0
        #expect(try CopyParameterList(decoding: list.encoded(), limits: Self.limits).usage == .none)
        var without = Self.limits
        without.supportsNoListIdentifier = false
        #expect(throws: CheckCondition(.invalidFieldInParameterList(byte: 1, bit: 4))) {
            try CopyParameterList(decoding: list.encoded(), limits: without)
        }
        var reserved = list.encoded()
        reserved[1] = 0x08
        #expect(throws: CheckCondition(.invalidFieldInParameterList(byte: 1, bit: 4))) {
            try CopyParameterList(decoding: reserved, limits: Self.limits)
        }
    }

    @Test func copyStatus() throws {
        let small = CopyStatus(state: .inProgress, segmentsProcessed: 258, bytes: 0x0304_0506)
        #expect(small.encoded() == [0, 0, 0, 8, 0, 1, 2, 0, 3, 4, 5, 6])
        #expect(try CopyStatus(decoding: small.encoded()) == small)
        let large = CopyStatus(state: .completed, segmentsProcessed: 1, bytes: 3 << 40)
        #expect(large.transferCountUnits == 1 && large.transferredBytes == 3 << 40)
        let greatest = CopyStatus(state: .failed, segmentsProcessed: 1, bytes: .max)
        #expect(greatest.transferredBytes.map { $0 > UInt64.max - 1 << 40 } == true)
        for length in 0..<12 {
            #expect(throws: MalformedParameterData.self) {
                try CopyStatus(decoding: Array(small.encoded()[..<length]))
            }
        }
    }

    @Test func operatingParametersAndFailure() throws {
        var parameters = CopyOperatingParameters()
        parameters.supportsNoListIdentifier = true
        parameters.maximumCSCDDescriptors = 0x0102
        parameters.maximumSegmentDescriptors = 0x0304
        parameters.maximumDescriptorListLength = 0x0506_0708
        parameters.maximumSegmentLength = .max
        parameters.totalConcurrentCopies = 16
        parameters.maximumConcurrentCopies = 8
        parameters.dataSegmentGranularity = 9
        parameters.implementedDescriptorTypes = [0xE4, 2, 10]
        let bytes = parameters.encoded()
        #expect(bytes.count == 47)
        #expect(
            bytes[0..<20] == [0, 0, 0, 43, 1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 255, 255, 255, 255])
        #expect(bytes[34..<47] == [0, 16, 8, 9, 0, 0, 0, 0, 0, 3, 2, 10, 0xE4])
        parameters.implementedDescriptorTypes.sort()
        #expect(try CopyOperatingParameters(decoding: bytes) == parameters)
        for length in 0..<bytes.count {
            #expect(throws: MalformedParameterData.self) {
                try CopyOperatingParameters(decoding: Array(bytes[..<length]))
            }
        }
        let failure = FailedSegmentDetails(status: 2, sense: [1, 2, 3])
        #expect(failure.encoded()[0..<4] == [0, 0, 0, 59])
        #expect(failure.encoded()[56...] == [2, 0, 0, 3, 1, 2, 3])
        #expect(try FailedSegmentDetails.decode(failure.encoded()) == failure)
        #expect(try FailedSegmentDetails.decode(FailedSegmentDetails.nothingHeld) == nil)
    }
}
