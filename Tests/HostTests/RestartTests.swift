import Blocks
import Foundation
import HostControl
import Logging
import OriginalImage
import TestSupport
import Testing

@testable import Host

/// The policy `restart-from`, step by step: who may be where when the log is found full.
@Suite struct RestartTests {
    private let fixture = RestartFixture()

    @Test func aFullCacheBeginsTheNextEpoch() throws {
        let (volume, _) = try fixture.volume()
        let first = try fixture.begin(volume)
        let snapshot = try #require(volume.snapshot)
        try fixture.write(volume, 3)
        try fixture.write(volume, 5)
        let second = try fixture.next(volume, after: first)
        let status = try #require(volume.epochStatus)
        #expect(second != first && status.number == 2 && status.isHeld)
        #expect(status.restartedFrom == first.uuidString && status.restarts == 1)
        #expect(try fixture.changed(volume, second) == [3, 5])
        #expect(throws: StoreError(.gone)) { try snapshot.bytes(at: 0, count: 1) }
        // The next one's snapshot is of its own instant.
        #expect(try volume.snapshot?.bytes(at: 3 * 4096, count: 2) == [2, 1])
        #expect(volume.log.head.entries == 0 && volume.log.epoch?.uuid == second)
        fixture.expect(.noSuchEpoch, saying: second.uuidString) { _ = try volume.end(epoch: first) }
        fixture.expect(.noSuchEpoch, saying: second.uuidString) { _ = try volume.mark(epoch: first) }
        fixture.expect(.noSuchEpoch) { try volume.release(epoch: first) }
        fixture.expect(.noSuchEpoch) { try volume.passed([], epoch: first) }
        fixture.expect(.noSuchEpoch) { _ = try volume.changes(before: first, from: 0) }
        fixture.expect(.noSuchEpoch) { _ = try volume.adopt(epoch: first, holder: EpochHolder()) }
        fixture.expect(.epochHeld) { _ = try volume.adopt(epoch: second, holder: EpochHolder()) }
        try fixture.write(volume, 7)
        #expect(try volume.end(epoch: second).entries == 1)
    }

    @Test func changesAreCountedFromTheLastThatWasAskedFor() throws {
        let (volume, _) = try fixture.volume()
        var epoch = try fixture.begin(volume)
        #expect(try fixture.changed(volume, epoch) == [])
        let first = epoch
        try fixture.write(volume, 1, 2)
        epoch = try fixture.next(volume, after: epoch)
        // Nobody asks for the changes of the second.
        try fixture.write(volume, 11, 12)
        epoch = try fixture.next(volume, after: epoch)
        #expect(volume.epochStatus?.restarts == 2 && volume.epochStatus?.restartedFrom == first.uuidString)
        #expect(try fixture.changed(volume, epoch) == [1, 2, 11, 12])
        #expect(try fixture.changed(volume, epoch) == [1, 2, 11, 12], "asked again")
        try fixture.write(volume, 21, 22)
        epoch = try fixture.next(volume, after: epoch)
        #expect(try fixture.changed(volume, epoch) == [21, 22])
    }

