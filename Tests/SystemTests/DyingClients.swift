import Blocks
import Foundation
import TestSupport

/// One write of a client that died, and what is known of it.
struct DyingWrite: Sendable {
    enum Fate { case answered, sent, sentInPart }
    let range: ByteRange
    let byte: UInt8
    var fate = Fate.sent
}

/// A client that sends writes of 8 KiB, each a byte of its own all over, to the slot of the volume that is its alone,
/// and dies.
final class DyingClient {
    /// What it does before it dies.
    enum Manner: CaseIterable {
        /// All is sent and nothing read.
        case inFlight
        /// The same, and the socket is reset rather than closed.
        case reset
        case halfHeader, halfPayload
        /// Some are answered, the others in flight.
        case halfAnswered
        /// It asks for more answers than the socket holds, and reads none.
        case deaf
        /// In the middle of the handshake: it writes nothing.
        case handshake
        /// It says that it sends no more, and waits for nothing.
        case shutDown
        /// A real process that is killed with its writes in flight.
        case killed
        /// The same, stopped long before: nobody is at the other end any more, and nothing says so.
        case stopped
        /// By TCP with TLS, a real process.
        case tls
    }

    static let writes = 64
    static let length: UInt64 = 8 << 10
    static let slot = UInt64(writes) * length

    let manner: Manner
    private(set) var log: [DyingWrite] = []
    private var raw: RawNBDClient?
    private var process: ChildProcess?
    private let slot: UInt64
    private let byte: UInt8

    init(_ manner: Manner, slot: UInt64, byte: UInt8) {
        self.manner = manner
        self.slot = slot
        self.byte = byte
    }

    private func range(_ index: Int) -> ByteRange {
        ByteRange(offset: slot + UInt64(index) * Self.length, count: Self.length)
    }

    private func message(_ index: Int) -> [UInt8] {
        RawNBDClient.request(
            1, cookie: UInt64(index), offset: range(index).offset, length: UInt32(Self.length))
            + [UInt8](repeating: byte, count: Int(Self.length))
    }

    /// Connects and has its writes in flight.
    func begin(_ host: HostProcess, tls: String, using generator: inout SeededGenerator) throws {
        switch manner {
        case .killed, .stopped, .tls: try beginProcess(host, tls)
        default: try beginRaw(host, &generator)
        }
    }

    private func beginProcess(_ host: HostProcess, _ tls: String) throws {
        let pattern = String(byte)
        let words = (0..<Self.writes).flatMap {
            ["-c", "aio_write -q -P \(pattern) \(range($0).offset) \(Self.length)"]
        }
        let place = manner == .tls ? ["--image-opts", tls] : ["-f", "raw", host.uri]
        let object = "tls-creds-x509,id=t,endpoint=client,verify-peer=yes,dir=\(host.directory("ours"))"
        process = try ChildProcess(
            "qemu-io",
            (manner == .tls ? ["--object", object] : []) + ["-t", "none"] + words
                + ["-c", "sleep 600000"] + place)
        log = (0..<Self.writes).map { DyingWrite(range: range($0), byte: byte) }
    }

    private func beginRaw(_ host: HostProcess, _ generator: inout SeededGenerator) throws {
        let client = try RawNBDClient(host.socket)
        raw = client
        guard manner != .handshake else {
            return try client.send(
                Array([0, 0, 0, 3, 0x49, 0x48, 0x41].prefix(Int.random(in: 0...7, using: &generator))))
        }
        try client.negotiate()
        if manner == .deaf {
            for index in 0..<32 {
                try client.send(
                    RawNBDClient.request(0, cookie: UInt64(1000 + index), offset: slot, length: 128 << 10))
            }
        }
        let whole =
            switch manner {
            case .halfHeader, .halfPayload, .halfAnswered: Int.random(in: 0..<Self.writes, using: &generator)
            default: Self.writes
            }
        try send(0..<whole, client)
        switch manner {
        case .halfHeader:
            try client.send(Array(message(whole).prefix(Int.random(in: 1..<28, using: &generator))))
            log.append(DyingWrite(range: range(whole), byte: byte, fate: .sentInPart))
        case .halfPayload:
            try client.send(
                Array(message(whole).prefix(Int.random(in: 28..<28 + Int(Self.length), using: &generator))))
            log.append(DyingWrite(range: range(whole), byte: byte, fate: .sentInPart))
        case .halfAnswered:
            for _ in 0..<whole {
                guard let reply = try client.reply(), reply.error == 0 else {
                    throw TestFailure("a write failed for \(manner)")
                }
                log[Int(reply.cookie)].fate = .answered
            }
            try send(whole..<Self.writes, client)
        default: break
        }
    }

    private func send(_ indices: Range<Int>, _ client: RawNBDClient) throws {
        for index in indices {
            // A host that takes no more of a deaf client is right.
            if manner == .deaf, index == 8 { return }
            log.append(DyingWrite(range: range(index), byte: byte))
            try client.send(message(index))
        }
    }

    func die() {
        switch manner {
        case .reset:
            var now = linger(l_onoff: 1, l_linger: 0)
            if let raw {
                setsockopt(raw.descriptor, SOL_SOCKET, SO_LINGER, &now, socklen_t(MemoryLayout<linger>.size))
            }
        case .shutDown: if let raw { shutdown(raw.descriptor, Int32(SHUT_WR)) }
        default: break
        }
        raw?.close()
        process?.signal(SIGKILL)
        _ = process?.waitForExit()
    }

    /// From now on it does nothing more, and is not gone.
    func stop() { if manner == .stopped { process?.signal(SIGSTOP) } }
}
