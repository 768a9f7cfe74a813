import Blocks
import Foundation
import OriginalImage
import Synchronization
import TestSupport
import Testing

@Suite struct RoundTripTests {
    @Test func whatWasAppendedIsRead() throws {
        let store = try Fixture.store(ended: true)
        let reader = try LogReader(store, wantsBothSuperblocks: true)
        let index = try reader.index()
        #expect(index.entries.map(\.chunk) == [0, 1, 3, 10, 5, 4])
        #expect(index[3]?.isZero == true && index[2] == nil)
        #expect(try reader.verify() == reader.epoch.marker)
        #expect(reader.epoch.state == .ended && reader.epoch.number == 1)
        for entry in index.entries {
            var bytes = Fixture.original(entry.chunk).map { ~$0 }
            try bytes.withUnsafeMutableBytes { try reader.read(entry, into: $0) }
            #expect(bytes == Fixture.original(entry.chunk))
        }
        // Three headers, five originals with bytes (chunk 3 is zeros).
        #expect(reader.epoch.marker == LogPosition(position: 8192 + 8 * 4096, sequence: 3, entries: 6))
    }

    @Test func aCopyUpToTheMarkerIsWholeAtAnyBase() throws {
        let store = MemoryStore(size: 20 * 4096)
        let log = try OriginalImageLog(store, settings: Fixture.settings())
        try log.begin(number: 1, uuid: Fixture.epoch, institutedAt: 1)
        try Fixture.append([1, 2], to: log)
        let marker = try log.mark()
        try Fixture.append([4], to: log)
        let copy = [UInt8](repeating: 7, count: 5000) + (try store.bytes(at: 0, count: Int(marker.position)))
        let reader = try LogReader(MemoryStore(copy), base: 5000, end: marker, wantsBothSuperblocks: true)
        #expect(try reader.verify() == marker)
        #expect(try reader.index().entries.map(\.chunk) == [1, 2])
        #expect(throws: LogError.self) { try LogReader(MemoryStore(copy), base: 5001) }
        let cut = MemoryStore(Array(copy.dropLast()))
        #expect(throws: LogError.self) { try LogReader(cut, base: 5000, end: marker) }
    }

    @Test func epochsFollowEachOther() throws {
        let store = MemoryStore(size: 20 * 4096)
        let log = try OriginalImageLog(store, settings: Fixture.settings())
        #expect(log.finding == .blank)
        #expect(throws: LogError.self) { try Fixture.append([1], to: log) }
        try log.begin(number: 1, uuid: Fixture.epoch, institutedAt: 1)
        try Fixture.append([1, 2, 4], to: log)
        #expect(throws: LogError.wrongState(.open)) {
            try log.begin(number: 2, uuid: UUID(), institutedAt: 2)
        }
        _ = try log.end()
        #expect(throws: LogError.wrongState(.ended)) { try Fixture.append([5], to: log) }
        #expect(try OriginalImageLog(store, settings: Fixture.settings()).finding == .retained)
        try log.release()
        #expect(try OriginalImageLog(store, settings: Fixture.settings()).finding == .unused)
        try log.begin(number: 2, uuid: UUID(), institutedAt: 2)
        #expect(!log.contains(1))
        try Fixture.append([1], to: log)
        // Epoch 1's batches lie behind it and are not taken for its own.
        #expect(try LogReader(store).index().entries.map(\.chunk) == [1])
        // A writer of epoch 1 that comes late finds it over.
        #expect(throws: LogError.wrongState(.released)) {
            try Fixture.append([2], to: log, epoch: Fixture.epoch)
        }
        log.void("the wrong one", epoch: Fixture.epoch)
        #expect(log.epoch?.state == .open && log.head.entries == 1)
        log.void("a test", epoch: try #require(log.epoch?.uuid))
        let again = try OriginalImageLog(store, settings: Fixture.settings())
        #expect(again.finding == .retained && again.epoch?.voidReason == "a test")
    }

    @Test(arguments: [LogDurability.process, .power])
    func manyThreadsShareBatches(durability: LogDurability) throws {
        let geometry = ChunkGeometry(volumeSize: 4096 * 4000, chunkSize: 4096)!
        let store = CountingStore(size: 4096 * 4000 + (8 << 20))
        let log = try OriginalImageLog(store, settings: Fixture.settings(durability, geometry: geometry))
        try log.begin(number: 1, uuid: Fixture.epoch, institutedAt: 1)
        let before = store.durableWrites.load(ordering: .relaxed)
        runThreads(8) { thread in
            for step in 0..<100 {
                let first = UInt64(thread * 500 + step * 5)
                try Fixture.append(Array(first..<first + UInt64(step % 5 + 1)), to: log)
                #expect(try log.original(of: first) == Fixture.original(first, geometry))
            }
        }
        let head = log.head
        #expect(head.entries == 8 * 300)
        #expect(head.sequence <= 800)
        let flushes = store.durableWrites.load(ordering: .relaxed) - before
        #expect(flushes == (durability == .power ? Int(head.sequence) : 0))
        let reader = try LogReader(store)
        #expect(try reader.verify() == head)
        #expect(try reader.index().entries.count == 2400)
    }

    @Test func moreThanABatchTakes() throws {
        let geometry = ChunkGeometry(volumeSize: 4096 * 600, chunkSize: 4096)!
        let store = MemoryStore(size: 4096 * 700)
        let log = try OriginalImageLog(store, settings: Fixture.settings(geometry: geometry))
        try log.begin(number: 1, uuid: Fixture.epoch, institutedAt: 1)
        try Fixture.append(Array(0..<600), to: log)
        #expect(log.head.sequence == 3 && log.head.entries == 600)
        #expect(try LogReader(store).verify() == log.head)
    }

    @Test func aFullLogThrowsAndStaysWhole() throws {
        let store = MemoryStore(size: 8192 + 3 * 4096)
        let log = try OriginalImageLog(store, settings: Fixture.settings())
        try log.begin(number: 1, uuid: Fixture.epoch, institutedAt: 1)
        try Fixture.append([0], to: log)
        #expect(throws: LogError.full) { try Fixture.append([1], to: log) }
        try Fixture.append([3], to: log)  // zeros: a header alone still fits
        #expect(try LogReader(store).verify() == log.head)
        #expect(log.head.entries == 2)
    }
}

