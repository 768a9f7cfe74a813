import Blocks

/// What libtsk does not tell of an ext node, or tells wrong: all of it from the raw inode.
///
/// libtsk 4.11.1 knows neither the epoch bits of times, device numbers, targets of symbolic links that are mapped by
/// extents (and puts `^` for control characters in the others), extended attributes nor inline data; it takes an
/// unwritten extent for a written one that is 32,768 blocks longer, and a block's number of 48 bits for one of 32.
final class ExtSupplement: NodeSupplement {
    private let reader: ExtReader
    private let overlay: JournalOverlay?
    private var problems: [String]
    private var problemCount = 0
    /// What ``complete(_:into:)`` found of the node it was asked for last; nil: more than is kept.
    private var prepared: (node: UInt64, extents: [FileExtent]?) = (0, nil)

    /// - Parameters:
    ///   - overlay: where data lie that only the journal has up to date.
    ///   - problems: of the file system as such; told with the first node.
    init(_ reader: ExtReader, overlay: JournalOverlay?, problems: [String]) {
        self.reader = reader
        self.overlay = overlay
        self.problems = problems
    }

    private func tell(_ node: UInt64?, _ reason: String, _ sink: any RecordSink) throws(TocError) {
        problemCount += 1
        if problemCount < TocLimits.extProblems {
            try sink.put(.problem(ReadProblem(node: node, reason: reason)))
        } else if problemCount == TocLimits.extProblems {
            try sink.put(.problem(ReadProblem(reason: "more is damaged than is told here")))
        }
    }

    /// Does something of which damage is a problem and no more.
    private func guarded(
        _ node: UInt64, _ sink: any RecordSink, _ body: () throws(TocError) -> Void
    ) throws(TocError) -> Bool {
        do throws(TocError) {
            try body()
            return true
        } catch {
            guard error.isDamage else { throw error }
            try tell(node, error.description, sink)
            return false
        }
    }

    func complete(_ node: inout FileNode, into sink: any RecordSink) throws(TocError) -> FileStream.Storage? {
        for problem in problems { try tell(nil, problem, sink) }
        problems = []
        // What libtsk invents (a directory of orphans) lies behind the last inode.
        guard node.address <= UInt64(reader.superblock.inodeCount) else { return nil }
        var found: ExtInode?
        let address = node.address
        guard try guarded(address, sink, { () throws(TocError) in found = try reader.inode(address) }),
            let inode = found
        else { return nil }
        fill(&node, from: inode)
        // Values of other nodes' attributes have no name, and what was never initialized is no node at all.
        let isInitialized = try reader.isInitialized(inode: address)
        if inode.has(ExtInode.Flag.attributeValue) || !isInitialized {
            node.links = 0
            return nil
        }
        let data = try attributes(of: inode, into: sink)
        switch inode.kind {
        case .regular: return try regular(node, inode, data, sink)
        case .directory: return try directory(inode, data, sink)
        case .symbolicLink: try target(of: &node, inode, data, sink)
        case .blockDevice, .characterDevice: node.device = inode.device
        default: break
        }
        return nil
    }

    private func fill(_ node: inout FileNode, from inode: ExtInode) {
        node.kind = inode.kind
        node.permissions = inode.mode & 0xFFF
        node.owner = inode.owner
        node.group = inode.group
        // What holds the value of an attribute is no file.
        node.links = inode.has(ExtInode.Flag.attributeValue) ? 0 : UInt32(inode.links)
        switch inode.kind {
        case .regular: node.size = inode.byteCount
        case .directory: node.size = inode.byteCountOfDirectory(reader.superblock)
        default: node.size = inode.byteCount & 0xFFFF_FFFF
        }
        node.modified = inode.modified
        node.accessed = inode.accessed
        node.changed = inode.changed
        node.created = inode.created
    }

    /// Hands on the attributes.
    /// - Returns: what of inline data lies among them.
    private func attributes(of inode: ExtInode, into sink: any RecordSink) throws(TocError) -> [UInt8]? {
        var inlineData: [UInt8]?
        let entries = try reader.attributes(of: inode) { (reason) throws(TocError) in
            try tell(inode.number, reason, sink)
        }
        for entry in entries {
            if entry.isInlineData {
                if case .here(let bytes) = entry.value { inlineData = bytes }
                continue
            }
            guard let name = entry.fullName else { continue }
            _ = try guarded(inode.number, sink) { () throws(TocError) in
                var value = try reader.value(of: entry)
                if entry.isAccessControlList {
                    guard let list = ExtAttributeEntry.accessControlList(value) else {
                        throw .damaged("an access control list is damaged")
                    }
                    value = list
                }
                guard !name.contains(0) else { throw .damaged("an extended attribute's name is damaged") }
                try sink.put(.attribute(ExtendedAttribute(node: inode.number, name: name, value: value)))
            }
        }
        return inlineData
    }

    /// The first 60 bytes of inline data are in the block field, the rest is an attribute.
    private func inlineData(_ inode: ExtInode, _ rest: [UInt8]?) -> [UInt8] {
        inode.blockField + (rest ?? [])
    }

