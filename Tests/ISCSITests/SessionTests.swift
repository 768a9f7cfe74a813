import Blocks
import SCSI
import Testing

@testable import ISCSI

@Suite struct SessionTests {
    static let tur: [UInt8] = [0, 0, 0, 0, 0, 0]

    @Test func readWithCollapsedStatusAndResiduals() throws {
        var peer = Peer.loggedIn([
            TextKey("MaxRecvDataSegmentLength", "512"), TextKey("MaxBurstLength", "1024"),
        ])
        let data = (0..<1300).map { UInt8(truncatingIfNeeded: $0) }
        peer.send(peer.command(5, Self.tur, read: 2000))
        #expect(peer.executing.first?.task.expectedDataIn == 2000)
        peer.complete(5, SCSIOutcome(status: .good, dataIn: data))
        let pdus = peer.take()
        #expect(pdus.map(\.opcode) == [Opcode.dataIn, Opcode.dataIn, Opcode.dataIn])
        // F at the end of each burst; S, U and the status in the last.
        #expect(pdus.map(\.flags) == [0x00, 0x80, 0x83])
        #expect(pdus.map(\.dataSN) == [0, 1, 2] && pdus.map(\.bufferOffset) == [0, 512, 1024])
        #expect(pdus.flatMap(\.data) == data)
        #expect(pdus[2].residualCount == 700)
        #expect(pdus[2].expCmdSN == 101 && pdus[2].maxCmdSN == 100 + UInt32(ISCSILimits.commandsPerSession))
        peer.send(peer.command(6, Self.tur, read: 100))
        peer.complete(6, SCSIOutcome(status: .good, dataIn: data))
        let cut = try #require(peer.take().first)
        #expect(cut.data.count == 100 && cut.flags == 0x85 && cut.residualCount == 1200)
        #expect(cut.statSN == pdus[2].statSN &+ 1)
        #expect(peer.connection.heldBytes == 0 && peer.connection.outboundBytes == 0)
    }

    @Test func checkConditionCarriesSense() throws {
        var peer = Peer.loggedIn()
        peer.send(peer.command(5, Self.tur, read: 512))
        peer.complete(5, .checkCondition(.invalidOperationCode))
        let pdu = try #require(peer.take().first)
        #expect(pdu.opcode == Opcode.scsiResponse && pdu[byte: 3] == 2 && pdu.flags == 0x82)
        #expect(pdu.residualCount == 512 && pdu.data.count == 20 && pdu.data[1] == 18 && pdu.data[2] == 0x70)
    }

    @Test func immediateUnsolicitedAndSolicitedData() throws {
        var peer = Peer.loggedIn([
            TextKey("InitialR2T", "No"), TextKey("FirstBurstLength", "1024"),
            TextKey("MaxBurstLength", "1024"),
        ])
        let data = (0..<2600).map { UInt8(truncatingIfNeeded: $0 * 7) }
        peer.send(peer.command(5, Self.tur, write: 2600, data: Array(data[..<512]), final: false))
        #expect(peer.take().isEmpty)
        peer.send(
            Peer.dataOut(5, ttt: reservedTag, sn: 0, offset: 512, Array(data[512..<1024]), final: true))
        let first = try #require(peer.take().first)
        #expect(first.opcode == Opcode.r2t && first.bufferOffset == 1024 && first.residualCount == 1024)
        let ttt = first.targetTransferTag
        peer.send(Peer.dataOut(5, ttt: ttt, sn: 0, offset: 1024, Array(data[1024..<1524]), final: false))
        peer.send(Peer.dataOut(5, ttt: ttt, sn: 1, offset: 1524, Array(data[1524..<2048]), final: true))
        let second = try #require(peer.take().first)
        #expect(second.bufferOffset == 2048 && second.residualCount == 552 && second.dataSN == 1)
        #expect(second.targetTransferTag != ttt && peer.executing.isEmpty)
        peer.send(
            Peer.dataOut(
                5, ttt: second.targetTransferTag, sn: 0, offset: 2048, Array(data[2048...]), final: true),
            step: 1)
        #expect(peer.executing.first?.task.dataOut == data)
        peer.complete(5, SCSIOutcome(status: .good, dataOutUsed: 2600))
        #expect(peer.take().map(\.flags) == [0x80])
    }

