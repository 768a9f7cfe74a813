import Blocks

/// Hands on all allocated inodes with what belongs to them.
final class XFSWalk {
    private let geometry: XFSGeometry
    private let disk: XFSDisk
    private let range: ByteRange
    private let output: XFSOutput
    private let groupTrees: XFSTreeWalker
    private let forks: XFSForkReader
    private let directories: XFSDirectoryReader
    private let attributes: XFSAttributeReader
    private let symlinks: XFSSymlinkReader
    private let window = XFSBuffer(count: XFSLimits.inodeWindow)
    private let sector: XFSBuffer
    /// Behind the last chunk of the allocation group that was taken.
    private var nextInode: UInt64 = 0

    init(_ geometry: XFSGeometry, _ disk: XFSDisk, range: ByteRange, _ output: XFSOutput) {
        self.geometry = geometry
        self.disk = disk
        self.range = range
        self.output = output
        let budget = XFSBudget(geometry)
        groupTrees = XFSTreeWalker(.inodes, geometry, disk, XFSBudget(geometry))
        forks = XFSForkReader(geometry, disk, budget)
        directories = XFSDirectoryReader(geometry, disk, forks, budget)
        attributes = XFSAttributeReader(geometry, disk, forks, budget)
        symlinks = XFSSymlinkReader(geometry, disk, forks)
        sector = XFSBuffer(count: geometry.sectorSize)
    }

    func run() throws(TocError) {
        for group in 0..<geometry.groupCount {
            do throws(TocError) { try walk(group: group) } catch {
                try output.damage(error, nil)
            }
        }
    }

    private func walk(group: UInt64) throws(TocError) {
        let header = try XFSGroupHeader(.inodes, group, geometry, disk, sector)
        nextInode = 0
        try groupTrees.walk(
            root: UInt64(header.view.u32(20)), levels: Int(header.view.u32(24)), group: group, owner: group,
            damage: { (error) throws(TocError) in
                try output.damage(
                    TocError(error.kind, "allocation group \(group): \(error.description)"), nil)
            },
            visit: { (records, count) throws(TocError) in
                try chunks(records, count, group: group)
            })
    }

    /// 64 inodes that lie one behind the other.
    private struct Chunk {
        static let inodes: UInt64 = 64
        /// In the allocation group.
        let first: UInt64
        /// A bit for each inode, the lowest for the first.
        let allocated: UInt64

        init(_ records: XFSView, _ place: Int, _ geometry: XFSGeometry) {
            first = UInt64(records.u32(place))
            var allocated = ~records.u64(place + 8)
            if geometry.hasSparseInodes {
                // Each bit stands for four inodes that are not there.
                let holes = records.u16(place + 4)
                for bit in 0..<16 where holes >> bit & 1 != 0 { allocated &= ~(0xF << UInt64(bit * 4)) }
            }
            self.allocated = allocated
        }

        /// Inodes up to the last that is allocated.
        var used: UInt64 { UInt64(64 - allocated.leadingZeroBitCount) }
    }

    /// Reads what lies near each other at once.
    private func chunks(_ records: XFSView, _ count: Int, group: UInt64) throws(TocError) {
        let inodesOfGroup = geometry.blocks(ofGroup: group) << geometry.inodesPerBlockLog
        let whole = Chunk.inodes << geometry.inodeLog
        var near: [Chunk] = []
        for index in 0..<count {
            let chunk = Chunk(records, index * 16, geometry)
            guard chunk.allocated != 0 else { continue }
            guard chunk.first + chunk.used <= inodesOfGroup else {
                try output.problem(nil, "allocation group \(group) has inodes beyond its end")
                continue
            }
            // An inode in two chunks would be told twice.
            guard chunk.first >= nextInode else {
                try output.problem(nil, "allocation group \(group) has chunks of inodes that overlap")
                continue
            }
            nextInode = chunk.first + Chunk.inodes
            if let first = near.first, let last = near.last {
                let span = (chunk.first - first.first) << geometry.inodeLog + whole
                let gap = (chunk.first - last.first) << geometry.inodeLog
                if span > UInt64(XFSLimits.inodeWindow) || gap > 4 * whole {
                    try read(near, group: group)
                    near = []
                }
            }
            near.append(chunk)
        }
        if !near.isEmpty { try read(near, group: group) }
    }

