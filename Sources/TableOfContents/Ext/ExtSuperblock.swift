import Blocks

/// Features of an ext file system, by how a driver that does not know one has to behave.
enum ExtFeature {
    enum Compatible {
        static let hasJournal: UInt32 = 0x4
        static let sparseSuper2: UInt32 = 0x200
        static let fastCommit: UInt32 = 0x400
        static let orphanFile: UInt32 = 0x1000
    }

    enum Incompatible {
        static let needsRecovery: UInt32 = 0x4
        static let journalDevice: UInt32 = 0x8
        static let metaGroups: UInt32 = 0x10
        static let extents: UInt32 = 0x40
        static let is64Bit: UInt32 = 0x80
        static let multipleMount: UInt32 = 0x100
        static let checksumSeed: UInt32 = 0x2000
        static let inlineData: UInt32 = 0x8000
        static let encrypt: UInt32 = 0x1_0000
        static let caseFold: UInt32 = 0x2_0000
        /// filetype, needs_recovery, meta_bg, extents, 64bit, mmp, flex_bg, ea_inode, metadata_csum_seed, large_dir,
        /// inline_data, encrypt, casefold: all that mainline Linux mounts.
        static let known: UInt32 = 0x3_E7D6
        /// What ext2 and ext3 may have: filetype, needs_recovery, meta_bg.
        static let old: UInt32 = 0x16
    }

    enum ReadOnlyCompatible {
        static let sparseSuper: UInt32 = 0x1
        static let groupChecksum: UInt32 = 0x10
        static let bigAlloc: UInt32 = 0x200
        static let metadataChecksum: UInt32 = 0x400
        /// sparse_super, large_file, btree_dir, huge_file, uninit_bg, dir_nlink, extra_isize, quota, bigalloc,
        /// metadata_csum, read-only, project, shared_blocks, verity, orphan_present.
        static let known: UInt32 = 0x1_F77F
        /// sparse_super, large_file, btree_dir.
        static let old: UInt32 = 0x7
    }
}

/// The superblock, as far as it is used here, and checked: every number that others are computed from is sane.
struct ExtSuperblock: Hashable, Sendable {
    static let offset: UInt64 = 1024
    static let size = 1024

    let compatible: UInt32
    let incompatible: UInt32
    let readOnlyCompatible: UInt32
    /// Bytes, 1 KiB to 64 KiB.
    let blockSize: Int
    let blockCount: UInt64
    let firstDataBlock: UInt64
    let blocksPerGroup: UInt64
    /// Blocks of a bit in a block bitmap; 1 without `bigalloc`.
    let blocksPerCluster: UInt64
    let inodeCount: UInt32
    let inodesPerGroup: UInt32
    let inodeSize: Int
    let descriptorSize: Int
    let groupCount: UInt64
    let firstMetaGroup: UInt32
    let reservedDescriptorBlocks: UInt64
    let backupGroups: (UInt32, UInt32)
    let state: UInt16
    let creator: UInt32
    let journalInode: UInt32
    let journalDevice: UInt32
    let lastOrphan: UInt32
    let orphanFileInode: UInt32
    let multipleMountBlock: UInt64
    let uuid: [UInt8]
    let label: [UInt8]
    /// What checksums of metadata start from.
    let checksumSeed: UInt32
    /// False: it has a checksum, and that is wrong.
    let isIntact: Bool

