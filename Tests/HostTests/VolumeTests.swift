import Blocks
import Foundation
import HostControl
import OriginalImage
import Synchronization
import TestSupport
import Testing

@testable import Host

@Suite struct EpochTests {
    private func pattern(_ count: Int) -> [UInt8] {
        (0..<count).map { UInt8(truncatingIfNeeded: $0 / 512 + 1) }
    }

    @Test func beginWriteEndRelease() throws {
        let before = pattern(100_000)
        let source = FaultyStore(before)
        let volume = try CopyOnWriteVolume(
            source: source, cache: FaultyStore(size: 1 << 20), settings: Fixture.settings())
        #expect(volume.snapshot == nil && volume.epochStatus == nil)
        let holder = EpochHolder()
        let epoch = try volume.begin(holder: holder)
        let uuid = UUID(uuidString: epoch.uuid)!
        #expect(epoch.isHeld && epoch.state == .open && epoch.number == 1)
        #expect(throws: ControlError.self) { try volume.begin() }
        let snapshot = try #require(volume.snapshot)
        try volume.write([UInt8](repeating: 0xEE, count: 9000), at: 95_000 - 4000)
        try volume.writeZeroes(ByteRange(offset: 10, count: 5000), options: [])
        #expect(try snapshot.bytes(at: 0, count: 100_000) == before)
        #expect(try volume.bytes(at: 95_000, count: 1) == [0xEE])
        let status = volume.status(of: HostDescriptor(source: "/s", cache: "/c", uris: [], socket: "/n"))
        #expect(status.counters.chunksPreserved == 5 && status.epoch?.isHeld == true)
        holder.release()
        #expect(volume.epochStatus?.isHeld == false)
        let marker = try volume.mark(epoch: uuid)
        #expect(try volume.end(epoch: uuid) == marker)
        #expect(try volume.end(epoch: uuid) == marker)
        #expect(throws: StoreError(.gone)) { try snapshot.bytes(at: 0, count: 1) }
        #expect(volume.snapshot == nil)
        #expect(throws: ControlError.self) { try volume.begin() }
        #expect(throws: ControlError.self) { try volume.release(epoch: UUID()) }
        try volume.release(epoch: uuid)
        #expect(try volume.begin().number == 2)
    }

    /// The gate is open before the instant is recorded; writers can have filled the cache by then.
    @Test func aCacheThatIsFullAtOnceVoidsTheEpoch() throws {
        let log = Monitor<OriginalImageLog?>(nil)
        let volume = try CopyOnWriteVolume(
            source: FaultyStore(pattern(16 * 4096)), cache: FaultyStore(size: 1 << 20),
            settings: Fixture.settings(), defects: []
        ) { checkpoint in
            guard case .instituted(let epoch) = checkpoint else { return }
            log.withLock { $0 }?.void("the cache failed: full", epoch: epoch)
        }
        log.withLock { $0 = volume.log }
        let failure = #expect(throws: ControlError.self) { try volume.begin() }
        #expect(failure?.code == .epochVoid && failure?.message.contains("full") == true)
        log.withLock { $0 = nil }
        #expect(try volume.begin().number == 2)
    }

    @Test func trimsCostNoCache() throws {
        let before = pattern(16 * 4096)
        let volume = try CopyOnWriteVolume(
            source: FaultyStore(before), cache: FaultyStore(size: 1 << 20), settings: Fixture.settings())
        _ = try volume.begin()
        try volume.write([1, 2, 3], at: 2 * 4096)
        try volume.trim(ByteRange(offset: 0, count: 16 * 4096), durable: true)
        #expect(volume.log.head.entries == 1)
        // Only the preserved chunk was trimmed.
        var expected = before
        expected.replaceSubrange(2 * 4096..<3 * 4096, with: repeatElement(0, count: 4096))
        #expect(try volume.bytes(at: 0, count: before.count) == expected)
        #expect(try volume.snapshot?.bytes(at: 0, count: before.count) == before)
    }