    @Test func commandsOutOfOrderWaitForTheirTurn() {
        var peer = Peer.loggedIn([TextKey("InitialR2T", "No")])
        let first = peer.command(1, Self.tur)
        let second = peer.command(2, Self.tur, write: 4, final: false)
        let third = peer.command(3, Self.tur)
        peer.send(third)
        peer.send(second)
        peer.send(Peer.dataOut(2, ttt: reservedTag, sn: 0, offset: 0, [1, 2, 3, 4], final: true))
        #expect(peer.executing.isEmpty)
        peer.send(first)
        #expect(peer.executing.map(\.tag) == [1, 2, 3])
        #expect(peer.executing[1].task.dataOut == [1, 2, 3, 4])
        // Below and above the window: not a word.
        peer.send(first)
        var high = peer.command(9, Self.tur)
        high.cmdSN = peer.connection.maxCmdSN &+ 1
        peer.send(high)
        #expect(peer.take().isEmpty && peer.executing.count == 3 && peer.closed == nil)
    }

    @Test func theWindowNeverShrinksAndHoldsTheDepth() {
        var peer = Peer.loggedIn()
        var greatest = peer.connection.maxCmdSN
        for tag in 0..<UInt32(ISCSILimits.commandsPerSession + 40) {
            peer.send(peer.command(tag, Self.tur))
            #expect(Int32(bitPattern: peer.connection.maxCmdSN &- greatest) >= 0)
            greatest = peer.connection.maxCmdSN
        }
        #expect(peer.executing.count == ISCSILimits.commandsPerSession)
        for (tag, _) in peer.executing { peer.complete(tag, .good) }
        #expect(peer.connection.windowUse == 0 && peer.connection.tasks.isEmpty)
    }

    @Test func theDataBudgetHoldsCommandsBack() {
        var peer = Peer.loggedIn()
        peer.reportsWrites = false
        let size = ISCSILimits.sessionDataBytes / 2
        for tag: UInt32 in 1...3 { peer.send(peer.command(tag, Self.tur, read: size)) }
        #expect(peer.executing.map(\.tag) == [1, 2])
        peer.complete(1, SCSIOutcome(status: .good, dataIn: [UInt8](repeating: 1, count: size)))
        // The data lie in the target until the peer takes them.
        #expect(peer.executing.map(\.tag) == [2] && !peer.connection.wantsInput)
        for (bytes, cost) in peer.unwritten {
            peer.perform(peer.connection.written(bytes: bytes, cost: cost))
        }
        #expect(peer.executing.map(\.tag) == [2, 3] && peer.connection.wantsInput)
    }

    /// Many sessions at once hold no more than the target has for all; each gets one command through.
    @Test func allSessionsShareOneBudget() {
        let size = 1 << 20
        let budget = DataBudget(limit: 3 * size)
        var peers = (0..<4).map { _ in
            var peer = Peer(budget: budget)
            peer.logIn()
            peer.reportsWrites = false
            return peer
        }
        for index in peers.indices {
            for tag: UInt32 in 1...4 { peers[index].send(peers[index].command(tag, Self.tur, read: size)) }
        }
        #expect(peers.map(\.executing.count) == [3, 1, 1, 1] && budget.held == 6 * size)
        // What is given back goes to whoever comes next.
        peers[1].complete(1, SCSIOutcome(status: .good, dataIn: [UInt8](repeating: 1, count: size)))
        #expect(peers[1].executing.isEmpty)
        for (bytes, cost) in peers[1].unwritten {
            peers[1].perform(peers[1].connection.written(bytes: bytes, cost: cost))
        }
        #expect(peers[1].executing.map(\.tag) == [2] && budget.held == 6 * size)
        for index in peers.indices.dropFirst() { peers[index].connection.disconnected() }
        #expect(budget.held == 3 * size)
        peers[0].complete(1, SCSIOutcome(status: .good, dataIn: [UInt8](repeating: 1, count: size)))
        peers[0].connection.disconnected()
        // What was on its way when the peer went is not given back twice.
        for (bytes, cost) in peers[0].unwritten {
            peers[0].perform(peers[0].connection.written(bytes: bytes, cost: cost))
        }
        #expect(budget.held == 0)
    }

