import Blocks
import Foundation
import HostControl
import Logging
import OriginalImage
import TestSupport
import Testing

@testable import Host

/// The policy `restart-from` where somebody or something is not there any more.
@Suite struct RestartFailureTests {
    private let fixture = RestartFixture()

    @Test func withoutAnAgentItIsAbandoned() throws {
        let (volume, _) = try fixture.volume()
        _ = try fixture.begin(volume)
        volume.disconnect(fixture.holder)
        try fixture.write(volume, 0, 1)
        #expect(volume.epochStatus?.state == .void && volume.epochStatus?.number == 1)
        #expect(volume.epochStatus?.voidReason?.contains("full") == true)
    }

    /// The agent dies while the host begins anew: the next epoch is there, and another connection may adopt it.
    @Test func anAgentThatDiesMeanwhile() throws {
        let (volume, _) = try fixture.volume()
        let first = try fixture.begin(volume)
        fixture.turnstile.hold(at: .beginsAnew)
        try fixture.write(volume, 0, 1)
        fixture.turnstile.waitForArrival()
        volume.disconnect(fixture.holder)
        try fixture.write(volume, 2)
        fixture.turnstile.open()
        let second = try fixture.next(volume, after: first)
        #expect(volume.epochStatus?.isHeld == false)
        #expect(try volume.adopt(epoch: second, holder: EpochHolder()).restartedFrom == first.uuidString)
        #expect(try fixture.changed(volume, second) == [0, 1, 2])
    }

    @Test(arguments: [Checkpoint.beginsAnew, .begunAnew]) func theHostEndsMeanwhile(place: Checkpoint) throws
    {
        let (volume, cache) = try fixture.volume()
        let first = try fixture.begin(volume)
        fixture.turnstile.hold(at: place)
        try fixture.write(volume, 0, 1)
        fixture.turnstile.waitForArrival()
        fixture.expect(.epochOpen) { try volume.endStandstills(force: false) }
        try volume.endStandstills(force: true)
        let closing = Worker { try volume.close() }
        for _ in 0..<100 { sched_yield() }
        #expect(!closing.isDone)
        try fixture.write(volume, 3)
        fixture.turnstile.open()
        closing.join()
        #expect(volume.epochStatus?.state == .void && volume.isPrompt)
        #expect(volume.epochStatus?.voidReason?.contains("begin anew") == true)
        let isSecond = place == .begunAnew
        #expect(volume.epochStatus?.restartedFrom == (isSecond ? first.uuidString : nil))
        #expect(try OriginalImageLog(cache, settings: volume.log.settings).finding == .retained)
        // Nothing is preserved or waited for any more.
        try fixture.write(volume, 5)
    }

    /// Once it ends, no full log begins another epoch.
    @Test func aHostThatEndsDoesNotBegin() throws {
        let (volume, _) = try fixture.volume()
        _ = try fixture.begin(volume)
        try volume.endStandstills(force: true)
        try fixture.write(volume, 0, 1)
        #expect(volume.epochStatus?.state == .void && volume.epochStatus?.number == 1)
        try volume.close()
    }

    /// What a host finds that starts after a crash at that moment.
    @Test(arguments: [Checkpoint.announced, .marking, .beginsAnew, .begunAnew])
    func aCrashMeanwhile(place: Checkpoint) throws {
        let (volume, cache) = try fixture.volume()
        let first = try fixture.begin(volume)
        try fixture.write(volume, 0)
        fixture.turnstile.hold(at: place)
        let writer = Worker { try volume.write([3], at: 4096) }
        fixture.turnstile.waitForArrival()
        let (left, source) = (
            FaultyStore(try cache.bytes(at: 0, count: Int(cache.size))),
            FaultyStore(try fixture.source.bytes(at: 0, count: 100_000))
        )
        fixture.turnstile.open()
        writer.join()
        let found = try CopyOnWriteVolume(
            source: source, cache: left, settings: Fixture.settings(policy: .restartFrom), defects: [])
        switch place {
        case .announced:
            // Nothing was written without its original.
            #expect(found.epochStatus?.state == .open && found.log.finding == .resumed(entries: 1))
            #expect(try found.snapshot?.bytes(at: 0, count: 8192) == [UInt8](repeating: 1, count: 8192))
        default:
            // Whichever of the two it is: nobody's copy goes on with it.
            #expect(found.epochStatus?.state == .void && found.snapshot == nil)
            #expect((found.epochStatus?.uuid == first.uuidString) == (place != .begunAnew))
        }
    }

