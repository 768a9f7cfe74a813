import Blocks
import TestSupport

@testable import Bridge

/// A store in memory that fails where it is told to, and can be held.
final class FaultyStore: BlockStore {
    private struct State {
        var failAt: UInt64?
        var code = StoreError.Code.io
        var isHeld = false
        /// Operations that may pass though the store is held.
        var permits = 0
        var waiting = 0
        var passed = 0
    }
    private let memory: MemoryStore
    private let state = Monitor(State())
    let size: UInt64
    var capabilities: StoreCapabilities { memory.capabilities }

    convenience init(size: Int) { self.init(MemoryStore(pattern: size, seed: 99)) }

    init(_ memory: MemoryStore) {
        self.memory = memory
        size = memory.size
    }

    /// Every operation that touches the byte at `offset` fails from now on.
    func fail(at offset: UInt64, _ code: StoreError.Code) {
        state.withLock {
            $0.failAt = offset
            $0.code = code
        }
    }

    /// Operations wait from now on, until ``release()``.
    func hold() { state.withLock { $0.isHeld = true } }
    func release() { state.withLockAndNotify { $0.isHeld = false } }

    /// Lets one waiting operation pass, and returns when it has.
    func letOne() {
        let before = state.withLockAndNotify { state in
            state.permits += 1
            return state.passed
        }
        state.wait { $0.passed > before ? () : nil }
    }

    /// Waits until `count` operations wait.
    func awaitHeld(_ count: Int = 1) { state.wait { $0.waiting >= count ? () : nil } }

    var all: [UInt8] { get throws { try memory.all } }

    /// Waits until `count` operations were let pass.
    func awaitOperations(_ count: Int) { state.wait { $0.passed >= count ? () : nil } }

    /// Operations that were let pass so far.
    var operations: Int { state.withLock { $0.passed } }

    private func pass(_ range: ByteRange) throws(StoreError) {
        state.withLockAndNotify { $0.waiting += 1 }
        state.wait { state -> Void? in
            if state.isHeld {
                guard state.permits > 0 else { return nil }
                state.permits -= 1
            }
            return ()
        }
        let code = state.withLockAndNotify { state -> StoreError.Code? in
            state.waiting -= 1
            state.passed += 1
            guard let at = state.failAt, range.overlaps(ByteRange(offset: at, count: 1)) else { return nil }
            return state.code
        }
        if let code { throw StoreError(code) }
    }

    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
        try pass(ByteRange(offset: offset, count: UInt64(buffer.count)))
        try memory.read(at: offset, into: buffer)
    }

    func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64, durable: Bool) throws(StoreError) {
        try pass(ByteRange(offset: offset, count: UInt64(buffer.count)))
        try memory.write(buffer, at: offset, durable: durable)
    }

    func writeZeroes(_ range: ByteRange, options: ZeroOptions) throws(StoreError) {
        try pass(range)
        try memory.writeZeroes(range, options: options)
    }

    func flush() throws(StoreError) { try memory.flush() }
}
