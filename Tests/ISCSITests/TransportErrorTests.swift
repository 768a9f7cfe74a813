import Blocks
import SCSI
import Testing

@testable import ISCSI

/// What is wrong with PDUs, at error recovery level 0 (RFC 7143 §7).
@Suite struct TransportErrorTests {
    static let tur: [UInt8] = [0, 0, 0, 0, 0, 0]
    static let digests = [TextKey("HeaderDigest", "CRC32C"), TextKey("DataDigest", "CRC32C")]

    /// Sends a PDU whose data digest does not fit.
    static func sendDamaged(_ pdu: PDU, by peer: inout Peer, step: Int? = nil) {
        var bytes = pdu.encoded(peer.connection.parameters.digests)
        bytes[bytes.count - 1] ^= 1
        peer.send(bytes: bytes, step: step)
    }

    @Test func aDamagedHeaderEndsTheConnectionWithoutAWord() {
        var peer = Peer.loggedIn(Self.digests)
        var bytes = peer.command(1, Self.tur).encoded(peer.connection.parameters.digests)
        bytes[20] ^= 1
        peer.send(bytes: bytes)
        #expect(peer.closed == "header digest error" && peer.received.isEmpty && peer.executing.isEmpty)
    }

    @Test(arguments: [1, 1000]) func damagedDataOutFailsTheTaskOnly(step: Int) throws {
        var peer = Peer.loggedIn(Self.digests + [TextKey("MaxBurstLength", "512")])
        peer.send(peer.command(1, Self.tur, write: 1024))
        let r2t = try #require(peer.take().first)
        let data = [UInt8](repeating: 5, count: 256)
        Self.sendDamaged(
            Peer.dataOut(1, ttt: r2t.targetTransferTag, sn: 0, offset: 0, data, final: false), by: &peer,
            step: step)
        #expect(peer.take().map { [$0.opcode, $0[byte: 2]] } == [[Opcode.reject, 0x02]])
        // The task fails when the rest of what was asked for is there, and nothing more is asked for.
        peer.send(Peer.dataOut(1, ttt: r2t.targetTransferTag, sn: 1, offset: 256, data, final: true))
        let response = try #require(peer.take().first)
        #expect(response.opcode == Opcode.scsiResponse && response[byte: 3] == 2)
        let sense = Array(response.data.dropFirst(2))
        try #require(sense.count == 18)
        #expect(sense[0] == 0x70 && sense[2] == 0x0B && sense[12] == 0x47 && sense[13] == 0x05)
        #expect(peer.executing.isEmpty && peer.closed == nil && peer.connection.heldBytes == 0)
        // The next one goes well.
        peer.send(peer.command(2, Self.tur, write: 4, data: [1, 2, 3, 4]))
        #expect(peer.executing.map(\.task.dataOut) == [[1, 2, 3, 4]])
    }

    @Test func theLastDataOutDamaged() throws {
        var peer = Peer.loggedIn(Self.digests)
        peer.send(peer.command(1, Self.tur, write: 4))
        let r2t = try #require(peer.take().first)
        Self.sendDamaged(
            Peer.dataOut(1, ttt: r2t.targetTransferTag, sn: 0, offset: 0, [1, 2, 3, 4], final: true),
            by: &peer)
        #expect(peer.take().map(\.opcode) == [Opcode.reject, Opcode.scsiResponse])
        #expect(peer.connection.tasks.isEmpty && peer.closed == nil)
    }

    @Test func damagedImmediateDataAreNeverExecuted() {
        var peer = Peer.loggedIn(Self.digests)
        Self.sendDamaged(peer.command(1, Self.tur, write: 4, data: [1, 2, 3, 4]), by: &peer)
        // Its number is a gap that nobody fills: the session is to be recovered.
        #expect(peer.take().map { [$0.opcode, $0[byte: 2]] } == [[Opcode.reject, 0x02]])
        #expect(peer.closed == "data digest error" && peer.executing.isEmpty)
    }

