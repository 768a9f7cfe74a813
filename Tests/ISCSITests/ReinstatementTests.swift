import Blocks
import Logging
import SCSI
import Testing

@testable import ISCSI

/// Sessions that take the place of others (RFC 7143 §6.3.4, §6.3.5).
@Suite(.serialized) struct ReinstatementTests {
    /// A session that ends when it is told, after others have had the time to come.
    private final class FakeSession: RegisteredSession {
        let registry: SessionRegistry
        let key: SessionRegistry.Key
        let terminations = Monitor(0)
        let endsAtOnce: Bool

        init(_ registry: SessionRegistry, _ key: SessionRegistry.Key, endsAtOnce: Bool = true) {
            self.registry = registry
            self.key = key
            self.endsAtOnce = endsAtOnce
        }

        func terminate(why: String) {
            terminations.withLockAndNotify { $0 += 1 }
            if endsAtOnce { precondition(BlockingThread.start { [self] in end() }) }
        }
        func end() { registry.leave(key, self) }
        func abortTasks(on units: [LogicalUnitNumber], done: @escaping @Sendable () -> Void) { done() }
    }

    private static let key = SessionRegistry.Key(initiatorName: "iqn.x", isid: 1)

    @Test func theLatestOfSeveralThatWaitGetsIn() throws {
        let registry = SessionRegistry()
        let old = FakeSession(registry, Self.key, endsAtOnce: false)
        #expect(registry.enter(Self.key, old) == .success(1))
        let results = Monitor<[Int: Result<UInt16, SessionRegistry.Refusal>]>([:])
        for number in 0..<3 {
            let session = FakeSession(registry, Self.key)
            let started = BlockingThread.start {
                let result = registry.enter(Self.key, session)
                results.withLockAndNotify { $0[number] = result }
            }
            #expect(started)
            // It has made its claim.
            #expect(
                old.terminations.wait(nanoseconds: 60_000_000_000) { $0 == number + 1 ? true : nil } == true)
        }
        // The others are refused while the old one still lives.
        #expect(results.wait(nanoseconds: 60_000_000_000) { $0.count == 2 ? true : nil } == true)
        old.end()
        #expect(results.wait(nanoseconds: 60_000_000_000) { $0.count == 3 ? true : nil } == true)
        let refused = Result<UInt16, SessionRegistry.Refusal>.failure(.init(.serviceUnavailable))
        #expect(results.withLock { $0 } == [0: refused, 1: refused, 2: .success(2)])
    }

    /// Many at once: each gets in or is refused at once, never two are in, and the last that claimed is in at the end.
    @Test func noRaceLeavesTwoOrNone() {
        for _ in 0..<50 {
            let registry = SessionRegistry()
            let results = Monitor<[Result<UInt16, SessionRegistry.Refusal>]>([])
            for _ in 0..<6 {
                let session = FakeSession(registry, Self.key)
                let started = BlockingThread.start {
                    let result = registry.enter(Self.key, session)
                    results.withLockAndNotify { $0.append(result) }
                }
                #expect(started)
            }
            #expect(results.wait(nanoseconds: 60_000_000_000) { $0.count == 6 ? true : nil } == true)
            let all = results.withLock { $0 }
            #expect(all.contains { if case .success = $0 { true } else { false } })
            #expect(all.allSatisfy { $0 != .failure(.init(.outOfResources)) })
        }
    }

    @Test func anOldSessionThatDoesNotEndRefusesTheNew() {
        let registry = SessionRegistry(patience: .milliseconds(50))
        let old = FakeSession(registry, Self.key, endsAtOnce: false)
        #expect(registry.enter(Self.key, old) == .success(1))
        let new = FakeSession(registry, Self.key)
        #expect(registry.enter(Self.key, new) == .failure(.init(.outOfResources)))
        old.end()
        #expect(registry.enter(Self.key, new) == .success(2))
        registry.close()
        #expect(
            registry.enter(Self.key, FakeSession(registry, Self.key)) == .failure(.init(.serviceUnavailable)))
    }

    /// By two portals at once, again and again: one session is left and works, and the device heard of each end.
    @Test func simultaneousLoginsByTwoPortals() async throws {
        let device = MemoryDevice()
        let target = try await LifecycleTests.start(device) {
            $0.portals.append(ISCSIPortal(host: "127.0.0.2", port: 0))
        }
        let ports = target.portals.map(\.port)
        for _ in 0..<20 {
            let sockets = try (0..<4).map { number in
                try RawSocket(port: ports[number % 2], host: number % 2 == 0 ? 0x7F00_0001 : 0x7F00_0002)
            }
            for socket in sockets {
                socket.offer(Peer.loginRequest(Peer.keys, flags: Peer.operationalToFull))
            }
            var alive = 0
            for socket in sockets {
                guard let response = try socket.receive(), response[half: 36] == 0 else { continue }
                var peer = Peer()
                socket.offer(peer.command(1, [0, 0, 0, 0, 0, 0]))
                if try socket.receive()?.opcode == Opcode.scsiResponse { alive += 1 }
            }
            // Some may have been answered before they were displaced, but one is left.
            #expect(alive >= 1)
            #expect(device.state.withLock { $0.openNexuses.count } == 1)
        }
        await target.shutdown()
        #expect(device.state.withLock { $0.opened == $0.closed && $0.openNexuses.isEmpty })
    }

    /// The same name by another portal is the same session: the group is one.
    @Test func reinstatementByAnotherPortal() async throws {
        let device = MemoryDevice()
        let target = try await LifecycleTests.start(device) {
            $0.portals.append(ISCSIPortal(host: "127.0.0.2", port: 0))
        }
        let old = try RawSocket(port: target.portals[0].port)
        try old.logIn()
        LifecycleTests.hang(device, old)
        let new = try RawSocket(port: target.portals[1].port, host: 0x7F00_0002)
        try new.logIn()
        #expect(try old.receive() == nil)
        #expect(device.state.withLock { $0.openNexuses.count == 1 && $0.hanging == 0 })
        // Another ISID is another session.
        let third = try RawSocket(port: target.portals[0].port)
        try third.logIn(isid: 0x8000_0077_0000)
        #expect(device.state.withLock { $0.openNexuses.count == 2 })
        await target.shutdown()
    }

    @Test func sendTargetsTellsAllPortals() async throws {
        let target = try await LifecycleTests.start(MemoryDevice()) {
            $0.portals.append(ISCSIPortal(host: "127.0.0.2", port: 0))
            $0.portals.append(ISCSIPortal(host: "0.0.0.0", port: 0))
        }
        let ports = target.portals.map(\.port)
        let socket = try RawSocket(port: ports[1], host: 0x7F00_0002)
        socket.send(
            Peer.loginRequest(
                [Peer.keys[0], TextKey("SessionType", "Discovery")], flags: Peer.operationalToFull))
        #expect(try socket.receive()?[half: 36] == 0)
        var peer = Peer()
        var text = peer.request(Opcode.textRequest, 5)
        text.data = TextKeys.encode([TextKey("SendTargets", "All")])[...]
        socket.send(text)
        let answer = try #require(try socket.receive())
        let pairs = answer.data.split(separator: 0).map { String(decoding: $0, as: UTF8.self) }
        #expect(
            pairs == [
                "TargetName=" + Peer.name, "TargetAddress=127.0.0.1:\(ports[0]),1",
                "TargetAddress=127.0.0.2:\(ports[1]),1", "TargetAddress=127.0.0.2:\(ports[2]),1",
            ])
        await target.shutdown()
    }

    /// A login with a session's handle (RFC 7143 §6.3.1): its own connection is reinstated, another one refused.
    @Test func loginsWithAHandle() async throws {
        let device = MemoryDevice()
        let target = try await LifecycleTests.start(device)
        func logIn(tsih: UInt16, cid: UInt16 = 0) throws -> (RawSocket, PDU) {
            let socket = try RawSocket(port: target.port)
            var request = Peer.loginRequest(Peer.keys, flags: Peer.operationalToFull)
            request[half: 14] = tsih
            request[half: 20] = cid
            socket.send(request)
            return (socket, try #require(try socket.receive()))
        }
        #expect(try logIn(tsih: 5).1[half: 36] == LoginStatus.sessionDoesNotExist.rawValue)
        let (old, first) = try logIn(tsih: 0)
        let tsih = first[half: 14]
        #expect(first[half: 36] == 0 && tsih != 0)
        #expect(try logIn(tsih: tsih &+ 1).1[half: 36] == LoginStatus.sessionDoesNotExist.rawValue)
        #expect(try logIn(tsih: tsih, cid: 1).1[half: 36] == LoginStatus.tooManyConnections.rawValue)
        // None of that harmed it.
        LifecycleTests.hang(device, old, count: 1)
        let (new, again) = try logIn(tsih: tsih)
        #expect(again[half: 36] == 0 && again[half: 14] == tsih)
        #expect(try old.receive() == nil)
        #expect(device.state.withLock { $0.hanging == 0 && $0.openNexuses.count == 1 })
        var peer = Peer()
        new.send(peer.command(1, [0, 0, 0, 0, 0, 0]))
        #expect(try new.receive()?.opcode == Opcode.scsiResponse)
        await target.shutdown()
    }
}
