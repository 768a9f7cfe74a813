import Blocks
import SCSI
import Testing

@testable import ISCSI

@Suite struct LivenessTests {
    static let times = ISCSITimes(
        login: .seconds(15), ping: .seconds(30), discovery: .seconds(60), reinstatement: .seconds(10))
    static let second: UInt64 = 1_000_000_000

    func check(_ look: (Liveness.Verdict, next: UInt64), _ verdict: Liveness.Verdict, _ next: UInt64) {
        #expect(look.0 == verdict && look.next == next)
    }

    @Test func loginIsBoundedWhateverIsSaid() {
        var liveness = Liveness(Self.times, now: 0)
        for second in 1..<UInt64(15) {
            liveness.heard(isRequest: true, now: second * Self.second)
            let (verdict, next) = liveness.look(now: second * Self.second, canPing: true)
            #expect(verdict == .alive && next == (15 - second) * Self.second)
        }
        #expect(liveness.look(now: 15 * Self.second, canPing: true).0 == .dead(why: "login took too long"))
    }

    @Test func aSilentPeerIsPingedOnceAndThenDead() {
        var liveness = Liveness(Self.times, now: 0)
        liveness.loggedIn(isDiscovery: false, now: Self.second)
        check(liveness.look(now: Self.second, canPing: true), .alive, 30 * Self.second)
        check(liveness.look(now: 31 * Self.second, canPing: true), .ping, 30 * Self.second)
        check(liveness.look(now: 40 * Self.second, canPing: true), .alive, 21 * Self.second)
        // Whatever it says is a sign of life, and the next silence begins anew.
        liveness.heard(isRequest: false, now: 50 * Self.second)
        check(liveness.look(now: 61 * Self.second, canPing: true), .alive, 19 * Self.second)
        #expect(liveness.look(now: 80 * Self.second, canPing: true).0 == .ping)
        #expect(
            liveness.look(now: 110 * Self.second, canPing: true).0
                == .dead(why: "the peer gives no sign of life"))
    }

    @Test func aPeerThatIsHeldBackIsNotPingedButMustTakeSomething() {
        var liveness = Liveness(Self.times, now: 0)
        liveness.loggedIn(isDiscovery: false, now: 0)
        check(liveness.look(now: 30 * Self.second, canPing: false), .alive, 30 * Self.second)
        #expect(
            liveness.look(now: 60 * Self.second, canPing: false).0
                == .dead(why: "the peer gives no sign of life"))
    }

    @Test func dropsDoNotKeepADiscoverySession() {
        var liveness = Liveness(Self.times, now: 0)
        liveness.loggedIn(isDiscovery: true, now: 0)
        liveness.heard(isRequest: true, now: 10 * Self.second)
        liveness.heard(isRequest: false, now: 50 * Self.second)
        check(liveness.look(now: 69 * Self.second, canPing: true), .alive, Self.second)
        #expect(
            liveness.look(now: 70 * Self.second, canPing: true).0 == .dead(why: "an idle discovery session"))
    }

    @Test func aPingUsesNoStatSNAndItsAnswerIsAnsweredBySilence() throws {
        var peer = Peer.loggedIn()
        let before = peer.connection.statSN
        peer.perform(peer.connection.ping())
        let ping = try #require(peer.take().first)
        #expect(ping.opcode == Opcode.nopIn && ping.flags == 0x80 && ping.initiatorTaskTag == reservedTag)
        #expect(ping.targetTransferTag != reservedTag && ping.statSN == before)
        #expect(peer.connection.statSN == before && ping.expCmdSN == 100 && ping.data.isEmpty)
        var answer = peer.request(Opcode.nopOut, reservedTag, immediate: true)
        answer.targetTransferTag = ping.targetTransferTag
        peer.send(answer)
        #expect(peer.take().isEmpty && peer.closed == nil)
        // Nobody is pinged who is not logged in.
        var early = Peer()
        early.perform(early.connection.ping())
        #expect(early.take().isEmpty)
    }
}

