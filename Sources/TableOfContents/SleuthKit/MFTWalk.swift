import Blocks
import CLibTSK

/// Walks NTFS by its master file table, in the order of its entries: each holds its file's names, with the
/// directories they stand in, so that no directory need be read. libtsk's own way through the directories compares
/// each name with all before it in the same directory, and first reads the whole table in search of deleted ones.
final class MFTWalk {
    private static let root: UInt64 = 5
    /// $Extend: what is in it, the volume keeps for itself, like the entries below 16.
    private static let extend: UInt64 = 11
    private static let firstOfUser: UInt64 = 16

    private struct Directory {
        var sequence: UInt16
        var parent: UInt64
        var parentSequence: UInt16
        var name: [UInt8]
    }

    private let system: TskFileSystem
    private let teller: TskNode
    private let telling: Telling
    private let file: TskFile
    private var directories: [UInt64: Directory] = [:]
    private var hidden = AddressSet()
    /// The table's content, while it is walked.
    private var table: UnsafePointer<TSK_FS_ATTR>?

    init(_ system: TskFileSystem, _ teller: TskNode, _ telling: Telling) throws(TocError) {
        self.system = system
        self.teller = teller
        self.telling = telling
        guard let file = try TskFile(system, Self.root) else {
            throw TocError(.damaged, "the root directory cannot be read: \(TskFileSystem.lastError())")
        }
        self.file = file
    }

    func run() throws(TocError) {
        try hideExtended()
        let master = try TskFile(system, 0)
        defer {
            table = nil
            withExtendedLifetime(master) {}
        }
        let attributes = try master?.attributes()
        table = attributes?.first { $0.pointee.type == TSK_FS_ATTR_TYPE_NTFS_DATA }
        let bitmap = attributes?.first { $0.pointee.type == TSK_FS_ATTR_TYPE_NTFS_BITMAP }
        let last = system.info.pointee.last_inum
        // What libtsk calls the last one is the directory of orphans, which it made up.
        var base: UInt64 = 0
        while base < last {
            var bits = [UInt8](repeating: 0xFF, count: 8192)
            if let bitmap {
                let read = try system.content(bitmap, base / 8, bits.count)
                if read == nil {
                    try telling.problem(
                        0, "a part of the table's bitmap cannot be read: \(TskFileSystem.lastError())")
                }
                if let read { bits.replaceSubrange(0..<read.count, with: read) }
            }
            for (index, byte) in bits.enumerated() where byte != 0 {
                for bit in 0..<8 where byte & 1 << bit != 0 {
                    let address = base + UInt64(index * 8 + bit)
                    if address < last { try entry(address) }
                }
            }
            base += UInt64(bits.count) * 8
        }
        try directoryNames()
    }

    /// What lies below $Extend, by the directories: there are few.
    private func hideExtended() throws(TocError) {
        var waiting = [Self.extend]
        _ = hidden.insert(Self.extend)
        var steps = 0
        while let address = waiting.popLast(), steps < TocLimits.depth {
            steps += 1
            guard let directory = tsk_fs_dir_open_meta(system.info, address) else { continue }
            defer { tsk_fs_dir_close(directory) }
            for index in 0..<tsk_fs_dir_getsize(directory) {
                guard let name = tsk_fs_dir_get_name(directory, index),
                    name.pointee.flags == TSK_FS_NAME_FLAG_ALLOC, name.pointee.par_addr == address,
                    name.pointee.meta_addr >= Self.firstOfUser, hidden.insert(name.pointee.meta_addr)
                else { continue }
                if name.pointee.type == TSK_FS_NAME_TYPE_DIR { waiting.append(name.pointee.meta_addr) }
            }
        }
        try system.image.check()
    }

    private func entry(_ address: UInt64) throws(TocError) {
        guard address == Self.root || address >= Self.firstOfUser, !hidden.contains(address) else { return }
        guard let meta = try file.open(address) else {
            return try telling.problem(address, "the entry cannot be read: \(TskFileSystem.lastError())")
        }
        guard meta.pointee.flags.rawValue & TSK_FS_META_FLAG_ALLOC.rawValue != 0 else { return }
        guard let attributes = try file.attributes(), !attributes.isEmpty else {
            return try telling.problem(address, "its attributes cannot be read: \(TskFileSystem.lastError())")
        }
        guard
            let information = attributes.first(where: { $0.pointee.type == TSK_FS_ATTR_TYPE_NTFS_SI })?
                .resident,
            let standard = NTFSAttributes.StandardInformation(information)
        else {
            // The continuation of another entry has none, and comes with that.
            if try !isContinuation(address) {
                try telling.problem(address, "its standard information is damaged")
            }
            return
        }
        var node = teller.node(meta)
        node.address = address
        node.created = standard.created
        node.modified = standard.modified
        node.changed = standard.changed
        node.accessed = standard.accessed
        try names(attributes, of: &node, sequence: UInt16(truncatingIfNeeded: meta.pointee.seq))
        let instead = try kind(&node, attributes, isSystem: standard.isSystem)
        try streams(&node, attributes, instead)
        try telling.put(.node(node))
    }

    /// Whether an entry says that it belongs to another; libtsk does not tell.
    private func isContinuation(_ address: UInt64) throws(TocError) -> Bool {
        guard let table, let size = recordSize,
            let base = try system.content(table, address * size + 32, 6), base.count == 6
        else { return false }
        return base.contains { $0 != 0 }
    }