    @Test func anOpenEpochResumesWithTheProcess() throws {
        let before = pattern(50_000)
        let (source, cache) = (FaultyStore(before), FaultyStore(size: 1 << 20))
        var volume = try CopyOnWriteVolume(source: source, cache: cache, settings: Fixture.settings())
        let epoch = try volume.begin(holder: EpochHolder())
        try volume.write([9, 9], at: 5000)
        volume = try CopyOnWriteVolume(source: source, cache: cache, settings: Fixture.settings())
        #expect(volume.epochStatus?.uuid == epoch.uuid && volume.epochStatus?.isHeld == false)
        try volume.write([8, 8], at: 5001)
        try volume.write([7, 7], at: 49_000)
        #expect(try volume.snapshot?.bytes(at: 0, count: 50_000) == before)
        #expect(volume.log.head.entries == 2)
    }

    @Test func aDecayedOriginalIsNotHandedOut() throws {
        let cache = FaultyStore(size: 1 << 20)
        let volume = try CopyOnWriteVolume(
            source: FaultyStore(pattern(50_000)), cache: cache, settings: Fixture.settings())
        _ = try volume.begin()
        try volume.write([9, 9], at: 0)
        try cache.write([0xFF], at: 8192 + 4096 + 17)
        #expect(throws: StoreError(.corrupt)) { try volume.snapshot?.bytes(at: 100, count: 1) }
    }
}

@Suite struct CacheFailureTests {
    private func volume(_ cacheSize: Int, _ settings: VolumeSettings) throws -> (
        CopyOnWriteVolume, FaultyStore
    ) {
        let cache = FaultyStore(size: cacheSize)
        return (
            try CopyOnWriteVolume(
                source: FaultyStore([UInt8](repeating: 1, count: 100_000)), cache: cache, settings: settings),
            cache
        )
    }

    @Test func aFullCacheAbandonsTheEpochAndNotTheWrite() throws {
        let (volume, _) = try volume(8192 + 2 * 8192, Fixture.settings())
        let epoch = try volume.begin()
        let uuid = UUID(uuidString: epoch.uuid)!
        let snapshot = try #require(volume.snapshot)
        for chunk in 0..<20 { try volume.write([2], at: UInt64(chunk) * 4096) }
        #expect(try volume.bytes(at: 19 * 4096, count: 1) == [2])
        #expect(volume.epochStatus?.state == .void)
        #expect(volume.epochStatus?.voidReason?.contains("full") == true)
        #expect(throws: StoreError(.gone)) { try snapshot.bytes(at: 0, count: 1) }
        #expect { try volume.end(epoch: uuid) } throws: { ($0 as? ControlError)?.code == .epochVoid }
        try volume.release(epoch: uuid)
        #expect(try volume.begin().number == 2)
    }

    @Test func aFailedCacheAbandons() throws {
        let (volume, cache) = try volume(1 << 20, Fixture.settings())
        let epoch = try volume.begin()
        cache.failsWrites.store(true, ordering: .relaxed)
        try volume.write([2], at: 0)
        #expect(volume.epochStatus?.state == .void)
        cache.failsWrites.store(false, ordering: .relaxed)
        try volume.close()
        #expect(try LogSuperblock.read(from: cache)[0].epoch?.state == .void)
        try volume.release(epoch: UUID(uuidString: epoch.uuid)!)
    }

