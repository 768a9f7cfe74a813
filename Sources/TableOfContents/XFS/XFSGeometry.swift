import Blocks

/// What the superblock says: sizes, where things lie, and what the file system can do ("XFS Algorithms & Data
/// Structures", chapter "Allocation Groups"). All numbers were checked against each other.
struct XFSGeometry {
    static let magic: UInt32 = 0x5846_5342
    /// Bytes of the superblock that are looked at; a sector has no less.
    static let superblockBytes = 512
    static let checksumOffset = 224

    /// sb_features_incompat.
    enum Incompatible {
        static let fileType: UInt32 = 1 << 0
        static let sparseInodes: UInt32 = 1 << 1
        static let metaUUID: UInt32 = 1 << 2
        static let bigTime: UInt32 = 1 << 3
        static let needsRepair: UInt32 = 1 << 4
        static let largeExtentCounts: UInt32 = 1 << 5
        static let exchangeRange: UInt32 = 1 << 6
        static let parentPointers: UInt32 = 1 << 7
        static let metadataDirectory: UInt32 = 1 << 8
        static let zoned: UInt32 = 1 << 9
        static let readable =
            fileType | sparseInodes | metaUUID | bigTime | needsRepair | largeExtentCounts | exchangeRange
            | parentPointers
    }

    /// sb_features_ro_compat: free inode, reverse mapping, reference count trees, and counters of the first.
    static let readOnlyCompatible: UInt32 = 0xF

    enum Version4 {
        static let sharedBit: UInt16 = 0x0200
        static let directoryVersion2: UInt16 = 0x2000
        static let moreBits: UInt16 = 0x8000
        /// sb_features2: lazy counters, attribute version 2, 32-bit project ids, file types in directories.
        static let known: UInt32 = 0x2 | 0x8 | 0x80 | 0x200
        static let fileType: UInt32 = 0x200
    }

    let isVersion5: Bool
    let blockSize: Int
    let blockLog: UInt64
    let sectorSize: Int
    let inodeSize: Int
    let inodeLog: UInt64
    let directoryBlockSize: Int
    let groupBlocks: UInt64
    let groupBlocksLog: UInt64
    let groupCount: UInt64
    let blocks: UInt64
    let rootInode: UInt64
    let logStart: UInt64
    let logBlocks: UInt64
    let hasFileTypes: Bool
    let hasSparseInodes: Bool
    let needsRepair: Bool
    let hasUnknownReadOnlyFeatures: Bool
    /// Bitmap and summary of the realtime device, quota files: have no names.
    let internalInodes: [UInt64]
    /// As the log carries it, and as tools print it.
    let uuid: [UInt8]
    /// As metadata carry it: what it was before it was changed.
    let metaUUID: [UInt8]
    /// Where the superblock has that.
    let metaUUIDAt: Int
    /// Incompatible features of the log alone.
    let logFeatures: UInt32

    /// Why nothing of such a file system is listed, nil when it can be.
    static func obstacle(_ sb: XFSView) -> String? {
        let version = sb.u16(100)
        if sb.u8(126) != 0 { return "mkfs did not finish making it" }
        switch version & 0xF {
        case 5:
            let incompatible = sb.u32(216)
            if incompatible & Incompatible.metadataDirectory != 0 {
                return "it has a metadata directory, a feature that is not read here"
            }
            if incompatible & Incompatible.zoned != 0 {
                return "it is zoned, a feature that is not read here"
            }
            let unknown = incompatible & ~Incompatible.readable
            if unknown != 0 { return "it has features that are not known here (incompat \(hex(unknown)))" }
        case 4:
            guard version & Version4.directoryVersion2 != 0 else { return "its directories are of version 1" }
            let unknown = version & Version4.moreBits != 0 ? sb.u32(200) & ~Version4.known : 0
            if unknown != 0 || version & Version4.sharedBit != 0 {
                return "it has features that are not known here (version \(hex(UInt32(version))), "
                    + "features2 \(hex(unknown)))"
            }
        case let other: return "its format is of version \(other); 4 and 5 are read here"
        }
        return nil
    }

    private static func hex(_ value: UInt32) -> String { "0x" + String(value, radix: 16) }

