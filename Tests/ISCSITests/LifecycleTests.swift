import Blocks
import Glibc
import Logging
import SCSI
import Testing

@testable import ISCSI

/// Blocks on a thread of its own. Beside an `async let` nothing may block a thread of the pool: the pool may have no
/// other one for what is awaited.
func offPool<Value: Sendable>(_ body: @escaping @Sendable () throws -> Value) async throws -> Value {
    try await withCheckedThrowingContinuation { continuation in
        let started = BlockingThread.start { continuation.resume(with: Result { try body() }) }
        precondition(started)
    }
}

/// A blocking socket to a target, for peers that misbehave.
///
/// Unchecked: one thread at a time uses it.
final class RawSocket: @unchecked Sendable {
    let handle: Int32
    private var decoder = PDUDecoder()
    private var isOpen = true

    init(port: Int, host: UInt32 = 0x7F00_0001) throws {
        handle = socket(AF_INET, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_port = in_port_t(UInt16(port).bigEndian)
        address.sin_addr.s_addr = host.bigEndian
        let size = socklen_t(MemoryLayout<sockaddr_in>.size)
        let code = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { connect(handle, $0, size) }
        }
        try #require(code == 0)
        decoder.maximumDataSegment = 1 << 20
    }

    deinit { drop() }

    func drop() {
        if isOpen { close(handle) }
        isOpen = false
    }

    func send(_ pdu: PDU) {
        let bytes = pdu.encoded()
        #expect(Glibc.send(handle, bytes, bytes.count, Int32(MSG_NOSIGNAL)) == bytes.count)
    }

    /// Sends a PDU, or the first `bytes` of it, that the target may not want any more.
    func offer(_ pdu: PDU, bytes length: Int = .max) {
        let bytes = pdu.encoded().prefix(length)
        bytes.withUnsafeBytes { _ = Glibc.send(handle, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) }
    }

    /// The PDUs that are whole in the next `count` bytes; fewer at the end of the connection, or where a PDU of fewer
    /// than that many bytes was the last.
    func take(_ count: Int) throws -> [PDU] {
        var buffer = [UInt8](repeating: 0, count: 64 << 10)
        var pdus: [PDU] = []
        var left = count
        while left > 0, pdus.last.map({ !$0.isLastDataIn }) ?? true {
            var wait = pollfd(fd: handle, events: Int16(POLLIN), revents: 0)
            try #require(poll(&wait, 1, 300_000) == 1)
            let got = recv(handle, &buffer, min(left, buffer.count), 0)
            try #require(got > 0, "the connection ended")
            left -= got
            try buffer.withUnsafeBytes { bytes in
                var input = UnsafeRawBufferPointer(rebasing: bytes[..<got])
                while let pdu = try decoder.next(&input) { pdus.append(pdu) }
            }
        }
        return pdus
    }

    /// The next PDU; nil at the end of the connection. Waits at most 300 s, since tests that block may keep the pool's threads that long, else the test has failed.
    func receive() throws -> PDU? {
        var byte: UInt8 = 0
        while true {
            var wait = pollfd(fd: handle, events: Int16(POLLIN), revents: 0)
            try #require(poll(&wait, 1, 300_000) == 1)
            guard recv(handle, &byte, 1, 0) == 1 else { return nil }
            let pdu = try withUnsafeBytes(of: &byte) { buffer -> PDU? in
                var input = buffer
                return try decoder.next(&input)
            }
            if let pdu { return pdu }
        }
    }

    /// ``receive()`` beside an `async let`.
    func next() async throws -> PDU? { try await offPool { try self.receive() } }

    func logIn(isid: UInt64 = 0x8000_0012_3456) throws {
        var request = Peer.loginRequest(Peer.keys, flags: Peer.operationalToFull)
        request.lun = isid << 16
        send(request)
        let response = try #require(try receive())
        #expect(response.opcode == Opcode.loginResponse && response[half: 36] == 0)
    }
}

@Suite(.serialized) struct LifecycleTests {
    static func start(
        _ device: MemoryDevice, _ adjust: (inout ISCSITargetConfiguration) -> Void = { _ in }
    ) async throws -> ISCSITarget {
        var configuration = ISCSITargetConfiguration(host: "127.0.0.1", port: 0, targetName: Peer.name)
        // The peers of these tests do not log out, and wait for a thread of the pool now and then.
        configuration.times = ISCSITimes(
            login: .seconds(3600), ping: .seconds(3600), discovery: .seconds(3600),
            reinstatement: .seconds(3600), logout: .milliseconds(50))
        adjust(&configuration)
        return try await ISCSITarget.start(
            device: device, configuration: configuration, logger: Logger(label: "test"))
    }

    @discardableResult
    static func hang(_ device: MemoryDevice, _ socket: RawSocket, count: Int = 3) -> Peer {
        var peer = Peer()
        for tag in 0..<UInt32(count) {
            socket.send(peer.command(tag, [MemoryDevice.hangCode, 0, 0, 0, 0, 0]))
        }
        #expect(device.state.wait(nanoseconds: 120_000_000_000) { $0.hanging == count ? true : nil } == true)
        return peer
    }

