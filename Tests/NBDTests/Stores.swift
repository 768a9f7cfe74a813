import Blocks

/// Runs blocking work on a thread of its own, so that the test's few cooperative threads stay free.
func onThread<Result: Sendable>(_ body: @escaping @Sendable () throws -> Result) async throws -> Result {
    try await withCheckedThrowingContinuation { continuation in
        BlockingThread.start { continuation.resume(with: Swift.Result { try body() }) }
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