    @Test func aFailedFlushAtTheEndVoids() throws {
        let (volume, cache) = try volume(1 << 20, Fixture.settings())
        let epoch = try volume.begin()
        cache.failsFlushes.store(true, ordering: .relaxed)
        #expect { try volume.end(epoch: UUID(uuidString: epoch.uuid)!) } throws: {
            ($0 as? ControlError)?.code == .epochVoid
        }
        #expect(volume.epochStatus?.state == .void)
    }

    @Test func aBlockedWriteGoesOnWhenTheEpochEnds() throws {
        let (volume, _) = try volume(8192 + 8192, Fixture.settings(policy: .block))
        let epoch = try volume.begin(holder: EpochHolder())
        try volume.write([2], at: 0)
        let writer = Worker { try volume.write([2], at: 8192) }
        while volume.isPrompt { sched_yield() }
        #expect(!writer.isDone && volume.epochStatus?.state == .open)
        let marker = try volume.end(epoch: UUID(uuidString: epoch.uuid)!)
        writer.join()
        #expect(marker.entries == 1 && volume.isPrompt)
        #expect(try volume.bytes(at: 8192, count: 1) == [2])
    }

    @Test("Nobody will end an epoch that nobody holds: no write waits for it")
    func aWriteWaitsOnlyForAnEpochThatIsHeld() throws {
        let settings = Fixture.settings(policy: .block)
        let (volume, _) = try volume(8192 + 8192, settings)
        let holder = EpochHolder()
        _ = try volume.begin(holder: holder)
        try volume.write([2], at: 0)
        // The agent dies before the write comes.
        holder.release()
        try volume.write([2], at: 8192)
        #expect(volume.epochStatus?.state == .void)
        #expect(volume.epochStatus?.voidReason?.contains("full") == true)
    }

    @Test func aWaitingWriteGoesOnWhenTheHolderIsGone() throws {
        let settings = Fixture.settings(policy: .block)
        let (volume, _) = try volume(8192 + 8192, settings)
        let holder = EpochHolder()
        _ = try volume.begin(holder: holder)
        try volume.write([2], at: 0)
        let writer = Worker { try volume.write([2], at: 8192) }
        while volume.isPrompt { sched_yield() }
        #expect(volume.epochStatus?.state == .open)
        volume.disconnect(holder)
        writer.join()
        #expect(volume.epochStatus?.state == .void)
    }

    /// For as long as is allowed, and not a nanosecond longer; half a minute where nothing else is said.
    @Test func aBlockedWriteAbandonsAtItsTimeout() async {
        await #expect(processExitsWith: .success) {
            let clock = PatientClock.start()
            for (allowed, fails) in [(0.05, false), (0.5, true), (HostLimits.blockSeconds, false)] {
                let cache = FaultyStore(size: 8192 + 8192)
                var settings = VolumeSettings(
                    uuid: Fixture.volume, chunkSize: 4096, durability: .process, onCacheFull: .block,
                    boot: Fixture.boot)
                if allowed != HostLimits.blockSeconds { settings.blockSeconds = allowed }
                let volume = try CopyOnWriteVolume(
                    source: FaultyStore([UInt8](repeating: 1, count: 40_960)), cache: cache,
                    settings: settings, defects: [])
                _ = try volume.begin(holder: EpochHolder())
                try volume.write([2], at: 0)
                cache.failsWrites.store(fails, ordering: .relaxed)
                let start = clock.now
                try volume.write([2], at: 4096)
                #expect(clock.now - start == UInt64(allowed * 1e9), "\(allowed) \(fails)")
                try volume.write([2], at: 8192)
                #expect(clock.now - start == UInt64(allowed * 1e9))
                #expect(volume.epochStatus?.state == .void)
                #expect(try volume.bytes(at: 4096, count: 1) == [2])
            }
        }
    }

    @Test func aBlockedWriteGoesOnWhenTheCacheComesBack() throws {
        let (volume, cache) = try volume(1 << 20, Fixture.settings(policy: .block))
        _ = try volume.begin(holder: EpochHolder())
        cache.failsWrites.store(true, ordering: .relaxed)
        let writer = Worker { try volume.write([2], at: 8192) }
        while volume.isPrompt { sched_yield() }
        cache.failsWrites.store(false, ordering: .relaxed)
        writer.join()
        #expect(volume.epochStatus?.state == .open && volume.log.head.entries == 1)
        #expect(try volume.snapshot?.bytes(at: 8192, count: 1) == [1])
    }
}

@Suite struct InterleavingTests {
    private func volume(_ turnstile: Turnstile) throws -> CopyOnWriteVolume {
        try CopyOnWriteVolume(
            source: FaultyStore([UInt8](repeating: 1, count: 40_960)), cache: FaultyStore(size: 1 << 20),
            settings: Fixture.settings(), defects: [], hook: { turnstile.pass($0) })
    }

