import Blocks

/// A header of an allocation group, checked: of free space (AGF) or of inodes (AGI).
struct XFSGroupHeader {
    enum Kind {
        case space, inodes

        var magic: UInt32 { self == .space ? 0x5841_4746 : 0x5841_4749 }
        var sector: UInt64 { self == .space ? 1 : 2 }
        var checksumAt: Int { self == .space ? 216 : 312 }
        var uuidAt: Int { self == .space ? 64 : 296 }
        var name: String { self == .space ? "free space" : "inodes" }
    }

    /// Valid as long as the buffer is not used again.
    let view: XFSView

    init(
        _ kind: Kind, _ group: UInt64, _ geometry: XFSGeometry, _ disk: XFSDisk, _ buffer: XFSBuffer
    ) throws(TocError) {
        func damaged(_ what: String) -> TocError {
            TocError(.damaged, "allocation group \(group): its header of \(kind.name) \(what)")
        }
        try disk.read(geometry.groupOffset(group) + kind.sector * UInt64(geometry.sectorSize), buffer.memory)
        view = buffer.prefix(geometry.sectorSize)
        guard view.u32(0) == kind.magic, view.u32(4) == 1 else { throw damaged("is something else") }
        if geometry.isVersion5 {
            guard view.hasChecksum(at: kind.checksumAt) else {
                throw damaged("has a checksum that does not fit")
            }
            guard view.equals(geometry.metaUUID, at: kind.uuidAt) else { throw damaged("belongs elsewhere") }
        }
        guard UInt64(view.u32(8)) == group, UInt64(view.u32(12)) == geometry.blocks(ofGroup: group) else {
            throw damaged("belongs elsewhere")
        }
    }
}

/// Which blocks are in use: all that the B+trees of free space do not name.
final class XFSUse {
    private let geometry: XFSGeometry
    private let disk: XFSDisk
    private let trees: XFSTreeWalker
    private let sector: XFSBuffer

    init(_ geometry: XFSGeometry, _ disk: XFSDisk) {
        self.geometry = geometry
        self.disk = disk
        trees = XFSTreeWalker(.freeByBlock, geometry, disk, XFSBudget(geometry))
        sector = XFSBuffer(count: geometry.sectorSize)
    }

    /// What a first look at a file system says.
    struct Findings {
        /// For people; each is a problem.
        var doubts: [String] = []
        /// Inodes that recovery would go on to change.
        var unfinished: [UInt64] = []
        /// Nil: it is known.
        var whyUseIsUnknown: String?
    }

    static func findings(
        _ geometry: XFSGeometry, _ disk: XFSDisk, _ log: XFSLog.State
    ) throws(TocError) -> Findings {
        var findings = Findings()
        func doubt(_ problem: String?, _ why: String) {
            if let problem { findings.doubts.append(problem) }
            if findings.whyUseIsUnknown == nil { findings.whyUseIsUnknown = why }
        }
        if geometry.bytes > disk.range.count {
            doubt("the file system is longer than the volume it lies on", "the volume is too short")
        } else if geometry.isVersion5 {
            let sector = XFSBuffer(count: geometry.sectorSize)
            try disk.read(0, sector.memory)
            if !sector.view.hasChecksum(at: XFSGeometry.checksumOffset) {
                doubt("the superblock's checksum does not fit", "the superblock is damaged")
            }
        }
        if geometry.needsRepair {
            doubt("the file system is marked as in need of xfs_repair", "it needs xfs_repair")
        }
        if geometry.hasUnknownReadOnlyFeatures { doubt(nil, "it has features that are not known here") }
        switch log {
        case .clean: break
        case .replayed(_, let unfinished):
            for number in unfinished.prefix(XFSLimits.problems) {
                findings.unfinished.append(number)
            }
        case .external:
            doubt(
                "its log lies on another device, so names and contents are as on disk, without what that log "
                    + "may still hold", "its log lies on another device")
        case .pending(let reason):
            doubt(
                "its log holds changes that are not in place yet and cannot be replayed here (\(reason)), so "
                    + "names and contents are as on disk; a copy that is made with --freeze has none of them",
                "its log holds changes that are not in place yet")
        }
        if findings.whyUseIsUnknown == nil {
            do throws(TocError) {
                let use = XFSUse(geometry, disk)
                for group in 0..<geometry.groupCount {
                    try use.free(group) { (_, _) throws(TocError) in }
                }
            } catch {
                guard error.kind == .damaged else { throw error }
                doubt(error.description, "its free-space trees are damaged")
            }
        }
        return findings
    }

    /// Hands on the free ranges of a group, in order: offset in the file system and bytes.
    private func free(
        _ group: UInt64, _ visit: (UInt64, UInt64) throws(TocError) -> Void
    ) throws(TocError) {
        let header = try XFSGroupHeader(.space, group, geometry, disk, sector)
        let blocks = geometry.blocks(ofGroup: group)
        let claimed = UInt64(header.view.u32(52))
        // The group's own headers.
        var end = (UInt64(4 * geometry.sectorSize) + UInt64(geometry.blockSize) - 1) >> geometry.blockLog
        var total: UInt64 = 0
        try trees.walk(
            root: UInt64(header.view.u32(16)), levels: Int(header.view.u32(28)), group: group, owner: group,
            damage: { (error) throws(TocError) in throw error },
            visit: { (records, count) throws(TocError) in
                for index in 0..<count {
                    let start = UInt64(records.u32(index * 8))
                    let length = UInt64(records.u32(index * 8 + 4))
                    guard length > 0, start >= end, start + length <= blocks else {
                        throw TocError(.damaged, "allocation group \(group): its free space is not in order")
                    }
                    let range = ByteRange(
                        offset: geometry.groupOffset(group) + start << geometry.blockLog,
                        count: length << geometry.blockLog)
                    if let log = geometry.logRange, log.overlaps(range) {
                        throw TocError(.damaged, "allocation group \(group): its free space holds the log")
                    }
                    try visit(range.offset, range.count)
                    end = start + length
                    total += length
                }
            })
        guard total == claimed else {
            throw TocError(
                .damaged, "allocation group \(group): \(total) blocks are free, and \(claimed) should be")
        }
    }

    /// Hands on what is in use of `range`; what lies behind the file system is taken for used.
    func tell(to output: XFSOutput, range: ByteRange) throws(TocError) {
        var used: [ByteRange] = []
        var cursor: UInt64 = 0
        func add(upTo end: UInt64) throws(TocError) {
            guard end > cursor else { return }
            used.append(ByteRange(offset: range.offset + cursor, count: end - cursor))
            if used.count == XFSLimits.rangesPerRecord {
                try output.put(.used(used))
                used = []
            }
        }
        for group in 0..<geometry.groupCount {
            try free(group) { (offset, count) throws(TocError) in
                try add(upTo: offset)
                cursor = offset + count
            }
        }
        try add(upTo: range.count)
        if !used.isEmpty { try output.put(.used(used)) }
    }
}
