import Blocks

/// Kinds of items; what else there is, is not known here, and nothing is replayed then.
enum XFSLogItemKind: UInt16 {
    case freeIntent = 0x1236
    case freeDone
    case unlinked
    case inode = 0x123B
    case buffer
    case quota
    case quotaOff
    case inodeCreation
    case reverseMapIntent
    case reverseMapDone
    case referenceCountIntent
    case referenceCountDone
    case mapIntent
    case mapDone
    case attributeIntent
    case attributeDone
    case exchangeIntent
    case exchangeDone
    case realtimeFreeIntent
    case realtimeFreeDone
    case realtimeReverseMapIntent
    case realtimeReverseMapDone
    case realtimeReferenceCountIntent
    case realtimeReferenceCountDone
}

extension XFSLogItem {
    func known() throws(TocError) -> XFSLogItemKind {
        guard let kind = XFSLogItemKind(rawValue: kind) else {
            throw TocError(.damaged, "it has items of a kind that is not known here (\(self.kind))")
        }
        return kind
    }

    func region(_ index: Int, atLeast count: Int) throws(TocError) -> XFSLogRegion {
        guard index < regions.count, regions[index].count >= count else {
            throw TocError(.damaged, "an item is too short")
        }
        return regions[index]
    }
}

/// Where a buffer lies: in sectors of 512 bytes from the file system's beginning.
struct XFSLogBufferPlace: Hashable {
    let sector: UInt64
    let sectors: UInt64

    var offset: UInt64 { sector << 9 }
    var count: Int { Int(sectors) << 9 }

    /// Throws `damaged` for what cannot be a buffer of metadata on the range.
    func check(_ disk: XFSDisk) throws(TocError) {
        guard sectors > 0, sectors <= XFSLimits.logBufferSectors, sector <= disk.range.count >> 9,
            sector + sectors <= disk.range.count >> 9
        else { throw TocError(.damaged, "it has a buffer that cannot be right") }
    }
}

/// A buffer of metadata, as far as a transaction changed it: bitmap of pieces of 128 bytes, and a region for each run of
/// them.
struct XFSLogBuffer {
    enum Flags {
        static let inodes: UInt16 = 1 << 0
        static let cancel: UInt16 = 1 << 1
        static let quotas: UInt16 = 7 << 2
    }

    private static let piece = 128

    let place: XFSLogBufferPlace
    let flags: UInt16
    private let item: XFSLogItem
    private let words: Int

    init(_ item: XFSLogItem) throws(TocError) {
        let format = try item.region(0, atLeast: 20)
        self.item = item
        flags = format.u16(4)
        place = XFSLogBufferPlace(sector: format.u64(8), sectors: UInt64(format.u16(6)))
        words = Int(format.u32(16))
        guard words <= (format.count - 20) / 4 else {
            throw TocError(.damaged, "a buffer's bitmap passes its item")
        }
    }

    var isCancelled: Bool { flags & Flags.cancel != 0 }

    private func isDirty(_ bit: Int) -> Bool {
        item.format.u32(20 + bit / 32 * 4) >> UInt32(bit % 32) & 1 != 0
    }

    /// Hands on what is to be copied where in the buffer.
    func forEachChange(_ visit: (Int, XFSLogRegion) -> Void) throws(TocError) {
        let bits = words * 32
        var bit = 0
        var region = 1
        while bit < bits {
            guard isDirty(bit) else {
                bit += 1
                continue
            }
            var run = 1
            while bit + run < bits, isDirty(bit + run) { run += 1 }
            // A run may come in several regions.
            let source = try item.region(region, atLeast: Self.piece)
            run = min(run, source.count / Self.piece)
            guard (bit + run) * Self.piece <= place.count,
                let bytes = source.view.slice(0, run * Self.piece)
            else { throw TocError(.damaged, "a buffer was changed beyond its end") }
            visit(bit * Self.piece, XFSLogRegion(bytes))
            bit += run
            region += 1
        }
    }
}

/// An inode, as far as a transaction changed it.
struct XFSLogInode {
    enum Fields {
        static let core: UInt32 = 0x001
        static let data: UInt32 = 0x002 | 0x004
        static let dataRoot: UInt32 = 0x008
        static let device: UInt32 = 0x010
        static let attributes: UInt32 = 0x040 | 0x080
        static let attributesRoot: UInt32 = 0x100
        static let owners: UInt32 = 0x200 | 0x400
        static let dataFork = data | dataRoot
        static let attributesFork = attributes | attributesRoot
    }

    let fields: UInt32
    let number: UInt64
    let device: UInt32
    /// Of the buffer that the inode lies in, with others.
    let place: XFSLogBufferPlace
    let offset: UInt64
    let core: XFSLogRegion
    let dataFork: XFSLogRegion?
    let attributesFork: XFSLogRegion?

    /// - Parameter coreBytes: that the core has at least.
    init(_ item: XFSLogItem, coreBytes: Int) throws(TocError) {
        // Machines that do not align 64 bits left out four bytes.
        let format = try item.region(0, atLeast: 52)
        let shift = format.count >= 56 ? 4 : 0
        fields = format.u32(4)
        number = format.u64(12 + shift)
        device = format.u32(20 + shift)
        place = XFSLogBufferPlace(
            sector: format.u64(36 + shift), sectors: UInt64(format.u32(44 + shift)))
        offset = UInt64(format.u32(48 + shift))
        guard fields & Fields.core != 0 else { throw TocError(.damaged, "an inode's item has no core") }
        core = try item.region(1, atLeast: coreBytes)
        let hasData = fields & Fields.dataFork != 0 && item.regions.count > 2
        dataFork = hasData ? item.regions[2] : nil
        let next = hasData ? 3 : 2
        attributesFork =
            fields & Fields.attributesFork != 0 && item.regions.count > next ? item.regions[next] : nil
    }
}

/// A run of new inodes, all of them free.
struct XFSLogInodeCreation {
    let group: UInt64
    let block: UInt64
    let inodes: UInt64
    let blocks: UInt64
    let generation: UInt32

    init(_ item: XFSLogItem, _ geometry: XFSGeometry) throws(TocError) {
        // Here, numbers are big-endian.
        let view = try item.region(0, atLeast: 28).view
        group = UInt64(view.u32(4))
        block = UInt64(view.u32(8))
        inodes = UInt64(view.u32(12))
        blocks = UInt64(view.u32(20))
        generation = view.u32(24)
        guard group < geometry.groupCount, block > 0, blocks > 0, inodes <= 64 * 64,
            view.u32(16) == geometry.inodeSize,
            inodes >> geometry.inodesPerBlockLog == blocks,
            ByteRange(checking: block, blocks, within: geometry.blocks(ofGroup: group)) != nil
        else { throw TocError(.damaged, "it makes inodes where there cannot be any") }
    }
}
