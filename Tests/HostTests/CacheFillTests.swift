import Blocks
import Foundation
import HostControl
import OriginalImage
import TestSupport
import Testing

@testable import Host

/// What the cache holds, how fast it fills, and what it takes to be larger.
@Suite struct CacheFillTests {
    private let place = HostDescriptor(source: "/s", cache: "/c", uris: [], socket: "/n")

    private func expect(
        _ code: ControlError.Code, sourceLocation: SourceLocation = #_sourceLocation,
        _ body: () throws -> Void
    ) {
        #expect(sourceLocation: sourceLocation) { try body() } throws: {
            ($0 as? ControlError)?.code == code
        }
    }

    // MARK: Accounting

    /// After every write, zero originals and many at once included, it is what the log holds, to the byte.
    @Test func whatIsUsedIsWhatTheLogHolds() throws {
        let size = 64 * 4096 + 1000
        var contents = seededBytes(size, seed: 1)
        contents.replaceSubrange(20 * 4096..<30 * 4096, with: repeatElement(0, count: 10 * 4096))
        let cache = FaultyStore(size: 1 << 20)
        let volume = try CopyOnWriteVolume(
            source: FaultyStore(contents), cache: cache, settings: Fixture.settings(), defects: [])
        func used() -> UInt64 { volume.status(of: place).cacheUsed }
        #expect(used() == 8192)
        let epoch = try #require(UUID(uuidString: try volume.begin(holder: EpochHolder()).uuid))
        var random = SeededGenerator(seed: 2)
        for _ in 0..<60 {
            let offset = Int.random(in: 0..<size, using: &random)
            let count = Int.random(in: 1...min(20_000, size - offset), using: &random)
            try volume.write([UInt8](repeating: 9, count: count), at: UInt64(offset))
            let end = try LogReader(cache).verify()
            #expect(used() == end.position && volume.log.head == end)
        }
        let status = volume.status(of: place)
        let headers = status.counters.batches * 4096
        let originals = status.counters.chunksPreserved - status.counters.zeroChunks
        #expect(status.cacheUsed == 8192 + headers + originals * 4096)
        #expect(try volume.end(epoch: epoch).position == used())
        try volume.release(epoch: epoch)
        #expect(used() == 8192)
    }

    // MARK: The forecast

    private static let second: UInt64 = 1_000_000_000

    @Test func theForecastIsOfTheLastSeconds() {
        let meter = FillMeter()
        func full(_ used: UInt64, at time: UInt64) -> Double? {
            meter.secondsToFull(used: used, capacity: 100_000, at: time * Self.second)
        }
        #expect(full(1000, at: 100) == nil)
        // 1000 bytes a second from the start, then 2000.
        var used: UInt64 = 8192
        for time: UInt64 in 100..<110 {
            meter.note(at: time * Self.second) { used }
            if time == 100 { #expect(full(used, at: time) == nil) }
            used += 1000
        }
        #expect(full(used, at: 110) == Double(100_000 - used) / 1000)
        for time: UInt64 in 110..<130 {
            meter.note(at: time * Self.second) { used }
            used += 2000
        }
        #expect(full(used, at: 130) == Double(100_000 - used) / 2000)
        #expect(full(100_000, at: 130) == 0)
        // Nothing more comes: it does not fill any more.
        #expect(full(used, at: 131) != nil && full(used, at: 200) == nil)
        meter.note(at: 200 * Self.second) { used }
        #expect(full(used, at: 202) == nil)
        #expect(full(used + 4000, at: 202) == Double(100_000 - used - 4000) / 2000)
    }

    /// One sample an interval, however many notes.
    @Test func notesBetweenTwoSamplesAskForNothing() {
        let meter = FillMeter()
        var asked = 0
        for step: UInt64 in 0..<1000 {
            meter.note(at: 7 * Self.second + step * Self.second / 100) {
                asked += 1
                return step
            }
        }
        #expect(asked == 10)
    }

    /// `volume.status` foretells when a cache that fills at one pace is full, and then it is.
    @Test func whatIsForetoldComesTrue() async {
        await #expect(processExitsWith: .success) {
            let clock = PatientClock.start()
            let volume = try CopyOnWriteVolume(
                source: FaultyStore([UInt8](repeating: 1, count: 64 * 4096)),
                cache: FaultyStore(size: 40 * 8192), settings: Fixture.settings(), defects: [])
            let place = HostDescriptor(source: "/s", cache: "/c", uris: [], socket: "/n")
            var status: VolumeStatus { volume.status(of: place) }
            _ = try volume.begin(holder: EpochHolder())
            #expect(status.secondsToFull == nil)
            var next: UInt64 = 0
            /// A batch of two blocks.
            func preserveOne() throws {
                try volume.write([2], at: next * 4096)
                next += 1
            }
            try preserveOne()
            #expect(status.secondsToFull == nil)
            for _ in 0..<5 {
                clock.pass(seconds: 2)
                try preserveOne()
            }
            let batchesLeft = (status.cacheCapacity - status.cacheUsed) / 8192
            let told = try #require(status.secondsToFull)
            #expect(batchesLeft == 33 && abs(told - 66) < 1e-6, "\(told)")
            for left in stride(from: 64.0, through: 0, by: -2) {
                clock.pass(seconds: 2)
                try preserveOne()
                #expect(abs((status.secondsToFull ?? -1) - left) < 1e-6, "\(status.secondsToFull ?? -1)")
            }
            #expect(status.cacheUsed == status.cacheCapacity && status.epoch?.state == .open, "\(status)")
            try preserveOne()
            #expect(status.epoch?.state == .void && status.secondsToFull == nil)
        }
    }

    @Test func onlyAnOpenEpochHasOne() throws {
        let volume = try CopyOnWriteVolume(
            source: FaultyStore(size: 64 * 4096), cache: FaultyStore(size: 1 << 20),
            settings: Fixture.settings(), defects: [])
        #expect(volume.status(of: place).secondsToFull == nil)
        let epoch = try #require(UUID(uuidString: try volume.begin().uuid))
        try volume.write([1], at: 0)
        let open = try #require(volume.epoch)
        // As if the first sample were two seconds old.
        let aged = FillMeter()
        aged.note(at: MonotonicClock.now - 2 * Self.second) { 8192 }
        let forecast = aged.secondsToFull(
            used: volume.log.usedBytes, capacity: volume.log.totalCapacity, at: MonotonicClock.now)
        #expect(forecast.map { $0 > 0 && $0.isFinite } == true)
        #expect(
            open.fill.secondsToFull(used: .max, capacity: 1, at: MonotonicClock.now + 5 * Self.second) == 0)
        _ = try volume.end(epoch: epoch)
        #expect(volume.status(of: place).secondsToFull == nil)
    }

    // MARK: Growth

    /// writers: wait for a full cache │ administrator: lets it take more │ writers: go on, and the epoch is whole.
    @Test func blockedWritersGoOnWhenTheCacheGrows() throws {
        let cache = FaultyStore(size: 8192 + 8192, room: 1 << 20)
        let volume = try CopyOnWriteVolume(
            source: FaultyStore([UInt8](repeating: 1, count: 100_000)), cache: cache,
            settings: Fixture.settings(policy: .block), defects: [])
        let epoch = try #require(UUID(uuidString: try volume.begin(holder: EpochHolder()).uuid))
        try volume.write([2], at: 0)
        let writers = (1...3).map { chunk in
            Worker { try volume.write([2], at: UInt64(chunk) * 4096) }
        }
        while volume.blockedWrites.load(ordering: .relaxed) < 3 { sched_yield() }
        // Room for one of them, or none if they are in one batch, then for all.
        #expect(try volume.grow(to: 16384 + 8192) == 16384 + 8192)
        #expect(try volume.grow(to: 1 << 20) == 1 << 20)
        for writer in writers { writer.join() }
        #expect(cache.size == 1 << 20 && volume.epochStatus?.state == .open && volume.isPrompt)
        #expect(try volume.snapshot?.bytes(at: 0, count: 4 * 4096) == [UInt8](repeating: 1, count: 4 * 4096))
        #expect(volume.status(of: place).cacheCapacity == 1 << 20)
        let left = volume.log.head
        let resumed = try CopyOnWriteVolume(
            source: volume.source, cache: FaultyStore(cache.bytes(at: 0, count: 1 << 20)),
            settings: Fixture.settings(), defects: [])
        #expect(resumed.log.head == left && resumed.log.totalCapacity == 1 << 20)
        #expect(try volume.end(epoch: epoch).entries == 4)
    }

    @Test func whatCannotGrow() throws {
        let cache = FaultyStore(size: 1 << 16, room: 1 << 17)
        let volume = try CopyOnWriteVolume(
            source: FaultyStore(size: 100_000), cache: cache, settings: Fixture.settings(), defects: [])
        expect(.invalidParameters) { _ = try volume.grow(to: (1 << 16) - 1) }
        expect(.invalidParameters) { _ = try volume.grow(to: .max) }
        expect(.io) { _ = try volume.grow(to: (1 << 17) + 4096) }
        #expect(try volume.grow(to: (1 << 16) + 4095) == 1 << 16)
        #expect(volume.status(of: place).cacheCapacity == 1 << 16)
        #expect(try volume.grow(to: 1 << 17) == 1 << 17)
        // The epoch that begins now has it.
        _ = try volume.begin()
        #expect(try LogSuperblock.read(from: cache)[0].capacity == 1 << 17)
        // The superblock cannot be written: it may not take what it could.
        let other = FaultyStore(size: 1 << 16, room: 1 << 17)
        let failing = try CopyOnWriteVolume(
            source: FaultyStore(size: 100_000), cache: other, settings: Fixture.settings(), defects: [])
        _ = try failing.begin()
        other.failsWrites.store(true, ordering: .relaxed)
        expect(.io) { _ = try failing.grow(to: 1 << 17) }
        #expect(failing.log.totalCapacity == 1 << 16)
        other.failsWrites.store(false, ordering: .relaxed)
        try failing.endStandstills(force: true)
        expect(.ending) { _ = try failing.grow(to: 1 << 17) }
    }

    // MARK: The watermark's worth

    /// Under overwrites at random, so many for each chunk that is copied: what the cache takes until the raw pass is
    /// over. Without the watermark every chunk overwritten at least once, 1 − e^(−w) of them; with it only those that
    /// were overwritten before they were passed, 1 − (1 − e^(−w)) / w.
    @Test(arguments: [1, 5, 10, 20])
    func theWatermarkSavesCache(tenths: Int) throws {
        let chunks: UInt64 = 2048
        func cacheBytes(_ usesWatermark: Bool) throws -> UInt64 {
            let volume = try CopyOnWriteVolume(
                source: FaultyStore([UInt8](repeating: 1, count: Int(chunks) * 4096)),
                cache: FaultyStore(size: 20 << 20), settings: Fixture.settings(), defects: [])
            let epoch = try #require(UUID(uuidString: try volume.begin(holder: EpochHolder()).uuid))
            var random = SeededGenerator(seed: 3)
            for copied in 0..<chunks {
                if usesWatermark, copied % 16 == 0, copied > 0 {
                    let last = VolumeExtent(offset: (copied - 16) * 4096, count: 16 * 4096)
                    try volume.passed([last], epoch: epoch)
                }
                let writes = (Int(copied) + 1) * tenths / 10 - Int(copied) * tenths / 10
                for _ in 0..<writes {
                    try volume.write([2], at: UInt64.random(in: 0..<chunks, using: &random) * 4096)
                }
            }
            return volume.status(of: place).cacheUsed - 8192
        }
        let (with, without) = (try cacheBytes(true), try cacheBytes(false))
        let ratio = Double(with) / Double(without)
        let perChunk = Double(tenths) / 10
        let overwritten = 1 - Foundation.exp(-perChunk)
        let expected = (1 - overwritten / perChunk) / overwritten
        print(
            "watermark, \(Double(tenths) / 10) overwrites a chunk copied: \(with) of \(without) bytes, \(ratio)"
        )
        #expect(abs(ratio - expected) < 0.06, "\(ratio)")
    }
}
