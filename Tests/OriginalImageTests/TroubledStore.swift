import Blocks
import TestSupport

/// A store whose writes below 8192, the superblocks, are held up or fail as a test wants.
final class TroubledStore: BlockStore {
    enum Trouble {
        case none
        /// Nothing is written.
        case refused
        /// As `refused`, at the one of the two places.
        case refusedAt(UInt64)
        /// All is written, but not flushed.
        case writtenAndFailed
        /// All is written, and a flush fails.
        case notFlushed
    }

    private struct State {
        var trouble = Trouble.none
        var isHolding = false
        /// Writes that are held, and writes that came.
        var held = 0
        var arrived = 0
    }

    let below: MemoryStore
    private let state = Monitor(State())

    init(_ below: MemoryStore) { self.below = below }

    func suffer(_ trouble: Trouble) { state.withLock { $0.trouble = trouble } }
    func hold() { state.withLock { $0.isHolding = true } }
    func waitUntilHeld() { state.wait { $0.held > 0 ? () : nil } }
    func letGo() { state.withLockAndNotify { $0.isHolding = false } }
    /// Waits until `count` more superblock writes have come than when `arrived` was asked.
    func waitForWrites(_ count: Int, after arrived: Int) {
        state.wait { $0.arrived >= arrived + count ? () : nil }
    }
    var arrived: Int { state.withLock { $0.arrived } }

    var size: UInt64 { below.size }
    var capabilities: StoreCapabilities { below.capabilities }
    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
        try below.read(at: offset, into: buffer)
    }
    func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64, durable: Bool) throws(StoreError) {
        guard offset < 8192 else { return try below.write(buffer, at: offset, durable: durable) }
        let trouble = state.withLockAndNotify { state -> Trouble in
            if state.isHolding { state.held += 1 }
            state.arrived += 1
            return state.trouble
        }
        state.wait { $0.isHolding ? nil : () }
        switch trouble {
        case .refused: throw StoreError(.io, errno: 5)
        case .refusedAt(let place) where place == offset: throw StoreError(.io, errno: 5)
        case .writtenAndFailed:
            try below.write(buffer, at: offset, durable: durable)
            throw StoreError(.io, errno: 5)
        case .none, .refusedAt, .notFlushed: try below.write(buffer, at: offset, durable: durable)
        }
    }
    func writeZeroes(_ range: ByteRange, options: ZeroOptions) throws(StoreError) {
        try below.writeZeroes(range, options: options)
    }
    func flush() throws(StoreError) {
        if case .notFlushed = state.withLock({ $0.trouble }) { throw StoreError(.io, errno: 5) }
        try below.flush()
    }
}