    /// writer: in the gate, held │ institution: waits for it.
    @Test func institutionWaitsForTheWriterInTheGate() throws {
        let turnstile = Turnstile()
        let volume = try volume(turnstile)
        turnstile.hold(at: .passedGate)
        let writer = Worker { try volume.write([2], at: 0) }
        turnstile.waitForArrival()
        let institution = Worker { _ = try volume.begin() }
        while volume.isPrompt { sched_yield() }  // the gate is closed
        #expect(!institution.isDone && !writer.isDone)
        turnstile.open()
        institution.join()
        writer.join()
        #expect(try volume.snapshot?.bytes(at: 0, count: 1) == [2])  // it came before the instant
    }

    /// writer A: claimed, held │ writer B, same chunk: waits │ A goes on │ both written, one original.
    @Test func aSecondWriterOfTheChunkWaits() throws {
        let turnstile = Turnstile()
        let volume = try volume(turnstile)
        _ = try volume.begin()
        turnstile.hold(at: .claimed)
        let first = Worker { try volume.write([2], at: 0) }
        turnstile.waitForArrival()
        let second = Worker { try volume.write([3], at: 1) }
        #expect(try volume.bytes(at: 0, count: 2) == [1, 1])
        turnstile.open()
        first.join()
        second.join()
        #expect(volume.log.head.entries == 1)
        #expect(try volume.bytes(at: 0, count: 2) == [2, 3])
        #expect(try volume.snapshot?.bytes(at: 0, count: 2) == [1, 1])
    }

    /// reader: has read the source, held │ writer: preserves and overwrites │ reader: looks again.
    @Test func aSnapshotReadLooksAgain() throws {
        let turnstile = Turnstile()
        let volume = try volume(turnstile)
        _ = try volume.begin()
        let snapshot = try #require(volume.snapshot)
        let seen = Monitor<[UInt8]>([])
        turnstile.hold(at: .readSource)
        let reader = Worker {
            let bytes = try snapshot.bytes(at: 0, count: 8192)
            seen.withLock { $0 = bytes }
        }
        turnstile.waitForArrival()
        try volume.write([UInt8](repeating: 2, count: 4096), at: 0)
        turnstile.open()
        reader.join()
        #expect(seen.withLock { $0 } == [UInt8](repeating: 1, count: 8192))
    }

    /// writer: has read originals for epoch 1, held │ epoch 1 ends or becomes void, is released; epoch 2 begins
    /// │ writer goes on: its originals are no part of epoch 2.
    @Test(arguments: [false, true])
    func aLateWriterDoesNotCommitToTheNextEpoch(becomesVoid: Bool) throws {
        let turnstile = Turnstile()
        let volume = try volume(turnstile)
        let first = try #require(UUID(uuidString: try volume.begin().uuid))
        turnstile.hold(at: .readOriginals)
        let writer = Worker { try volume.write([2], at: 0) }
        turnstile.waitForArrival()
        if becomesVoid {
            volume.abandon(try #require(volume.epoch), "a test")
        } else {
            _ = try volume.end(epoch: first)
        }
        try volume.release(epoch: first)
        let institution = Worker { _ = try volume.begin() }
        while volume.isPrompt { sched_yield() }  // the gate is closed: the log is epoch 2's
        turnstile.open()
        writer.join()
        institution.join()
        #expect(volume.epochStatus?.number == 2 && volume.epochStatus?.state == .open)
        #expect(volume.log.head.entries == 0)
        guard volume.log.head.entries == 0 else { return }
        try volume.write([3], at: 0)
        #expect(volume.log.head.entries == 1)
        #expect(try volume.snapshot?.bytes(at: 0, count: 2) == [2, 1])
        let resumed = try CopyOnWriteVolume(
            source: volume.source, cache: volume.log.store, settings: Fixture.settings(), defects: [])
        #expect(resumed.log.finding == .resumed(entries: 1))
    }

    /// writer: has claimed for epoch 1, held │ epoch 2 begins │ writer cannot read its original: no harm to
    /// epoch 2.
    @Test func aLateWritersTroubleDoesNotVoidTheNextEpoch() throws {
        let turnstile = Turnstile()
        let source = FaultyStore([UInt8](repeating: 1, count: 40_960))
        let volume = try CopyOnWriteVolume(
            source: source, cache: FaultyStore(size: 1 << 20), settings: Fixture.settings(), defects: [],
            hook: { turnstile.pass($0) })
        let first = try #require(UUID(uuidString: try volume.begin().uuid))
        turnstile.hold(at: .claimed)
        let writer = Worker { try volume.write([2], at: 0) }
        turnstile.waitForArrival()
        _ = try volume.end(epoch: first)
        try volume.release(epoch: first)
        let institution = Worker { _ = try volume.begin() }
        while volume.isPrompt { sched_yield() }
        source.failsReads.store(true, ordering: .relaxed)
        turnstile.open()
        writer.join()
        institution.join()
        source.failsReads.store(false, ordering: .relaxed)
        #expect(volume.epochStatus?.number == 2 && volume.epochStatus?.state == .open)
        #expect(try volume.snapshot?.bytes(at: 0, count: 2) == [2, 1])
    }
}

@Suite struct FreezeTests {
    private func volume() throws -> CopyOnWriteVolume {
        try CopyOnWriteVolume(
            source: FaultyStore([UInt8](repeating: 1, count: 40_960)), cache: FaultyStore(size: 1 << 20),
            settings: Fixture.settings())
    }

