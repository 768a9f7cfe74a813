import Blocks
import SCSI
import Testing

@Suite struct ChecksumBufferTests {
    private static let keeping = ChecksumKeeping(
        identifier: 0x0102_0304_0506_0708, length: 0x0A0B, chunkSize: 0x1_0000)
    private static let list: [UInt8] =
        [0x4F, 0x42, 0x43, 0x53, 1, 0, 0, 0] + Array(1...8) + [0, 0, 0, 0, 0, 0, 0x0A, 0x0B]
        + [0, 0, 0, 0, 0, 1, 0, 0]

    @Test func goldenBytes() throws {
        #expect(Self.keeping.encoded() == Self.list)
        #expect(try ChecksumKeeping(decoding: Self.list) == Self.keeping)
        #expect(
            ChecksumBuffer.read(from: 0x01_0203, allocationLength: 0x04_0506).encoded()
                == [0x3C, 1, 0x43, 1, 2, 3, 4, 5, 6, 0])
        #expect(ChecksumBuffer.write().encoded() == [0x3B, 1, 0x43, 0, 0, 0, 0, 0, 32, 0])
        var told = KeptChecksums(keeping: Self.keeping)
        told.first = 5
        told.entries = [.known(0xA1B2_C3D4), .unknown, .untouched, .known(0), .known(.max)]
        let bytes =
            Array(Self.list[..<5]) + [1, 0, 0] + Array(Self.list[8...]) + [0, 0, 0, 5, 0, 0, 0, 5]
            + [2, 1, 0, 2, 2, 0, 0, 0] + [0xA1, 0xB2, 0xC3, 0xD4] + [UInt8](repeating: 0, count: 12)
            + [0xFF, 0xFF, 0xFF, 0xFF]
        #expect(told.encoded() == bytes)
        #expect(bytes.count == KeptChecksums.length(chunks: 5))
        #expect(try KeptChecksums(decoding: bytes) == told)
        let none = KeptChecksums(keeping: nil)
        #expect(none.encoded() == Array(Self.list[..<5]) + [UInt8](repeating: 0, count: 35))
        #expect(try KeptChecksums(decoding: none.encoded()) == none)
    }

    /// What a foreign target says: every truncation and every other value of what must be one of few.
    @Test func foreignBytesThrow() {
        var told = KeptChecksums(keeping: Self.keeping)
        told.entries = [.known(1), .unknown, .known(3)]
        let bytes = told.encoded()
        for length in 0..<bytes.count {
            #expect(throws: MalformedParameterData.self, "\(length)") {
                try KeptChecksums(decoding: Array(bytes[..<length]))
            }
        }
        for (place, value) in [(0, UInt8(0)), (4, 2), (36, 0xFF), (39, 4), (40, 3), (42, 255)] {
            var other = bytes
            other[place] = value
            #expect(throws: MalformedParameterData.self, "\(place)") { try KeptChecksums(decoding: other) }
        }
        for length in 0..<400 {
            let count = KeptChecksums.chunks(inLength: length)
            #expect(count == 0 || KeptChecksums.length(chunks: count) <= length)
            #expect(KeptChecksums.length(chunks: count + 1) > length)
        }
    }
}
