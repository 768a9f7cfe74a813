import Blocks
import CLibTSK

/// Walks HFS+ by the leaves of its catalog, each of which holds names with what they name, and of its attributes. What
/// libtsk makes of it ends at the first hard link that Linux made, and has no devices; compressed content it unpacks.
final class HFSWalk {
    private static let root: UInt32 = 2
    /// Where files of several names are kept, below the root.
    private static let hidden = [0, 0, 0, 0] + Array("HFS+ Private Data".utf16)
    private static let resourceFork: UInt8 = 0xFF
    /// Of the tree of extents, in nodes of 32 KiB.
    private static let recordsOfTwoLeaves = 2 * 32_768 / 76
    private static let compression = Array("com.apple.decmpfs".utf8)

    private let disk: HFSDisk
    /// Unpacks what is compressed; nil: nobody does.
    private let system: TskFileSystem?
    private let telling: Telling
    private let overflow: HFSTree?
    private let catalog: HFSTree
    /// Numbers of links, and the files that they lead to.
    private var links: [UInt32: UInt32] = [:]
    private var hiddenFolder: UInt32?
    private var told = AddressSet()

    init(
        _ store: any BlockStore, _ range: ByteRange, _ system: TskFileSystem?, _ telling: Telling
    ) throws(TocError) {
        disk = try HFSDisk(store, range)
        self.system = system
        self.telling = telling
        overflow =
            disk.extents.size == 0
            ? nil
            : try HFSTree(
                disk, disk.placed(disk.extents.runs, size: disk.extents.size), size: disk.extents.size)
        let place = try Self.extents(disk.catalog, of: HFSDisk.Special.catalog, 0, disk, overflow)
        catalog = try HFSTree(disk, place, size: disk.catalog.size)
    }

    func run() throws(TocError) {
        if disk.hasJournaledChanges {
            try telling.problem(nil, "its journal may hold changes: what is on the disk is listed")
        }
        try findLinks()
        try part("the catalog") { () throws(TocError) in
            try catalog.visit { record throws(TocError) in
                try item(record)
                return true
            }
        }
        guard disk.attributes.size > 0 else { return }
        try part("the attributes") { () throws(TocError) in
            let place = try Self.extents(
                disk.attributes, of: HFSDisk.Special.attributes, 0, disk, overflow)
            try HFSTree(disk, place, size: disk.attributes.size).visit { record throws(TocError) in
                try attribute(record)
                return true
            }
        }
    }

    /// What was told before the damage stands.
    private func part(_ name: String, _ body: () throws(TocError) -> Void) throws(TocError) {
        do throws(TocError) { try body() } catch {
            guard error.kind == .damaged else { throw error }
            try telling.problem(nil, "\(name): \(error.description)")
        }
    }

    /// Records of what is in a directory, its thread first.
    private func children(
        of folder: UInt32, _ body: (HFSCatalogKey, HFSItem) throws(TocError) -> Bool
    ) throws(TocError) {
        let leaf = try catalog.leaf { key in
            let parent = key.bigEndian(at: 0, as: UInt32.self)
            return parent < folder || parent == folder && key.bigEndian(at: 4, as: UInt16.self) == 0
        }
        guard let leaf else { return }
        try catalog.visit(from: leaf) { record throws(TocError) in
            guard let key = HFSCatalogKey(record.key), key.parent <= folder else { return false }
            guard key.parent == folder, let item = HFSItem(record.data) else { return true }
            return try body(key, item)
        }
    }

    private func findLinks() throws(TocError) {
        var folder: UInt32?
        var found: [UInt32: UInt32] = [:]
        do throws(TocError) {
            try children(of: Self.root) { (key, item) throws(TocError) in
                if item.isFolder, key.name == Self.hidden { folder = item.address }
                return folder == nil
            }
            guard let folder else { return }
            try children(of: folder) { (key, item) throws(TocError) in
                if let number = Self.linkNumber(key.name), !item.isFolder { found[number] = item.address }
                return true
            }
        } catch {
            guard error.kind == .damaged else { throw error }
            try telling.problem(nil, "files of several names: \(error.description)")
        }
        hiddenFolder = folder
        links = found
    }

    private static func linkNumber(_ name: [UInt16]) -> UInt32? {
        let prefix = Array("iNode".utf16)
        guard name.starts(with: prefix) else { return nil }
        return UInt32(String(decoding: name.dropFirst(prefix.count), as: UTF16.self))
    }

    // MARK: Files

