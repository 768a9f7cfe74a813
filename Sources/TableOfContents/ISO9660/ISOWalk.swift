import Blocks

/// Walks the directories of an ISO 9660 volume.
struct ISOWalk {
    private let disk: ISODisk
    private let telling: Telling
    /// Blocks where directories begin that were met.
    private var seen: Set<UInt64> = []
    /// Records that were told: directories may lie over one another.
    private var told = AddressSet()

    init(_ disk: ISODisk, _ telling: Telling) {
        self.disk = disk
        self.telling = telling
    }

    private struct Waiting {
        var address: UInt64
        var block: UInt64
        var size: UInt64
        var depth: Int
    }

    mutating func run() throws(TocError) {
        let root = disk.root
        seen.insert(root.block)
        var waiting = [Waiting(address: root.address, block: root.block, size: root.size, depth: 1)]
        try rootNode()
        while let directory = waiting.popLast() {
            let children = try self.directory(directory)
            if directory.depth < TocLimits.depth {
                waiting += children
            } else if !children.isEmpty {
                try telling.problem(directory.address, "its directories lie deeper than \(TocLimits.depth)")
            }
        }
    }

    /// The root's owner and times are in its own `.` entry.
    private mutating func rootNode() throws(TocError) {
        let bytes = try disk.bytes(disk.root.block * disk.blockSize, 2048)
        let record = ISORecord(bytes, at: 0) ?? disk.root
        _ = told.insert(disk.root.address)
        try telling.put(.node(try node([record], address: disk.root.address)))
    }

    /// - Returns: its directories.
    private mutating func directory(_ directory: Waiting) throws(TocError) -> [Waiting] {
        let address = directory.address
        let start = directory.block * disk.blockSize
        guard directory.size <= TocLimits.isoDirectory, telling.mayRead(directory.size),
            ByteRange(checking: start, directory.size, within: disk.range.count) != nil
        else {
            try telling.problem(address, "the directory does not lie on the volume")
            return []
        }
        let bytes = try disk.bytes(start, Int(directory.size))
        var children: [Waiting] = []
        var parts: [ISORecord] = []
        var offset = 0
        var isWhole = true
        while offset < bytes.count {
            // No record reaches over the end of a sector.
            let sectorEnd = min((offset / 2048 + 1) * 2048, bytes.count)
            guard bytes[offset] != 0 else {
                offset = sectorEnd
                continue
            }
            guard let record = ISORecord(bytes[offset..<sectorEnd], at: start + UInt64(offset)) else {
                isWhole = false
                offset = sectorEnd
                continue
            }
            offset += record.length
            if record.isSelfOrParent || record.isAssociated { continue }
            parts.append(record)
            if record.isContinued, parts.count < TocLimits.extentsPerRecord { continue }
            if let child = try entry(parts, in: directory) { children.append(child) }
            parts = []
        }
        if !isWhole || !parts.isEmpty {
            try telling.problem(address, "some entries of the directory are damaged")
        }
        return children
    }

    /// - Parameter parts: the records of one file, in order.
    /// - Returns: the directory that it is.
    private mutating func entry(_ parts: [ISORecord], in parent: Waiting) throws(TocError) -> Waiting? {
        let record = parts[0]
        var address = record.address
        let ridge = try ridge(record)
        if ridge?.isRelocated == true { return nil }
        let name = ridge?.name ?? plainName(record)
        guard !name.isEmpty, name.count <= TocLimits.nameBytes, !name.contains(0) else {
            try telling.problem(parent.address, "an entry of the directory is damaged")
            return nil
        }
        var target: Waiting?
        var shown = parts
        if let block = ridge?.childBlock {
            // A directory that lies elsewhere, for want of depth: its own first entry describes it.
            let start = block * disk.blockSize
            guard let own = ISORecord(try disk.bytes(start, 2048), at: start) else {
                try telling.problem(address, "the directory that was moved is not there")
                return nil
            }
            shown = [own]
            address = own.address
            target = Waiting(address: address, block: block, size: own.size, depth: parent.depth + 1)
        } else if record.isDirectory {
            target = Waiting(
                address: address, block: record.block, size: record.size, depth: parent.depth + 1)
        }
        if let target, !seen.insert(target.block).inserted {
            try telling.problem(address, "the directory has a second name: a loop")
            return nil
        }
        guard told.insert(address) else {
            try telling.problem(address, "the entry is in two directories")
            return nil
        }
        let node = try node(shown, address: address)
        try telling.put(.name(FileName(parent: parent.address, name: name, node: address)))
        try telling.put(.node(node))
        if node.kind == .regular { try content(parts, node, isCompressed: ridge?.unpackedSize != nil) }
        return target
    }

