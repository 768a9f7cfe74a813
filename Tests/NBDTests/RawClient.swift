import Blocks
import Glibc

/// Runs blocking work on a thread of its own, so that the test's few cooperative threads stay free.
func onThread<Result: Sendable>(_ body: @escaping @Sendable () throws -> Result) async throws -> Result {
    try await withCheckedThrowingContinuation { continuation in
        BlockingThread.start { continuation.resume(with: Swift.Result { try body() }) }
    }
}

/// A client that sends whatever it is told to, over a blocking unix socket.
final class RawClient: Sendable {
    struct Failure: Error { var errno: Int32 }

    struct Reply: Equatable {
        var cookie: UInt64
        var error: UInt32 = 0
        /// nil: a simple reply.
        var chunk: UInt16?
        var data: [UInt8] = []
    }

    let descriptor: Int32
    private let closed = Monitor(false)

    init(_ path: String) throws {
        descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: Array(path.utf8)) }
        let size = socklen_t(MemoryLayout<sockaddr_un>.size)
        let result = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { connect(descriptor, $0, size) }
        }
        guard result == 0 else {
            let code = errno
            Glibc.close(descriptor)
            throw Failure(errno: code)
        }
    }

    deinit { close() }

    func close() {
        closed.withLock { closed in
            if !closed { Glibc.close(descriptor) }
            closed = true
        }
    }

    func send(_ bytes: [UInt8]) throws {
        var sent = 0
        while sent < bytes.count {
            let count = bytes.withUnsafeBytes {
                Glibc.send(descriptor, $0.baseAddress! + sent, $0.count - sent, Int32(MSG_NOSIGNAL))
            }
            guard count > 0 else { throw Failure(errno: errno) }
            sent += count
        }
    }

    /// Nil at the end of the stream.
    func receive(_ count: Int) throws -> [UInt8]? {
        var result = [UInt8](repeating: 0, count: count)
        var got = 0
        while got < count {
            let more = result.withUnsafeMutableBytes {
                recv(descriptor, $0.baseAddress! + got, count - got, 0)
            }
            if more == 0 { return nil }
            guard more > 0 else { throw Failure(errno: errno) }
            got += more
        }
        return result
    }

    /// Goes into transmission; with structured replies `base:allocation` is selected, too.
    func negotiate(export: String = "", structured: Bool = true) throws {
        _ = try receive(18)
        var options: [(UInt32, [UInt8])] = []
        let name = bytes { $0.integer(UInt32(export.utf8.count)) } + Array(export.utf8)
        if structured {
            options.append((8, []))
            let query = Array("base:allocation".utf8)
            options.append((10, name + [0, 0, 0, 1] + bytes { $0.integer(UInt32(query.count)) } + query))
        }
        options.append((7, name + [0, 0]))
        try send(
            bytes { writer in
                writer.integer(UInt32(3))
                for (number, data) in options {
                    writer.integer(UInt64(0x4948_4156_454f_5054))
                    writer.integer(number)
                    writer.integer(UInt32(data.count))
                    writer.append(data)
                }
            })
        while true {
            guard let head = try receive(20) else { throw Failure(errno: EPIPE) }
            let (option, type, count) = head.withUnsafeBytes {
                (
                    $0.bigEndian(at: 8, as: UInt32.self), $0.bigEndian(at: 12, as: UInt32.self),
                    $0.bigEndian(at: 16, as: UInt32.self)
                )
            }
            _ = try receive(Int(count))
            if type >= 0x8000_0000 { throw Failure(errno: ENOENT) }
            if option == 7 && type == 1 { return }
        }
    }

    /// The next reply; `reading` bytes follow a simple one without error. Nil at the end of the stream.
    func reply(reading: Int = 0) throws -> Reply? {
        guard let head = try receive(16) else { return nil }
        let (magic, word, cookie) = head.withUnsafeBytes {
            (
                $0.bigEndian(at: 0, as: UInt32.self), $0.bigEndian(at: 4, as: UInt32.self),
                $0.bigEndian(at: 8, as: UInt64.self)
            )
        }
        if magic == 0x6744_6698 {
            let data = word == 0 ? try receive(reading) ?? [] : []
            return Reply(cookie: cookie, error: word, data: data)
        }
        guard magic == 0x668e_33ef, word >> 16 == 1 else { throw Failure(errno: EPROTO) }
        let count = try receive(4)!.withUnsafeBytes { $0.bigEndian(at: 0, as: UInt32.self) }
        var reply = Reply(cookie: cookie, chunk: UInt16(word & 0xffff), data: try receive(Int(count)) ?? [])
        if reply.chunk == 0x8001 { reply.error = reply.data.withUnsafeBytes { $0.bigEndian(at: 0) } }
        return reply
    }
}

