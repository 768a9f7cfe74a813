import Testing

@testable import SCSI

@Suite struct SenseTests {
    @Test func goldenFixed() {
        let sense = SenseData.invalidFieldInCDB(byte: 0x0102, bit: 3)
        #expect(
            sense.encodedFixed() == [
                0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x24, 0, 0, 0xCB, 1, 2,
            ])
    }

    @Test func goldenDescriptor() {
        let sense = SenseData(.mediumError, .unrecoveredReadError, information: 0x1_0000_0002)
        #expect(
            sense.encodedDescriptor() == [
                0x72, 3, 0x11, 0, 0, 0, 0, 12, 0, 10, 0x80, 0, 0, 0, 0, 1, 0, 0, 0, 2,
            ])
        // What does not fit 32 bits is not told in the fixed form.
        #expect(sense.encodedFixed()[0] == 0x70)
    }

    static let samples: [SenseData] = [
        SenseData(.noSense, .noAdditionalSense),
        SenseData(.noSense, .operationInProgress, specific: .progress(0x8000)),
        SenseData(.mediumError, .unrecoveredReadError, information: 77, specific: .retryCount(3)),
        .invalidFieldInParameterList(byte: 40, code: .unsupportedCSCDDescriptorType),
        .copyAborted(
            .unreachableCopyTarget, segment: 513,
            pointer: .segmentPointer(inSegmentDescriptor: true, byte: 6, bit: 7), information: 9),
    ]

    @Test(arguments: samples) func roundTrip(sense: SenseData) throws {
        #expect(try #require(SenseData(decoding: sense.encodedFixed())) == sense)
        #expect(try #require(SenseData(decoding: sense.encodedDescriptor())) == sense)
    }

    @Test(arguments: samples) func cutOffAnywhere(sense: SenseData) {
        for bytes in [sense.encodedFixed(), sense.encodedDescriptor()] {
            for length in 0...bytes.count {
                let decoded = SenseData(decoding: Array(bytes[..<length]))
                if length >= 4 { #expect(decoded?.key == sense.key) }
            }
            for place in bytes.indices {
                var bad = bytes
                bad[place] = 0xFF
                _ = SenseData(decoding: bad)
            }
        }
    }
}