    private func read(_ chunks: [Chunk], group: UInt64) throws(TocError) {
        guard let first = chunks.first?.first, let last = chunks.last else { return }
        let bytes = Int((last.first + last.used - first) << geometry.inodeLog)
        do throws(TocError) {
            try disk.readAll(
                geometry.groupOffset(group) + first << geometry.inodeLog,
                UnsafeMutableRawBufferPointer(rebasing: window.memory[..<bytes]))
        } catch {
            return try output.damage(error, nil)
        }
        for chunk in chunks {
            for index in 0..<chunk.used where chunk.allocated >> index & 1 != 0 {
                let inGroup = chunk.first + index
                let number = geometry.inodeNumber(group: group, inGroup)
                if geometry.internalInodes.contains(number) { continue }
                let place = Int((inGroup - first) << geometry.inodeLog)
                guard let view = window.view.slice(place, geometry.inodeSize) else {
                    preconditionFailure("an inode beyond what was read")
                }
                do throws(TocError) {
                    try tell(try XFSInode(view, number: number, geometry))
                } catch {
                    try output.damage(error, number)
                }
            }
        }
    }

    private func tell(_ inode: XFSInode) throws(TocError) {
        // Deleted while open, or the file system's own: have no name.
        if inode.links == 0 || inode.isMetadata { return }
        guard inode.kind != .other else { throw TocError(.damaged, "the inode's type is unknown") }
        var node = inode.node()
        var failure: TocError?
        if node.kind == .symbolicLink {
            do throws(TocError) { node.target = try symlinks.target(inode) } catch { failure = error }
        }
        try output.put(.node(node))
        if let failure { try output.damage(failure, inode.number) }
        do throws(TocError) {
            switch node.kind {
            case .regular: try tellStream(inode)
            case .directory: try tellNames(inode)
            default: break
            }
        } catch {
            try output.damage(error, inode.number)
        }
        try attributes.attributes(
            inode, damage: { (error) throws(TocError) in try output.damage(error, inode.number) },
            { (name, value) throws(TocError) in
                try output.put(.attribute(ExtendedAttribute(node: inode.number, name: name, value: value)))
            })
    }

    private func tellNames(_ inode: XFSInode) throws(TocError) {
        try directories.entries(
            inode, damage: { (error) throws(TocError) in try output.damage(error, inode.number) },
            { (name, number) throws(TocError) in
                guard geometry.offset(ofInode: number) != nil, !name.contains(0) else {
                    return try output.problem(
                        inode.number, "an entry of the directory is damaged or points to no inode (\(number))"
                    )
                }
                try output.put(.name(FileName(parent: inode.number, name: Array(name), node: number)))
            })
    }

    private func tellStream(_ inode: XFSInode) throws(TocError) {
        let identifier = StreamIdentifier(node: inode.number)
        func put(_ storage: FileStream.Storage) throws(TocError) {
            try output.put(.stream(FileStream(identifier, size: inode.size, storage: storage)))
        }
        if inode.isRealtime {
            return try put(.unavailable("its data lie on a realtime device, which is not part of the volume"))
        }
        var batch = ExtentBatch(inode.size, geometry, range)
        var isHeld = true
        do throws(TocError) {
            if try inode.format(.data) == .local {
                guard let fork = inode.fork(.data), let bytes = fork.array(0, Int(inode.size)) else {
                    throw TocError(.damaged, "the file is longer than its inode")
                }
                return try put(.inline(bytes))
            }
            try forks.extents(inode, .data) { (extent) throws(TocError) in
                if batch.extents.count >= XFSLimits.heldExtents {
                    isHeld = false
                    batch.extents = []
                }
                try batch.add(extent)
            }
        } catch {
            guard error.kind == .damaged else { throw error }
            try put(.unavailable("damaged: " + error.description))
            return try output.damage(error, inode.number)
        }
        try put(.extents)
        if isHeld { return try flush(&batch, identifier, upTo: 0) }
        batch = ExtentBatch(inode.size, geometry, range)
        try forks.extents(inode, .data) { (extent) throws(TocError) in
            try batch.add(extent)
            try flush(&batch, identifier, upTo: TocLimits.extentsPerRecord)
        }
        try flush(&batch, identifier, upTo: 0)
    }

