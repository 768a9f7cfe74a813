import Blocks
import Foundation
import OriginalImage
import TestSupport
import Testing

/// What a machine, an operator or a decaying cache did to an open epoch costs the epoch, never the volume.
@Suite struct DamagedEpochTests {
    enum Damage: CaseIterable {
        /// With batches behind it.
        case firstHeader, middleHeader
        /// The last one's header, which a marker says was committed.
        case headerBeforeMarker
        /// A whole region, headers and originals.
        case region
        /// The one in force, which says that the epoch has ended; the other one says that it is open.
        case superblock
        case twoOriginals
        case otherChunkSize
        case smaller
        case unreadable
    }

    private func damaged(_ damage: Damage) throws -> any BlockStore {
        let whole = try Fixture.contents(try Fixture.store())
        let store = MemoryStore(whole)
        // The three batches lie at 8192 and 3 and 5 blocks behind that.
        switch damage {
        case .firstHeader: try store.write([0xFF], at: 8192 + 50)
        case .middleHeader: try store.write([0xFF], at: 8192 + 3 * 4096 + 50)
        case .headerBeforeMarker:
            let log = try OriginalImageLog(store, settings: Fixture.settings())
            _ = try log.mark()
            try store.write([0xFF], at: 8192 + 5 * 4096 + 50)
        case .superblock:
            let log = try OriginalImageLog(store, settings: Fixture.settings())
            _ = try log.end()
            try store.write([0xFF], at: try LogSuperblock.read(from: store)[0].position + 100)
        case .region: try store.write([UInt8](repeating: 0, count: 5 * 4096), at: 8192)
        case .twoOriginals:
            // Another log's third batch, with a chunk that is here already, behind the first two.
            let other = MemoryStore(size: 20 * 4096)
            let log = try OriginalImageLog(other, settings: Fixture.settings())
            try log.begin(number: 1, uuid: Fixture.epoch, institutedAt: 1)
            for chunk: UInt64 in [7, 8] { try Fixture.append([chunk], to: log) }
            let from = log.head.position
            try Fixture.append([0, 1], to: log)
            try store.write(try other.bytes(at: from, count: 3 * 4096), at: 8192 + 5 * 4096)
        case .otherChunkSize: break
        case .smaller: return MemoryStore(Array(whole.dropLast(4096)))
        case .unreadable: return UnreadableStore(store, at: 8192 + 3 * 4096)
        }
        return store
    }

    @Test(arguments: Damage.allCases)
    func itIsVoidAndTheLogServesOn(damage: Damage) throws {
        let store = try damaged(damage)
        let geometry =
            damage == .otherChunkSize
            ? ChunkGeometry(volumeSize: 10 * 4096 + 1000, chunkSize: 8192)! : Fixture.geometry
        let log = try OriginalImageLog(store, settings: Fixture.settings(geometry: geometry))
        #expect(log.finding == .lost && log.epoch?.state == .void)
        let reason = try #require(log.epoch?.voidReason)
        #expect(!reason.isEmpty && !log.contains(0), "\(reason)")
        let recorded = try LogSuperblock.read(from: store)[0].epoch
        #expect(recorded?.state == .void && recorded?.voidReason == reason)
        let again = try OriginalImageLog(store, settings: Fixture.settings(geometry: geometry))
        #expect(again.finding == .retained && again.epoch?.voidReason == reason)
        // The next epoch keeps within what is there.
        try log.release()
        try log.begin(number: 2, uuid: UUID(), institutedAt: 2)
        #expect(log.totalCapacity <= store.size)
        try Fixture.append([0], to: log)
        #expect(log.head.entries == 1)
    }

    /// What lies behind a torn batch is no sign of damage: older epochs' batches, and anything else.
    @Test func remainsAreNoDamage() throws {
        let store = try Fixture.store(ended: true)
        let log = try OriginalImageLog(store, settings: Fixture.settings())
        try log.release()
        try log.begin(number: 2, uuid: UUID(), institutedAt: 2)
        try Fixture.append([10], to: log)
        let again = try OriginalImageLog(store, settings: Fixture.settings())
        #expect(again.finding == .resumed(entries: 1))
    }

    @Test func aChunkThatTheCacheHadAlreadyIsRefused() throws {
        let log = try OriginalImageLog(try Fixture.store(), settings: Fixture.settings())
        let head = log.head
        #expect(throws: LogError.corrupt("chunk 10 has an original already")) {
            try Fixture.append([6, 10], to: log)
        }
        #expect(log.head == head && !log.contains(6))
        _ = try log.end()
        #expect(throws: LogError.wrongState(.ended)) { try Fixture.append([10], to: log) }
    }

    /// A store that gives less than it had when its epoch was begun, without a word.
    @Test func aBatchBeyondTheStoreIsFull() throws {
        let store = ShrinkingStore(MemoryStore(size: 20 * 4096))
        let log = try OriginalImageLog(store, settings: Fixture.settings())
        try log.begin(number: 1, uuid: Fixture.epoch, institutedAt: 1)
        try Fixture.append([0, 1], to: log)
        store.shrink(to: 8192 + 4096)
        #expect(throws: LogError.full) { try Fixture.append([2], to: log) }
    }
}

/// A store whose size becomes smaller.
private final class ShrinkingStore: BlockStore {
    private let below: MemoryStore
    private let left: Monitor<UInt64>
    init(_ below: MemoryStore) {
        self.below = below
        left = Monitor(below.size)
    }
    func shrink(to size: UInt64) { left.withLock { $0 = size } }
    var size: UInt64 { left.withLock { $0 } }
    var capabilities: StoreCapabilities { below.capabilities }
    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
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

/// A store with one byte that cannot be read.
private final class UnreadableStore: BlockStore {
    private let below: MemoryStore
    private let bad: UInt64
    init(_ below: MemoryStore, at bad: UInt64) {
        self.below = below
        self.bad = bad
    }
    var size: UInt64 { below.size }
    var capabilities: StoreCapabilities { below.capabilities }
    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
        if offset <= bad, bad < offset + UInt64(buffer.count) { throw StoreError(.io, errno: 5) }
        try below.read(at: offset, into: buffer)
    }
    func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64, durable: Bool) throws(StoreError) {
        try below.write(buffer, at: offset, durable: durable)
    }
    func writeZeroes(_ range: ByteRange, options: ZeroOptions) throws(StoreError) {
        try below.writeZeroes(range, options: options)
    }
    func flush() throws(StoreError) { try below.flush() }
}