    @Test func orderedCommandsOvertakeNobody() {
        var peer = Peer.loggedIn()
        peer.send(peer.command(1, Self.tur))
        var ordered = peer.command(2, Self.tur)
        ordered.flags = 0x82
        peer.send(ordered)
        peer.send(peer.command(3, Self.tur))
        #expect(peer.executing.map(\.tag) == [1])
        peer.complete(1, .good)
        #expect(peer.executing.map(\.tag) == [2])
        peer.complete(2, .good)
        #expect(peer.executing.map(\.tag) == [3])
    }

    @Test func pingsTextAndLogout() throws {
        var peer = Peer.loggedIn()
        var ping = peer.request(Opcode.nopOut, 4)
        ping.data = [1, 2, 3]
        peer.send(ping)
        let pong = try #require(peer.take().first)
        #expect(
            pong.opcode == Opcode.nopIn && pong.data == [1, 2, 3] && pong.targetTransferTag == reservedTag)
        var text = peer.request(Opcode.textRequest, 5)
        text.data = TextKeys.encode([TextKey("SendTargets", "")])[...]
        peer.send(text)
        let list = try TextKeys.parse(try #require(peer.take().first).data)
        #expect(list == [TextKey("TargetName", Peer.name), TextKey("TargetAddress", "127.0.0.1:3260,1")])
        peer.send(peer.request(Opcode.snackRequest, 6, immediate: true))
        #expect(peer.take().first?[byte: 2] == RejectReason.snackReject.rawValue)
        peer.send(peer.request(Opcode.logoutRequest, 7, flags: 0x80))
        #expect(peer.take().map(\.opcode) == [Opcode.logoutResponse] && peer.closed == "logout")
    }

    @Test func discovery() throws {
        var peer = Peer()
        peer.send(
            Peer.loginRequest(
                [TextKey("InitiatorName", "iqn.x"), TextKey("SessionType", "Discovery")],
                flags: Peer.operationalToFull))
        #expect(peer.connection.isLoggedIn)
        peer.received = []
        var text = peer.request(Opcode.textRequest, 5)
        text.data = TextKeys.encode([TextKey("SendTargets", "All")])[...]
        peer.send(text)
        #expect(try TextKeys.parse(try #require(peer.take().first).data).count == 2)
        peer.send(peer.command(6, Self.tur))
        #expect(peer.take().map(\.opcode) == [Opcode.reject] && peer.closed != nil)
    }

    @Test func abortsAndResets() throws {
        var peer = Peer.loggedIn()
        for tag: UInt32 in 1...3 { peer.send(peer.command(tag, Self.tur)) }
        var abort = peer.request(Opcode.taskManagementRequest, 10, flags: 0x81, immediate: true)
        abort.targetTransferTag = 2
        peer.send(abort)
        // Answered when the task has ended, and the task itself is not.
        #expect(peer.take().isEmpty && peer.executing[1].task.isAborted && !peer.executing[0].task.isAborted)
        peer.complete(2, .good)
        #expect(peer.take().map { [$0.opcode, $0[byte: 2]] } == [[Opcode.taskManagementResponse, 0]])
        abort.initiatorTaskTag = 11
        peer.send(abort)
        #expect(peer.take().first?[byte: 2] == 1)
        peer.send(peer.request(Opcode.taskManagementRequest, 12, flags: 0x85, immediate: true))
        #expect(peer.resets.map(\.scope) == [.logicalUnit(LogicalUnitNumber(rawValue: 0))])
        peer.complete(1, .good)
        peer.complete(3, .good)
        #expect(peer.take().isEmpty)
        peer.perform(peer.connection.resetDone(12))
        #expect(peer.take().map { [$0.opcode, $0[byte: 2]] } == [[Opcode.taskManagementResponse, 0]])
        peer.send(peer.request(Opcode.taskManagementRequest, 13, flags: 0x83, immediate: true))
        #expect(peer.take().first?[byte: 2] == 5)
        #expect(peer.connection.windowUse == 0 && peer.connection.heldBytes == 0)
    }

