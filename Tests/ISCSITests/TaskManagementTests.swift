import Blocks
import SCSI
import Testing

@testable import ISCSI

/// Task management functions (RFC 7143 §11.5, §11.6) that SessionTests has not.
@Suite struct TaskManagementTests {
    private static let tur: [UInt8] = [0, 0, 0, 0, 0, 0]

    private static func function(
        _ peer: inout Peer, _ tag: UInt32, _ number: UInt8, lun: Int = 0, task: UInt32 = reservedTag
    ) -> PDU {
        var pdu = peer.request(Opcode.taskManagementRequest, tag, flags: 0x80 | number, immediate: true)
        pdu.lun = LogicalUnitNumber(lun)?.rawValue ?? 0
        pdu.targetTransferTag = task
        return pdu
    }

    @Test func whatIsNotSupportedSaysSo() {
        var peer = Peer.loggedIn()
        peer.send(peer.command(1, Self.tur))
        // CLEAR ACA; TASK REASSIGN; QUERY TASK, QUERY TASK SET, I_T NEXUS RESET, QUERY ASYNC EVENT; and no function.
        for (number, answer) in [(3, 5), (8, 4), (9, 5), (10, 5), (11, 5), (12, 5), (0, 5), (127, 5)] {
            peer.send(Self.function(&peer, 10, UInt8(number), task: 1))
            #expect(
                peer.take().map { [$0.opcode, $0[byte: 2]] }
                    == [[Opcode.taskManagementResponse, UInt8(answer)]])
        }
        #expect(peer.executing.map(\.task.isAborted) == [false] && peer.closed == nil)
    }

    @Test func abortTaskSetConcernsOneUnitOfOneSession() {
        var peer = Peer.loggedIn()
        for (tag, lun) in [(1, 0), (2, 1), (3, 0)] {
            var command = peer.command(UInt32(tag), Self.tur)
            command.lun = LogicalUnitNumber(lun)?.rawValue ?? 0
            peer.send(command)
        }
        peer.send(Self.function(&peer, 10, 2))
        #expect(peer.executing.map(\.task.isAborted) == [true, false, true])
        #expect(peer.resets.map(\.scope) == [.ownTasks(LogicalUnitNumber(rawValue: 0))])
        peer.perform(peer.connection.resetDone(10))
        peer.complete(1, .good)
        #expect(peer.take().isEmpty)
        peer.complete(3, .good)
        #expect(peer.take().map { [$0.opcode, $0[byte: 2]] } == [[Opcode.taskManagementResponse, 0]])
    }

    @Test func aTaskIsKnownByItsUnitToo() {
        var peer = Peer.loggedIn()
        peer.send(peer.command(1, Self.tur))
        peer.send(Self.function(&peer, 10, 1, lun: 1, task: 1))
        #expect(peer.take().map { $0[byte: 2] } == [TaskManagement.Response.taskDoesNotExist.rawValue])
        #expect(peer.executing.map(\.task.isAborted) == [false])
    }

    @Test func theDeviceMaySayThatThereIsNoSuchUnit() {
        var peer = Peer.loggedIn()
        peer.send(Self.function(&peer, 10, 5, lun: 9))
        peer.perform(peer.connection.resetDone(10, .logicalUnitDoesNotExist))
        #expect(peer.take().map { $0[byte: 2] } == [2] && peer.connection.functions.isEmpty)
    }

    @Test func aColdResetEndsAllSessionsBehindItsAnswer() {
        var peer = Peer.loggedIn()
        peer.send(peer.command(1, Self.tur))
        peer.send(Self.function(&peer, 10, 7))
        #expect(peer.executing.map(\.task.isAborted) == [true] && peer.resets.map(\.scope) == [.target])
        peer.perform(peer.connection.resetDone(10))
        #expect(!peer.hasEndedAll && peer.closed == nil)
        peer.complete(1, .good)
        #expect(peer.take().map { [$0.opcode, $0[byte: 2]] } == [[Opcode.taskManagementResponse, 0]])
        #expect(peer.hasEndedAll && peer.closed == "cold reset")
    }
}

