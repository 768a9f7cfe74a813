import Blocks

extension TocError {
    /// What a disk has is not as its format says. Whoever reads on makes a problem of it.
    static func damaged(_ reason: String) -> TocError { TocError(.damaged, reason) }

    var isDamage: Bool { kind == .damaged }
}

/// Blocks and inodes of one ext file system; keeps those it read last. For one thread.
final class ExtReader {
    let superblock: ExtSuperblock
    /// The volume's bytes, with the journal replayed where there is one.
    let store: any BlockStore
    let range: ByteRange

    private static let blockSlots = 64
    private static let chunkSlots = 128
    private static let chunkBytes = 64 << 10

    private var blockNumbers = [UInt64](repeating: .max, count: blockSlots)
    private var blocks = [[UInt8]](repeating: [], count: blockSlots)
    private var chunkKeys = [UInt64](repeating: .max, count: chunkSlots)
    private var chunks = [[UInt8]](repeating: [], count: chunkSlots)
    private var tables: (group: UInt64, block: UInt64) = (.max, 0)
    /// Blocks of block maps that may still be read. Each block belongs to one map only, so a sound file system never
    /// uses it up, and one whose maps meet in circles does.
    private(set) var mapBudget: UInt64

    /// - Parameter range: holds the whole file system.
    init(_ superblock: ExtSuperblock, _ store: any BlockStore, _ range: ByteRange) {
        precondition(superblock.byteCount <= range.count && range.end <= store.size)
        self.superblock = superblock
        self.store = store
        self.range = range
        mapBudget = 1000 + 4 * superblock.blockCount
    }

    /// - Parameter offset: from the file system's beginning; with `count` within it.
    func bytes(at offset: UInt64, count: Int) throws(TocError) -> [UInt8] {
        precondition(offset + UInt64(count) <= range.count)
        do throws(StoreError) {
            return try store.bytes(at: range.offset + offset, count: count)
        } catch {
            throw TocError(
                .store(error), "reading \(count) bytes at \(range.offset + offset) of the volume: \(error)")
        }
    }

    func isValid(_ block: UInt64, count: UInt64 = 1) -> Bool {
        block >= superblock.firstDataBlock && count <= superblock.blockCount
            && block <= superblock.blockCount - count
    }

    func block(_ number: UInt64) throws(TocError) -> [UInt8] {
        guard isValid(number) else { throw .damaged("block \(number) is not in the file system") }
        let slot = Int(number % UInt64(Self.blockSlots))
        if blockNumbers[slot] == number { return blocks[slot] }
        let bytes = try bytes(at: number * UInt64(superblock.blockSize), count: superblock.blockSize)
        blockNumbers[slot] = number
        blocks[slot] = bytes
        return bytes
    }

    /// A block of a file's block map.
    func mapBlock(_ number: UInt64) throws(TocError) -> [UInt8] {
        guard mapBudget > 0 else { throw .damaged("the block maps meet in circles") }
        mapBudget -= 1
        return try block(number)
    }

    func descriptor(ofGroup group: UInt64) throws(TocError) -> ExtGroup {
        precondition(group < superblock.groupCount)
        let block = try block(superblock.descriptorBlock(group / superblock.descriptorsPerBlock))
        let offset = Int(group % superblock.descriptorsPerBlock) * superblock.descriptorSize
        return ExtGroup(Array(block[offset..<offset + superblock.descriptorSize]), group, superblock)
    }

    private var initialized: (group: UInt64, count: UInt64) = (.max, 0)

    /// Whether an inode lies in the part of its table that is in use: bitmaps of groups in which there are none may
    /// never have been written.
    func isInitialized(inode number: UInt64) throws(TocError) -> Bool {
        guard number >= 1, number <= UInt64(superblock.inodeCount) else { return false }
        let (group, index) = (number - 1).quotientAndRemainder(dividingBy: UInt64(superblock.inodesPerGroup))
        if initialized.group != group {
            do throws(TocError) {
                let descriptor = try descriptor(ofGroup: group)
                // What does not verify hides nothing.
                initialized = (
                    group,
                    UInt64(descriptor.isIntact ? descriptor.initializedInodes : superblock.inodesPerGroup)
                )
            } catch {
                guard error.isDamage else { throw error }
                // Reading it says what is wrong.
                return true
            }
        }
        return index < initialized.count
    }