@Suite struct RecoveryTests {
    @Test func anOpenEpochResumes() throws {
        let store = try Fixture.store()
        let log = try OriginalImageLog(store, settings: Fixture.settings())
        #expect(log.finding == .resumed(entries: 6))
        try Fixture.append([6], to: log)
        #expect(try log.original(of: 10) == Fixture.original(10))
        #expect(try log.original(of: 6) == Fixture.original(6))
        #expect(try LogReader(store).verify() == log.head)
    }

    /// The last batch torn at any of its bytes: it is dropped, or it is whole.
    @Test func aTornTailIsDropped() throws {
        let store = try Fixture.store()
        let whole = try Fixture.contents(store)
        let last = 8192 + 5 * 4096  // the header of batch 2; two originals follow
        for cut in stride(from: last, to: last + 3 * 4096, by: 97) {
            var bytes = whole
            for index in cut..<last + 3 * 4096 { bytes[index] = 0xA5 }
            let torn = MemoryStore(bytes)
            let log = try OriginalImageLog(torn, settings: Fixture.settings())
            #expect(log.finding == .resumed(entries: 4), "cut at \(cut)")
            try Fixture.append([4, 7, 8], to: log)
            #expect(try LogReader(torn).verify() == log.head)
            #expect(try log.original(of: 4) == Fixture.original(4))
        }
    }