    @Test func aDamagedPingIsDropped() {
        var peer = Peer.loggedIn(Self.digests)
        var ping = peer.request(Opcode.nopOut, 4, immediate: true)
        ping.data = [1, 2, 3]
        Self.sendDamaged(ping, by: &peer)
        #expect(
            peer.take().map { [$0.opcode, $0[byte: 2]] } == [[Opcode.reject, 0x02]] && peer.closed == nil)
    }

    /// DataSN out of order, twice the same, or with a gap.
    @Test(arguments: [[1], [0, 0], [0, 2], [0xFFFF_FFFF]])
    func dataOutOfSequenceFailsTheTask(numbers: [UInt32]) throws {
        var peer = Peer.loggedIn()
        peer.send(peer.command(1, Self.tur, write: 4 * (numbers.count + 1)))
        let ttt = try #require(peer.take().first).targetTransferTag
        for (index, number) in numbers.enumerated() {
            peer.send(Peer.dataOut(1, ttt: ttt, sn: number, offset: 4 * index, [1, 2, 3, 4], final: false))
        }
        #expect(peer.take().isEmpty)
        peer.send(
            Peer.dataOut(
                1, ttt: ttt, sn: UInt32(numbers.count), offset: 4 * numbers.count, [1, 2, 3, 4], final: true))
        #expect(peer.take().map { [$0.opcode, $0[byte: 3]] } == [[Opcode.scsiResponse, 2]])
        #expect(peer.executing.isEmpty && peer.closed == nil)
    }

    @Test func aBurstThatIsTooShortFailsTheTask() throws {
        var peer = Peer.loggedIn()
        peer.send(peer.command(1, Self.tur, write: 4))
        let ttt = try #require(peer.take().first).targetTransferTag
        peer.send(Peer.dataOut(1, ttt: ttt, sn: 0, offset: 0, [1, 2, 3], final: true))
        let response = try #require(peer.take().first)
        #expect(response.opcode == Opcode.scsiResponse && response[byte: 3] == 2)
        let sense = Array(response.data.dropFirst(2))
        try #require(sense.count == 18)
        #expect(sense[2] == 0x0B && sense[12] == 0x0C && sense[13] == 0x0D)
        #expect(peer.closed == nil && peer.executing.isEmpty && peer.connection.heldBytes == 0)
    }

    /// Each answer takes the next StatSN; what has no status takes none; R2TSN and DataSN count per task.
    @Test func numbersOfWhatIsSent() throws {
        var peer = Peer.loggedIn([
            TextKey("MaxBurstLength", "512"), TextKey("MaxRecvDataSegmentLength", "512"),
            TextKey("ImmediateData", "No"),
        ])
        let first = peer.connection.statSN
        peer.send(peer.request(Opcode.nopOut, 9))
        peer.send(peer.command(1, Self.tur, write: 1024))
        var r2t = try #require(peer.take().last)
        #expect(r2t.statSN == first &+ 1 && r2t.dataSN == 0 && r2t.residualCount == 512)
        peer.send(
            Peer.dataOut(
                1, ttt: r2t.targetTransferTag, sn: 0, offset: 0, [UInt8](repeating: 0, count: 512),
                final: true))
        r2t = try #require(peer.take().last)
        #expect(r2t.statSN == first &+ 1 && r2t.dataSN == 1)
        peer.send(
            Peer.dataOut(
                1, ttt: r2t.targetTransferTag, sn: 0, offset: 512, [UInt8](repeating: 0, count: 512),
                final: true))
        peer.complete(1, SCSIOutcome(status: .good, dataOutUsed: 1024))
        peer.send(peer.command(2, Self.tur, read: 1024))
        peer.complete(
            2, SCSIOutcome(status: .checkCondition, dataIn: [UInt8](repeating: 1, count: 1024), sense: [1]))
        let pdus = peer.take()
        #expect(
            pdus.map(\.opcode) == [Opcode.scsiResponse, Opcode.dataIn, Opcode.dataIn, Opcode.scsiResponse])
        #expect(pdus[0].statSN == first &+ 1 && pdus[3].statSN == first &+ 2)
        // ExpDataSN tells how many Data-In there were.
        #expect(pdus[1].dataSN == 0 && pdus[2].dataSN == 1 && pdus[3].dataSN == 2)
        peer.send(peer.request(Opcode.logoutRequest, 7, flags: 0x80))
        #expect(peer.take().map(\.statSN) == [first &+ 3])
    }

    /// As EXTENDED COPY with G_SENSE asks for it.
    @Test func goodStatusMayComeWithSense() throws {
        var peer = Peer.loggedIn()
        peer.send(peer.command(1, Self.tur))
        peer.complete(1, SCSIOutcome(status: .good, sense: [0x70, 0, 0x0F]))
        let response = try #require(peer.take().last)
        #expect(response.opcode == Opcode.scsiResponse && response[byte: 3] == 0)
        #expect(response.data == [0, 3, 0x70, 0, 0x0F])
        peer.send(peer.command(2, Self.tur, read: 4))
        peer.complete(2, SCSIOutcome(status: .good, dataIn: [1, 2, 3, 4], sense: [0x70]))
        let pdus = peer.take()
        #expect(pdus.map(\.opcode) == [Opcode.dataIn, Opcode.scsiResponse])
        #expect(pdus.last?.data == [0, 1, 0x70])
    }

    @Test func unknownOpcodesAreRejectedAndHarmNothing() throws {
        var peer = Peer.loggedIn()
        for opcode: UInt8 in [0x07, 0x0F, 0x11, 0x1C, 0x1F, Opcode.nopIn, Opcode.asyncMessage, Opcode.reject]
        {
            var pdu = peer.request(opcode, 3, immediate: true)
            pdu.data = [1, 2, 3]
            peer.send(pdu)
            let reject = try #require(peer.take().first)
            #expect(reject.opcode == Opcode.reject && reject[byte: 2] == 0x05)
            #expect(reject.data.count == 48 && reject.data.first == opcode | 0x40)
        }
        #expect(peer.closed == nil)
    }

    @Test func additionalHeaders() {
        func executed(_ headers: [UInt8]) -> (cdb: [UInt8]?, isClosed: Bool) {
            var peer = Peer.loggedIn()
            var command = peer.command(1, [0x7F])
            command.additionalHeaders = headers
            peer.send(command)
            return (peer.executing.first?.task.cdb, peer.closed != nil)
        }
        let base = [0x7F] + [UInt8](repeating: 0, count: 15)
        #expect(executed([0, 5, 1, 0, 1, 2, 3, 4]).cdb == base + [1, 2, 3, 4])
        // The pad is no part of it.
        #expect(executed([0, 3, 1, 0, 1, 2, 9, 9]).cdb == base + [1, 2])
        // As long as there is room for, which is longer than a CDB may be.
        let longest = [UInt8](repeating: 7, count: 255 * 4 - 4)
        for bad in [
            [0, 0, 1, 0], [0, 6, 1, 0, 1, 2, 3, 4], [0, 5, 3, 0, 1, 2, 3, 4], [3, 0xF9, 1, 0] + longest,
            [0, 5, 1, 0, 1, 2, 3, 4, 0, 5, 1, 0, 1, 2, 3, 4], [0xFF, 0xFF, 1, 0],
        ] {
            let (cdb, isClosed) = executed(bad)
            #expect(cdb == nil && isClosed, "\(bad.prefix(8))")
        }
    }

    @Test func whatComesAheadOfItsTurnIsBounded() {
        var peer = Peer.loggedIn()
        _ = peer.command(1, Self.tur)  // Never sent: a gap.
        let data = [UInt8](repeating: 1, count: ISCSILimits.receiveDataSegment)[...]
        var pings = 0
        while peer.closed == nil, pings < 100 {
            var ping = peer.request(Opcode.nopOut, UInt32(pings + 2))
            ping.data = data
            peer.send(ping)
            pings += 1
        }
        #expect(pings == ISCSILimits.earlyBytes / ISCSILimits.receiveDataSegment + 1)
    }

    /// Whatever a session sends without being asked, this is what of it is held at most.
    @Test func unsolicitedDataAreBounded() {
        var peer = Peer.loggedIn([TextKey("InitialR2T", "No")])
        let burst = [UInt8](repeating: 1, count: ISCSILimits.firstBurst)
        _ = peer.command(1000, Self.tur)  // Never sent, so that all the others wait.
        for tag in 1...UInt32(ISCSILimits.commandsPerSession + 50) {
            peer.send(peer.command(tag, Self.tur, write: 1 << 20, data: burst))
        }
        let held = peer.connection.tasks.values.reduce(0) { $0 + $1.data.count }
        #expect(held == (ISCSILimits.commandsPerSession - 1) * ISCSILimits.firstBurst && peer.closed == nil)
        // Immediate ones have a bound of their own.
        for tag in 2000...UInt32(2100) {
            peer.send(peer.command(tag, Self.tur, write: 1 << 20, data: burst, immediate: true))
        }
        let all = peer.connection.tasks.values.reduce(0) { $0 + $1.data.count }
        #expect(all <= held + ISCSILimits.immediateCommands * ISCSILimits.firstBurst)
    }
}