/// With sockets: what ends is waited for, not the clock.
@Suite(.serialized) struct IdlePeerTests {
    @Test func aHalfOpenConnectionEnds() async throws {
        let device = MemoryDevice()
        let target = try await LifecycleTests.start(device) { $0.times.ping = .milliseconds(1500) }
        let silent = try RawSocket(port: target.port)
        try silent.logIn()
        LifecycleTests.hang(device, silent, count: 1)
        // Its command is aborted, and its nexus closed.
        let ended = device.state.wait(nanoseconds: 120_000_000_000) {
            $0.hanging == 0 && $0.closed == 1 ? true : nil
        }
        #expect(ended == true)
        #expect(try silent.receive()?.opcode == Opcode.nopIn)
        #expect(try silent.receive() == nil)
        await target.shutdown()
    }

    /// The time is long enough for a machine that is busy: what is waited for is the second ping.
    @Test func anAnsweredPingKeepsASession() async throws {
        let target = try await LifecycleTests.start(MemoryDevice()) { $0.times.ping = .milliseconds(1500) }
        let polite = try RawSocket(port: target.port)
        try polite.logIn()
        var peer = Peer()
        for _ in 0..<2 {
            let ping = try #require(try polite.receive())
            #expect(ping.opcode == Opcode.nopIn)
            var answer = peer.request(Opcode.nopOut, reservedTag, immediate: true)
            answer.targetTransferTag = ping.targetTransferTag
            polite.send(answer)
        }
        polite.send(peer.command(1, [0, 0, 0, 0, 0, 0]))
        #expect(try polite.receive()?.opcode == Opcode.scsiResponse)
        await target.shutdown()
    }

    @Test func aPeerThatTakesNothingEnds() async throws {
        let device = MemoryDevice()
        let target = try await LifecycleTests.start(device) { $0.times.ping = .milliseconds(1500) }
        let deaf = try RawSocket(port: target.port)
        try deaf.logIn()
        var peer = Peer()
        for tag in 0..<UInt32(64) {
            // It may end meanwhile.
            deaf.offer(peer.command(tag, [0x28, 0, 0, 0, 0, 0, 0, 0x08, 0, 0], read: 1 << 20))
        }
        let ended = device.state.wait(nanoseconds: 120_000_000_000) { $0.closed == 1 ? true : nil }
        #expect(ended == true)
        await target.shutdown()
    }

    /// One long answer, of which a piece is taken now and then: not a word comes meanwhile, nor can the peer hear a
    /// ping behind all that. The times at which it takes are those of another session's pings.
    @Test func aPeerThatTakesALongAnswerIsAlive() async throws {
        let device = MemoryDevice(blocks: 65535)
        let target = try await LifecycleTests.start(device) { $0.times.ping = .milliseconds(1500) }
        let polite = try RawSocket(port: target.port)
        try polite.logIn(isid: 1)
        let slow = try RawSocket(port: target.port)
        try slow.logIn(isid: 2)
        var its = Peer()
        slow.send(its.command(7, [0x28, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0], read: 65535 * 512))
        var peer = Peer()
        var taken: [PDU] = []
        // Longer than a silent peer is left alive.
        for _ in 0..<4 {
            let ping = try #require(try polite.receive())
            taken += try slow.take(6 << 20)
            var answer = peer.request(Opcode.nopOut, reservedTag, immediate: true)
            answer.targetTransferTag = ping.targetTransferTag
            polite.send(answer)
        }
        while taken.last?.opcode == Opcode.dataIn, taken.last?[byte: 1] != 0x81 {
            taken += try slow.take(1 << 20)
        }
        let data = taken.filter { $0.opcode == Opcode.dataIn }
        #expect(data.reduce(0) { $0 + $1.data.count } == 65535 * 512 && data.last?.flags == 0x81)
        await target.shutdown()
    }