    /// Hands on whole records; the last extent stays where it may still grow.
    private func flush(
        _ batch: inout ExtentBatch, _ identifier: StreamIdentifier, upTo kept: Int
    ) throws(TocError) {
        while batch.extents.count > kept {
            let count = min(TocLimits.extentsPerRecord, batch.extents.count)
            try output.put(.extents(identifier, Array(batch.extents.prefix(count))))
            batch.extents.removeFirst(count)
        }
    }
}

/// Extents of a file as the contract wants them: written ones only, up to the file's last block, in bytes of the
/// volume.
private struct ExtentBatch {
    var extents: [FileExtent] = []
    private let blocks: UInt64
    private let blockLog: UInt64
    private let range: ByteRange

    init(_ size: UInt64, _ geometry: XFSGeometry, _ range: ByteRange) {
        blockLog = geometry.blockLog
        blocks = size >> blockLog + (size & (1 << blockLog - 1) == 0 ? 0 : 1)
        self.range = range
    }

    mutating func add(_ extent: XFSExtent) throws(TocError) {
        guard !extent.isUnwritten, extent.start < blocks else { return }
        let count = min(extent.count, blocks - extent.start) << blockLog
        guard ByteRange(checking: extent.offset, count, within: range.count) != nil else {
            throw TocError(.damaged, "a part of it lies beyond the volume's end")
        }
        let next = FileExtent(
            fileOffset: extent.start << blockLog, volumeOffset: range.offset + extent.offset, count: count)
        if let last = extents.last, last.fileOffset + last.count == next.fileOffset,
            last.volumeOffset + last.count == next.volumeOffset
        {
            extents[extents.count - 1].count += count
        } else {
            extents.append(next)
        }
    }
}

/// Reads targets of symbolic links.
final class XFSSymlinkReader {
    private static let magic: UInt32 = 0x5853_4C4D

    private let geometry: XFSGeometry
    private let disk: XFSDisk
    private let forks: XFSForkReader

    init(_ geometry: XFSGeometry, _ disk: XFSDisk, _ forks: XFSForkReader) {
        self.geometry = geometry
        self.disk = disk
        self.forks = forks
    }

    func target(_ inode: XFSInode) throws(TocError) -> [UInt8] {
        guard inode.size > 0, inode.size <= UInt64(XFSLimits.targetBytes) else {
            throw TocError(.damaged, "the link's target has \(inode.size) bytes")
        }
        let size = Int(inode.size)
        var target: [UInt8] = []
        if try inode.format(.data) == .local {
            target = inode.fork(.data)?.array(0, size) ?? []
        } else {
            try forks.extents(inode, .data) { (extent) throws(TocError) in
                if target.count < size { target += try part(inode, extent, after: target.count, of: size) }
            }
        }
        guard target.count == size, !target.contains(0) else {
            throw TocError(.damaged, "the link's target is damaged")
        }
        return target
    }

    /// Each extent has, from version 5 on, a header of its own.
    private func part(
        _ inode: XFSInode, _ extent: XFSExtent, after done: Int, of size: Int
    ) throws(TocError) -> [UInt8] {
        let header = geometry.isVersion5 ? 56 : 0
        let bytes = extent.count << geometry.blockLog
        guard bytes <= 2 * UInt64(max(geometry.blockSize, XFSLimits.targetBytes)), !extent.isUnwritten else {
            throw TocError(.damaged, "the link's target has an extent that cannot be right")
        }
        let buffer = XFSBuffer(count: Int(bytes))
        try disk.read(extent.offset, buffer.memory)
        let view = buffer.view
        let count = min(size - done, view.count - header)
        if geometry.isVersion5 {
            guard view.u32(0) == Self.magic, view.hasChecksum(at: 12) else {
                throw TocError(.damaged, "the checksum of the link's target does not fit")
            }
            guard view.u32(4) == done, view.u32(8) == count, view.u64(32) == inode.number,
                view.u64(40) == extent.offset >> 9, view.equals(geometry.metaUUID, at: 16)
            else { throw TocError(.damaged, "the link's target belongs elsewhere") }
        }
        return view.array(header, count) ?? []
    }
}
