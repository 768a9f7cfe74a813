import Blocks
import Foundation
import OriginalImage
import TestSupport
import Testing

/// A log that may take more while it is written.
@Suite struct GrowthTests {
    private func log(_ store: any BlockStore, capacity: UInt64? = nil) throws -> OriginalImageLog {
        let log = try OriginalImageLog(store, settings: Fixture.settings(capacity: capacity))
        try log.begin(number: 1, uuid: Fixture.epoch, institutedAt: 1)
        return log
    }

    @Test func whatWasFullGoesOn() throws {
        let store = MemoryStore(size: 20 * 4096)
        let log = try log(store, capacity: 8192 + 2 * 4096)
        try Fixture.append([0], to: log)
        #expect(throws: LogError.full) { try Fixture.append([1], to: log) }
        #expect(throws: LogError.tooSmall(needed: 16384, available: 12288)) { try log.grow(to: 16383) }
        #expect(throws: LogError.tooSmall(needed: 21 * 4096, available: 20 * 4096)) {
            try log.grow(to: 21 * 4096)
        }
        #expect(try log.grow(to: 16384) == 16384)
        #expect(try log.grow(to: 16384 + 8192 + 4095) == 16384 + 8192)
        #expect(log.totalCapacity == 16384 + 8192)
        try Fixture.append([1], to: log)
        #expect(throws: LogError.full) { try Fixture.append([2], to: log) }
        #expect(log.usedBytes == log.head.position && log.usedBytes == log.totalCapacity)
        // A start finds the epoch with what it has now, and the next one has it, too.
        let again = try OriginalImageLog(store, settings: Fixture.settings(capacity: 16384))
        #expect(again.finding == .resumed(entries: 2) && again.totalCapacity == 16384 + 8192)
        _ = try log.end()
        try log.release()
        #expect(log.usedBytes == 8192)
        try log.begin(number: 2, uuid: UUID(), institutedAt: 2)
        #expect(log.totalCapacity == 16384 + 8192 && log.usedBytes == 8192)
    }

    @Test func anEndedLogIsLeftAsItIs() throws {
        let store = MemoryStore(size: 20 * 4096)
        let log = try log(store, capacity: 8 * 4096)
        try Fixture.append([0], to: log)
        _ = try log.end()
        let before = try Fixture.contents(store)
        #expect(try log.grow(to: 10 * 4096) == 10 * 4096)
        #expect(try Fixture.contents(store) == before)
        try log.release()
        #expect(log.totalCapacity == 10 * 4096)
        try log.begin(number: 2, uuid: UUID(), institutedAt: 2)
        #expect(try LogSuperblock.read(from: store)[0].capacity == 10 * 4096)
    }

    /// The store is longer before the superblock says so, and stays as it is when it cannot be.
    @Test func aStoreThatGrows() throws {
        let store = GrowingStore(4 * 4096)
        let log = try log(store)
        try Fixture.append([0], to: log)
        #expect(throws: LogError.full) { try Fixture.append([1], to: log) }
        store.limit.withLock { $0 = 6 * 4096 }
        #expect(throws: LogError.store(StoreError(.noSpace, errno: 28))) { try log.grow(to: 7 * 4096) }
        #expect(log.totalCapacity == 4 * 4096)
        #expect(try log.grow(to: 6 * 4096) == 6 * 4096 && store.size == 6 * 4096)
        try Fixture.append([1], to: log)
        #expect(try LogReader(store).verify() == log.head)
    }
}

/// A store in memory that becomes longer, up to a limit.
private final class GrowingStore: GrowableStore {
    private let below = MemoryStore(size: 20 * 4096)
    private let length: Monitor<UInt64>
    let limit = Monitor<UInt64>(0)
    init(_ size: UInt64) { length = Monitor(size) }
    var size: UInt64 { length.withLock { $0 } }
    var capabilities: StoreCapabilities { below.capabilities }
    func grow(to size: UInt64) throws(StoreError) {
        guard size <= limit.withLock({ $0 }) else { throw StoreError(.noSpace, errno: 28) }
        length.withLock { $0 = max($0, size) }
    }
    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
        requireWithin(ByteRange(offset: offset, count: UInt64(buffer.count)))
        try below.read(at: offset, into: buffer)
    }
    func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64, durable: Bool) throws(StoreError) {
        requireWithin(ByteRange(offset: offset, count: UInt64(buffer.count)))
        try below.write(buffer, at: offset, durable: durable)
    }
    func writeZeroes(_ range: ByteRange, options: ZeroOptions) throws(StoreError) {
        try below.writeZeroes(range, options: options)
    }
    func flush() throws(StoreError) { try below.flush() }
}