    /// - Parameter bytes: ``size`` of them. Nil when they are no superblock that makes sense.
    init?(_ bytes: [UInt8]) {
        guard bytes.count >= Self.size, bytes.little16(0x38) == 0xEF53 else { return nil }
        let revision = bytes.little32(0x4C)
        compatible = revision > 0 ? bytes.little32(0x5C) : 0
        incompatible = revision > 0 ? bytes.little32(0x60) : 0
        readOnlyCompatible = revision > 0 ? bytes.little32(0x64) : 0
        let is64Bit = incompatible & ExtFeature.Incompatible.is64Bit != 0
        let hasClusters = readOnlyCompatible & ExtFeature.ReadOnlyCompatible.bigAlloc != 0
        let blockExponent = bytes.little32(0x18)
        let clusterExponent = bytes.little32(0x1C)
        guard blockExponent <= 6 else { return nil }
        blockSize = 1024 << Int(blockExponent)
        if hasClusters {
            guard clusterExponent >= blockExponent, clusterExponent <= 20 else { return nil }
            blocksPerCluster = 1 << UInt64(clusterExponent - blockExponent)
        } else {
            blocksPerCluster = 1
        }
        blockCount =
            UInt64(bytes.little32(4)) | (is64Bit ? UInt64(bytes.little32(0x150)) << 32 : 0)
        firstDataBlock = UInt64(bytes.little32(0x14))
        blocksPerGroup = UInt64(bytes.little32(0x20))
        inodeCount = bytes.little32(0)
        inodesPerGroup = bytes.little32(0x28)
        inodeSize = revision > 0 ? Int(bytes.little16(0x58)) : 128
        descriptorSize = is64Bit ? Int(bytes.little16(0xFE)) : 32
        guard firstDataBlock == (blockSize == 1024 && !hasClusters ? 1 : 0), blockCount > firstDataBlock,
            blocksPerGroup >= 8, blocksPerGroup % (8 * blocksPerCluster) == 0,
            blocksPerGroup / blocksPerCluster <= UInt64(blockSize) * 8,
            inodesPerGroup >= 8, inodesPerGroup <= UInt32(blockSize) * 8,
            inodeSize >= 128, inodeSize <= blockSize, inodeSize & (inodeSize - 1) == 0,
            descriptorSize >= (is64Bit ? 64 : 32), descriptorSize <= 1024,
            descriptorSize & (descriptorSize - 1) == 0,
            !blockCount.multipliedReportingOverflow(by: UInt64(blockSize)).overflow
        else { return nil }
        groupCount = (blockCount - firstDataBlock - 1) / blocksPerGroup + 1
        // Inode numbers are 32 bits wide.
        guard inodeCount >= 11, UInt64((inodeCount - 1) / inodesPerGroup) < groupCount else { return nil }
        firstMetaGroup = bytes.little32(0x104)
        reservedDescriptorBlocks = UInt64(bytes.little16(0xCE))
        backupGroups = (bytes.little32(0x24C), bytes.little32(0x250))
        state = bytes.little16(0x3A)
        creator = bytes.little32(0x48)
        journalInode = bytes.little32(0xE0)
        journalDevice = bytes.little32(0xE4)
        lastOrphan = bytes.little32(0xE8)
        orphanFileInode = bytes.little32(0x280)
        multipleMountBlock = bytes.little(0x168)
        uuid = Array(bytes[0x68..<0x78])
        label = Array(bytes[0x78..<0x88].prefix { $0 != 0 })
        let hasChecksums = readOnlyCompatible & ExtFeature.ReadOnlyCompatible.metadataChecksum != 0
        checksumSeed =
            incompatible & ExtFeature.Incompatible.checksumSeed != 0
            ? bytes.little32(0x270) : ExtChecksum.crc32c(~0, uuid)
        isIntact = !hasChecksums || ExtChecksum.crc32c(~0, bytes[..<0x3FC]) == bytes.little32(0x3FC)
    }

    /// Whether they are the superblock of a device that holds a journal and nothing else.
    static func isJournal(_ bytes: [UInt8]) -> Bool {
        bytes.count >= size && bytes.little16(0x38) == 0xEF53 && bytes.little32(0x4C) > 0
            && bytes.little32(0x60) & ExtFeature.Incompatible.journalDevice != 0
    }

    static func == (a: ExtSuperblock, b: ExtSuperblock) -> Bool {
        a.uuid == b.uuid && a.blockCount == b.blockCount && a.incompatible == b.incompatible
    }

    func hash(into hasher: inout Hasher) { hasher.combine(uuid) }

    func has(compatible feature: UInt32) -> Bool { compatible & feature != 0 }
    func has(incompatible feature: UInt32) -> Bool { incompatible & feature != 0 }
    func has(readOnlyCompatible feature: UInt32) -> Bool { readOnlyCompatible & feature != 0 }

    var hasChecksums: Bool { has(readOnlyCompatible: ExtFeature.ReadOnlyCompatible.metadataChecksum) }
    /// Whether flags of groups (not initialized…) count.
    var hasGroupFlags: Bool {
        hasChecksums || has(readOnlyCompatible: ExtFeature.ReadOnlyCompatible.groupChecksum)
    }

