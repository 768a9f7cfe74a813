import Blocks
import CLibTSK

/// Walks a file system by libtsk's directories (HFS+): first the names, directory after directory from
/// the root, then the nodes they lead to, once each, in the order of their addresses, which is about that of the disk.
struct TreeWalk {
    let system: TskFileSystem
    let teller: TskNode
    let telling: Telling
    private var reached = AddressSet()

    init(_ system: TskFileSystem, _ teller: TskNode, _ telling: Telling) {
        self.system = system
        self.teller = teller
        self.telling = telling
    }

    mutating func run() throws(TocError) {
        try names()
        guard let file = try TskFile(system, system.info.pointee.root_inum) else {
            throw TocError(.damaged, "the root directory cannot be read: \(TskFileSystem.lastError())")
        }
        try reached.visit { address throws(TocError) in try node(address, file) }
    }

    private mutating func names() throws(TocError) {
        let root = system.info.pointee.root_inum
        _ = reached.insert(root)
        var waiting: [(address: UInt64, depth: Int)] = [(root, 1)]
        while let (address, depth) = waiting.popLast() {
            let directory = tsk_fs_dir_open_meta(system.info, address)
            try system.image.check()
            guard let directory else {
                try telling.problem(address, "the directory cannot be read: \(TskFileSystem.lastError())")
                continue
            }
            defer { tsk_fs_dir_close(directory) }
            for index in 0..<tsk_fs_dir_getsize(directory) {
                guard let entry = tsk_fs_dir_get_name(directory, index),
                    let child = try name(entry, in: address)
                else { continue }
                if depth >= TocLimits.depth {
                    try telling.problem(child, "the directory lies deeper than \(TocLimits.depth)")
                } else {
                    waiting.append((child, depth + 1))
                }
            }
        }
    }

    /// - Returns: the directory it leads to, to be read, too.
    private mutating func name(
        _ entry: UnsafePointer<TSK_FS_NAME>, in parent: UInt64
    ) throws(TocError) -> UInt64? {
        guard entry.pointee.flags == TSK_FS_NAME_FLAG_ALLOC, !TskNode.isVirtual(entry.pointee.type),
            let text = entry.pointee.name
        else { return nil }
        let name = bytes(of: text, atMost: TocLimits.nameBytes + 1)
        let address = entry.pointee.meta_addr
        if name.isEmpty || name == Array(".".utf8) || name == Array("..".utf8) { return nil }
        guard name.count <= TocLimits.nameBytes, address < TocLimits.address else {
            try telling.problem(parent, "an entry of the directory is damaged")
            return nil
        }
        let isDirectory = entry.pointee.type == TSK_FS_NAME_TYPE_DIR
        guard reached.insert(address) || !isDirectory else {
            try telling.problem(address, "the directory has a second name: a loop")
            return nil
        }
        try telling.put(.name(FileName(parent: parent, name: name, node: address)))
        return isDirectory ? address : nil
    }

    private func node(_ address: UInt64, _ file: TskFile) throws(TocError) {
        guard let meta = try file.open(address) else {
            return try telling.problem(address, "the node cannot be read: \(TskFileSystem.lastError())")
        }
        guard !TskNode.isVirtual(meta.pointee.type) else { return }
        var node = teller.node(meta)
        node.address = address
        if node.kind == .regular, let attributes = try file.attributes() {
            try streams(&node, meta, attributes)
        } else if node.kind == .regular {
            let reason = "its content cannot be found: \(TskFileSystem.lastError())"
            try telling.problem(address, reason)
            try telling.put(
                .stream(
                    FileStream(
                        StreamIdentifier(node: address), size: node.size, storage: .unavailable(reason))))
        }
        try telling.put(.node(node))
    }

    private func streams(
        _ node: inout FileNode, _ meta: UnsafeMutablePointer<TSK_FS_META>,
        _ attributes: [UnsafePointer<TSK_FS_ATTR>]
    ) throws(TocError) {
        var hasContent = false
        for attribute in attributes {
            switch attribute.pointee.type {
            case TSK_FS_ATTR_TYPE_DEFAULT, TSK_FS_ATTR_TYPE_HFS_DATA:
                guard !hasContent else { continue }
                hasContent = true
                var told = teller.stream(StreamIdentifier(node: node.address), attribute)
                if meta.pointee.flags.rawValue & TSK_FS_META_FLAG_COMP.rawValue != 0 {
                    told = (try decompressed(node, attribute), [])
                }
                node.size = told.stream.size
                try telling.stream(told.stream, told.extents)
            case TSK_FS_ATTR_TYPE_HFS_RSRC:
                let told = teller.stream(
                    StreamIdentifier(node: node.address, number: 1), name: Array("rsrc".utf8), attribute)
                if told.stream.size > 0 { try telling.stream(told.stream, told.extents) }
            case TSK_FS_ATTR_TYPE_HFS_EXT_ATTR:
                guard let value = attribute.resident, value.count <= TocLimits.attributeBytes else {
                    continue
                }
                // The namespace that Linux gives what has none.
                let name = Array("osx.".utf8) + attribute.name
                try telling.put(
                    .attribute(ExtendedAttribute(node: node.address, name: name, value: [UInt8](value))))
            default: continue
            }
        }
        if !hasContent {
            try telling.stream(
                FileStream(
                    StreamIdentifier(node: node.address), size: node.size,
                    storage: node.size == 0 ? .extents : .unavailable("its content cannot be found")), [])
        }
    }

    /// A compressed file of HFS+: libtsk reads it, and what is small enough is kept.
    private func decompressed(
        _ node: FileNode, _ attribute: UnsafePointer<TSK_FS_ATTR>
    ) throws(TocError) -> FileStream {
        let size = UInt64(clamping: attribute.pointee.size)
        var stream = FileStream(
            StreamIdentifier(node: node.address), size: size, storage: .unavailable("compressed"))
        if size <= UInt64(TocLimits.inlineBytes),
            let content = try system.content(attribute, 0, Int(size)), content.count == Int(size)
        {
            stream.storage = .inline(content)
        }
        return stream
    }
}