    func inode(_ number: UInt64) throws(TocError) -> ExtInode {
        guard number >= 1, number <= UInt64(superblock.inodeCount) else {
            throw .damaged("there is no inode \(number)")
        }
        let group = (number - 1) / UInt64(superblock.inodesPerGroup)
        let size = UInt64(superblock.inodeSize)
        let offset = (number - 1) % UInt64(superblock.inodesPerGroup) * size
        let chunkIndex = offset / UInt64(Self.chunkBytes)
        // Groups have at most 2^32 inodes, so the key is unique.
        let key = group << 24 | chunkIndex
        let slot = Int((chunkIndex &+ group &* 31) % UInt64(Self.chunkSlots))
        if chunkKeys[slot] != key {
            if tables.group != group {
                let table = try descriptor(ofGroup: group).inodeTable
                guard isValid(table, count: superblock.inodeTableBlocks) else {
                    throw .damaged("group \(group)'s inodes are not in the file system")
                }
                tables = (group, table)
            }
            let start = chunkIndex * UInt64(Self.chunkBytes)
            let tableBytes = UInt64(superblock.inodesPerGroup) * size
            let count = min(UInt64(Self.chunkBytes), tableBytes - start)
            chunks[slot] = try bytes(
                at: tables.block * UInt64(superblock.blockSize) + start, count: Int(count))
            chunkKeys[slot] = key
        }
        return ExtInode(
            number: number, chunk: chunks[slot], offset: Int(offset % UInt64(Self.chunkBytes)),
            size: superblock.inodeSize)
    }
}

/// A group descriptor; its numbers are as the disk has them.
struct ExtGroup {
    let blockBitmap: UInt64
    let inodeBitmap: UInt64
    let inodeTable: UInt64
    /// In clusters.
    let freeCount: UInt64
    /// No block but the group's own tables is used, and its block bitmap was never written.
    let isBlockBitmapUninitialized: Bool
    /// How many inodes from the table's beginning were ever in use; what lies behind may be anything.
    let initializedInodes: UInt32
    /// Of the block bitmap, and how many of its bits are kept.
    let bitmapChecksum: (value: UInt32, mask: UInt32)
    /// False: the descriptor has a checksum, and that is wrong.
    let isIntact: Bool

    /// - Parameter bytes: as many as a descriptor has, at least 32.
    init(_ bytes: [UInt8], _ group: UInt64, _ superblock: ExtSuperblock) {
        let isWide = bytes.count >= 64
        func wide(_ low: Int, _ high: Int) -> UInt64 {
            UInt64(bytes.little32(low)) | (isWide ? UInt64(bytes.little32(high)) << 32 : 0)
        }
        blockBitmap = wide(0, 0x20)
        inodeBitmap = wide(4, 0x24)
        inodeTable = wide(8, 0x28)
        freeCount = UInt64(bytes.little16(0xC)) | (isWide ? UInt64(bytes.little16(0x2C)) << 16 : 0)
        isBlockBitmapUninitialized = superblock.hasGroupFlags && bytes.little16(0x12) & 2 != 0
        // In use without a journal, the count may be older than the inodes; then a table that was zeroed tells.
        let isCurrent = superblock.state & 1 != 0 || bytes.little16(0x12) & 4 == 0
        if !superblock.hasGroupFlags || !isCurrent {
            initializedInodes = superblock.inodesPerGroup
        } else if bytes.little16(0x12) & 1 != 0 {
            initializedInodes = 0
        } else {
            let unused = UInt32(bytes.little16(0x1C)) | (isWide ? UInt32(bytes.little16(0x32)) << 16 : 0)
            initializedInodes = superblock.inodesPerGroup - min(unused, superblock.inodesPerGroup)
        }
        bitmapChecksum = (
            UInt32(bytes.little16(0x18)) | (isWide ? UInt32(bytes.little16(0x38)) << 16 : 0),
            isWide ? 0xFFFF_FFFF : 0xFFFF
        )
        let number = UInt32(truncatingIfNeeded: group)
        let provided = bytes.little16(0x1E)
        if superblock.hasChecksums {
            var blank = bytes
            blank[0x1E] = 0
            blank[0x1F] = 0
            let seed = ExtChecksum.crc32c(superblock.checksumSeed, little: number)
            isIntact = UInt16(truncatingIfNeeded: ExtChecksum.crc32c(seed, blank)) == provided
        } else if superblock.hasGroupFlags {
            var crc = ExtChecksum.crc16(0xFFFF, superblock.uuid)
            crc = ExtChecksum.crc16(crc, withUnsafeBytes(of: number.littleEndian) { [UInt8]($0) })
            crc = ExtChecksum.crc16(crc, bytes[..<0x1E])
            if bytes.count > 0x20 { crc = ExtChecksum.crc16(crc, bytes[0x20...]) }
            isIntact = crc == provided
        } else {
            isIntact = true
        }
    }
}
