import Blocks
import Foundation
import OriginalImage
import TestSupport
import Testing

/// What the cache says of an epoch when its superblock cannot be written, or not at that moment.
@Suite struct SuperblockTests {
    private static let atOnce: ClosedRange<UInt64> = 1_000_000...1_000_000
    private static let never: ClosedRange<UInt64> = 3_600_000_000_000...3_600_000_000_000

    /// A log with an open epoch of one entry.
    private func makeLog(_ retry: ClosedRange<UInt64>) throws -> (OriginalImageLog, TroubledStore) {
        let store = TroubledStore(MemoryStore(size: 20 * 4096))
        let log = try OriginalImageLog(store, settings: Fixture.settings(recordRetry: retry))
        try log.begin(number: 1, uuid: Fixture.epoch, institutedAt: 1)
        try Fixture.append([1], to: log)
        return (log, store)
    }

    /// What a host finds that starts now.
    private func found(_ store: TroubledStore) throws -> LogEpoch? {
        try LogSuperblock.read(from: store.below)[0].epoch
    }

    enum Change: CaseIterable { case end, mark, stamp }

    /// changer: writes its superblock, held │ another: the epoch is void │ changer: must not say that it is done
    @Test(arguments: Change.allCases)
    func aChangeThatAVoidOvertakesFails(change: Change) throws {
        let (log, store) = try makeLog(Self.never)
        store.hold()
        let outcome = Monitor<Result<Void, LogError>?>(nil)
        BlockingThread.start {
            let result: Result<Void, LogError>
            do throws(LogError) {
                switch change {
                case .end: _ = try log.end()
                case .mark: _ = try log.mark()
                case .stamp: try log.stamp(institutedAt: 2)
                }
                result = .success(())
            } catch { result = .failure(error) }
            outcome.withLockAndNotify { $0 = result }
        }
        store.waitUntilHeld()
        let voided = Monitor(false)
        BlockingThread.start {
            log.void("a test", epoch: Fixture.epoch)
            voided.withLockAndNotify { $0 = true }
        }
        while log.epoch?.state == .open { sched_yield() }
        store.letGo()
        let result = outcome.wait { $0 }
        voided.wait { $0 ? () : nil }
        #expect(throws: LogError.wrongState(.void)) { try result.get() }
        #expect(log.epoch?.state == .void && log.isRecorded)
        #expect(try found(store)?.state == .void)
    }

    /// The device is gone for a while: nobody has to come and ask for the record.
    @Test func aVoidIsRecordedWhenTheCacheTakesWritesAgain() throws {
        let (log, store) = try makeLog(Self.atOnce)
        store.suffer(.refused)
        #expect(!log.void("a test", epoch: Fixture.epoch))
        #expect(!log.isRecorded)
        #expect(try found(store)?.state == .open)
        store.waitForWrites(4, after: store.arrived)
        store.suffer(.none)
        while !log.isRecorded { sched_yield() }
        #expect(try found(store)?.state == .void && found(store)?.voidReason == "a test")
        let writes = store.arrived
        try log.release()
        #expect(store.arrived == writes + 1, "the log writes superblocks that nobody needs")
    }

    /// One of the two places cannot be written: the other is enough, though it holds the one in force.
    @Test(arguments: [UInt64(0), 4096])
    func aVoidTakesThePlaceThatCanBeWritten(bad: UInt64) throws {
        let (log, store) = try makeLog(Self.never)
        store.suffer(.refusedAt(bad))
        #expect(log.void("a test", epoch: Fixture.epoch) && log.isRecorded)
        #expect(try found(store)?.state == .void)
        store.suffer(.none)
        try log.release()
        #expect(try found(store)?.state == .released)
    }

    @Test func closingTriesALastTimeAndGivesUp() throws {
        let (log, store) = try makeLog(Self.atOnce)
        store.suffer(.refused)
        log.void("a test", epoch: Fixture.epoch)
        log.close()
        #expect(!log.isRecorded)
        let writes = store.arrived
        let (other, otherStore) = try makeLog(Self.never)
        otherStore.suffer(.refused)
        other.void("a test", epoch: Fixture.epoch)
        otherStore.suffer(.none)
        other.close()
        #expect(other.isRecorded && store.arrived == writes)
        #expect(try found(otherStore)?.state == .void)
    }

    /// The superblock that opens an epoch has reached the cache, and its flush fails: the caller is told that there
    /// is no epoch, and a host that starts must not find one.
    @Test func aBeginThatFailedIsNotFound() throws {
        let store = TroubledStore(MemoryStore(size: 20 * 4096))
        let log = try OriginalImageLog(store, settings: Fixture.settings(recordRetry: Self.never))
        store.suffer(.writtenAndFailed)
        #expect(throws: LogError.store(StoreError(.io, errno: 5))) {
            try log.begin(number: 1, uuid: Fixture.epoch, institutedAt: 1)
        }
        // The record of that, too, is written and not flushed; so it will be tried again.
        #expect(log.epoch == nil && !log.isRecorded)
        #expect(try found(store) == nil)
        store.suffer(.none)
        let again = try OriginalImageLog(store.below, settings: Fixture.settings())
        #expect(again.finding == .unused)
        try log.begin(number: 1, uuid: Fixture.epoch, institutedAt: 1)
        #expect(try found(store)?.state == .open)
    }

    /// What was found may have been in flight when a host was killed: there is no log before it is flushed.
    @Test(arguments: [false, true]) func whatIsFoundIsFlushed(ended: Bool) throws {
        let store = TroubledStore(try Fixture.store(durability: .power, ended: ended))
        store.suffer(.notFlushed)
        #expect(throws: LogError.store(StoreError(.io, errno: 5))) {
            try OriginalImageLog(store, settings: Fixture.settings(.power))
        }
        store.suffer(.none)
        let log = try OriginalImageLog(store, settings: Fixture.settings(.power))
        #expect(log.finding == (ended ? .retained : .resumed(entries: 6)))
    }

    @Test func countersHaveAnEnd() throws {
        let limit = LogLimits.counter
        var superblock = LogSuperblock(
            generation: limit, volume: Fixture.volume, geometry: Fixture.geometry, capacity: 20 * 4096,
            durability: .process,
            epoch: LogEpoch(
                number: limit, uuid: Fixture.epoch, state: .released, institutedAt: 1, boot: Fixture.boot))
        func decoded(_ superblock: LogSuperblock) throws -> LogSuperblock {
            try superblock.encoded().withUnsafeBytes {
                try LogSuperblock(decoding: $0, at: superblock.position)
            }
        }
        #expect(try decoded(superblock) == superblock)
        let store = MemoryStore(size: 20 * 4096)
        try store.write(superblock.encoded(), at: superblock.position)
        let log = try OriginalImageLog(store, settings: Fixture.settings())
        // One more can be counted and is refused; the last can be begun but not written.
        #expect(throws: LogError.corrupt("the epoch's number")) {
            try log.begin(number: limit + 1, uuid: UUID(), institutedAt: 2)
        }
        #expect(throws: LogError.corrupt("the superblock's generation")) {
            try log.begin(number: limit, uuid: UUID(), institutedAt: 2)
        }
        for number in [limit + 1, UInt64.max, 0] {
            superblock.epoch?.number = number
            #expect(throws: LogError.self) { try decoded(superblock) }
        }
        superblock.epoch?.number = 1
        for generation in [limit + 1, UInt64.max, 0] {
            superblock.generation = generation
            #expect(throws: LogError.self) { try decoded(superblock) }
        }
    }
}