    /// What a device may rely on that bounds what takes long below that number.
    @Test func aSessionAnswersWhileAllButOneOfItsThreadsAreBusy() async throws {
        let device = MemoryDevice()
        let target = try await Self.start(device)
        let socket = try RawSocket(port: target.port)
        try socket.logIn()
        var peer = Self.hang(device, socket, count: SCSITargetLimits.nexusThreads - 1)
        for tag in 100..<UInt32(103) {
            socket.send(peer.command(tag, [0, 0, 0, 0, 0, 0]))
            #expect(try socket.receive()?.initiatorTaskTag == tag)
        }
        await target.shutdown(drainSeconds: 0)
    }

    @Test func aDroppedConnectionAbortsItsCommands() async throws {
        let device = MemoryDevice()
        let target = try await Self.start(device)
        let socket = try RawSocket(port: target.port)
        try socket.logIn()
        Self.hang(device, socket)
        socket.drop()
        let ended = device.state.wait(nanoseconds: 120_000_000_000) {
            $0.hanging == 0 && $0.closed == 1 ? true : nil
        }
        #expect(ended == true)
        await target.shutdown()
    }

    @Test func reinstatementEndsTheOldSessionFirst() async throws {
        let device = MemoryDevice()
        let target = try await Self.start(device)
        let old = try RawSocket(port: target.port)
        try old.logIn()
        Self.hang(device, old)
        let new = try RawSocket(port: target.port)
        try new.logIn()
        // At the answer the old nexus is closed, and only then was the new one opened.
        #expect(device.state.withLock { $0.closed == 1 && $0.opened == 2 && $0.openNexuses.count == 1 })
        #expect(try old.receive() == nil)
        var peer = Peer()
        new.send(peer.command(1, [0, 0, 0, 0, 0, 0]))
        #expect(try new.receive()?.opcode == Opcode.scsiResponse)
        await target.shutdown()
        #expect(device.state.withLock { $0.closed == 2 && $0.hanging == 0 })
    }

    @Test func shutdownTellsTheSessionsAndEndsThem() async throws {
        let device = MemoryDevice()
        let target = try await Self.start(device)
        let socket = try RawSocket(port: target.port)
        try socket.logIn()
        Self.hang(device, socket)
        await target.shutdown(drainSeconds: 0)
        #expect(device.state.withLock { $0.closed == 1 && $0.hanging == 0 })
        let message = try #require(try socket.receive())
        #expect(message.opcode == Opcode.asyncMessage && message[byte: 36] == 1)
        #expect(try socket.receive() == nil)
    }

    /// What is under way at shutdown is answered before the session ends; a session with nothing under way does not
    /// wait for it.
    @Test func shutdownLetsCommandsEnd() async throws {
        let device = MemoryDevice()
        let target = try await Self.start(device)
        let busy = try RawSocket(port: target.port)
        try busy.logIn()
        Self.hang(device, busy, count: 1)
        let idle = try RawSocket(port: target.port)
        var login = Peer.loginRequest(Peer.keys, flags: Peer.operationalToFull)
        login.lun = 0x8000_0099_0000_0000
        idle.send(login)
        #expect(try idle.receive()?[half: 36] == 0)
        async let ended: Void = target.shutdown(drainSeconds: 300)
        #expect(try await idle.next()?.opcode == Opcode.asyncMessage)
        #expect(try await idle.next() == nil)
        #expect(try await busy.next()?.opcode == Opcode.asyncMessage)
        #expect(device.state.withLock { $0.hanging == 1 })
        device.state.withLockAndNotify { $0.isGateOpen = true }
        let answer = try #require(try await busy.next())
        #expect(answer.opcode == Opcode.scsiResponse && answer[byte: 3] == SCSIStatus.good.rawValue)
        #expect(try await busy.next() == nil)
        await ended
        #expect(device.state.withLock { $0.closed == 2 && $0.openNexuses.isEmpty })
    }

    /// Nor does it wait for what comes when it has been told to end.
    @Test func newCommandsDoNotProlongASession() async throws {
        let device = MemoryDevice()
        let target = try await Self.start(device)
        let idle = try RawSocket(port: target.port)
        try idle.logIn(isid: 1)
        let busy = try RawSocket(port: target.port)
        try busy.logIn(isid: 2)
        var peer = Self.hang(device, busy, count: 1)
        async let ended: Void = target.shutdown(drainSeconds: 300)
        #expect(try await busy.next()?.opcode == Opcode.asyncMessage)
        #expect(try await idle.next()?.opcode == Opcode.asyncMessage)
        // With its end the time to log out is over.
        #expect(try await idle.next() == nil)
        busy.send(peer.command(7, [MemoryDevice.hangCode, 0, 0, 0, 0, 0]))
        let hang = try await offPool {
            device.state.wait(nanoseconds: 120_000_000_000) { $0.hanging == 2 ? true : nil }
        }
        #expect(hang == true)
        var abort = peer.request(Opcode.taskManagementRequest, 9, flags: 0x81, immediate: true)
        abort.targetTransferTag = 0
        busy.send(abort)
        #expect(try await busy.next()?.opcode == Opcode.taskManagementResponse)
        #expect(try await busy.next() == nil)
        await ended
        #expect(device.state.withLock { $0.hanging == 0 && $0.openNexuses.isEmpty })
    }