/// Text in full feature phase (RFC 7143 §11.10, §11.11).
@Suite struct TextTests {
    private static func text(
        _ peer: inout Peer, _ bytes: [UInt8], flags: UInt8 = 0x80, ttt: UInt32 = reservedTag
    ) -> PDU {
        var pdu = peer.request(Opcode.textRequest, 5, flags: flags)
        pdu.targetTransferTag = ttt
        pdu.data = bytes[...]
        return pdu
    }

    @Test func aQuestionOverSeveralPDUs() throws {
        var peer = Peer.loggedIn()
        let bytes = TextKeys.encode([TextKey("SendTargets", "")])
        peer.send(Self.text(&peer, Array(bytes[..<7]), flags: 0x40))
        let first = try #require(peer.take().first)
        #expect(first.flags == 0 && first.targetTransferTag != reservedTag && first.data.isEmpty)
        peer.send(Self.text(&peer, Array(bytes[7...]), ttt: first.targetTransferTag))
        let last = try #require(peer.take().first)
        #expect(last.flags == 0x80 && last.targetTransferTag == reservedTag)
        #expect(try TextKeys.parse(last.data).first == TextKey("TargetName", Peer.name))
        // It is over: its tag is nothing any more.
        peer.send(Self.text(&peer, [], ttt: first.targetTransferTag))
        #expect(peer.take().map { $0[byte: 2] } == [RejectReason.negotiationReset.rawValue])
        #expect(peer.closed == nil)
    }