    /// RFC 7143 §11.6.1: an abort stands for the command that has not come, whose turn is then over.
    @Test func anAbortStandsForACommandThatHasNotCome() {
        var peer = Peer.loggedIn()
        let lost = peer.command(1, Self.tur)
        peer.send(peer.command(2, Self.tur))
        #expect(peer.executing.isEmpty)
        func abort(_ tag: UInt32, of cmdSN: UInt32) -> [UInt8] {
            var abort = peer.request(Opcode.taskManagementRequest, tag, flags: 0x81, immediate: true)
            abort.targetTransferTag = 1
            abort[word: 32] = cmdSN
            peer.send(abort)
            return peer.take().map { $0[byte: 2] }
        }
        // Not before the abort itself, and not within the window.
        #expect(abort(10, of: peer.cmdSN) == [1] && abort(11, of: lost.cmdSN &- 1) == [1])
        #expect(peer.executing.isEmpty)
        #expect(abort(12, of: lost.cmdSN) == [0])
        #expect(peer.executing.map(\.tag) == [2])
        // Should it come after all, it is not executed.
        peer.send(lost)
        #expect(peer.executing.map(\.tag) == [2] && peer.take().isEmpty && peer.closed == nil)
        #expect(abort(13, of: lost.cmdSN) == [1])
        // Ahead of its turn, too.
        let next = peer.command(3, Self.tur)
        let behind = peer.command(1, Self.tur)
        #expect(abort(14, of: behind.cmdSN) == [0])
        peer.send(behind)
        peer.send(next)
        peer.send(peer.command(4, Self.tur))
        #expect(peer.executing.map(\.tag) == [2, 3, 4] && peer.connection.windowUse == 3)
    }

    /// A numbered function concerns what comes before it, not what has arrived early.
    @Test func aNumberedFunctionSparesWhatComesBehindIt() {
        var peer = Peer.loggedIn()
        peer.send(peer.command(1, Self.tur))
        let clear = peer.request(Opcode.taskManagementRequest, 10, flags: 0x82)
        peer.send(peer.command(2, Self.tur))
        peer.send(clear)
        #expect(peer.executing.map(\.tag) == [1, 2])
        #expect(peer.executing.map(\.task.isAborted) == [true, false])
        peer.perform(peer.connection.resetDone(10))
        peer.complete(1, .good)
        peer.complete(2, .good)
        #expect(peer.take().map(\.opcode) == [Opcode.taskManagementResponse, Opcode.scsiResponse])
    }

    @Test func abortOfAWriteThatStillLacksData() {
        var peer = Peer.loggedIn()
        peer.send(peer.command(1, Self.tur, write: 4096))
        let r2t = peer.take()
        var abort = peer.request(Opcode.taskManagementRequest, 10, flags: 0x81, immediate: true)
        abort.targetTransferTag = 1
        peer.send(abort)
        #expect(peer.take().map(\.opcode) == [Opcode.taskManagementResponse])
        // Its data may still be on the way.
        let late = Peer.dataOut(
            1, ttt: r2t[0].targetTransferTag, sn: 0, offset: 0, [UInt8](repeating: 0, count: 4096),
            final: true)
        peer.send(late)
        #expect(peer.closed == nil && peer.executing.isEmpty && peer.connection.heldBytes == 0)
    }

    @Test func anotherSessionsResetEndsWithTaskAborted() {
        var peer = Peer.loggedIn()
        peer.send(peer.command(1, Self.tur))
        peer.send(peer.command(2, Self.tur, write: 4096))
        peer.received = []
        peer.perform(peer.connection.abortTasks(on: [LogicalUnitNumber(rawValue: 0)]))
        #expect(peer.take().map { $0[byte: 3] } == [SCSIStatus.taskAborted.rawValue])
        peer.complete(1, .good)
        #expect(peer.take().map { $0[byte: 3] } == [SCSIStatus.taskAborted.rawValue])
    }