    private func regular(
        _ node: FileNode, _ inode: ExtInode, _ rest: [UInt8]?, _ sink: any RecordSink
    ) throws(TocError) -> FileStream.Storage {
        if inode.has(ExtInode.Flag.encrypted) { return .unavailable("encrypted") }
        guard inode.has(ExtInode.Flag.inlineData) else {
            // A file of which a part cannot be found must not be taken for one with holes: all of the map is seen
            // before anything is said.
            prepared = (node.address, [])
            do throws(TocError) {
                try forEachExtent(of: inode, node.size) { (extent) throws(TocError) in
                    if let count = prepared.extents?.count, count < TocLimits.extentsPerRecord {
                        prepared.extents?.append(extent)
                    } else {
                        prepared.extents = nil
                    }
                }
            } catch {
                guard error.isDamage else { throw error }
                try tell(node.address, error.description, sink)
                return .unavailable(error.description)
            }
            return .extents
        }
        let data = inlineData(inode, rest)
        guard node.size <= UInt64(data.count) else { return .unavailable("the inline data are damaged") }
        return .inline(Array(data.prefix(Int(node.size))))
    }

    private func directory(
        _ inode: ExtInode, _ rest: [UInt8]?, _ sink: any RecordSink
    ) throws(TocError) -> FileStream.Storage? {
        if inode.has(ExtInode.Flag.encrypted) {
            try tell(inode.number, "the directory is encrypted: its names are not listed", sink)
            return .unavailable("encrypted")
        }
        if inode.has(ExtInode.Flag.inlineData) {
            _ = try guarded(inode.number, sink) { () throws(TocError) in
                try reader.inlineNames(of: inode, inlineData(inode, rest), into: sink)
            }
            return .inline([])
        }
        _ = try guarded(inode.number, sink) { () throws(TocError) in
            try reader.names(of: inode, into: sink)
        }
        return .extents
    }

    private func target(
        of node: inout FileNode, _ inode: ExtInode, _ rest: [UInt8]?, _ sink: any RecordSink
    ) throws(TocError) {
        node.target = nil
        let count = node.size
        let address = node.address
        var target: [UInt8] = []
        let isRead = try guarded(address, sink) { () throws(TocError) in
            if inode.has(ExtInode.Flag.encrypted) { throw .damaged("the target is encrypted") }
            guard count <= UInt64(TocLimits.targetBytes) else { throw .damaged("the target is too long") }
            if inode.has(ExtInode.Flag.inlineData) {
                let data = inlineData(inode, rest)
                guard count <= UInt64(data.count) else { throw .damaged("the target is damaged") }
                target = Array(data.prefix(Int(count)))
            } else if count < UInt64(ExtInode.blockFieldBytes), !inode.has(ExtInode.Flag.extents) {
                target = Array(inode.blockField.prefix(Int(count)))
            } else {
                target = try reader.content(of: inode, count: Int(count))
            }
        }
        if isRead, target.isEmpty || target.contains(0) {
            try tell(address, "the target is damaged", sink)
        } else if isRead {
            node.target = target
        }
    }

    func extents(of node: FileNode, into sink: any RecordSink) throws(TocError) {
        let identifier = StreamIdentifier(node: node.address)
        if prepared.node == node.address, let extents = prepared.extents {
            if !extents.isEmpty { try sink.put(.extents(identifier, extents)) }
            return
        }
        var pending: [FileExtent] = []
        _ = try guarded(node.address, sink) { () throws(TocError) in
            try forEachExtent(of: try reader.inode(node.address), node.size) { (extent) throws(TocError) in
                if pending.count == TocLimits.extentsPerRecord {
                    try sink.put(.extents(identifier, pending))
                    pending.removeAll(keepingCapacity: true)
                }
                pending.append(extent)
            }
        }
        if !pending.isEmpty { try sink.put(.extents(identifier, pending)) }
    }

    /// The written extents of a file, as long as they can be, where the volume as it is has them.
    private func forEachExtent(
        of inode: ExtInode, _ byteCount: UInt64, _ body: (FileExtent) throws(TocError) -> Void
    ) throws(TocError) {
        let size = UInt64(reader.superblock.blockSize)
        let blocks = byteCount / size + (byteCount % size == 0 ? 0 : 1)
        var last: FileExtent?
        try reader.forEachRun(of: inode, limit: blocks) { (run) throws(TocError) in
            guard !run.isUnwritten else { return }
            let extent = FileExtent(
                fileOffset: run.logical * size, volumeOffset: reader.range.offset + run.physical * size,
                count: run.count * size)
            for part in overlay?.placed(extent) ?? [extent] {
                if let before = last {
                    if before.fileOffset + before.count == part.fileOffset,
                        before.volumeOffset + before.count == part.volumeOffset
                    {
                        last?.count += part.count
                        continue
                    }
                    try body(before)
                }
                last = part
            }
        }
        if let last { try body(last) }
    }
}