/// The same among sessions.
@Suite(.serialized) struct ResetTests {
    @Test func aColdResetEndsTheOtherSessions() async throws {
        let device = MemoryDevice()
        let target = try await LifecycleTests.start(device)
        let victim = try RawSocket(port: target.port)
        try victim.logIn(isid: 1)
        LifecycleTests.hang(device, victim, count: 1)
        let own = try RawSocket(port: target.port)
        try own.logIn(isid: 2)
        var peer = Peer()
        own.send(peer.request(Opcode.taskManagementRequest, 9, flags: 0x87, immediate: true))
        let answer = try #require(try own.receive())
        #expect(answer.opcode == Opcode.taskManagementResponse && answer[byte: 2] == 0)
        #expect(try own.receive() == nil)
        #expect(try victim.receive()?[byte: 3] == SCSIStatus.taskAborted.rawValue)
        #expect(try victim.receive() == nil)
        #expect(device.state.wait(nanoseconds: 120_000_000_000) { $0.closed == 2 ? true : nil } == true)
        #expect(device.state.withLock { $0.resets } == [LogicalUnitNumber(rawValue: 0)])
        // The target is still there.
        let next = try RawSocket(port: target.port)
        try next.logIn(isid: 1)
        await target.shutdown()
    }

    /// Whose units the asker does not see, he does not know.
    @Test func aColdResetLeavesAloneWhoSeesMore() async throws {
        let device = MemoryDevice()
        device.state.withLock { $0.visible = [1: [0], 2: [0], 3: [0, 1], 4: [5], 5: []] }
        let target = try await LifecycleTests.start(device)
        let sockets = try (1..<6).map { isid in
            let socket = try RawSocket(port: target.port)
            try socket.logIn(isid: UInt64(isid))
            return socket
        }
        var peer = Peer()
        // One that sees nothing ends nobody but itself.
        sockets[4].send(peer.request(Opcode.taskManagementRequest, 9, flags: 0x87, immediate: true))
        #expect(try sockets[4].receive()?[byte: 2] == 0)
        #expect(try sockets[4].receive() == nil)
        sockets[0].send(peer.request(Opcode.taskManagementRequest, 9, flags: 0x87, immediate: true))
        #expect(try sockets[0].receive()?[byte: 2] == 0)
        for ended in [sockets[0], sockets[1]] { #expect(try ended.receive() == nil) }
        #expect(device.state.wait(nanoseconds: 120_000_000_000) { $0.closed == 3 ? true : nil } == true)
        for alive in sockets[2...3] {
            var its = Peer()
            alive.offer(its.command(1, [0, 0, 0, 0, 0, 0]))
            #expect(try alive.receive()?.opcode == Opcode.scsiResponse)
        }
        await target.shutdown()
    }

    /// Whoever does not see a unit can neither reset it nor end what others do with it.
    @Test(arguments: [UInt8(2), 4, 5])
    func aUnitThatIsNotSeenIsNotThere(function: UInt8) async throws {
        let device = MemoryDevice()
        let target = try await LifecycleTests.start(device)
        let other = try RawSocket(port: target.port)
        try other.logIn(isid: 1)
        // The device has unit 0 only, but takes this command for any.
        var its = Peer()
        var hang = its.command(0, [MemoryDevice.hangCode, 0, 0, 0, 0, 0])
        hang.lun = 7 << 48
        other.send(hang)
        #expect(device.state.wait(nanoseconds: 120_000_000_000) { $0.hanging == 1 ? true : nil } == true)
        let own = try RawSocket(port: target.port)
        try own.logIn(isid: 2)
        var peer = Peer()
        var reset = peer.request(Opcode.taskManagementRequest, 9, flags: 0x80 | function, immediate: true)
        reset.lun = 7 << 48
        own.send(reset)
        #expect(try own.receive()?[byte: 2] == TaskManagement.Response.logicalUnitDoesNotExist.rawValue)
        var warm = peer.request(Opcode.taskManagementRequest, 10, flags: 0x86, immediate: true)
        warm.lun = 0
        own.send(warm)
        #expect(try own.receive()?[byte: 2] == TaskManagement.Response.complete.rawValue)
        #expect(device.state.withLock { $0.hanging == 1 && $0.resets == [LogicalUnitNumber(rawValue: 0)] })
        await target.shutdown(drainSeconds: 0)
    }
}