    private func ridge(_ record: ISORecord) throws(TocError) -> RockRidge? {
        disk.names == .rockRidge ? RockRidge(try disk.entries(of: record)) : nil
    }

    private func node(_ parts: [ISORecord], address: UInt64) throws(TocError) -> FileNode {
        let record = parts[0]
        var node = FileNode(address: address, kind: record.isDirectory ? .directory : .regular)
        node.size = parts.reduce(0) { $0 + $1.size }
        node.modified = record.recorded
        guard let ridge = try ridge(record) else { return node }
        // What the records say of directories stands: by them they are walked.
        if !record.isDirectory, let kind = ridge.kind, kind != .directory { node.kind = kind }
        node.permissions = ridge.mode.map { UInt16($0 & 0o7777) }
        node.owner = ridge.owner
        node.group = ridge.group
        node.links = ridge.links ?? 1
        node.modified = ridge.modified ?? record.recorded
        node.accessed = ridge.accessed
        node.changed = ridge.changed
        node.created = ridge.created
        if node.kind == .regular, let size = ridge.unpackedSize { node.size = size }
        if node.kind == .symbolicLink {
            if let target = ridge.target, !target.isEmpty, !target.contains(0) {
                node.target = target
            } else {
                try telling.problem(address, "the target is damaged")
            }
            node.size = UInt64(node.target?.count ?? 0)
        }
        if node.kind == .blockDevice || node.kind == .characterDevice { node.device = ridge.device }
        return node
    }

    private func content(_ parts: [ISORecord], _ node: FileNode, isCompressed: Bool) throws(TocError) {
        var extents: [FileExtent] = []
        var offset: UInt64 = 0
        var storage = FileStream.Storage.extents
        if isCompressed { storage = .unavailable("compressed (zisofs)") }
        for part in parts {
            let start = (part.block + part.attributeBlocks) * disk.blockSize
            if part.isInterleaved { storage = .unavailable("its content is interleaved") }
            // All but the last part end with a block.
            if part.size > 0 {
                extents.append(
                    FileExtent(
                        fileOffset: offset,
                        volumeOffset: disk.range.offset.addingReportingOverflow(start).partialValue,
                        count: part.size))
            }
            offset += part.size
        }
        if storage != .extents { extents = [] }
        try telling.stream(
            FileStream(StreamIdentifier(node: node.address), size: node.size, storage: storage), extents)
    }

    /// Joliet's name, or a plain one as Linux shows it: small letters, no version, no empty extension.
    private func plainName(_ record: ISORecord) -> [UInt8] {
        var name = record.identifier
        if disk.names == .joliet {
            let units = (0..<name.count / 2).map { UInt16(name[2 * $0]) << 8 | UInt16(name[2 * $0 + 1]) }
            name = utf8(units)
            if name.suffix(2) == Array(";1".utf8)[...] { name.removeLast(2) }
            return name
        }
        if let version = name.lastIndex(of: UInt8(ascii: ";")) { name.removeSubrange(version...) }
        if name.last == UInt8(ascii: ".") { name.removeLast() }
        return name.map { (0x41...0x5A).contains($0) ? $0 + 0x20 : $0 }
    }
}
