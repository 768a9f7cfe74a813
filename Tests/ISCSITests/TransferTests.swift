import Blocks
import SCSI
import Testing

@testable import ISCSI

/// Data both ways under every combination of what is agreed upon (RFC 7143 §4.2.5.2, §13.10 … §13.14): an initiator
/// that does exactly what it may, against a target that must ask for the rest and no more.
@Suite struct TransferTests {
    struct Agreement: CustomTestStringConvertible {
        var initialR2T: Bool
        var immediateData: Bool
        var firstBurst: Int
        var maxBurst: Int
        var segment: Int
        var digests: Bool

        var keys: [TextKey] {
            [
                TextKey("InitialR2T", initialR2T ? "Yes" : "No"),
                TextKey("ImmediateData", immediateData ? "Yes" : "No"),
                TextKey("FirstBurstLength", "\(firstBurst)"), TextKey("MaxBurstLength", "\(maxBurst)"),
                TextKey("MaxRecvDataSegmentLength", "\(segment)"),
                TextKey("HeaderDigest", digests ? "CRC32C" : "None"),
                TextKey("DataDigest", digests ? "CRC32C" : "None"),
            ]
        }
        var testDescription: String { keys.map { "\($0.key)=\($0.value)" }.joined(separator: " ") }
    }

    static let agreements: [Agreement] = [false, true].flatMap { initialR2T in
        [false, true].flatMap { immediate in
            [(512, 512, 512), (1024, 4096, 768), (4096, 4096, 8192)].flatMap { first, burst, segment in
                [false, true].map { digests in
                    Agreement(
                        initialR2T: initialR2T, immediateData: immediate, firstBurst: first, maxBurst: burst,
                        segment: segment, digests: digests)
                }
            }
        }
    }
    static let lengths = [1, 511, 512, 513, 1024, 4095, 4096, 4097, 10_000]

    private static func bytes(_ count: Int) -> [UInt8] {
        (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 31 &+ $0 >> 8) }
    }

    /// Data-Out PDUs of at most 700 bytes.
    private static func send(
        _ data: [UInt8], _ range: Range<Int>, _ tag: UInt32, _ ttt: UInt32, by peer: inout Peer, step: Int?
    ) {
        var number: UInt32 = 0
        for start in stride(from: range.lowerBound, to: range.upperBound, by: 700) {
            let end = min(start + 700, range.upperBound)
            peer.send(
                Peer.dataOut(
                    tag, ttt: ttt, sn: number, offset: start, Array(data[start..<end]),
                    final: end == range.upperBound), step: step)
            number += 1
        }
    }

    @Test(arguments: agreements) func dataOut(_ agreed: Agreement) throws {
        for (index, length) in Self.lengths.enumerated() {
            var peer = Peer.loggedIn(agreed.keys)
            let step = index % 3 == 0 ? 7 : nil
            let data = Self.bytes(length)
            let first = min(length, peer.connection.parameters.firstBurst)
            let immediate = agreed.immediateData ? min(first, 300) : 0
            let isUnsolicited = !agreed.initialR2T && immediate < first
            peer.send(
                peer.command(
                    1, [0], write: length, data: Array(data[..<immediate]), final: !isUnsolicited), step: step
            )
            var sent = immediate
            if isUnsolicited {
                #expect(peer.received.isEmpty)
                Self.send(data, sent..<first, 1, reservedTag, by: &peer, step: step)
                sent = first
            }
            var number: UInt32 = 0
            while sent < length {
                let asked = peer.take()
                try #require(asked.map(\.opcode) == [Opcode.r2t], "\(length) bytes, \(sent) sent")
                let burst = Int(asked[0].residualCount)
                #expect(Int(asked[0].bufferOffset) == sent && asked[0].dataSN == number)
                #expect(burst == min(length - sent, agreed.maxBurst))
                Self.send(data, sent..<sent + burst, 1, asked[0].targetTransferTag, by: &peer, step: step)
                sent += burst
                number += 1
            }
            #expect(peer.received.isEmpty && peer.closed == nil)
            #expect(peer.executing.map(\.task.dataOut) == [data])
        }
    }

    @Test(arguments: agreements) func dataIn(_ agreed: Agreement) {
        for length in Self.lengths {
            var peer = Peer.loggedIn(agreed.keys)
            peer.send(peer.command(1, [0], read: length))
            peer.complete(1, SCSIOutcome(status: .good, dataIn: Self.bytes(length)))
            let pdus = peer.take()
            #expect(pdus.flatMap(\.data) == Self.bytes(length))
            #expect(pdus.allSatisfy { $0.opcode == Opcode.dataIn && $0.data.count <= agreed.segment })
            #expect(pdus.map(\.dataSN) == pdus.indices.map(UInt32.init))
            // Status with the last, F at the end of each burst, which is never longer than agreed.
            #expect(pdus.map { $0.flags & 1 == 1 } == pdus.indices.map { $0 == pdus.count - 1 })
            var burst = 0
            for pdu in pdus {
                burst += pdu.data.count
                #expect(burst <= agreed.maxBurst)
                if pdu.isFinal { burst = 0 }
            }
            #expect(burst == 0)
        }
    }
}