    @Test func breachesEndTheConnection() {
        let breaches: [(String, (inout Peer) -> PDU)] = [
            ("login again", { _ in Peer.loginRequest(Peer.keys, flags: 0x87) }),
            ("too much immediate data", { $0.command(1, Self.tur, write: 4, data: [1, 2, 3, 4, 5]) }),
            ("data for a read", { $0.command(1, Self.tur, read: 4, data: [1]) }),
            ("unsolicited without leave", { $0.command(1, Self.tur, write: 4, final: false) }),
            ("no tag", { $0.command(reservedTag, Self.tur) }),
            (
                "a foreign transfer tag",
                {
                    $0.send($0.command(1, Self.tur, write: 4))
                    return Peer.dataOut(1, ttt: 77, sn: 0, offset: 0, [1, 2, 3, 4], final: true)
                }
            ),
            (
                "wrong offset",
                {
                    $0.send($0.command(1, Self.tur, write: 4))
                    return Peer.dataOut(1, ttt: 1, sn: 0, offset: 1, [1, 2, 3], final: true)
                }
            ),
            (
                "too much data",
                {
                    $0.send($0.command(1, Self.tur, write: 4))
                    return Peer.dataOut(1, ttt: 1, sn: 0, offset: 0, [1, 2, 3, 4, 5], final: true)
                }
            ),
            (
                "a tag in use",
                {
                    $0.send($0.command(1, Self.tur))
                    return $0.command(1, Self.tur)
                }
            ),
        ]
        for (what, make) in breaches {
            var peer = Peer.loggedIn()
            let pdu = make(&peer)
            peer.send(pdu)
            #expect(peer.received.last?.opcode == Opcode.reject && peer.closed != nil, "\(what)")
            peer.send(bytes: [1, 2, 3])
        }
    }

    @Test func anyBytesAreAnswer() {
        var generator = Seeded(state: 42)
        for _ in 0..<400 {
            var peer = Peer.loggedIn([TextKey("InitialR2T", "No")])
            for _ in 0..<20 where peer.closed == nil {
                var header = (0..<48).map { _ in UInt8.random(in: .min ... .max, using: &generator) }
                let opcodes: [UInt8] = [
                    0x00, 0x40, 0x01, 0x41, 0x02, 0x42, 0x04, 0x05, 0x06, 0x46, 0x10, 0x3F,
                ]
                header[0] = opcodes.randomElement(using: &generator) ?? 0
                header[4] = UInt8.random(in: 0...3, using: &generator)
                header.replaceSubrange(5..<8, with: [0, 0, UInt8.random(in: 0...64, using: &generator)])
                header.replaceSubrange(16..<20, with: [0, 0, 0, UInt8.random(in: 0...3, using: &generator)])
                header.replaceSubrange(20..<24, with: [0, 0, 0, UInt8.random(in: 0...64, using: &generator)])
                var sn = PDU(header: header)
                sn.cmdSN = peer.connection.expCmdSN &+ UInt32.random(in: 0...2, using: &generator)
                if Bool.random(using: &generator) { sn.dataSN = 0 }
                let body = Int(header[4]) * 4 + (Int(header[7]) + 3) / 4 * 4
                let bytes = (0..<48).map { sn[byte: $0] } + [UInt8](repeating: 0x3D, count: body)
                peer.send(bytes: bytes)
                if let (tag, _) = peer.executing.first, Bool.random(using: &generator) {
                    peer.complete(tag, SCSIOutcome(status: .good, dataIn: [1], dataOutUsed: 9))
                }
            }
            peer.connection.disconnected()
        }
    }

    struct Seeded: RandomNumberGenerator {
        var state: UInt64
        mutating func next() -> UInt64 {
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return state ^ state >> 29
        }
    }
}