    private func item(_ record: HFSTree.Record) throws(TocError) {
        guard record.data.count >= 2 else { return }
        let type = record.data.bigEndian(at: 0, as: UInt16.self)
        // Threads lead from a number to its key.
        if type == 3 || type == 4 { return }
        guard let key = HFSCatalogKey(record.key), let item = HFSItem(record.data), item.address >= Self.root
        else { return try telling.problem(nil, "a record of the catalog is damaged") }
        if item.address == hiddenFolder { return }
        if key.parent == hiddenFolder {
            // The others were deleted while they were open.
            guard Self.linkNumber(key.name) != nil else { return }
            var item = item
            item.node.links = max(item.special, 1)
            _ = try tell(item)
            return
        }
        var address = item.address
        if item.isHardLink {
            guard let target = links[item.special] else {
                return try telling.problem(
                    UInt64(item.address), "another name of a file that is not there")
            }
            address = target
        } else {
            // A second record of one number has no name that could be believed.
            guard try tell(item) else { return }
        }
        if address == Self.root { return }
        let name = key.shown
        guard !name.isEmpty, name.count <= TocLimits.nameBytes else {
            return try telling.problem(UInt64(address), "its name is damaged")
        }
        try telling.put(.name(FileName(parent: UInt64(key.parent), name: name, node: UInt64(address))))
    }

    /// - Returns: false when it was told before.
    private func tell(_ item: HFSItem) throws(TocError) -> Bool {
        guard told.insert(UInt64(item.address)) else {
            try telling.problem(UInt64(item.address), "the catalog has it twice")
            return false
        }
        var node = item.node
        if let data = item.data, node.kind == .symbolicLink {
            do throws(TocError) {
                guard (1...UInt64(TocLimits.targetBytes)).contains(data.size) else {
                    throw TocError(.damaged, "its target has \(data.size) bytes")
                }
                let place = try extents(data, of: item.address, 0)
                let target = try disk.read(place, 0, Int(data.size))
                guard !target.contains(0) else { throw TocError(.damaged, "its target is damaged") }
                node.target = target
            } catch {
                guard error.kind == .damaged else { throw error }
                try telling.problem(node.address, error.description)
            }
        }
        if let data = item.data, node.kind == .regular {
            if item.isCompressed, data.size == 0 {
                let stream = try unpacked(node)
                node.size = stream.size
                try telling.stream(stream, [])
            } else {
                try tell(data, of: item, StreamIdentifier(node: node.address))
            }
        }
        if let resources = item.resources, resources.size > 0, !item.isCompressed {
            try tell(
                resources, of: item, StreamIdentifier(node: node.address, number: 1), name: "rsrc",
                Self.resourceFork)
        }
        if let finder = item.finderAttribute {
            try telling.put(
                .attribute(
                    ExtendedAttribute(
                        node: node.address, name: Array("osx.com.apple.FinderInfo".utf8), value: finder)))
        }
        try telling.put(.node(node))
        return true
    }

    private func tell(
        _ fork: HFSDisk.Fork, of item: HFSItem, _ identifier: StreamIdentifier, name: String = "",
        _ type: UInt8 = 0
    ) throws(TocError) {
        var stream = FileStream(identifier, name: Array(name.utf8), size: fork.size, storage: .extents)
        var place: [FileExtent] = []
        do throws(TocError) { place = try extents(fork, of: item.address, type) } catch {
            guard error.kind == .damaged else { throw error }
            try telling.problem(identifier.node, error.description)
            stream.storage = .unavailable("its content cannot be found: \(error.description)")
        }
        try telling.stream(stream, place)
    }

    private func extents(
        _ fork: HFSDisk.Fork, of address: UInt32, _ type: UInt8
    ) throws(TocError) -> [FileExtent] {
        try Self.extents(fork, of: address, type, disk, overflow)
    }