    @Test func anEpochWhoseInstantHadNotComeIsVoid() throws {
        let store = MemoryStore(size: 1 << 20)
        do {
            let log = try OriginalImageLog(store, settings: Fixture.settings())
            try log.begin(number: 1, uuid: Fixture.epoch, institutedAt: LogEpoch.notInstituted)
            try Fixture.append([4], to: log)
        }
        let again = try OriginalImageLog(
            MemoryStore(store.bytes(at: 0, count: 1 << 20)), settings: Fixture.settings())
        #expect(
            again.finding == .lost && again.epoch?.voidReason.contains("before the epoch's instant") == true)
        let log = try OriginalImageLog(store, settings: Fixture.settings())
        try log.release()
        try log.begin(number: 2, uuid: UUID(), institutedAt: LogEpoch.notInstituted)
        try log.stamp(institutedAt: 7)
        #expect(try OriginalImageLog(store, settings: Fixture.settings()).finding == .resumed(entries: 0))
    }

    @Test func bootIdAndDurability() throws {
        let power = try OriginalImageLog(
            try Fixture.store(durability: .power), settings: Fixture.settings(.power, boot: Fixture.otherBoot)
        )
        #expect(power.finding == .resumed(entries: 6))
        let store = try Fixture.store(durability: .process)
        let process = try OriginalImageLog(store, settings: Fixture.settings(boot: Fixture.otherBoot))
        #expect(process.finding == .lost && process.epoch?.state == .void)
        #expect(process.epoch?.voidReason.contains("restarted") == true)
        #expect(try LogSuperblock.read(from: store)[0].epoch?.state == .void)
    }

    @Test func aTornSuperblockFallsBack() throws {
        let store = try Fixture.store()
        let inForce = try LogSuperblock.read(from: store)[0]
        try store.write([1, 2, 3], at: inForce.position + 100)
        #expect(try LogSuperblock.read(from: store)[0].generation == inForce.generation - 1)
        #expect(throws: LogError.self) { try LogReader(store, wantsBothSuperblocks: true) }
        try store.write([1, 2, 3], at: 4096 - inForce.position + 100)
        #expect(throws: LogError.corrupt("the superblock at 4096")) {
            try OriginalImageLog(store, settings: Fixture.settings())
        }
    }

    @Test func whatIsNotOursIsRefused() throws {
        let other = UUID()
        #expect(throws: LogError.otherVolume(found: Fixture.volume, expected: other)) {
            try OriginalImageLog(try Fixture.store(), settings: Fixture.settings(volume: other))
        }
        var bytes = [UInt8](repeating: 0, count: 20 * 4096)
        bytes[65536 + 64] = 1  // as far behind as some file systems put their superblock
        #expect(throws: LogError.foreignContents) {
            try OriginalImageLog(MemoryStore(bytes), settings: Fixture.settings())
        }
        #expect(throws: LogError.tooSmall(needed: 16384, available: 16383)) {
            try OriginalImageLog(MemoryStore(size: 16383), settings: Fixture.settings())
        }
        let resized = ChunkGeometry(volumeSize: 10 * 4096, chunkSize: 4096)!
        let store = try Fixture.store()
        let before = try Fixture.contents(store)
        #expect(throws: LogError.otherGeometry("a volume of 41960 bytes")) {
            try OriginalImageLog(store, settings: Fixture.settings(geometry: resized))
        }
        #expect(try Fixture.contents(store) == before)
    }

    @Test func anotherVersionIsNotDamage() throws {
        let store = try Fixture.store()
        var block = try store.bytes(at: 0, count: 4096)
        block[11] = 3
        let sum = CRC32C.checksum(block.prefix(4092))
        withUnsafeBytes(of: sum.bigEndian) { for (i, byte) in $0.enumerated() { block[4092 + i] = byte } }
        try store.write(block, at: 0)
        #expect(throws: LogError.unsupportedVersion(3)) {
            try OriginalImageLog(store, settings: Fixture.settings())
        }
    }

    /// Every byte of superblocks, headers, originals and padding matters to a verifier.
    @Test func everyFlippedByteIsFound() throws {
        let whole = try Fixture.contents(try Fixture.store(ended: true))
        let end = Int(try LogReader(MemoryStore(whole)).epoch.marker.position)
        #expect(try LogReader(MemoryStore(whole), wantsBothSuperblocks: true).verify().entries == 6)
        let store = MemoryStore(whole)
        var missed: [Int] = []
        // Each field of every block, and a sample of the rest, whose bytes all count alike.
        for index in 0..<end where index % 4096 < 160 || index % 4096 >= 4088 || index % 37 == 0 {
            let flipped = whole[index] ^ (1 << UInt8(index % 8))
            try store.write([flipped], at: UInt64(index))
            // That it throws is the point, whatever the error.
            let found = (try? LogReader(store, wantsBothSuperblocks: true).verify()) == nil
            if !found { missed.append(index) }
            try store.write([whole[index]], at: UInt64(index))
        }
        #expect(missed.isEmpty)
    }

    @Test func garbageThrows() throws {
        var random = SeededGenerator(seed: 7)
        let whole = try Fixture.contents(try Fixture.store(ended: true))
        for _ in 0..<300 {
            var bytes = whole
            for _ in 0..<Int.random(in: 1...40, using: &random) {
                let at = Int.random(in: 0..<bytes.count, using: &random)
                let count = min(Int.random(in: 1...600, using: &random), bytes.count - at)
                for i in at..<at + count { bytes[i] = UInt8.random(in: 0...255, using: &random) }
            }
            _ = try? LogReader(MemoryStore(bytes)).verify()  // throwing is right, trapping is not
            _ = try? OriginalImageLog(MemoryStore(bytes), settings: Fixture.settings())
        }
    }
}

/// Counts durable writes.
final class CountingStore: BlockStore {
    private let below: MemoryStore
    let durableWrites = Atomic<Int>(0)
    init(size: Int) { below = MemoryStore(size: size) }
    var size: UInt64 { below.size }
    var capabilities: StoreCapabilities { below.capabilities }
    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
        try below.read(at: offset, into: buffer)
    }
    func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64, durable: Bool) throws(StoreError) {
        if durable { durableWrites.wrappingAdd(1, ordering: .relaxed) }
        try below.write(buffer, at: offset, durable: durable)
    }
    func write(
        gathering list: UnsafeBufferPointer<UnsafeRawBufferPointer>, at offset: UInt64, durable: Bool
    ) throws(StoreError) {
        if durable { durableWrites.wrappingAdd(1, ordering: .relaxed) }
        try below.write(gathering: list, at: offset, durable: false)
    }
    func writeZeroes(_ range: ByteRange, options: ZeroOptions) throws(StoreError) {
        try below.writeZeroes(range, options: options)
    }
    func flush() throws(StoreError) { try below.flush() }
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

/// Runs `body` on so many threads of the system and waits for all; an error is recorded as an issue.
func runThreads(_ count: Int, _ body: @escaping @Sendable (Int) throws -> Void) {
    let running = Monitor(count)
    for thread in 0..<count {
        BlockingThread.start {
            do { try body(thread) } catch { Issue.record("thread \(thread): \(error)") }
            running.withLockAndNotify { $0 -= 1 }
        }
    }
    running.wait { $0 == 0 ? () : nil }
}
