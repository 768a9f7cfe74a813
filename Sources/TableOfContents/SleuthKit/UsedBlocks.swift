import Blocks
import CLibTSK

/// Which blocks of NTFS, FAT and exFAT are in use, by libtsk's reading of their bitmaps and tables.
///
/// A block taken for free by mistake is lost from a copy. So all that lies outside of what the bitmap covers is in
/// use, so is what libtsk cannot tell, and nothing is said of a file system whose bitmap may be older than its
/// directories: one that is mounted, or was not unmounted, without its journal having been played back.
struct UsedBlocks {
    /// Why it is not known; nil: it is.
    let doubt: String?
    /// Bytes.
    let clusterSize: UInt64
    private let system: TskFileSystem
    private let range: ByteRange
    /// Of the file system: where the first cluster begins, and how many there are.
    private let start: UInt64
    private let clusters: UInt64

    init(
        _ system: TskFileSystem, _ store: any BlockStore, _ range: ByteRange, _ found: Probe.Found
    ) throws(TocError) {
        self.system = system
        self.range = range
        let block = system.blockSize
        var doubt: String?
        switch found.kind {
        case .fat12, .fat16, .fat32:
            let head = try Probe.bytes(store, range, 0, 512)
            guard let geometry = head.withUnsafeBytes({ FATGeometry($0) }), geometry.sectorSize == block
            else {
                throw TocError(.damaged, "its boot sector is damaged")
            }
            clusterSize = geometry.sectorsPerCluster * block
            start = geometry.firstClusterSector * block
            clusters = geometry.clusterCount
            if try Self.isDirty(geometry, store, range) { doubt = "the file system was not unmounted" }
        case .exfat:
            let head = try Probe.bytes(store, range, 0, 512)
            (clusterSize, start, clusters) = head.withUnsafeBytes {
                (
                    block << UInt64($0[109] & 31),
                    block * UInt64($0.littleEndian(at: 88, as: UInt32.self)),
                    UInt64($0.littleEndian(at: 92, as: UInt32.self))
                )
            }
            if head[106] & 2 != 0 { doubt = "the file system was not unmounted" }
            if head[106] & 1 != 0 || head[110] != 1 { doubt = "it has two allocation bitmaps" }
        case .ntfs:
            (clusterSize, start, clusters) = (block, 0, system.info.pointee.block_count)
            doubt = try Self.ntfsDoubt(system)
        case .hfsPlus:
            (clusterSize, start, clusters) = (block, 0, system.info.pointee.block_count)
            doubt = "what libtsk says of the free space of HFS+ was compared with no other reader"
        default: preconditionFailure("not of libtsk: \(found.kind)")
        }
        let (bytes, overflow) = clusters.multipliedReportingOverflow(by: clusterSize)
        if clusterSize == 0 || overflow || start > range.count || bytes > range.count - start {
            doubt = "it says that it is larger than the volume has room for"
        }
        self.doubt = doubt.map { "which blocks are in use is not known: \($0)" }
    }

    /// Hands on what is in use.
    func tell(to telling: Telling) throws(TocError) {
        precondition(doubt == nil)
        var pending: [ByteRange] = []
        // What lies before the clusters is in use.
        var from: UInt64? = 0
        let perCluster = clusterSize / system.blockSize
        let first = start / system.blockSize
        for cluster in 0..<clusters {
            let isFree = isFree(first + cluster * perCluster)
            let position = start + cluster * clusterSize
            if !isFree {
                if from == nil { from = position }
            } else if let begin = from {
                if position > begin {
                    pending.append(ByteRange(offset: range.offset + begin, count: position - begin))
                }
                from = nil
                if pending.count == TocLimits.extentsPerRecord {
                    try system.image.check()
                    try telling.put(.used(pending))
                    pending.removeAll(keepingCapacity: true)
                }
            }
        }
        try system.image.check()
        // So is what lies behind them: copies of the boot sector among it.
        let end = start + clusters * clusterSize
        let begin = from ?? end
        if range.count > begin {
            pending.append(ByteRange(offset: range.offset + begin, count: range.count - begin))
        }
        if !pending.isEmpty { try telling.put(.used(pending)) }
    }

    private func isFree(_ block: UInt64) -> Bool {
        tsk_error_set_errno(0)
        let flags = system.info.pointee.block_getflags(system.info, block).rawValue
        let state = flags & (TSK_FS_BLOCK_FLAG_UNALLOC.rawValue | TSK_FS_BLOCK_FLAG_ALLOC.rawValue)
        // Where libtsk cannot tell it says neither, or what went wrong.
        return state == TSK_FS_BLOCK_FLAG_UNALLOC.rawValue && tsk_error_get_errno() == 0
    }

    /// The boot sector has a flag (Linux), the second entry of the table another (Windows).
    private static func isDirty(
        _ geometry: FATGeometry, _ store: any BlockStore, _ range: ByteRange
    ) throws(TocError) -> Bool {
        if geometry.isDirty { return true }
        let entries = try Probe.bytes(store, range, geometry.firstTableSector * geometry.sectorSize, 8)
        return entries.withUnsafeBytes {
            switch geometry.kind {
            case .fat16: $0.littleEndian(at: 2, as: UInt16.self) & 0x8000 == 0
            case .fat32: $0.littleEndian(at: 4, as: UInt32.self) & 0x0800_0000 == 0
            default: false
            }
        }
    }

    /// The volume's flag, and whether its journal asks to be played back.
    private static func ntfsDoubt(_ system: TskFileSystem) throws(TocError) -> String? {
        let volume = try TskFile(system, 3)
        let log = try TskFile(system, 2)
        defer { withExtendedLifetime((volume, log)) {} }
        let attributes = try volume?.attributes()
        guard
            let information = attributes?.first(where: { $0.pointee.type == TSK_FS_ATTR_TYPE_NTFS_VINFO })?
                .resident,
            information.count >= 12
        else { return "it does not say whether it was unmounted" }
        if information.littleEndian(at: 10, as: UInt16.self) & 1 != 0 {
            return "the volume is marked as dirty"
        }
        guard
            let data = try log?.attributes()?.first(where: { $0.pointee.type == TSK_FS_ATTR_TYPE_NTFS_DATA }),
            let pages = try system.content(data, 0, 16384), pages.count == 16384
        else { return "its journal cannot be read" }
        // ntfs-3g resets it when it mounts, and sets no flag: its bitmap may be behind its files meanwhile.
        if pages.allSatisfy({ $0 == 0xFF }) {
            return "its journal is empty, as ntfs-3g leaves it while it writes"
        }
        return pages.withUnsafeBytes { isClean($0) } ? nil : "its journal was not played back"
    }

    /// Whether each restart page of the journal says that nobody uses it.
    private static func isClean(_ pages: UnsafeRawBufferPointer) -> Bool {
        var offset = 0
        var found = false
        while offset + 48 <= pages.count {
            if pages[offset..<offset + 4].elementsEqual(Array("RSTR".utf8)) {
                let area = offset + Int(pages.littleEndian(at: offset + 24, as: UInt16.self))
                guard area + 16 <= pages.count else { return false }
                let clients = pages.littleEndian(at: area + 12, as: UInt16.self)
                let flags = pages.littleEndian(at: area + 14, as: UInt16.self)
                guard clients == 0xFFFF || flags & 2 != 0 else { return false }
                found = true
            }
            offset += 4096
        }
        return found
    }
}