    /// A fork's extents: the first eight of its own, the others in the tree of extents.
    private static func extents(
        _ fork: HFSDisk.Fork, of address: UInt32, _ type: UInt8, _ disk: HFSDisk, _ tree: HFSTree?
    ) throws(TocError) -> [FileExtent] {
        var runs = fork.runs
        var covered = runs.reduce(0) { $0 + UInt64($1.count) }
        if let tree, covered < fork.size / disk.blockSize + (fork.size % disk.blockSize == 0 ? 0 : 1) {
            let wanted = (address, type, UInt32(0))
            func order(_ key: UnsafeRawBufferPointer) -> (UInt32, UInt8, UInt32) {
                guard key.count >= 10 else { return (0, 0, 0) }
                return (
                    key.bigEndian(at: 2, as: UInt32.self), key[0], key.bigEndian(at: 6, as: UInt32.self)
                )
            }
            guard let leaf = try tree.leaf(where: { order($0) <= wanted }) else {
                throw TocError(.damaged, "its runs end before its size")
            }
            var skipped = 0
            try tree.visit(from: leaf) { record throws(TocError) in
                let key = order(record.key)
                if (key.0, key.1) < (address, type) {
                    // Where the search ended, or in the next leaf, it begins.
                    skipped += 1
                    return skipped < Self.recordsOfTwoLeaves
                }
                guard (key.0, key.1) == (address, type), record.data.count >= 64 else { return false }
                guard UInt64(key.2) == covered, runs.count <= TocLimits.extentsPerStream else {
                    throw TocError(.damaged, "its runs do not follow one another")
                }
                let more = HFSDisk.Run.eight(record.data, 0)
                runs += more
                covered += more.reduce(0) { $0 + UInt64($1.count) }
                return true
            }
        }
        return try disk.placed(runs.lazy.filter { $0.count > 0 }, size: fork.size)
    }

    /// A compressed file: libtsk reads it, and what is small enough is kept.
    private func unpacked(_ node: FileNode) throws(TocError) -> FileStream {
        var stream = FileStream(
            StreamIdentifier(node: node.address), size: 0, storage: .unavailable("compressed"))
        guard let system, let file = try TskFile(system, node.address),
            let attributes = try file.attributes(),
            let attribute = attributes.first(where: {
                $0.pointee.type == TSK_FS_ATTR_TYPE_DEFAULT || $0.pointee.type == TSK_FS_ATTR_TYPE_HFS_DATA
            })
        else { return stream }
        stream.size = UInt64(clamping: attribute.pointee.size)
        if stream.size <= UInt64(TocLimits.inlineBytes),
            let content = try system.content(attribute, 0, Int(stream.size)),
            content.count == Int(stream.size)
        {
            stream.storage = .inline(content)
        }
        return stream
    }

    // MARK: Attributes

    private func attribute(_ record: HFSTree.Record) throws(TocError) {
        guard record.key.count >= 12, record.data.count >= 16 else { return }
        let address = UInt64(record.key.bigEndian(at: 2, as: UInt32.self))
        let count = Int(record.key.bigEndian(at: 10, as: UInt16.self))
        guard record.key.count >= 12 + 2 * count else {
            return try telling.problem(address, "an attribute's name is damaged")
        }
        let name = utf8((0..<count).lazy.map { record.key.bigEndian(at: 12 + 2 * $0, as: UInt16.self) })
        guard !name.isEmpty, name.count <= TocLimits.nameBytes, !name.contains(0) else {
            return try telling.problem(address, "an attribute's name is damaged")
        }
        // What is in it is told as the content.
        if name == Self.compression { return }
        var value: [UInt8]
        switch record.data.bigEndian(at: 0, as: UInt32.self) {
        case 0x10:
            let size = Int(record.data.bigEndian(at: 12, as: UInt32.self))
            guard size <= record.data.count - 16, size <= TocLimits.attributeBytes else {
                return try telling.problem(address, "an attribute is damaged")
            }
            value = [UInt8](record.data[16..<16 + size])
        case 0x20 where record.data.count >= 88:
            let fork = HFSDisk.Fork(UnsafeRawBufferPointer(rebasing: record.data[8..<88]))
            do throws(TocError) {
                guard fork.size <= UInt64(TocLimits.attributeBytes) else {
                    throw TocError(.damaged, "it has \(fork.size) bytes")
                }
                let place = try disk.placed(fork.runs, size: fork.size)
                value = try disk.read(place, 0, Int(fork.size))
            } catch {
                guard error.kind == .damaged else { throw error }
                return try telling.problem(address, "an attribute cannot be read: \(error.description)")
            }
        // More extents of one that is too large.
        default: return
        }
        try telling.put(
            .attribute(ExtendedAttribute(node: address, name: Self.shown(name), value: value)))
    }

    /// Linux gives what is in none of its namespaces one of its own.
    private static func shown(_ name: [UInt8]) -> [UInt8] {
        let known = ["user.", "security.", "system.", "trusted."].contains { name.starts(with: $0.utf8) }
        return known ? name : Array("osx.".utf8) + name
    }
}
