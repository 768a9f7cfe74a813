import Blocks

/// One of the B+trees: of an allocation group (short pointers, keys of 32 bits) or of a file's extents (long).
struct XFSTreeKind {
    let name: String
    let magics: (version4: UInt32, version5: UInt32)
    let isLong: Bool
    let keyBytes: Int
    let recordBytes: Int

    static let freeByBlock = XFSTreeKind(
        name: "free space", magics: (0x4142_5442, 0x4142_3342), isLong: false, keyBytes: 8, recordBytes: 8)
    static let inodes = XFSTreeKind(
        name: "inode", magics: (0x4941_4254, 0x4941_4233), isLong: false, keyBytes: 4, recordBytes: 16)
    static let extents = XFSTreeKind(
        name: "extent", magics: (0x424D_4150, 0x424D_4133), isLong: true, keyBytes: 8, recordBytes: 16)

    var pointerBytes: Int { isLong ? 8 : 4 }

    func header(_ geometry: XFSGeometry) -> Int {
        isLong ? (geometry.isVersion5 ? 72 : 24) : (geometry.isVersion5 ? 56 : 16)
    }

    /// Blocks and inodes of a group, or offsets of a file: what a tree is sorted by.
    func key(_ view: XFSView, _ offset: Int, isRecord: Bool) -> UInt64 {
        guard isLong else { return UInt64(view.u32(offset)) }
        let word = view.u64(offset)
        // A record has a flag above its 54 bits of offset and bits of the block number below.
        return isRecord ? (word << 1) >> 10 : word
    }
}

/// How much of hostile trees is followed at all. A sound file system has each block once, so no walk of all that it
/// holds takes more blocks than it has (twice: extents are checked before they are told).
final class XFSBudget {
    private var left: UInt64

    init(_ geometry: XFSGeometry) { left = 2 * geometry.blocks + 1024 }

    func take(_ blocks: UInt64 = 1) throws(TocError) {
        guard left >= blocks else {
            throw TocError(.damaged, "there are more references to metadata than the volume has blocks")
        }
        left -= blocks
    }
}

/// Walks a B+tree from left to right. Keys must rise strictly within the bounds that the parent's keys set, so no
/// block can be met twice on a level, whatever the pointers say.
final class XFSTreeWalker {
    /// A leaf: its records, how many.
    typealias Visit = (XFSView, Int) throws(TocError) -> Void
    /// What is done about a damaged part; the walk goes on behind it unless this throws.
    typealias Damage = (TocError) throws(TocError) -> Void

    let kind: XFSTreeKind
    let geometry: XFSGeometry
    let disk: XFSDisk
    let budget: XFSBudget
    private var buffers: [XFSBuffer?]

    init(_ kind: XFSTreeKind, _ geometry: XFSGeometry, _ disk: XFSDisk, _ budget: XFSBudget) {
        self.kind = kind
        self.geometry = geometry
        self.disk = disk
        self.budget = budget
        buffers = Array(repeating: nil, count: XFSLimits.treeLevels)
    }

    /// - Parameters:
    ///   - group: of the tree, or nil for a file's.
    ///   - owner: the group's number or the inode's.
    func walk(
        root: UInt64, levels: Int, group: UInt64?, owner: UInt64, damage: Damage, visit: Visit
    ) throws(TocError) {
        guard (1...XFSLimits.treeLevels).contains(levels) else {
            return try damage(TocError(.damaged, "its \(kind.name) tree has \(levels) levels"))
        }
        try descend(
            root, level: levels - 1, isRoot: true, bounds: 0..<UInt64.max, group: group, owner: owner,
            damage: damage, visit: visit)
    }

    /// The same from a block below a root that lies elsewhere (in an inode).
    func descend(
        _ pointer: UInt64, level: Int, isRoot: Bool = false, bounds: Range<UInt64>, group: UInt64?,
        owner: UInt64, damage: Damage, visit: Visit
    ) throws(TocError) {
        let view: XFSView
        let count: Int
        do throws(TocError) {
            (view, count) = try load(pointer, level: level, isRoot: isRoot, group: group, owner: owner)
            try check(view, count, level: level, bounds: bounds)
        } catch {
            guard error.kind == .damaged else { throw error }
            return try damage(error)
        }
        let header = kind.header(geometry)
        if level == 0 {
            guard let records = view.slice(header, count * kind.recordBytes) else {
                preconditionFailure("records that were checked")
            }
            return try visit(records, count)
        }
        let capacity = (view.count - header) / (kind.keyBytes + kind.pointerBytes)
        for index in 0..<count {
            let key = kind.key(view, header + index * kind.keyBytes, isRecord: false)
            let next =
                index + 1 < count
                ? kind.key(view, header + (index + 1) * kind.keyBytes, isRecord: false) : bounds.upperBound
            let place = header + capacity * kind.keyBytes + index * kind.pointerBytes
            try descend(
                kind.isLong ? view.u64(place) : UInt64(view.u32(place)), level: level - 1, bounds: key..<next,
                group: group, owner: owner, damage: damage, visit: visit)
        }
    }

    private func load(
        _ pointer: UInt64, level: Int, isRoot: Bool, group: UInt64?, owner: UInt64
    ) throws(TocError) -> (XFSView, Int) {
        try budget.take()
        let place: UInt64?
        if let group {
            place =
                pointer < geometry.blocks(ofGroup: group)
                ? geometry.groupOffset(group) + pointer << geometry.blockLog : nil
        } else {
            place = geometry.offset(ofBlock: pointer, count: 1)
        }
        guard let offset = place else { throw damaged("points to block \(pointer), which does not exist") }
        let buffer = buffers[level] ?? XFSBuffer(count: geometry.blockSize)
        buffers[level] = buffer
        try disk.read(offset, buffer.memory)
        let view = buffer.view
        let magic = geometry.isVersion5 ? kind.magics.version5 : kind.magics.version4
        guard view.u32(0) == magic else { throw damaged("has something else in block \(pointer)") }
        if geometry.isVersion5 {
            let at = kind.isLong ? 24 : 16
            guard view.hasChecksum(at: kind.isLong ? 64 : 52) else {
                throw damaged("has a block (\(pointer)) whose checksum does not fit")
            }
            let isOurs = kind.isLong ? view.u64(56) == owner : UInt64(view.u32(48)) == owner
            guard isOurs, view.u64(at) == offset >> 9, view.equals(geometry.metaUUID, at: at + 16) else {
                throw damaged("has a block (\(pointer)) that belongs elsewhere")
            }
        }
        let count = view.int16(6)
        let entry = level == 0 ? kind.recordBytes : kind.keyBytes + kind.pointerBytes
        guard view.int16(4) == level, count <= (view.count - kind.header(geometry)) / entry,
            count > 0 || (isRoot && level == 0)
        else { throw damaged("has a block (\(pointer)) of the wrong level or length") }
        return (view, count)
    }

    private func check(
        _ view: XFSView, _ count: Int, level: Int, bounds: Range<UInt64>
    ) throws(TocError) {
        var least = bounds.lowerBound
        let step = level == 0 ? kind.recordBytes : kind.keyBytes
        for index in 0..<count {
            let key = kind.key(view, kind.header(geometry) + index * step, isRecord: level == 0)
            guard key >= least, key < bounds.upperBound else { throw damaged("is not in order") }
            least = key + 1
        }
    }

    private func damaged(_ what: String) -> TocError {
        TocError(.damaged, "its \(kind.name) tree \(what)")
    }
}
