import Blocks

/// What replaying a journal would write where, found as the kernel's recovery does it: a scan for the end of what was
/// committed, the revocations up to there, then the blocks.
///
/// Only positions are kept, 16 bytes a block. The log is walked once around at most, whatever it says.
struct JournalReplay {
    /// Blocks whose content comes from the journal, by where they belong.
    private(set) var blocks: [JournalledBlock] = []
    /// Something is wrong within what was committed: the kernel refuses such a journal.
    private(set) var damage: String?
    /// Changes that only fast commits hold; they are not replayed here.
    private(set) var hasFastCommits = false

    private let superblock: JournalSuperblock
    private let log: JournalBlocks
    private var descriptors: [Position] = []
    private var revocations: [Position] = []

    private struct Position {
        let block: UInt64
        let sequence: UInt32
    }

    /// - Parameter log: the journal's blocks.
    /// - Throws: `store`; `damaged` when nothing of it can be replayed.
    init(_ superblock: JournalSuperblock, _ log: JournalBlocks) throws(TocError) {
        self.superblock = superblock
        self.log = log
        guard superblock.start != 0 else { return }
        let end = try scan()
        try replay(try revoked(before: end), before: end)
        if let area = superblock.fastCommits { hasFastCommits = try isFastCommit(area, of: end) }
    }

    private static func isBefore(_ a: UInt32, _ b: UInt32) -> Bool { Int32(bitPattern: a &- b) < 0 }

    /// The number of the transaction behind the last one that was committed; notes where descriptors and
    /// revocations are.
    private mutating func scan() throws(TocError) -> UInt32 {
        var sequence = superblock.sequence
        var next = superblock.start
        var walked: UInt64 = 0
        var lastCommitTime: UInt64 = 0
        var isSuspect = false
        var sum: UInt32 = ~0
        while walked < UInt64(superblock.log.count) {
            let position = next
            let block = try log.block(position)
            next = superblock.wrapped(next + 1)
            walked += 1
            guard block.big32(0) == JournalSuperblock.magic, block.big32(8) == sequence else { break }
            switch block.big32(4) {
            case JournalSuperblock.BlockType.descriptor:
                if !superblock.verifies(block) { isSuspect = true }
                descriptors.append(Position(block: position, sequence: sequence))
                let count = JournalTag.all(in: block, superblock).count
                if superblock.checksums == .version1, !isSuspect {
                    sum = ExtChecksum.crc32(sum, block)
                    for index in 0..<count {
                        let content = try log.block(superblock.wrapped(next + UInt64(index)))
                        sum = ExtChecksum.crc32(sum, content)
                    }
                }
                next = superblock.wrapped(next + UInt64(count))
                walked += UInt64(count)
            case JournalSuperblock.BlockType.revoke:
                if !superblock.verifies(block) { isSuspect = true }
                revocations.append(Position(block: position, sequence: sequence))
            case JournalSuperblock.BlockType.commit:
                let time: UInt64 = block.big(48)
                let isGood = !isSuspect && verifies(commit: block, sum)
                guard isGood else {
                    // What an earlier use of the journal left has older times; what is newer was damaged.
                    if time >= lastCommitTime { damage = "transaction \(sequence) does not verify" }
                    return sequence
                }
                lastCommitTime = time
                sum = ~0
                sequence &+= 1
            default:
                return sequence
            }
        }
        return sequence
    }

    private func verifies(commit block: [UInt8], _ sum: UInt32) -> Bool {
        guard superblock.checksums == .version1 else { return superblock.verifies(commit: block) }
        let (type, size, found) = (block[12], block[13], block.big32(16))
        return sum == found && type == 1 && size == 4 || type == 0 && size == 0 && found == 0
    }

    /// The blocks that were revoked, and by which transaction last.
    private func revoked(before end: UInt32) throws(TocError) -> [UInt64: UInt32] {
        var revoked: [UInt64: UInt32] = [:]
        for position in revocations where Self.isBefore(position.sequence, end) {
            let block = try log.block(position.block)
            let used = Int(block.big32(12))
            guard used <= block.count - superblock.tailSize else {
                throw .damaged("a list of revoked blocks is too long")
            }
            let size = superblock.is64Bit ? 8 : 4
            var offset = 16
            while offset + size <= used {
                let target = size == 8 ? block.big(offset) : UInt64(block.big32(offset))
                let known = revoked[target]
                if known.map({ Self.isBefore($0, position.sequence) }) ?? true {
                    revoked[target] = position.sequence
                }
                offset += size
            }
            guard revoked.count <= TocLimits.journalBlocks else {
                throw .damaged("it revokes more blocks than are taken here")
            }
        }
        return revoked
    }