    @Test func changesInParts() throws {
        // So many chunks that there is one run more than a part takes: the first three are one.
        let count = UInt64(Limits.extents + 2)
        let source = FaultyStore(size: Int(2 * count) * 4096 - 1000)
        let volume = try CopyOnWriteVolume(
            source: source, cache: FaultyStore(size: 8192 + 4096 * Int(count)),
            settings: Fixture.settings(policy: .restartFrom), defects: [])
        var epoch = try fixture.begin(volume)
        func dirty() throws {
            for chunk in 0..<count { try volume.write([2], at: chunk * 2 * 4096) }
            // Zero originals take a header each: this one does not fit any more.
            try volume.write([2], at: 4096)
            epoch = try fixture.next(volume, after: epoch)
        }
        try dirty()
        let first = try volume.changes(before: epoch, from: 0)
        #expect(
            first.extents.count == Limits.extents
                && first.extents[0] == VolumeExtent(offset: 0, count: 12_288))
        let place = try #require(first.next)
        #expect(place == UInt64(Limits.extents + 1) * 8192)
        // Not to the end: the next epoch's changes begin where this one's do.
        try dirty()
        var (from, extents): (UInt64?, [VolumeExtent]) = (0, [])
        while let start = from {
            let part = try volume.changes(before: epoch, from: start)
            extents += part.extents
            from = part.next
        }
        #expect(extents.count == Limits.extents + 1)
        let size = volume.size
        fixture.expect(.invalidParameters) { _ = try volume.changes(before: epoch, from: size + 1) }
        let last = try volume.changes(before: epoch, from: size)
        #expect(last.extents.isEmpty && last.next == nil)
    }

    /// writer A: finds the log full, held before that is on the cache │ B, another chunk: must wait: a crash would find
    /// the epoch open │ status: goes on to say open │ A goes on: all do.
    @Test func nobodyOvertakesTheRecord() throws {
        let (volume, cache) = try fixture.volume()
        let first = try fixture.begin(volume)
        try fixture.write(volume, 0)
        fixture.turnstile.hold(at: .announced)
        let a = Worker { try volume.write([3], at: 4096) }
        fixture.turnstile.waitForArrival()
        let b = Worker { try volume.write([3], at: 2 * 4096) }
        try fixture.write(volume, 0)
        for _ in 0..<100 { sched_yield() }
        #expect(!a.isDone && !b.isDone)
        #expect(try volume.bytes(at: 2 * 4096, count: 1) == [1])
        #expect(try LogSuperblock.read(from: cache)[0].epoch?.state == .open)
        #expect(volume.epochStatus?.state == .open && volume.epochStatus?.uuid == first.uuidString)
        fixture.turnstile.open()
        a.join()
        b.join()
        let changed = try Set(fixture.changed(volume, fixture.next(volume, after: first)))
        #expect(changed.isSuperset(of: [0, 1]))
        // B may have come when the next epoch was there already: then its original is in that one's log.
        #expect(try changed.contains(2) || #require(volume.snapshot).bytes(at: 2 * 4096, count: 1) == [1])
    }

    /// writer A: the epoch is void on the cache, held │ others: wait for nothing │ agent: ends, and is told when it can
    /// go on.
    @Test func writersOnlyMarkAndTheAgentWaits() throws {
        let (volume, cache) = try fixture.volume()
        let first = try fixture.begin(volume)
        let snapshot = try #require(volume.snapshot)
        try fixture.write(volume, 0)
        fixture.turnstile.hold(at: .marking)
        let a = Worker { try volume.write([3], at: 4096) }
        fixture.turnstile.waitForArrival()
        try fixture.write(volume, 1, 2, 7)  // chunk 1 is A's claim
        try volume.writeZeroes(ByteRange(offset: 9 * 4096, count: 10), options: [])
        try volume.trim(ByteRange(offset: 12 * 4096, count: 4096), durable: false)
        #expect(try LogSuperblock.read(from: cache)[0].epoch?.state == .void)
        #expect(throws: StoreError(.gone)) { try snapshot.bytes(at: 20 * 4096, count: 1) }
        #expect(volume.snapshot == nil && volume.epochStatus?.state == .open)
        let told = Monitor<[String]>([])
        let operations: [@Sendable () throws -> Void] = [
            { _ = try volume.end(epoch: first) }, { _ = try volume.mark(epoch: first) },
            { try volume.release(epoch: first) }, { try volume.passed([], epoch: first) },
            { _ = try volume.adopt(epoch: first, holder: EpochHolder()) },
        ]
        let agents = operations.map { operation in
            Worker {
                #expect { try operation() } throws: {
                    told.withLock { [text = "\($0)"] in $0.append(text) }
                    return ($0 as? ControlError)?.code == .noSuchEpoch
                }
            }
        }
        let other = Worker { [fixture] in fixture.expect(.epochOpen) { _ = try volume.begin() } }
        for _ in 0..<100 { sched_yield() }
        #expect(agents.allSatisfy { !$0.isDone } && !other.isDone)
        fixture.turnstile.open()
        for worker in agents + [a, other] { worker.join() }
        let second = try fixture.next(volume, after: first)
        #expect(told.withLock { $0 }.allSatisfy { $0.contains(second.uuidString) })
        #expect(try fixture.changed(volume, second) == [0, 1, 2, 7, 9])
        #expect(try volume.bytes(at: 4096, count: 1) == [3])
    }

    /// writer W: has read its originals for the first epoch, held │ A: full │ host: begins anew, waits for W at the gate
    /// │ W: its original is no part of the second epoch, its chunk is changed.
    @Test func aClaimThatIsPending() throws {
        let gate = Monitor<(arrived: Bool, open: Bool)>((false, false))
        let slowChunk = Monitor(false)
        var settings = Fixture.settings(policy: .restartFrom)
        settings.drainSeconds = 60
        let volume = try CopyOnWriteVolume(
            source: fixture.source, cache: FaultyStore(size: 8192 + 8192), settings: settings, defects: [],
            hook: { [turnstile = fixture.turnstile] checkpoint in
                turnstile.pass(checkpoint)
                guard checkpoint == .readOriginals, slowChunk.withLock({ $0 }) else { return }
                slowChunk.withLock { $0 = false }
                gate.withLockAndNotify { $0.arrived = true }
                gate.wait { $0.open ? () : nil }
            })
        let first = try fixture.begin(volume)
        try fixture.write(volume, 0)
        slowChunk.withLock { $0 = true }
        let slow = Worker { try volume.write([4], at: 5 * 4096) }
        gate.wait { $0.arrived ? () : nil }
        try fixture.write(volume, 6)  // full
        while volume.isPrompt { sched_yield() }  // the host waits for the slow one at the gate
        #expect(volume.log.epoch?.uuid != first && !slow.isDone)
        // What it has claimed is waited for by nobody.
        gate.withLockAndNotify { $0.open = true }
        slow.join()
        let second = try fixture.next(volume, after: first)
        #expect(try fixture.changed(volume, second) == [0, 5, 6])
        #expect(volume.log.head.entries == 0 && !volume.log.contains(5))
        try fixture.write(volume, 5)
        #expect(try volume.snapshot?.bytes(at: 5 * 4096, count: 2) == [4, 1])
    }

    /// writer: in the gate, held │ freeze: waits for it, has its turn │ writer: full │ freeze: done │ host: begins anew
    /// within the freeze, since nothing is written there.
    @Test func withinAFreeze() throws {
        let (volume, _) = try fixture.volume()
        let first = try fixture.begin(volume)
        try fixture.write(volume, 0)
        fixture.turnstile.hold(at: .passedGate)
        let writer = Worker { try volume.write([3], at: 4096) }
        fixture.turnstile.waitForArrival()
        let freezer = EpochHolder()
        let freeze = Worker { try volume.freeze(timeout: 300, holder: freezer) }
        while volume.isPrompt { sched_yield() }
        fixture.turnstile.open()
        writer.join()
        freeze.join()
        let second = try fixture.next(volume, after: first)
        #expect(volume.isFrozen)
        #expect(try fixture.changed(volume, second) == [0, 1])
        #expect(try volume.thaw(by: freezer))
        try fixture.write(volume, 1)
        #expect(volume.log.contains(1))
    }

    /// agent: ends, held in the cache's flush │ writer: full │ agent: is told that the epoch is another.
    @Test func anEndThatIsOvertaken() throws {
        let (volume, cache) = try fixture.volume()
        let first = try fixture.begin(volume)
        try fixture.write(volume, 0)
        let (inFlush, mayGoOn) = (Monitor(false), Monitor(false))
        cache.midFlush.withLock {
            $0 = {
                inFlush.withLockAndNotify { $0 = true }
                mayGoOn.wait { $0 ? () : nil }
            }
        }
        let end = Worker { [self] in
            fixture.expect(.noSuchEpoch, saying: "begun anew") { _ = try volume.end(epoch: first) }
        }
        inFlush.wait { $0 ? () : nil }
        cache.midFlush.withLock { $0 = nil }
        try fixture.write(volume, 1, 2)
        #expect(volume.epochStatus?.state == .open && volume.epochStatus?.uuid == first.uuidString)
        mayGoOn.withLockAndNotify { $0 = true }
        end.join()
        let second = try fixture.current(volume)
        #expect(second != first, "told before it was so")
        #expect(try fixture.changed(volume, second) == [0, 1, 2])
    }

    /// agent: ends, held in the cache's flush │ writer: full, has said so, held │ agent: the log has ended: it has won │
    /// writer: goes on, and no other epoch is begun.
    @Test func anEndThatWins() throws {
        let (volume, cache) = try fixture.volume()
        let first = try fixture.begin(volume)
        try fixture.write(volume, 0)
        let (inFlush, mayGoOn) = (Monitor(false), Monitor(false))
        cache.midFlush.withLock {
            $0 = {
                inFlush.withLockAndNotify { $0 = true }
                mayGoOn.wait { $0 ? () : nil }
            }
        }
        let end = Worker {
            let marker = try volume.end(epoch: first)
            #expect(marker.entries == 1)
        }
        inFlush.wait { $0 ? () : nil }
        fixture.turnstile.hold(at: .announced)
        let writer = Worker { try volume.write([3], at: 4096) }
        fixture.turnstile.waitForArrival()
        mayGoOn.withLockAndNotify { $0 = true }
        end.join()
        cache.midFlush.withLock { $0 = nil }
        fixture.turnstile.open()
        writer.join()
        #expect(volume.epochStatus?.uuid == first.uuidString && volume.epochStatus?.state == .ended)
        #expect(try LogReader(cache, wantsBothSuperblocks: true).verify().entries == 1)
        try volume.release(epoch: first)
        #expect(try volume.begin().number == 2)
    }

    /// agent: begins, held while the log is told the instant │ writers: fill the log │ agent: has its epoch, and then the
    /// next.
    @Test func anEpochThatIsFullBeforeItHasBegun() throws {
        let (volume, cache) = try fixture.volume()
        let (isHeld, writers) = (Monitor(false), Monitor<Worker?>(nil))
        cache.midWrite.withLock {
            $0 = {
                guard volume.epoch != nil else { return }
                // Decided before there is a writer, whose originals come here, too.
                let isFirst = isHeld.withLock { held in
                    defer { held = true }
                    return !held
                }
                guard isFirst else { return }
                let worker = Worker { for chunk: UInt64 in 0..<3 { try volume.write([2], at: chunk * 4096) } }
                writers.withLock { $0 = worker }
                while volume.control.withLock({ $0.restarting }) == nil { sched_yield() }
            }
        }
        let status = try volume.begin(holder: fixture.holder)
        cache.midWrite.withLock { $0 = nil }
        #expect(status.state == .open && status.number == 1)
        let first = try #require(UUID(uuidString: status.uuid))
        writers.withLock { $0 }?.join()
        #expect(try fixture.changed(volume, fixture.next(volume, after: first)).starts(with: [0, 1]))
    }
}
