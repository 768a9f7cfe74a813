import Blocks
import Foundation
import TestSupport
import Testing

@testable import TableOfContents

@Suite struct ExtJournalTests {
    /// How a journal is written.
    struct Form: Sendable, CustomTestStringConvertible {
        let options: [String]
        /// debugfs' journal_open.
        let open: String
        var testDescription: String { (options + [open]).joined(separator: " ") }
    }

    static let forms: [Form] = ["^64bit", "64bit"].flatMap { width in
        ["1024", "4096"].flatMap { size in
            [
                ("^metadata_csum", "jo"), ("metadata_csum", "jo"), ("metadata_csum", "jo -c -v 2"),
                ("metadata_csum", "jo -c -v 3"), ("^metadata_csum", "jo -c -v 1"),
            ].map { Form(options: ["-b", size, "-O", "\($0.0),\(width)"], open: $0.1) }
        }
    }

    private func journalBlock(_ image: ExtImage, _ system: ExtFileSystem) throws -> UInt64 {
        let result = try ExtImage.succeed("debugfs", ["-R", "bmap <8> 0", image.path])
        let text = result.output.trimmingCharacters(in: .whitespacesAndNewlines)
        guard let block = UInt64(text) else { throw ExtTestFailure("\(result)") }
        return block
    }

    private func expectSame(_ image: ExtImage, _ blockSize: Int) throws -> ExtFileSystem {
        let store = try image.store()
        let system = try ExtFileSystem.of(store)
        #expect(system.replayed is JournalOverlay)
        let expected = try image.replayedByE2fsck()
        let differing = try differingBlocks(
            system.replayed, expected, blockSize, journal: try journalBlock(image, system))
        #expect(differing == [])
        #expect(try store.bytes(at: 0, count: expected.count) != expected)
        return system
    }