    @Test func aResetReachesOtherSessions() async throws {
        let device = MemoryDevice()
        let target = try await Self.start(device)
        let victim = try RawSocket(port: target.port)
        try victim.logIn()
        Self.hang(device, victim, count: 1)
        let other = try RawSocket(port: target.port)
        var login = Peer.loginRequest(Peer.keys, flags: Peer.operationalToFull)
        login.lun = 0x8000_0099_0000_0000
        other.send(login)
        #expect(try other.receive()?[half: 36] == 0)
        var peer = Peer()
        other.send(peer.request(Opcode.taskManagementRequest, 9, flags: 0x86, immediate: true))
        let answer = try #require(try other.receive())
        #expect(answer.opcode == Opcode.taskManagementResponse && answer[byte: 2] == 0)
        #expect(device.state.withLock { $0.resets } == [LogicalUnitNumber(rawValue: 0)])
        #expect(try victim.receive()?[byte: 3] == SCSIStatus.taskAborted.rawValue)
        await target.shutdown()
    }

    /// Whoever resets a unit may write it afterwards: nothing of other sessions may still be under way then,
    /// whether they live on or die meanwhile.
    @Test(arguments: [false, true])
    func aResetWaitsForWhatOtherSessionsHaveUnderWay(dies: Bool) async throws {
        let device = MemoryDevice()
        let target = try await Self.start(device)
        let victim = try RawSocket(port: target.port)
        try victim.logIn()
        var its = Peer()
        victim.send(its.command(0, [MemoryDevice.lingerCode, 0, 0, 0, 0, 0, 0, 0, 0, 0]))
        #expect(device.state.wait(nanoseconds: 120_000_000_000) { $0.hanging == 1 ? true : nil } == true)
        let other = try RawSocket(port: target.port)
        var login = Peer.loginRequest(Peer.keys, flags: Peer.operationalToFull)
        login.lun = 0x8000_0099_0000_0000
        other.send(login)
        #expect(try other.receive()?[half: 36] == 0)
        var peer = Peer()
        other.send(peer.request(Opcode.taskManagementRequest, 9, flags: 0x85, immediate: true))
        if dies { victim.drop() }
        let answer = try #require(try other.receive())
        #expect(answer.opcode == Opcode.taskManagementResponse && answer[byte: 2] == 0)
        #expect(device.state.withLock { $0.resets.count == 1 && !$0.wasResetTooEarly })
        await target.shutdown()
    }

    @Test func aPeerThatDoesNotReadIsHeldBackAndHarmsNobody() async throws {
        let device = MemoryDevice()
        let target = try await Self.start(device)
        let deaf = try RawSocket(port: target.port)
        try deaf.logIn()
        var peer = Peer()
        // 128 reads of 1 MiB each, of which none is taken.
        for tag in 0..<UInt32(ISCSILimits.commandsPerSession) {
            let cdb: [UInt8] = [0x28, 0, 0, 0, 0, 0, 0, 0x08, 0, 0]
            deaf.send(peer.command(tag, cdb, read: 1 << 20))
        }
        let other = try RawSocket(port: target.port)
        var login = Peer.loginRequest(Peer.keys, flags: Peer.operationalToFull)
        login.lun = 0x8000_0099_0000_0000
        other.send(login)
        #expect(try other.receive()?[half: 36] == 0)
        var second = Peer()
        other.send(second.command(1, [0, 0, 0, 0, 0, 0]))
        #expect(try other.receive()?.opcode == Opcode.scsiResponse)
        // The budget let only so many be executed.
        let executed = device.state.withLock { $0.executed }
        #expect(executed <= (ISCSILimits.sessionDataBytes >> 20) + 16)
        deaf.drop()
        await target.shutdown()
        #expect(device.state.withLock { $0.openNexuses.isEmpty })
    }

    @Test func connectionsDroppedAtEveryByteOfALogin() async throws {
        let device = MemoryDevice()
        let target = try await Self.start(device)
        let bytes = Peer.loginRequest(Peer.keys, flags: Peer.operationalToFull).encoded()
        for length in stride(from: 0, through: bytes.count, by: 3) {
            let descriptor = try RawSocket(port: target.port)
            descriptor.sendPart(Array(bytes[..<length]))
            descriptor.drop()
        }
        let last = try RawSocket(port: target.port)
        try last.logIn()
        await target.shutdown()
        #expect(device.state.withLock { $0.openNexuses.isEmpty && $0.opened == $0.closed })
    }
}

extension PDU {
    /// A Data-In that carries the status.
    fileprivate var isLastDataIn: Bool { opcode == Opcode.dataIn && flags & 1 == 1 }
}

extension RawSocket {
    func sendPart(_ bytes: [UInt8]) {
        #expect(bytes.isEmpty || write(bytes) == bytes.count)
    }

    private func write(_ bytes: [UInt8]) -> Int {
        Glibc.send(handle, bytes, bytes.count, Int32(MSG_NOSIGNAL))
    }
}
