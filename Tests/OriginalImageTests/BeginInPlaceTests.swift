import Blocks
import Foundation
import OriginalImage
import TestSupport
import Testing

/// The next epoch in the place of one that is void.
@Suite struct BeginInPlaceTests {
    @Test func oneSuperblockVoidToOpen() throws {
        let store = try Fixture.store(passed: true)
        let log = try OriginalImageLog(MemoryStore(size: 20 * 4096), settings: Fixture.settings())
        #expect(throws: LogError.wrongState(nil)) {
            try log.begin(number: 2, uuid: UUID(), institutedAt: 2, inPlaceOf: Fixture.epoch)
        }
        let lost = try OriginalImageLog(store, settings: Fixture.settings())
        #expect(throws: LogError.wrongState(.void)) {
            try lost.begin(number: 2, uuid: UUID(), institutedAt: 2, inPlaceOf: UUID())
        }
        let generation = try LogSuperblock.read(from: store)[0].generation
        let next = UUID()
        try lost.begin(number: 2, uuid: next, institutedAt: 2, inPlaceOf: Fixture.epoch)
        let found = try LogSuperblock.read(from: store)[0]
        #expect(found.generation == generation + 1 && found.epoch?.uuid == next)
        #expect(found.epoch?.state == .open && found.epoch?.flags == [] && lost.head == .start)
        #expect(!lost.contains(1))
        // A writer of the old one that comes late finds it over.
        #expect(throws: LogError.wrongState(.released)) {
            try Fixture.append([2], to: lost, epoch: Fixture.epoch)
        }
        try Fixture.append([1], to: lost)
        #expect(throws: LogError.wrongState(.open)) {
            try lost.begin(number: 3, uuid: UUID(), institutedAt: 3, inPlaceOf: next)
        }
        #expect(
            try OriginalImageLog(store, settings: Fixture.settings()).finding == .resumed(entries: 1))
    }

    /// The cache takes no superblock: the old epoch stays void, and a start finds no other.
    @Test func aFailureLeavesTheOldOneVoid() throws {
        let store = TroubledStore(try Fixture.store())
        let never: ClosedRange<UInt64> = 3_600_000_000_000...3_600_000_000_000
        let log = try OriginalImageLog(store, settings: Fixture.settings(recordRetry: never))
        log.void("a test", epoch: Fixture.epoch)
        for trouble in [TroubledStore.Trouble.refused, .writtenAndFailed] {
            store.suffer(trouble)
            #expect(throws: LogError.store(StoreError(.io, errno: 5))) {
                try log.begin(number: 2, uuid: UUID(), institutedAt: 2, inPlaceOf: Fixture.epoch)
            }
            #expect(log.epoch?.uuid == Fixture.epoch && log.epoch?.state == .void)
            let found = try LogSuperblock.read(from: store.below)[0].epoch
            #expect(found?.uuid == Fixture.epoch && found?.state == .void)
        }
    }
}