    @Test func writesWaitReadsDoNot() throws {
        let volume = try volume()
        try volume.freeze(timeout: 100)
        #expect(!volume.isPrompt && volume.isFrozen)
        #expect { try volume.freeze(timeout: 1) } throws: { ($0 as? ControlError)?.code == .frozen }
        let writer = Worker { try volume.write([2], at: 0) }
        #expect(try volume.bytes(at: 0, count: 1) == [1])
        _ = try volume.begin()
        #expect(!volume.isPrompt && !writer.isDone)
        #expect(volume.thaw())
        writer.join()
        #expect(!volume.thaw() && volume.isPrompt)
        #expect(try volume.snapshot?.bytes(at: 0, count: 1) == [1])
        #expect(try volume.bytes(at: 0, count: 1) == [2])
    }

    /// What an event loop may do: nothing that waits at the gate, nothing that has to preserve.
    @Test func aPromptWriteDoesNotWait() throws {
        let volume = try volume()
        func writePromptly(_ bytes: [UInt8], at offset: UInt64) throws -> Bool {
            try bytes.withUnsafeBytes { try volume.writePromptly($0, at: offset) }
        }
        #expect(try writePromptly([2], at: 0))
        try volume.freeze(timeout: 60)
        #expect(try !writePromptly([3], at: 0))
        #expect(volume.thaw())
        _ = try volume.begin()
        #expect(try !writePromptly([4], at: 0))
        #expect(volume.log.head.entries == 0)
        #expect(try volume.bytes(at: 0, count: 1) == [2])
        try volume.write([5], at: 0)
        #expect(try writePromptly([6], at: 1))
        #expect(try !writePromptly([7, 7], at: 4095))  // the second chunk is not preserved
        #expect(try volume.bytes(at: 0, count: 2) == [5, 6])
        #expect(try volume.snapshot?.bytes(at: 0, count: 1) == [2])
        #expect(volume.log.head.entries == 1)
    }

    @Test func itThawsByItself() throws {
        let volume = try volume()
        try volume.freeze(timeout: 0.5)
        try volume.write([2], at: 0)  // returns when the freeze has timed out
        #expect(!volume.thaw())
        #expect(throws: ControlError.self) { try volume.freeze(timeout: 0) }
        #expect(throws: ControlError.self) { try volume.freeze(timeout: 301) }
    }

    @Test func aWriterThatIsStuckDoesNotFreezeForEver() throws {
        let turnstile = Turnstile()
        let volume = try CopyOnWriteVolume(
            source: FaultyStore(size: 40_960), cache: FaultyStore(size: 1 << 20),
            settings: Fixture.settings(), defects: [], hook: { turnstile.pass($0) })
        turnstile.hold(at: .passedGate)
        let writer = Worker { try volume.write([2], at: 0) }
        turnstile.waitForArrival()
        #expect(throws: ControlError.self) { try volume.freeze(timeout: 0.05) }
        #expect(!volume.isFrozen && volume.isPrompt)
        turnstile.open()
        writer.join()
    }
}