    /// As blkid tells them apart: by what the older drivers can mount.
    var kind: FileSystemKind {
        if incompatible & ~ExtFeature.Incompatible.old != 0
            || readOnlyCompatible & ~ExtFeature.ReadOnlyCompatible.old != 0
        {
            return .ext4
        }
        return has(compatible: ExtFeature.Compatible.hasJournal) ? .ext3 : .ext2
    }

    var uuidText: String {
        let digits = uuid.map { byte in
            let text = String(byte, radix: 16)
            return byte < 16 ? "0" + text : text
        }
        guard uuid.contains(where: { $0 != 0 }) else { return "" }
        return [0..<4, 4..<6, 6..<8, 8..<10, 10..<16].map { digits[$0].joined() }.joined(separator: "-")
    }

    /// Bytes of the whole file system.
    var byteCount: UInt64 { blockCount * UInt64(blockSize) }

    func firstBlock(ofGroup group: UInt64) -> UInt64 { firstDataBlock + group * blocksPerGroup }

    /// Blocks of a group; the last one may have fewer.
    func blockCount(ofGroup group: UInt64) -> UInt64 {
        min(blocksPerGroup, blockCount - firstBlock(ofGroup: group))
    }

    var descriptorsPerBlock: UInt64 { UInt64(blockSize / descriptorSize) }
    var descriptorBlockCount: UInt64 { (groupCount - 1) / descriptorsPerBlock + 1 }
    var inodeTableBlocks: UInt64 {
        (UInt64(inodesPerGroup) * UInt64(inodeSize) + UInt64(blockSize) - 1) / UInt64(blockSize)
    }

    /// Whether a group begins with a copy of the superblock.
    func hasSuperblock(group: UInt64) -> Bool {
        if group == 0 { return true }
        if has(compatible: ExtFeature.Compatible.sparseSuper2) {
            return group == UInt64(backupGroups.0) || group == UInt64(backupGroups.1)
        }
        if group == 1 || !has(readOnlyCompatible: ExtFeature.ReadOnlyCompatible.sparseSuper) { return true }
        return group & 1 != 0 && [3, 5, 7].contains { Self.isPower(group, of: $0) }
    }

    private static func isPower(_ number: UInt64, of base: UInt64) -> Bool {
        var rest = number
        while rest > 1, rest % base == 0 { rest /= base }
        return rest == 1
    }

    /// Whether the descriptors of a group lie in its own meta group rather than behind the superblock.
    private func isInMetaGroup(_ group: UInt64) -> Bool {
        has(incompatible: ExtFeature.Incompatible.metaGroups)
            && group / descriptorsPerBlock >= UInt64(firstMetaGroup)
    }

    /// The block with the descriptors of the groups from `index` × ``descriptorsPerBlock``; may lie beyond the end.
    func descriptorBlock(_ index: UInt64) -> UInt64 {
        let group = index * descriptorsPerBlock
        // The superblock's own block is the second one where blocks have 1 KiB, with clusters, too.
        let superblock: UInt64 = blockSize == 1024 ? 1 : 0
        guard isInMetaGroup(group) else { return superblock + 1 + index }
        var skipped: UInt64 = hasSuperblock(group: group) ? 1 : 0
        if group == 0 && superblock > firstDataBlock { skipped += 1 }
        return firstBlock(ofGroup: group) + skipped
    }

    /// Blocks at a group's beginning that hold the superblock, descriptors and room for more of these.
    func baseBlocks(ofGroup group: UInt64) -> UInt64 {
        let hasSuper = hasSuperblock(group: group)
        // With clusters and blocks of 1 KiB, group 0 begins one block before the superblock.
        let lead: UInt64 = group == 0 && blockSize == 1024 && firstDataBlock == 0 ? 1 : 0
        if isInMetaGroup(group) {
            let position = group % descriptorsPerBlock
            let holds = position == 0 || position == 1 || position == descriptorsPerBlock - 1
            return lead + (hasSuper ? 1 : 0) + (holds ? 1 : 0)
        }
        guard hasSuper else { return 0 }
        let tables =
            has(incompatible: ExtFeature.Incompatible.metaGroups)
            ? UInt64(firstMetaGroup) : descriptorBlockCount
        return lead + 1 + tables + reservedDescriptorBlocks
    }
}