    /// Nil: the numbers of the superblock cannot be right.
    init?(_ sb: XFSView) {
        let version = sb.u16(100)
        isVersion5 = version & 0xF == 5
        blockSize = Int(sb.u32(4))
        blockLog = UInt64(sb.u8(120))
        sectorSize = sb.int16(102)
        inodeSize = sb.int16(104)
        inodeLog = UInt64(sb.u8(122))
        guard (9...16).contains(blockLog), blockSize == 1 << blockLog,
            (9...15).contains(sb.u8(121)), sectorSize == 1 << sb.u8(121), sectorSize <= blockSize,
            (8...11).contains(inodeLog), inodeSize == 1 << inodeLog, inodeLog <= blockLog,
            UInt64(sb.u8(123)) == blockLog - inodeLog, sb.u16(106) == 1 << (blockLog - inodeLog)
        else { return nil }
        let directoryLog = blockLog + UInt64(sb.u8(192))
        guard directoryLog <= 16 else { return nil }
        directoryBlockSize = 1 << directoryLog
        blocks = sb.u64(8)
        groupBlocks = UInt64(sb.u32(84))
        groupBlocksLog = UInt64(sb.u8(124))
        groupCount = UInt64(sb.u32(88))
        guard groupBlocks >= 64, groupBlocksLog <= 31, groupBlocks <= 1 << groupBlocksLog,
            groupBlocksLog > 0, groupBlocks > 1 << (groupBlocksLog - 1), groupCount >= 1,
            blocks <= UInt64.max >> 17, groupBlocks * groupCount >= blocks,
            groupBlocks * (groupCount - 1) < blocks,
            // Four headers, each in a sector.
            groupBlocks << blockLog >= UInt64(4 * sectorSize),
            groupCount - 1 < TocLimits.address >> (groupBlocksLog + blockLog - inodeLog)
        else { return nil }
        logStart = sb.u64(48)
        logBlocks = UInt64(sb.u32(96))
        rootInode = sb.u64(56)
        let incompatible = isVersion5 ? sb.u32(216) : 0
        hasFileTypes =
            isVersion5
            ? incompatible & Incompatible.fileType != 0
            : version & Version4.moreBits != 0 && sb.u32(200) & Version4.fileType != 0
        hasSparseInodes = incompatible & Incompatible.sparseInodes != 0
        needsRepair = incompatible & Incompatible.needsRepair != 0
        hasUnknownReadOnlyFeatures = isVersion5 && sb.u32(212) & ~Self.readOnlyCompatible != 0
        let quota = [sb.u64(160), sb.u64(168)] + (isVersion5 ? [sb.u64(232)] : [])
        internalInodes = ([sb.u64(64), sb.u64(72)] + quota).filter { $0 != 0 && $0 != .max }
        uuid = (32..<48).map { sb.u8($0) }
        let uuidOffset = incompatible & Incompatible.metaUUID != 0 ? 248 : 32
        metaUUID = (0..<16).map { sb.u8(uuidOffset + $0) }
        metaUUIDAt = uuidOffset
        logFeatures = isVersion5 ? sb.u32(220) : 0
    }

    var bytes: UInt64 { blocks << blockLog }
    var inodesPerBlockLog: UInt64 { blockLog - inodeLog }

    func groupOffset(_ group: UInt64) -> UInt64 { (group * groupBlocks) << blockLog }

    /// Blocks of an allocation group: the last may have fewer.
    func blocks(ofGroup group: UInt64) -> UInt64 { min(groupBlocks, blocks - group * groupBlocks) }

    func inodeNumber(group: UInt64, _ number: UInt64) -> UInt64 {
        group << (groupBlocksLog + inodesPerBlockLog) | number
    }

    func group(ofInode number: UInt64) -> UInt64 { number >> (groupBlocksLog + inodesPerBlockLog) }

    /// Where an inode would lie; nil where there cannot be one.
    func offset(ofInode number: UInt64) -> UInt64? {
        let group = group(ofInode: number)
        let inside = number & (1 << (groupBlocksLog + inodesPerBlockLog) - 1)
        guard group < groupCount, inside >> inodesPerBlockLog < blocks(ofGroup: group) else { return nil }
        return groupOffset(group) + inside << inodeLog
    }

    /// Where `count` blocks from an absolute block number lie; nil where they pass their allocation group.
    func offset(ofBlock block: UInt64, count: UInt64) -> UInt64? {
        let group = block >> groupBlocksLog
        let inside = block & (1 << groupBlocksLog - 1)
        guard group < groupCount, ByteRange(checking: inside, count, within: blocks(ofGroup: group)) != nil
        else { return nil }
        return (group * groupBlocks + inside) << blockLog
    }

    /// Header bytes of an inode before its forks.
    var inodeCore: Int { isVersion5 ? 176 : 100 }
}

extension XFSGeometry {
    /// The internal log; nil: it lies on another device, or nowhere that can be right.
    var logRange: ByteRange? {
        guard logStart != 0, logBlocks > 0, let offset = offset(ofBlock: logStart, count: logBlocks) else {
            return nil
        }
        return ByteRange(offset: offset, count: logBlocks << blockLog)
    }
}

extension XFSGeometry {
    /// Whether everything lies where it did. A log that makes the file system grow says otherwise.
    func hasLayout(of other: XFSGeometry) -> Bool {
        blocks == other.blocks && groupCount == other.groupCount && groupBlocks == other.groupBlocks
            && blockSize == other.blockSize && sectorSize == other.sectorSize && inodeSize == other.inodeSize
            && directoryBlockSize == other.directoryBlockSize && rootInode == other.rootInode
            && logStart == other.logStart && logBlocks == other.logBlocks && isVersion5 == other.isVersion5
    }
}