/// A store whose operations wait at a gate, and that counts them.
final class GateStore: BlockStore {
    struct State {
        var open = true
        var running = 0
        var mostRunning = 0
        var finished = 0
        var failure: StoreError?
        var lastZero: ZeroOptions?
        var flushes = 0
        var durable = 0
    }

    let state = Monitor(State())
    private let inner: any BlockStore
    let extents: [AllocationExtent]?
    let isPrompt: Bool

    init(_ inner: any BlockStore, extents: [AllocationExtent]? = nil, isPrompt: Bool = true) {
        self.inner = inner
        self.extents = extents
        self.isPrompt = isPrompt
    }

    var size: UInt64 { inner.size }
    var capabilities: StoreCapabilities { inner.capabilities }

    func setOpen(_ open: Bool) { state.withLockAndNotify { $0.open = open } }
    func fail(_ code: StoreError.Code?) { state.withLock { $0.failure = code.map { StoreError($0) } } }
    func waitUntil(_ condition: @Sendable (State) -> Bool) { state.wait { condition($0) ? () : nil } }

    private func pass(_ note: (inout State) -> Void = { _ in }) throws(StoreError) {
        state.withLockAndNotify {
            $0.running += 1
            $0.mostRunning = max($0.mostRunning, $0.running)
        }
        let failure = state.wait { $0.open ? Optional($0.failure) : nil }
        state.withLockAndNotify {
            $0.running -= 1
            $0.finished += 1
            note(&$0)
        }
        if let failure { throw failure }
    }

    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
        try pass()
        try inner.read(at: offset, into: buffer)
    }

    func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64, durable: Bool) throws(StoreError) {
        try pass { $0.durable += durable ? 1 : 0 }
        try inner.write(buffer, at: offset, durable: durable)
    }

    func writeZeroes(_ range: ByteRange, options: ZeroOptions) throws(StoreError) {
        try pass { $0.lastZero = options }
        try inner.writeZeroes(range, options: options)
    }

    func trim(_ range: ByteRange, durable: Bool) throws(StoreError) {
        try pass()
        try inner.trim(range, durable: durable)
    }

    func flush() throws(StoreError) {
        try pass { $0.flushes += 1 }
        try inner.flush()
    }

    func prefetch(_ range: ByteRange) throws(StoreError) { try pass() }

    func allocation(of range: ByteRange, limit: Int) throws(StoreError) -> [AllocationExtent] {
        try pass()
        return Array((extents ?? []).prefix(limit))
    }
}

/// A large volume of zeros that takes no memory.
final class ZeroStore: BlockStore {
    let size: UInt64
    let capabilities: StoreCapabilities = .writable
    init(size: UInt64) { self.size = size }
    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) {
        _ = buffer.initializeMemory(as: UInt8.self, repeating: 0)
    }
    func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64, durable: Bool) {}
    func writeZeroes(_ range: ByteRange, options: ZeroOptions) {}
    func flush() {}
}

/// Data and holes in turn.
final class StripedStore: BlockStore {
    let size: UInt64
    private let stripe: UInt64
    let capabilities: StoreCapabilities = [.writable, .knowsAllocation]

    init(size: UInt64, stripe: UInt64) {
        self.size = size
        self.stripe = stripe
    }

    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) {
        for i in buffer.indices { buffer[i] = (offset + UInt64(i)) / stripe % 2 == 0 ? 1 : 0 }
    }
    func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64, durable: Bool) {}
    func writeZeroes(_ range: ByteRange, options: ZeroOptions) {}
    func flush() {}
    func allocation(of range: ByteRange, limit: Int) -> [AllocationExtent] {
        var extents: [AllocationExtent] = []
        var position = range.offset
        while position < range.end, extents.count < limit {
            let end = min((position / stripe + 1) * stripe, range.end)
            let hole = position / stripe % 2 == 1
            extents.append(AllocationExtent(count: end - position, isHole: hole, readsAsZeros: hole))
            position = end
        }
        return extents
    }
}
