import Blocks
import Foundation
import HostControl
import Synchronization
import TestSupport
import Testing

@testable import Host

/// Sets up volumes over memory.
enum Fixture {
    static let volume = UUID(uuidString: "00112233-4455-6677-8899-AABBCCDDEEFF")!
    static let boot = UUID(uuidString: "B0B0B0B0-0000-4000-8000-000000000001")!

    /// With `block` a write waits for longer than `scripts/test` lets a process of tests run: who is not woken hangs there, and
    /// is told. Not the testing library's time limit: it counts the time that a test waits for its turn, too.
    static func settings(chunk: UInt64 = 4096, policy: CacheFullPolicy = .abandon) -> VolumeSettings {
        VolumeSettings(
            uuid: volume, chunkSize: chunk, durability: .process, onCacheFull: policy,
            blockSeconds: 3600, boot: boot)
    }
}

/// A store in memory whose operations can be torn by others, fail on demand, and be held up.
final class FaultyStore: GrowableStore {
    private let below: MemoryStore
    private let length: Atomic<UInt64>
    /// Writes from this offset on fail.
    let failsWritesFrom = Atomic<UInt64>(.max)
    let failsWrites = Atomic<Bool>(false)
    let failsReads = Atomic<Bool>(false)
    let failsFlushes = Atomic<Bool>(false)
    /// What the next flush throws, or the next durable write once it has written; then nothing, as the system
    /// tells a failed write-back once.
    let nextFlushFailure = Monitor<StoreError?>(nil)
    /// Writes throw ``StoreError/Code/noSpace``, having written nothing.
    let failsForWantOfRoom = Atomic<Bool>(false)
    /// Called in the middle of a write.
    let midWrite = Monitor<(@Sendable () -> Void)?>(nil)
    /// Called at the start of a flush, before anything fails.
    let midFlush = Monitor<(@Sendable () -> Void)?>(nil)

    /// - Parameter room: bytes up to which it can grow.
    init(_ bytes: [UInt8], room: Int = 0) {
        below = MemoryStore(bytes + [UInt8](repeating: 0, count: max(0, room - bytes.count)))
        length = Atomic(UInt64(bytes.count))
    }
    convenience init(size: Int, room: Int = 0) {
        self.init([UInt8](repeating: 0, count: size), room: room)
    }

    var size: UInt64 { length.load(ordering: .relaxed) }
    func grow(to size: UInt64) throws(StoreError) {
        guard size <= below.size else { throw StoreError(.noSpace, errno: 28) }
        length.max(size, ordering: .relaxed)
    }
    var capabilities: StoreCapabilities { below.capabilities }
    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
        if failsReads.load(ordering: .relaxed) { throw StoreError(.io, errno: 5) }
        try below.read(at: offset, into: buffer)
    }
    func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64, durable: Bool) throws(StoreError) {
        if failsWrites.load(ordering: .relaxed) { throw StoreError(.io, errno: 5) }
        if offset >= failsWritesFrom.load(ordering: .relaxed) { throw StoreError(.io, errno: 5) }
        if failsForWantOfRoom.load(ordering: .relaxed) { throw StoreError(.noSpace, errno: 28) }
        // In two parts, as a device may.
        let half = buffer.count / 2
        try below.write(UnsafeRawBufferPointer(rebasing: buffer[..<half]), at: offset, durable: false)
        midWrite.withLock { $0 }?()
        try below.write(
            UnsafeRawBufferPointer(rebasing: buffer[half...]), at: offset + UInt64(half), durable: durable)
        if durable { try failFlush() }
    }
    func writeZeroes(_ range: ByteRange, options: ZeroOptions) throws(StoreError) {
        if failsWrites.load(ordering: .relaxed) { throw StoreError(.io, errno: 5) }
        try below.writeZeroes(range, options: options)
    }
    func trim(_ range: ByteRange, durable: Bool) throws(StoreError) {
        try below.trim(range, durable: durable)
    }
    func flush() throws(StoreError) {
        midFlush.withLock { $0 }?()
        if failsFlushes.load(ordering: .relaxed) { throw StoreError(.io, errno: 5) }
        try failFlush()
        try below.flush()
    }
    private func failFlush() throws(StoreError) {
        if let failure = nextFlushFailure.withLock({ $0.take() }) { throw failure }
    }
}

/// A small generator with a seed (SplitMix64).
struct SeededGenerator: RandomNumberGenerator {
    private var state: UInt64
    init(seed: UInt64) { state = seed }
    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }
}

/// A thread of the system that can be waited for.
final class Worker: Sendable {
    private let done = Monitor(false)
    init(_ body: @escaping @Sendable () throws -> Void) {
        BlockingThread.start { [done] in
            do { try body() } catch { Issue.record("a thread failed: \(error)") }
            done.withLockAndNotify { $0 = true }
        }
    }
    var isDone: Bool { done.withLock { $0 } }
    func join() { done.wait { $0 ? () : nil } }
}

/// Holds threads at a checkpoint of the write path until released: interleavings in two columns.
final class Turnstile: Sendable {
    private struct State {
        var held: Checkpoint?
        var arrived = 0
    }
    private let state = Monitor(State())

    func hold(at checkpoint: Checkpoint) { state.withLockAndNotify { $0.held = checkpoint } }
    func open() { state.withLockAndNotify { $0.held = nil } }
    func waitForArrival() { state.wait { $0.arrived > 0 ? () : nil } }
    /// Holds at another checkpoint; who is held at this one goes on.
    func move(to checkpoint: Checkpoint) {
        state.withLockAndNotify { state in
            state.held = checkpoint
            state.arrived = 0
        }
    }

    func pass(_ checkpoint: Checkpoint) {
        let mustWait = state.withLockAndNotify { state -> Bool in
            guard state.held == checkpoint else { return false }
            state.arrived += 1
            return true
        }
        if mustWait { state.wait { $0.held == checkpoint ? nil : () } }
    }
}