    /// The cache takes originals no more, but superblocks: each epoch is lost with its first original, and there is an
    /// end to it.
    @Test func soOftenAndNoMore() throws {
        #expect(HostLimits.restarts == 8)
        let (volume, cache) = try fixture.volume(20)
        var epoch = try fixture.begin(volume)
        cache.failsWritesFrom.store(8192, ordering: .relaxed)
        for restart in 1...HostLimits.restarts {
            try fixture.write(volume, UInt64(restart))
            epoch = try fixture.next(volume, after: epoch)
            #expect(volume.epochStatus?.restarts == UInt64(restart))
        }
        #expect(try fixture.changed(volume, epoch) == Array(1...8))
        try fixture.write(volume, 20)
        #expect(volume.epochStatus?.state == .void && volume.epochStatus?.restarts == 8)
        #expect(volume.epochStatus?.uuid == epoch.uuidString)
        fixture.expect(.epochVoid) { _ = try volume.end(epoch: epoch) }
        #expect(try volume.bytes(at: 20 * 4096, count: 1) == [2])
    }

    /// A cache that takes nothing: no epoch can be begun on it, and the writes go on.
    @Test func aCacheThatFails() throws {
        let (volume, cache) = try fixture.volume(20)
        let first = try fixture.begin(volume)
        cache.failsWrites.store(true, ordering: .relaxed)
        try fixture.write(volume, 0)
        let reason = fixture.waitUntilVoid(volume)
        #expect(reason.contains("could not begin anew") && volume.epochStatus?.uuid == first.uuidString)
        try fixture.write(volume, 1)
        #expect(try volume.bytes(at: 4096, count: 1) == [2])
        cache.failsWrites.store(false, ordering: .relaxed)
        fixture.expect(.epochVoid) { _ = try volume.end(epoch: first) }
        try volume.release(epoch: first)
        _ = try fixture.begin(volume)
    }

    /// One that came back in time.
    @Test func aCacheThatFailsOnce() throws {
        let (volume, cache) = try fixture.volume(20)
        let first = try fixture.begin(volume)
        cache.failsWritesFrom.store(8192, ordering: .relaxed)
        fixture.turnstile.hold(at: .beginsAnew)
        try fixture.write(volume, 0)
        fixture.turnstile.waitForArrival()
        cache.failsWritesFrom.store(.max, ordering: .relaxed)
        fixture.turnstile.open()
        let second = try fixture.next(volume, after: first)
        try fixture.write(volume, 0, 1)
        #expect(try volume.end(epoch: second).entries == 2)
    }

    /// host: begins anew, the cache refuses the next epoch's instant, held before it says so │ writers: fill that epoch's
    /// log │ host: goes on, then begins anew in its turn, held │ writer: is not asked to preserve, and marked.
    @Test func aLogThatIsLostWhileItsInstitutionFails() throws {
        let (volume, cache) = try fixture.volume()
        let first = try fixture.begin(volume)
        fixture.turnstile.hold(at: .begunAnew)
        try fixture.write(volume, 0, 1)
        fixture.turnstile.waitForArrival()
        cache.nextFlushFailure.withLock { $0 = StoreError(.io, errno: 5) }
        fixture.turnstile.move(to: .failsAnew)
        fixture.turnstile.waitForArrival()
        let second = try #require(volume.log.epoch?.uuid)
        #expect(second != first && volume.log.epoch?.institutedAt == LogEpoch.notInstituted)
        try fixture.write(volume, 10, 11)
        #expect(volume.log.epoch?.state == .void)
        fixture.turnstile.move(to: .beginsAnew)
        fixture.turnstile.waitForArrival()
        #expect(volume.epochStatus?.state == .open && volume.epochStatus?.uuid == second.uuidString)
        try fixture.write(volume, 12)
        fixture.turnstile.open()
        let third = try fixture.next(volume, after: second)
        let status = try #require(volume.epochStatus)
        #expect(status.number == 3 && status.restarts == 2 && status.restartedFrom == first.uuidString)
        #expect(try fixture.changed(volume, third) == [0, 1, 10, 11, 12])
        try fixture.write(volume, 12)
        #expect(try volume.end(epoch: third).entries == 1)
    }