    private mutating func replay(
        _ revoked: [UInt64: UInt32], before end: UInt32
    ) throws(TocError) {
        for position in descriptors where Self.isBefore(position.sequence, end) {
            let block = try log.block(position.block)
            var next = superblock.wrapped(position.block + 1)
            for tag in JournalTag.all(in: block, superblock) {
                let source = next
                next = superblock.wrapped(next + 1)
                if let by = revoked[tag.target], !Self.isBefore(by, position.sequence) { continue }
                if superblock.hasTails {
                    let content = try log.block(source)
                    guard tag.verifies(content, sequence: position.sequence, superblock) else {
                        damage = "a block of transaction \(position.sequence) does not verify"
                        continue
                    }
                }
                guard blocks.count < TocLimits.journalBlocks else {
                    throw .damaged("it holds more blocks than are taken here")
                }
                blocks.append(
                    JournalledBlock(
                        target: tag.target, source: try log.position(source), isEscaped: tag.isEscaped))
            }
        }
        blocks = JournalledBlock.lastOfEach(blocks)
    }

    /// Whether the area of fast commits begins with one that follows the last transaction.
    private func isFastCommit(_ area: UInt64, of transaction: UInt32) throws(TocError) -> Bool {
        let block = try log.block(area)
        // The tag of a head, its length, its features, its transaction.
        return block.little16(0) == 9 && block.little16(2) >= 8 && block.little32(8) == transaction
    }
}

/// A block of the file system whose content lies in the journal.
struct JournalledBlock: Hashable, Sendable {
    let target: UInt64
    private let sourceAndEscape: UInt64

    /// The block of the file system that has the content.
    var source: UInt64 { sourceAndEscape & ~(1 << 63) }
    /// The first four bytes are the journal's magic number, whatever the source has there.
    var isEscaped: Bool { sourceAndEscape >> 63 != 0 }

    init(target: UInt64, source: UInt64, isEscaped: Bool) {
        precondition(source >> 63 == 0)
        self.target = target
        sourceAndEscape = source | (isEscaped ? 1 << 63 : 0)
    }

    /// One for each target, the last one given, by target.
    static func lastOfEach(_ blocks: [JournalledBlock]) -> [JournalledBlock] {
        // Swift's sort is stable, though not by promise: the order is made part of what is compared.
        let order = blocks.indices.sorted { a, b in
            (blocks[a].target, a) < (blocks[b].target, b)
        }
        var result: [JournalledBlock] = []
        for index in order {
            if result.last?.target == blocks[index].target { result.removeLast() }
            result.append(blocks[index])
        }
        return result
    }
}

/// The journal's blocks by their number in it; reads ahead.
final class JournalBlocks {
    private let reader: ExtReader
    /// In the order of the journal's blocks.
    private let runs: [ExtRun]
    private static let aheadBytes = 1 << 20
    private var ahead: (first: UInt64, count: UInt64, bytes: [UInt8]) = (0, 0, [])

    var blockCount: UInt64 { runs.last.map { $0.logical + $0.count } ?? 0 }

    /// - Throws: `damaged` when the inode is no journal's.
    init(_ reader: ExtReader, inode number: UInt32) throws(TocError) {
        self.reader = reader
        let inode = try reader.inode(UInt64(number))
        guard inode.kind == .regular, inode.links > 0 else { throw .damaged("its inode is no file") }
        var runs: [ExtRun] = []
        let limit = inode.byteCount / UInt64(reader.superblock.blockSize)
        try reader.forEachRun(of: inode, limit: limit) { (run) throws(TocError) in
            guard runs.count < TocLimits.journalRuns else {
                throw .damaged("it lies in more pieces than are taken here")
            }
            runs.append(run)
        }
        self.runs = runs
    }

    var pieces: [ExtRun] { runs }

    private func run(_ block: UInt64) throws(TocError) -> ExtRun {
        var low = 0
        var high = runs.count
        while low < high {
            let middle = (low + high) / 2
            if runs[middle].logical + runs[middle].count <= block { low = middle + 1 } else { high = middle }
        }
        guard low < runs.count, runs[low].logical <= block, !runs[low].isUnwritten else {
            throw .damaged("block \(block) of it is missing")
        }
        return runs[low]
    }

    /// The block of the file system.
    func position(_ block: UInt64) throws(TocError) -> UInt64 {
        let run = try run(block)
        return run.physical + (block - run.logical)
    }

    func block(_ number: UInt64) throws(TocError) -> [UInt8] {
        let size = reader.superblock.blockSize
        if number < ahead.first || number >= ahead.first + ahead.count {
            let run = try run(number)
            let count = min(UInt64(Self.aheadBytes / size), run.logical + run.count - number)
            let start = run.physical + (number - run.logical)
            ahead = (
                number, count,
                try reader.bytes(at: start * UInt64(size), count: Int(count) * size)
            )
        }
        let offset = Int(number - ahead.first) * size
        return Array(ahead.bytes[offset..<offset + size])
    }
}
