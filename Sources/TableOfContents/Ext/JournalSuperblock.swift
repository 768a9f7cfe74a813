/// The superblock of a jbd2 journal (and jbd's, which is its version 1), checked as the kernel does before it replays.
struct JournalSuperblock {
    static let magic: UInt32 = 0xC03B_3998
    static let size = 1024
    /// magic, block type, sequence number.
    static let headerSize = 12

    enum BlockType {
        static let descriptor: UInt32 = 1
        static let commit: UInt32 = 2
        static let superblock1: UInt32 = 3
        static let superblock2: UInt32 = 4
        static let revoke: UInt32 = 5
    }

    private enum Feature {
        static let checksum1: UInt32 = 1
        static let revoke: UInt32 = 0x1
        static let is64Bit: UInt32 = 0x2
        static let asyncCommit: UInt32 = 0x4
        static let checksum2: UInt32 = 0x8
        static let checksum3: UInt32 = 0x10
        static let fastCommit: UInt32 = 0x20
        static let known: UInt32 = 0x3F
    }

    /// How descriptors and commits are checked.
    enum Checksums: Hashable { case none, version1, version2, version3 }

    /// The least journal from which room for fast commits is taken.
    private static let leastBlocks: UInt64 = 1024
    private static let usualFastCommitBlocks: UInt64 = 256

    let blockSize: Int
    /// The log's blocks in the journal; it wraps around.
    let log: Range<UInt64>
    /// The first block of the area of fast commits; nil: there is none.
    let fastCommits: UInt64?
    /// Where the log begins; 0: nothing is to be replayed.
    let start: UInt64
    /// The first transaction.
    let sequence: UInt32
    let checksums: Checksums
    let is64Bit: Bool
    /// What checksums start from.
    let seed: UInt32

    /// - Parameters:
    ///   - bytes: the journal's first block.
    ///   - blockCount: blocks that the journal has.
    init(_ bytes: [UInt8], blockSize: Int, blockCount: UInt64) throws(TocError) {
        guard bytes.count >= Self.size, bytes.big32(0) == Self.magic else {
            throw .damaged("it has no superblock")
        }
        let type = bytes.big32(4)
        guard type == BlockType.superblock1 || type == BlockType.superblock2 else {
            throw .damaged("its superblock is of an unknown version")
        }
        let compatible = type == BlockType.superblock2 ? bytes.big32(36) : 0
        let incompatible = type == BlockType.superblock2 ? bytes.big32(40) : 0
        let readOnlyCompatible = type == BlockType.superblock2 ? bytes.big32(44) : 0
        guard incompatible & ~Feature.known == 0, readOnlyCompatible == 0 else {
            throw .damaged("it has features that are not known here")
        }
        switch (
            compatible & Feature.checksum1 != 0, incompatible & Feature.checksum2 != 0,
            incompatible & Feature.checksum3 != 0
        ) {
        case (false, false, false): checksums = .none
        case (true, false, false): checksums = .version1
        case (false, true, false): checksums = .version2
        case (false, false, true): checksums = .version3
        default: throw .damaged("its superblock tells two kinds of checksums")
        }
        if checksums == .version2 || checksums == .version3 {
            var blank = Array(bytes[..<Self.size])
            for index in 0xFC..<0x100 { blank[index] = 0 }
            guard bytes[80] == 4, ExtChecksum.crc32c(~0, blank) == bytes.big32(0xFC) else {
                throw .damaged("its superblock does not verify")
            }
        }
        seed = ExtChecksum.crc32c(~0, bytes[48..<64])
        is64Bit = incompatible & Feature.is64Bit != 0
        self.blockSize = blockSize
        let length = UInt64(bytes.big32(16))
        let first = UInt64(bytes.big32(20))
        start = UInt64(bytes.big32(28))
        sequence = bytes.big32(24)
        guard bytes.big32(12) == UInt32(blockSize), length <= blockCount, first >= 1, first < length else {
            throw .damaged("its superblock tells an impossible size")
        }
        var end = length
        if incompatible & Feature.fastCommit != 0 {
            let told = UInt64(bytes.big32(84))
            let count = told == 0 ? Self.usualFastCommitBlocks : told
            if count <= length, length - count >= Self.leastBlocks { end = length - count }
            fastCommits = end + 1 < length ? end + 1 : nil
        } else {
            fastCommits = nil
        }
        guard first < end else { throw .damaged("its superblock tells an impossible size") }
        log = first..<end
        guard start == 0 || log.contains(start) else {
            throw .damaged("its log begins outside of it")
        }
    }

    /// Whether blocks with headers end in a checksum of themselves.
    var hasTails: Bool { checksums == .version2 || checksums == .version3 }
    var tailSize: Int { hasTails ? 4 : 0 }

    var tagSize: Int {
        switch checksums {
        case .version3: 16
        case .version2: is64Bit ? 14 : 10
        case .none, .version1: is64Bit ? 12 : 8
        }
    }

    func wrapped(_ block: UInt64) -> UInt64 {
        block >= log.upperBound ? block - UInt64(log.count) : block
    }

    /// Whether a descriptor or revoke block verifies.
    func verifies(_ block: [UInt8]) -> Bool {
        !hasTails || verifies(block, field: block.count - 4)
    }

    func verifies(commit block: [UInt8]) -> Bool {
        !hasTails || verifies(block, field: 16)
    }

    private func verifies(_ block: [UInt8], field: Int) -> Bool {
        var blank = block
        for index in field..<field + 4 { blank[index] = 0 }
        return ExtChecksum.crc32c(seed, blank) == block.big32(field)
    }
}

/// What a descriptor block says of one block that follows it.
struct JournalTag {
    private enum Flag {
        static let escaped: UInt16 = 1
        static let sameUUID: UInt16 = 2
        static let last: UInt16 = 8
    }

    /// Where the block belongs.
    let target: UInt64
    /// Its first four bytes were the journal's magic number, and were zeroed.
    let isEscaped: Bool
    let checksum: UInt32

    /// All of a descriptor block's, in order.
    static func all(in block: [UInt8], _ superblock: JournalSuperblock) -> [JournalTag] {
        var tags: [JournalTag] = []
        var offset = JournalSuperblock.headerSize
        let size = superblock.tagSize
        while offset + size <= block.count - superblock.tailSize {
            // The flags' low 16 bits lie at the same place in all versions.
            let flags: UInt16 = block.big(offset + 6)
            var target = UInt64(block.big32(offset))
            if superblock.is64Bit { target |= UInt64(block.big32(offset + 8)) << 32 }
            let checksum =
                superblock.checksums == .version3
                ? block.big32(offset + 12) : UInt32(block.big(offset + 4, as: UInt16.self))
            tags.append(
                JournalTag(target: target, isEscaped: flags & Flag.escaped != 0, checksum: checksum))
            offset += size
            if flags & Flag.sameUUID == 0 { offset += 16 }
            if flags & Flag.last != 0 { break }
        }
        return tags
    }

    /// Whether the block that follows is what was written.
    func verifies(_ content: [UInt8], sequence: UInt32, _ superblock: JournalSuperblock) -> Bool {
        guard superblock.hasTails else { return true }
        let value = ExtChecksum.crc32c(
            ExtChecksum.crc32c(superblock.seed, big: sequence), content)
        return superblock.checksums == .version3 ? value == checksum : value & 0xFFFF == checksum
    }
}
