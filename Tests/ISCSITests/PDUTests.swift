import Blocks
import Testing

@testable import ISCSI

@Suite struct PDUTests {
    static let samples: [PDU] = {
        var plain = PDU(Opcode.nopOut)
        plain.initiatorTaskTag = 0x0102_0304
        var data = plain
        data.data = [1, 2, 3, 4, 5]
        var additional = PDU(Opcode.scsiCommand, flags: 0xA1)
        additional.additionalHeaders = [0, 5, 1, 0, 9, 9, 9, 9]
        additional.data = [UInt8](repeating: 7, count: 512)[...]
        return [plain, data, additional]
    }()

    static let digests = [
        Digests(), Digests(header: true, data: false), Digests(header: false, data: true),
        Digests(header: true, data: true),
    ]

    /// Feeds `bytes` in pieces of `step`.
    static func decode(_ bytes: [UInt8], _ digests: Digests, step: Int) throws -> [PDU] {
        var decoder = PDUDecoder()
        decoder.digests = digests
        var result: [PDU] = []
        for start in stride(from: 0, to: bytes.count, by: step) {
            try Array(bytes[start..<min(bytes.count, start + step)]).withUnsafeBytes { buffer in
                var input = buffer
                while !input.isEmpty, let pdu = try decoder.next(&input) { result.append(pdu) }
            }
        }
        return result
    }

    @Test func roundTripHoweverTheBytesArrive() throws {
        for digests in Self.digests {
            let bytes = Self.samples.flatMap { $0.encoded(digests) }
            #expect(bytes.count == Self.samples.reduce(0) { $0 + $1.encodedLength(digests) })
            for step in [1, 2, 3, 47, 48, 49, 52, bytes.count] {
                let decoded = try Self.decode(bytes, digests, step: step)
                #expect(decoded.map { $0.encoded() } == Self.samples.map { $0.encoded() })
            }
        }
    }

    @Test func goldenDigestOrder() {
        // RFC 3720 B.4: 32 bytes of zeros have the digest aa 36 91 8a.
        #expect(PDU.digest(CRC32C.checksum([UInt8](repeating: 0, count: 32))) == [0xAA, 0x36, 0x91, 0x8A])
    }

    @Test func aFlippedByteIsFound() {
        let bytes = Self.samples[1].encoded(Digests(header: true, data: true))
        for place in bytes.indices {
            var bad = bytes
            bad[place] ^= 0x40
            // A changed length makes it wait for more; wrong data are marked; all else is an error.
            let result = Result { try Self.decode(bad, Digests(header: true, data: true), step: 9) }
            if case .success(let pdus) = result { #expect(!pdus.contains { !$0.isDamaged }) }
        }
    }

    @Test func tooLongADataSegment() {
        var pdu = PDU(Opcode.nopOut)
        pdu.data = [UInt8](repeating: 0, count: ISCSILimits.loginDataSegment)[...]
        #expect(throws: Never.self) { try Self.decode(pdu.encoded(), Digests(), step: 1000) }
        pdu.data.append(0)
        // Refused by its header, before the data come.
        #expect(throws: ProtocolViolation.self) {
            try Self.decode(Array(pdu.encoded().prefix(48)), Digests(), step: 48)
        }
    }

    /// What a Reject carries needs no copy of the data.
    @Test func theHeaderAloneIsTheFirstOfAllBytes() {
        var pdu = PDU(Opcode.scsiCommand)
        pdu.initiatorTaskTag = 77
        pdu.additionalHeaders = [0, 5, 1, 0, 1, 2, 3, 4]
        pdu.data = [UInt8](repeating: 9, count: 70001)[...]
        #expect(pdu.encodedHeader == Array(pdu.encoded().prefix(PDU.headerLength)))
        #expect(pdu.encodedHeader[4...7] == [2, 1, 0x11, 0x71])
    }
}

@Suite struct TextKeysTests {
    @Test func parsing() throws {
        let keys = [TextKey("A", "b=c"), TextKey("X-org.example.k", ""), TextKey("N", "1,2")]
        #expect(try TextKeys.parse(TextKeys.encode(keys)) == keys)
        #expect(try TextKeys.parse([]) == [])
        let bad = [
            "no equals", "=x", "A=1\0A=2", "a b=1", String(repeating: "k", count: 64) + "=1",
            "k=" + String(repeating: "v", count: ISCSILimits.value + 1),
            (0...ISCSILimits.textKeys).map { "k\($0)=1" }.joined(separator: "\0"),
        ]
        for text in bad { #expect(throws: ProtocolViolation.self) { try TextKeys.parse(Array(text.utf8)) } }
        #expect(throws: ProtocolViolation.self) { try TextKeys.parse([0x41, 0x3D, 0xFF, 0xFE]) }
    }

    @Test func values() {
        #expect(TextKeys.number("0x1F") == 31 && TextKeys.number("65536") == 65536)
        for text in ["", "-1", "+1", "0x", "0x-1", "4294967296", "1 ", "1.5"] {
            #expect(TextKeys.number(text) == nil)
        }
        #expect(TextKeys.binary("0xABc", limit: 2) == [0x0A, 0xBC])
        #expect(TextKeys.binary("0bAQID", limit: 3) == [1, 2, 3])
        #expect(TextKeys.binary("0bAQI=", limit: 3) == [1, 2])
        #expect(TextKeys.binary("0bAQ==", limit: 3) == [1])
        for text in ["", "0x", "0xg", "12", "0bA", "0b====", "0bA===", "0b&QID", "0xAABBCC"] {
            #expect(TextKeys.binary(text, limit: 2) == nil, "\(text)")
        }
        #expect(TextKeys.hexadecimal([0, 0xAF]) == "0x00af")
    }
}