    @Test func aLoginThatTakesTooLongEnds() async throws {
        let target = try await LifecycleTests.start(MemoryDevice()) { $0.times.login = .milliseconds(1500) }
        let mute = try RawSocket(port: target.port)
        let slow = try RawSocket(port: target.port)
        slow.offer(Peer.loginRequest(Peer.keys, flags: Peer.operationalToFull), bytes: 60)
        let endless = try RawSocket(port: target.port)
        endless.offer(Peer.loginRequest(Peer.keys, flags: 0x04))
        // On a machine that is busy the time may be over before the answer.
        if let answer = try endless.receive() {
            #expect(answer.flags == 0x04)
            #expect(try endless.receive() == nil)
        }
        for socket in [mute, slow] { #expect(try socket.receive() == nil) }
        await target.shutdown()
    }

    @Test func anIdleDiscoverySessionEnds() async throws {
        let target = try await LifecycleTests.start(MemoryDevice()) {
            $0.times.discovery = .milliseconds(200)
        }
        let socket = try RawSocket(port: target.port)
        socket.send(
            Peer.loginRequest(
                [Peer.keys[0], TextKey("SessionType", "Discovery")], flags: Peer.operationalToFull))
        #expect(try socket.receive()?[half: 36] == 0)
        #expect(try socket.receive() == nil)
        await target.shutdown()
    }

    @Test func strangersInLoginKeepNobodyOut() async throws {
        let device = MemoryDevice()
        let target = try await LifecycleTests.start(device) {
            $0.loginConnections = 3
        }
        let strangers = try (0..<3).map { _ in
            let stranger = try RawSocket(port: target.port)
            stranger.send(Peer.loginRequest(Peer.keys, flags: 0x04))
            #expect(try stranger.receive()?.flags == 0x04)
            return stranger
        }
        let own = try RawSocket(port: target.port)
        try own.logIn()
        #expect(try strangers[0].receive() == nil)
        // Who is logged in does not count any more.
        let another = try RawSocket(port: target.port)
        another.send(Peer.loginRequest(Peer.keys, flags: 0x04))
        #expect(try another.receive()?.flags == 0x04)
        for stranger in strangers[1...] {
            stranger.send(Peer.loginRequest([], flags: 0x04))
            #expect(try stranger.receive()?.flags == 0x04)
        }
        await target.shutdown()
    }

    @Test func oneConnectionTooManyIsSentAway() async throws {
        let device = MemoryDevice()
        let target = try await LifecycleTests.start(device) { $0.connections = 2 }
        let first = try RawSocket(port: target.port)
        try first.logIn(isid: 1)
        let second = try RawSocket(port: target.port)
        try second.logIn(isid: 2)
        #expect(try RawSocket(port: target.port).receive() == nil)
        second.drop()
        #expect(device.state.wait(nanoseconds: 120_000_000_000) { $0.closed == 1 ? true : nil } == true)
        // The place is free an instant after the nexus is closed: so it is tried until it is.
        var isIn = false
        while !isIn {
            let third = try RawSocket(port: target.port)
            third.offer(Peer.loginRequest(Peer.keys, flags: Peer.operationalToFull))
            isIn = try third.receive() != nil
        }
        await target.shutdown()
    }
}

@Suite struct PortalTests {
    static func address(_ host: String, _ port: Int, v6: Bool = false) -> PortalAddress {
        PortalAddress(host: host, port: port, isIPv6: v6)
    }

    @Test func allPortalsAreToldThatAreOfUse() {
        let lan = Self.address("192.0.2.7", 3260)
        let six = Self.address("2001:db8::7", 3260, v6: true)
        let loop = Self.address("127.0.0.1", 3261)
        #expect(PortalList.addresses([lan, six, loop], lan) == ["192.0.2.7:3260", "[2001:db8::7]:3260"])
        #expect(
            PortalList.addresses([lan, six, loop], loop)
                == ["192.0.2.7:3260", "[2001:db8::7]:3260", "127.0.0.1:3261"])
        // Any address of the machine: the one by which the peer came.
        let any = Self.address("0.0.0.0", 4000)
        #expect(PortalList.addresses([any, lan], lan) == ["192.0.2.7:4000", "192.0.2.7:3260"])
        #expect(PortalList.addresses([any, lan], six) == ["192.0.2.7:3260"])
        let anySix = Self.address("::", 4000, v6: true)
        #expect(PortalList.addresses([anySix], six) == ["[2001:db8::7]:4000"])
        #expect(
            PortalList.addresses([anySix], Self.address("::ffff:192.0.2.7", 4000, v6: true)) == [
                "192.0.2.7:4000"
            ])
        // None twice.
        #expect(PortalList.addresses([lan, Self.address("0.0.0.0", 3260)], lan) == ["192.0.2.7:3260"])
        #expect(PortalList.addresses([lan], nil) == ["192.0.2.7:3260"])
    }
}
