import Blocks
import Foundation
import OriginalImage
import TestSupport
import Testing

/// The superblock's flags, by which version 2 differs from version 1.
@Suite struct FlagTests {
    private func version(_ store: any BlockStore) throws -> UInt8 {
        let newest = try LogSuperblock.read(from: store)[0]
        return try store.bytes(at: newest.position + 11, count: 1)[0]
    }

    @Test func onlyAnEpochWithAFlagIsOfVersion2() throws {
        let store = try Fixture.store()
        #expect(try version(store) == 1)
        let log = try OriginalImageLog(store, settings: Fixture.settings())
        #expect(throws: LogError.wrongState(.released)) { try log.notePassed(epoch: UUID()) }
        #expect(try version(store) == 1)
        try log.notePassed(epoch: Fixture.epoch)
        #expect(try version(store) == 2 && log.epoch?.flags == .passed)
        let generation = try LogSuperblock.read(from: store)[0].generation
        try log.notePassed(epoch: Fixture.epoch)
        #expect(try LogSuperblock.read(from: store)[0].generation == generation, "written twice")
        _ = try log.mark()
        _ = try log.end()
        #expect(throws: LogError.wrongState(.ended)) { try log.notePassed(epoch: Fixture.epoch) }
        // It is still said of the log that a copy is made of.
        #expect(try version(store) == 2 && LogReader(store).epoch.flags == .passed)
        #expect(try LogReader(store, wantsBothSuperblocks: true).verify() == log.head)
        try log.release()
        try log.begin(number: 2, uuid: UUID(), institutedAt: 2)
        #expect(try version(store) == 1 && log.epoch?.flags == [])
    }

    /// Which chunks were overwritten without being preserved, only the process knew.
    @Test(arguments: [LogDurability.process, .power])
    func anOpenEpochWithAFlagIsLost(durability: LogDurability) throws {
        let store = try Fixture.store(durability: durability, passed: true)
        let log = try OriginalImageLog(store, settings: Fixture.settings(durability))
        #expect(log.finding == .lost && log.epoch?.state == .void)
        #expect(log.epoch?.voidReason.contains("passed") == true)
        #expect(try LogSuperblock.read(from: store)[0].epoch?.state == .void)
        let ended = try Fixture.store(durability: durability, ended: true, passed: true)
        #expect(try OriginalImageLog(ended, settings: Fixture.settings(durability)).finding == .retained)
    }

    /// A superblock whose fields do not fit each other, with a CRC that fits.
    @Test func whatDoesNotFitTheVersionIsDamage() throws {
        let passed = try LogSuperblock.read(from: Fixture.store(passed: true))[0]
        let plain = try LogSuperblock.read(from: Fixture.store())[0]
        func decode(_ superblock: LogSuperblock, _ change: (inout [UInt8]) -> Void) throws {
            var bytes = superblock.encoded()
            change(&bytes)
            let sum = CRC32C.checksum(bytes.prefix(4092))
            withUnsafeBytes(of: sum.bigEndian) { bytes.replaceSubrange(4092..<4096, with: $0) }
            _ = try bytes.withUnsafeBytes { try LogSuperblock(decoding: $0, at: superblock.position) }
        }
        try decode(passed) { _ in }
        try decode(plain) { _ in }
        func expectDamage(_ superblock: LogSuperblock, _ change: (inout [UInt8]) -> Void) {
            #expect { try decode(superblock, change) } throws: {
                if case .corrupt = $0 as? LogError { true } else { false }
            }
        }
        expectDamage(passed) { $0[11] = 1 }
        expectDamage(plain) { $0[11] = 2 }
        expectDamage(passed) { $0[63] = 3 }  // a flag that nobody knows
        expectDamage(passed) { $0[60] = 0x80 }
        expectDamage(passed) { $0[57] = 0 }
        var none = plain
        none.epoch = nil
        expectDamage(none) { ($0[11], $0[63]) = (2, 1) }
        #expect(throws: LogError.unsupportedVersion(3)) { try decode(passed) { $0[11] = 3 } }
        #expect(throws: LogError.unsupportedVersion(0)) { try decode(passed) { $0[11] = 0 } }
    }
}
