import Blocks
import SCSI
import Testing

@testable import ISCSI

/// Logout (RFC 7143 §11.14, §11.15).
@Suite struct LogoutTests {
    /// Who reserves something on another session behind the answer must not find it reserved by this one.
    @Test(arguments: ["None", "CRC32C"])
    func theAnswerComesBehindTheEndOfTheNexus(digest: String) throws {
        var peer = Peer.loggedIn([TextKey("HeaderDigest", digest)])
        peer.holdsNexus = true
        peer.send(peer.command(5, [MemoryDevice.hangCode, 0, 0, 0, 0, 0]))
        let running = try #require(peer.executing.first).task
        peer.send(Self.logout(&peer, reason: 0))
        #expect(peer.take().isEmpty && peer.closed == nil)
        // Without that the nexus would not end for as long as the command likes.
        #expect(running.isAborted)
        peer.complete(5, .good)
        #expect(peer.take().isEmpty)
        // Nothing is taken any more.
        peer.send(peer.request(Opcode.nopOut, 9))
        peer.perform(peer.connection.nexusEnded())
        #expect(peer.take().map(\.opcode) == [Opcode.logoutResponse] && peer.closed == "logout")
    }

    @Test func aPeerThatLeavesMeanwhileIsToldNothing() {
        var peer = Peer.loggedIn()
        peer.holdsNexus = true
        peer.send(Self.logout(&peer, reason: 0))
        peer.connection.disconnected()
        peer.perform(peer.connection.nexusEnded())
        #expect(peer.take().isEmpty)
    }

    private static func logout(_ peer: inout Peer, reason: UInt8, cid: UInt16 = 0) -> PDU {
        var pdu = peer.request(Opcode.logoutRequest, 7, flags: 0x80 | reason)
        pdu[half: 20] = cid
        return pdu
    }

    /// Close the session, or its connection, which is its only one.
    @Test(arguments: [UInt8(0), 1]) func itEndsTheSession(reason: UInt8) {
        var peer = Peer.loggedIn()
        peer.send(peer.command(1, [0]))
        peer.send(Self.logout(&peer, reason: reason))
        #expect(peer.take().map { [$0.opcode, $0[byte: 2]] } == [[Opcode.logoutResponse, 0]])
        #expect(peer.closed == "logout")
        // Nothing is read any more, and nothing is answered.
        peer.send(peer.command(2, [0]))
        peer.complete(1, .good)
        #expect(peer.take().isEmpty && peer.executing.isEmpty)
        peer.connection.disconnected()
        #expect(peer.connection.tasks.isEmpty && peer.connection.heldBytes == 0)
    }

    @Test func whatItCannotDoIsSaidAndEndsNothing() {
        var peer = Peer.loggedIn()
        // No such connection; recovery is not supported; no such reason.
        for (reason, cid, answer) in [
            (1, 9, [Opcode.logoutResponse, 1]), (2, 0, [Opcode.logoutResponse, 2]),
        ] {
            peer.send(Self.logout(&peer, reason: UInt8(reason), cid: UInt16(cid)))
            #expect(peer.take().map { [$0.opcode, $0[byte: 2]] } == [answer])
        }
        peer.send(Self.logout(&peer, reason: 5))
        #expect(peer.take().map { [$0.opcode, $0[byte: 2]] } == [[Opcode.reject, 0x09]])
        peer.send(peer.command(1, [0]))
        #expect(peer.executing.count == 1 && peer.closed == nil)
    }

    /// It has its turn as any request: what comes before it is begun.
    @Test func itWaitsForItsTurn() {
        var peer = Peer.loggedIn()
        let command = peer.command(1, [0])
        peer.send(Self.logout(&peer, reason: 0))
        #expect(peer.take().isEmpty && peer.closed == nil)
        peer.send(command)
        #expect(peer.take().map(\.opcode) == [Opcode.logoutResponse] && peer.closed == "logout")
    }

    @Test func shutdownAsksForIt() throws {
        var peer = Peer.loggedIn()
        let statSN = peer.connection.statSN
        peer.perform(peer.connection.requestLogout(seconds: 2))
        let message = try #require(peer.take().first)
        #expect(message.opcode == Opcode.asyncMessage && message[byte: 36] == 1 && message[half: 42] == 2)
        #expect(message.statSN == statSN && peer.connection.statSN == statSN &+ 1)
        #expect(message.initiatorTaskTag == reservedTag && message.lun == 0)
        // Commands still go on.
        peer.send(peer.command(1, [0]))
        #expect(peer.executing.count == 1)
        var early = Peer()
        early.perform(early.connection.requestLogout(seconds: 2))
        #expect(early.closed == "shutdown")
    }
}