    /// Blocks written twice, escaped ones, ones revoked before and after they were written again.
    @Test(arguments: forms) func replayIsWhatE2fsckWrites(_ form: Form) throws {
        let image = try ExtImage(mebibytes: 16, form.options)
        let size = form.options.contains("1024") ? 1024 : 4096
        var content = seededBytes(12 * size, seed: 1)
        content.replaceSubrange(2 * size..<2 * size + 4, with: JournalOverlay.magic)
        let file = try image.write("content", content)
        let other = try image.write("other", seededBytes(12 * size, seed: 2))
        let first = size == 1024 ? 9000 : 3000
        try image.debug([
            form.open,
            "jw -b \(first)-\(first + 11) \(file)",
            "jw -r \(first + 1)",
            "jw -r \(first + 3),\(first + 4)",
            "jw -b \(first + 3) \(other)",
            "jw -b \(first + 8),\(first + 6) \(other)",
            "jw -c -b \(first + 9) \(other)",
            "jc",
        ])
        let system = try expectSame(image, size)
        #expect(system.description.isListed)
        #expect(
            try system.replayed.bytes(at: UInt64((first + 2) * size), count: 4) == JournalOverlay.magic)
    }

    /// Reads of a part, across blocks and within an escaped block's first bytes, are parts of the whole.
    @Test func overlayReadsAnyRange() throws {
        let image = try ExtImage(mebibytes: 16, ["-b", "1024"])
        var content = seededBytes(8 * 1024, seed: 3)
        content.replaceSubrange(1024..<1028, with: JournalOverlay.magic)
        let file = try image.write("content", content)
        try image.debug(["jo", "jw -b 6000-6007 \(file)", "jc"])
        let replayed = try ExtFileSystem.of(try image.store()).replayed
        let whole = try replayed.bytes(at: 0, count: Int(replayed.size))
        #expect(Array(whole[6000 * 1024..<6008 * 1024]) == content)
        var generator = SeededGenerator(seed: 4)
        for _ in 0..<2000 {
            let offset = Int.random(in: 5998 * 1024..<6009 * 1024, using: &generator)
            let count = Int.random(in: 0...3000, using: &generator)
            let part = try replayed.bytes(at: UInt64(offset), count: count)
            #expect(part == Array(whole[offset..<offset + count]))
        }
        for offset in 6001 * 1024 - 3...6001 * 1024 + 5 {
            let part = try replayed.bytes(at: UInt64(offset), count: 3)
            #expect(part == Array(whole[offset..<offset + 3]))
        }
    }

    /// Where data in the journal lie is told so that the volume as it is gives them.
    @Test func journalledDataArePlacedInTheJournal() throws {
        let image = try ExtImage(mebibytes: 16, ["-b", "1024"])
        var content = seededBytes(8 * 1024, seed: 5)
        content.replaceSubrange(1024..<1028, with: JournalOverlay.magic)
        let file = try image.write("content", content)
        try image.debug(["jo", "jw -b 6000-6007 \(file)", "jc"])
        let store = try image.store()
        let overlay = try #require(try ExtFileSystem.of(store).replayed as? JournalOverlay)
        for range in [5990..<6012, 6001..<6003, 6007..<6008, 5000..<5002] {
            let extent = FileExtent(
                fileOffset: 4096, volumeOffset: UInt64(range.lowerBound) * 1024,
                count: UInt64(range.count) * 1024)
            var bytes: [UInt8] = []
            for part in overlay.placed(extent) {
                #expect(part.fileOffset == 4096 + UInt64(bytes.count))
                bytes += try store.bytes(at: part.volumeOffset, count: Int(part.count))
            }
            #expect(bytes == (try overlay.bytes(at: extent.volumeOffset, count: Int(extent.count))))
        }
    }

    /// A commit whose checksum is wrong ends the replay, and then nobody may rely on what is free.
    @Test func damagedTransactionEndsTheReplay() throws {
        let image = try ExtImage(mebibytes: 16, ["-b", "1024", "-O", "metadata_csum"])
        let file = try image.write("content", seededBytes(4096, seed: 6))
        let other = try image.write("other", seededBytes(4096, seed: 7))
        try image.debug(["jo -c -v 3", "jw -b 6000-6003 \(file)", "jw -b 6000-6003 \(other)", "jc"])
        var bytes = try ExtImage.bytes(image.path)
        let journal = try Int(journalBlock(image, try ExtFileSystem.of(try image.store())))
        // descriptor, four blocks, commit; descriptor, four blocks, commit
        bytes[(journal + 12) * 1024 + 16] ^= 1
        let system = try ExtFileSystem.of(MemoryStore(bytes, capabilities: []))
        #expect(try system.replayed.bytes(at: 6000 * 1024, count: 4096) == seededBytes(4096, seed: 6))
        #expect(!system.description.knowsUse)
        #expect(system.description.remark.contains("transaction 2 does not verify"))
        #expect(system.description.isListed)
    }

    /// A transaction that was not committed is none.
    @Test func unfinishedTransactionIsLeftOut() throws {
        let image = try ExtImage(mebibytes: 16, ["-b", "1024"])
        let file = try image.write("content", seededBytes(4096, seed: 6))
        let other = try image.write("other", seededBytes(4096, seed: 7))
        try image.debug(["jo", "jw -b 6000-6003 \(file)", "jw -c -b 6000-6003 \(other)", "jc"])
        let system = try expectSame(image, 1024)
        #expect(try system.replayed.bytes(at: 6000 * 1024, count: 4096) == seededBytes(4096, seed: 6))
        #expect(system.description.knowsUse)
    }

    @Test func externalJournalIsSaid() throws {
        let scratch = try ScratchDirectory()
        let device = scratch("journal.img")
        try ExtImage.succeed("truncate", ["-s", "8M", device])
        try ExtImage.succeed("mke2fs", ["-q", "-F", "-O", "journal_dev", "-b", "1024", device])
        let journal = try #require(
            try ExtFileSystem(
                MemoryStore(try ExtImage.bytes(device)), ByteRange(offset: 0, count: 8 << 20)))
        #expect(!journal.description.isListed && !journal.description.knowsUse)
        #expect(journal.description.remark.contains("external journal"))

        let image = try ExtImage(mebibytes: 16, ["-b", "1024", "-O", "^has_journal"])
        // What mkfs writes for a journal elsewhere, as it is while the file system is mounted.
        try image.debug([
            "feature has_journal needs_recovery", "ssv journal_dev 0x801", "ssv journal_inum 0",
        ])
        let system = try ExtFileSystem.of(try image.store())
        #expect(system.description.isListed && !system.description.knowsUse)
        #expect(system.description.remark.contains("another device"))
    }

    /// A log that goes on at the journal's beginning, and transactions that are numbered on from 2^32 − 1.
    @Test(arguments: [1, 3, 6, 7, 9, 13, 20]) func logAndNumbersWrapAround(_ blocksBeforeEnd: Int) throws {
        let image = try ExtImage(mebibytes: 16, ["-b", "1024", "-O", "^metadata_csum"])
        let file = try image.write("content", seededBytes(5 * 1024, seed: 8))
        let other = try image.write("other", seededBytes(5 * 1024, seed: 9))
        try image.debug([
            "jo", "jw -b 6000-6004 \(file)", "jw -r 6003", "jw -b 6001-6002 \(other)", "jw -r 6002",
            "jw -b 6010-6014 \(other)", "jc",
        ])
        var bytes = try ExtImage.bytes(image.path)
        let journal = try Int(journalBlock(image, try ExtFileSystem.of(try image.store()))) * 1024
        let length = Int(bytes.big32(journal + 16))
        let used = 30
        let log = (1...used).map { Array(bytes[journal + $0 * 1024..<journal + ($0 + 1) * 1024]) }
        func set(_ value: UInt32, _ offset: Int) {
            withUnsafeBytes(of: value.bigEndian) { bytes.replaceSubrange(offset..<offset + 4, with: $0) }
        }
        for (index, block) in log.enumerated() {
            var position = length - blocksBeforeEnd + index
            if position >= length { position -= length - 1 }
            let at = journal + position * 1024
            bytes.replaceSubrange(at..<at + 1024, with: block)
            if block.big32(0) == JournalSuperblock.magic { set(block.big32(8) &- 3, at + 8) }
        }
        set(UInt32(length - blocksBeforeEnd), journal + 28)
        set(bytes.big32(journal + 24) &- 3, journal + 24)
        try Data(bytes).write(to: URL(fileURLWithPath: image.path))
        _ = try expectSame(image, 1024)
    }
}