    @Test func aLogThatCannotBeFlushedIsLostToo() throws {
        let (volume, cache) = try fixture.volume(20)
        let first = try fixture.begin(volume)
        try fixture.write(volume, 0)
        cache.midFlush.withLock { [flush = cache.nextFlushFailure] in
            $0 = { flush.withLock { $0 = StoreError(.io, errno: 5) } }
        }
        fixture.turnstile.hold(at: .marking)
        let end = Worker { [fixture] in fixture.expect(.noSuchEpoch) { _ = try volume.end(epoch: first) } }
        fixture.turnstile.waitForArrival()
        cache.midFlush.withLock { $0 = nil }
        fixture.turnstile.open()
        end.join()
        let second = try fixture.next(volume, after: first)
        #expect(try fixture.changed(volume, second) == [0] && volume.end(epoch: second).entries == 0)
    }

    /// writer: in the gate, and stays there │ host: gives up to begin anew when applications have waited long enough.
    @Test func aStuckWriteHoldsTheOthersForAWhileOnly() throws {
        let (volume, _) = try fixture.volume(drainSeconds: 0.05)
        let first = try fixture.begin(volume)
        try fixture.write(volume, 0)
        fixture.turnstile.hold(at: .wroteSource)
        let writer = Worker { try volume.write([3], at: 4096) }
        fixture.turnstile.waitForArrival()
        let reason = fixture.waitUntilVoid(volume)
        #expect(reason.contains("in flight"), "\(reason)")
        let status = try #require(volume.epochStatus)
        #expect(status.number == 2 && status.restartedFrom == first.uuidString && volume.isPrompt)
        fixture.turnstile.open()
        writer.join()
        let second = try #require(UUID(uuidString: status.uuid))
        fixture.expect(.epochVoid) { _ = try volume.end(epoch: second) }
        try volume.release(epoch: second)
        #expect(try volume.begin().number == 3)
    }

    /// A source that cannot be flushed has no copy, of whatever instant.
    @Test func afterAFailedFlushItIsAbandoned() throws {
        let (volume, _) = try fixture.volume()
        _ = try fixture.begin(volume)
        fixture.source.nextFlushFailure.withLock { $0 = StoreError(.io, errno: EIO) }
        #expect(throws: StoreError.self) { try volume.flush() }
        try fixture.write(volume, 0, 1)
        #expect(fixture.waitUntilVoid(volume).contains("flush of the source failed"))
    }

    /// What was passed for the first epoch is not for the next.
    @Test func nothingIsPassedInTheNext() throws {
        let (volume, cache) = try fixture.volume()
        let first = try fixture.begin(volume)
        try volume.passed([VolumeExtent(offset: 0, count: 8 * 4096)], epoch: first)
        try fixture.write(volume, 0, 1, 9)
        #expect(volume.log.head.entries == 1)
        try fixture.write(volume, 10)
        let second = try fixture.next(volume, after: first)
        // What was spared is changed all the same.
        #expect(try fixture.changed(volume, second) == [0, 1, 9, 10])
        #expect(try LogSuperblock.read(from: cache)[0].epoch?.flags == [])
        try fixture.write(volume, 0)
        #expect(volume.log.contains(0))
    }

    @Test func aCacheThatHasGrownTakesMoreAtOnce() throws {
        let (volume, cache) = try fixture.volume()
        let first = try fixture.begin(volume)
        try fixture.write(volume, 0)
        fixture.turnstile.hold(at: .beginsAnew)
        try fixture.write(volume, 1)
        fixture.turnstile.waitForArrival()
        let grown = Worker {
            let capacity = try volume.grow(to: 8192 * 4)
            #expect(capacity == 8192 * 4)
        }
        fixture.turnstile.open()
        grown.join()
        let second = try fixture.next(volume, after: first)
        try fixture.write(volume, 0, 1, 2)
        #expect(volume.log.totalCapacity == 8192 * 4 && cache.size == 8192 * 4)
        #expect(try volume.end(epoch: second).entries == 3)
    }
}