    @Test func anAnswerOverSeveralPDUs() throws {
        var peer = Peer.loggedIn([TextKey("MaxRecvDataSegmentLength", "512")])
        let keys = (0..<40).map { TextKey("X-com.example.key\($0)", "value") }
        let expected = keys.map { TextKey($0.key, "NotUnderstood") }
        peer.send(Self.text(&peer, TextKeys.encode(keys)))
        var whole: [UInt8] = []
        var response = try #require(peer.take().first)
        while response.flags != 0x80 {
            #expect(response.flags == 0x40 && response.data.count == 512)
            whole += response.data
            peer.send(Self.text(&peer, [], ttt: response.targetTransferTag))
            response = try #require(peer.take().first)
        }
        whole += response.data
        #expect(try TextKeys.parse(whole) == expected)
        // Text before the answer's end is against the rules.
        peer.send(Self.text(&peer, TextKeys.encode(keys)))
        response = try #require(peer.take().first)
        peer.send(Self.text(&peer, [0x41], ttt: response.targetTransferTag))
        #expect(peer.closed == "text before the answer's end")
    }

    @Test func tooMuchTextEndsTheConnection() {
        var peer = Peer.loggedIn()
        var ttt = reservedTag
        let piece = [UInt8](repeating: 0x41, count: 4096)
        for _ in 0..<ISCSILimits.textBytes / 4096 + 1 where peer.closed == nil {
            peer.send(Self.text(&peer, piece, flags: 0x40, ttt: ttt))
            ttt = peer.take().last?.targetTransferTag ?? ttt
        }
        #expect(peer.closed == "too much text")
        var both = Peer.loggedIn()
        both.send(Self.text(&both, [], flags: 0xC0))
        #expect(both.closed != nil)
    }

    @Test func keysOfFullFeaturePhase() throws {
        var peer = Peer.loggedIn()
        peer.send(
            Self.text(
                &peer,
                TextKeys.encode([
                    TextKey("MaxRecvDataSegmentLength", "512"), TextKey("MaxBurstLength", "512"),
                    TextKey("HeaderDigest", "CRC32C"), TextKey("CHAP_A", "5"),
                    TextKey("InitiatorAlias", "me"),
                    TextKey("SendTargets", "iqn.other"), TextKey("What", "1"),
                ])))
        #expect(
            try TextKeys.parse(try #require(peer.take().first).data) == [
                TextKey("MaxBurstLength", "Reject"), TextKey("HeaderDigest", "Reject"),
                TextKey("CHAP_A", "Reject"), TextKey("What", "NotUnderstood"),
            ])
        #expect(peer.connection.parameters.initiatorReceiveSegment == 512)
        #expect(peer.connection.parameters.digests == Digests())
        #expect(peer.connection.parameters.maxBurst == NegotiatedParameters().maxBurst)
        peer.send(Self.text(&peer, TextKeys.encode([TextKey("MaxRecvDataSegmentLength", "1")])))
        #expect(peer.closed != nil)
    }

    /// FirstBurstLength is never above MaxBurstLength, in whatever order they come.
    @Test func firstBurstFitsTheMaxBurst() throws {
        for keys in [
            [TextKey("FirstBurstLength", "65536"), TextKey("MaxBurstLength", "1024")],
            [TextKey("MaxBurstLength", "1024"), TextKey("FirstBurstLength", "65536")],
        ] {
            var peer = Peer()
            peer.logIn(keys)
            let answers = try LoginTests.keys(try #require(peer.take().first))
            #expect(answers["FirstBurstLength"] == "1024" && answers["MaxBurstLength"] == "1024")
        }
        // The default, too, when only the other is negotiated.
        #expect(Peer.loggedIn([TextKey("MaxBurstLength", "1024")]).connection.parameters.firstBurst == 1024)
    }
}