    /// Bytes of an entry, by the boot sector: 2 to the power of a negative number, or so many clusters.
    private lazy var recordSize: UInt64? = {
        var boot = [CChar](repeating: 0, count: 512)
        guard tsk_fs_read(system.info, 0, &boot, boot.count) == boot.count else { return nil }
        let size = boot[64]
        return size > 0 ? UInt64(size) * system.blockSize : size >= -31 ? 1 << UInt64(-Int(size)) : nil
    }()

    private func names(
        _ attributes: [UnsafePointer<TSK_FS_ATTR>], of node: inout FileNode, sequence: UInt16
    ) throws(TocError) {
        node.links = 0
        for attribute in attributes where attribute.pointee.type == TSK_FS_ATTR_TYPE_NTFS_FNAME {
            guard let bytes = attribute.resident, let name = NTFSAttributes.Name(bytes),
                name.name.count <= TocLimits.nameBytes, !name.name.contains(0)
            else {
                try telling.problem(node.address, "a name is damaged")
                continue
            }
            if name.isShort { continue }
            node.links += 1
            if node.address == Self.root { continue }
            if node.kind == .directory {
                guard directories[node.address] == nil else {
                    try telling.problem(node.address, "the directory has a second name: a loop")
                    continue
                }
                directories[node.address] = Directory(
                    sequence: sequence, parent: name.parent, parentSequence: name.parentSequence,
                    name: name.name)
            } else {
                try telling.put(.name(FileName(parent: name.parent, name: name.name, node: node.address)))
            }
        }
        if node.links == 0 { try telling.problem(node.address, "the entry has no name") }
    }

    /// Names of directories, of those that hang together with the root.
    private func directoryNames() throws(TocError) {
        var isConnected: [UInt64: Bool] = [Self.root: true]
        for address in directories.keys.sorted() {
            var path: [UInt64] = []
            var next = address
            var result = isConnected[next]
            while result == nil {
                path.append(next)
                // A loop meets what is marked so.
                isConnected[next] = false
                guard path.count <= TocLimits.depth, let directory = directories[next] else {
                    result = false
                    break
                }
                next = directory.parent
                if let parent = directories[next], parent.sequence != directory.parentSequence {
                    result = false
                } else {
                    result = isConnected[next]
                }
            }
            for step in path { isConnected[step] = result }
            if result == true, let directory = directories[address] {
                try telling.put(
                    .name(FileName(parent: directory.parent, name: directory.name, node: address)))
            } else {
                try telling.problem(address, "the directory does not hang together with the root")
            }
        }
    }

    /// Makes of the node what its reparse point or its content say.
    /// - Returns: why its content cannot be had as it lies there, or what else there is instead of content.
    private func kind(
        _ node: inout FileNode, _ attributes: [UnsafePointer<TSK_FS_ATTR>], isSystem: Bool
    ) throws(TocError) -> NTFSAttributes.Reparse? {
        if let attribute = attributes.first(where: { $0.pointee.type == TSK_FS_ATTR_TYPE_NTFS_REPARSE }) {
            // The largest reparse point has 16 KiB.
            let size = min(UInt64(clamping: attribute.pointee.size), 16384)
            guard let bytes = try system.content(attribute, 0, Int(size)) else { return nil }
            let reparse = bytes.withUnsafeBytes { NTFSAttributes.reparse($0) }
            switch reparse {
            case .symbolicLink(let target):
                node.kind = .symbolicLink
                node.target = target
            case .fifo: node.kind = .fifo
            case .socket: node.kind = .socket
            case .characterDevice: node.kind = .characterDevice
            case .blockDevice: node.kind = .blockDevice
            case .unavailable, .other: break
            }
            return reparse
        }
        guard isSystem, node.kind == .regular,
            let content = attributes.first(where: {
                $0.pointee.type == TSK_FS_ATTR_TYPE_NTFS_DATA && $0.name.isEmpty
            }),
            let size = Int(exactly: content.pointee.size), size <= TocLimits.targetBytes,
            let bytes = try system.content(content, 0, size), bytes.count == size,
            let (kind, target, device) = bytes.withUnsafeBytes({ NTFSAttributes.interix($0) })
        else { return nil }
        node.kind = kind
        node.target = target
        node.device = device
        return .other
    }

    private func streams(
        _ node: inout FileNode, _ attributes: [UnsafePointer<TSK_FS_ATTR>], _ instead: NTFSAttributes.Reparse?
    ) throws(TocError) {
        var number: UInt32 = 0
        var hasContent = false
        for attribute in attributes where attribute.pointee.type == TSK_FS_ATTR_TYPE_NTFS_DATA {
            let name = attribute.name
            if name.isEmpty {
                guard node.kind == .regular, !hasContent else { continue }
                hasContent = true
                var told = teller.stream(StreamIdentifier(node: node.address), attribute)
                if case .unavailable(let reason)? = instead {
                    told = (told.stream, [])
                    told.stream.storage = .unavailable(reason)
                }
                node.size = told.stream.size
                try telling.stream(told.stream, told.extents)
            } else {
                number += 1
                let told = teller.stream(
                    StreamIdentifier(node: node.address, number: number), name: name, attribute)
                try telling.stream(told.stream, told.extents)
            }
        }
        if node.kind == .symbolicLink { node.size = UInt64(node.target?.count ?? 0) }
        if node.kind == .regular, !hasContent {
            try telling.stream(
                FileStream(
                    StreamIdentifier(node: node.address), size: 0, storage: .unavailable("it has no content")),
                [])
        }
    }
}
