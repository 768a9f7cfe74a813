import Blocks
import CLibTSK

/// Walks ext2, ext3 and ext4 inode by inode, in the order of the disk, asking libtsk for those that are allocated; what
/// libtsk does not tell, directories' names among it, the supplement does.
///
/// libtsk's own way through directories compares each name with all before it in the same directory: minutes for
/// one with a million.
final class InodeWalk {
    /// What the walk must know of the superblock.
    struct Layout {
        let inodesPerGroup: UInt64
        let firstUserInode: UInt64
        /// The file system's own: journal, quotas, orphans.
        let hidden: Set<UInt64>

        /// - Parameter superblock: its first 1024 bytes.
        init(_ superblock: UnsafeRawBufferPointer) {
            func field(_ at: Int) -> UInt64 { UInt64(superblock.littleEndian(at: at, as: UInt32.self)) }
            inodesPerGroup = max(field(40), 1)
            firstUserInode = field(76) == 0 ? 11 : max(field(84), 3)
            hidden = Set([224, 576, 580, 620, 640].map(field))
        }
    }

    private static let root: UInt64 = 2

    private let system: TskFileSystem
    private let teller: TskNode
    private let telling: Telling
    private let supplement: any NodeSupplement
    private let layout: Layout
    private var last: UInt64 = 0
    private var failure: TocError?

    init(
        _ system: TskFileSystem, _ teller: TskNode, _ telling: Telling, _ supplement: any NodeSupplement,
        _ layout: Layout
    ) {
        self.system = system
        self.teller = teller
        self.telling = telling
        self.supplement = supplement
        self.layout = layout
    }

    func run() throws(TocError) {
        // What libtsk calls the last one is the directory of orphans, which it made up.
        let end = system.info.pointee.last_inum
        var first = system.info.pointee.first_inum
        while first < end {
            // Group by group: a damaged one ends libtsk's walk.
            let next = min(first + layout.inodesPerGroup, end)
            last = first - 1
            let context = Unmanaged.passUnretained(self).toOpaque()
            let result = tsk_fs_meta_walk(
                system.info, first, next - 1, TSK_FS_META_FLAG_ALLOC,
                { file, context in
                    Unmanaged<InodeWalk>.fromOpaque(context!).takeUnretainedValue().visit(file!)
                },
                context)
            if let failure { throw failure }
            try system.image.check()
            if result != 0 { try one(by: last + 1..<next, because: TskFileSystem.lastError()) }
            first = next
        }
    }

    /// The rest of a group in which libtsk's walk ended.
    private func one(by range: Range<UInt64>, because reason: String) throws(TocError) {
        try telling.problem(nil, "inodes \(range.lowerBound) to \(range.upperBound - 1): \(reason)")
        guard let file = try TskFile(system, Self.root) else { return }
        for address in range {
            guard let meta = try file.open(address),
                meta.pointee.flags.rawValue & TSK_FS_META_FLAG_ALLOC.rawValue != 0
            else { continue }
            try inode(meta)
        }
    }

    private func visit(_ file: UnsafeMutablePointer<TSK_FS_FILE>) -> TSK_WALK_RET_ENUM {
        guard let meta = file.pointee.meta else { return TSK_WALK_CONT }
        last = meta.pointee.addr
        do throws(TocError) {
            try inode(meta)
            return TSK_WALK_CONT
        } catch {
            failure = error
            return TSK_WALK_STOP
        }
    }

    private func inode(_ meta: UnsafeMutablePointer<TSK_FS_META>) throws(TocError) {
        let address = meta.pointee.addr
        guard address == Self.root || address >= layout.firstUserInode, meta.pointee.nlink > 0,
            !layout.hidden.contains(address), !TskNode.isVirtual(meta.pointee.type)
        else { return }
        try Self.tell(teller.node(meta), supplement, telling)
    }

    /// Hands on a node with its stream, unless it is none.
    private static func tell(
        _ node: FileNode, _ supplement: any NodeSupplement, _ telling: Telling
    ) throws(TocError) {
        var node = node
        let storage = try supplement.complete(&node, into: telling.sink)
        guard node.links > 0 else { return }
        try telling.put(.node(node))
        guard node.kind == .regular else { return }
        let stream = FileStream(
            StreamIdentifier(node: node.address), size: node.size,
            storage: storage ?? .unavailable("it cannot be read"))
        try telling.put(.stream(stream))
        if case .extents? = storage { try supplement.extents(of: node, into: telling.sink) }
    }

    /// The same walk without libtsk, for file systems that it does not open or does not read right; an inode is one
    /// when it has links.
    static func run(_ system: ExtFileSystem, _ layout: Layout, _ telling: Telling) throws(TocError) {
        let supplement = system.supplement
        try system.forEachLinkedInode(telling.problem) { (address) throws(TocError) in
            guard address == root || address >= layout.firstUserInode, !layout.hidden.contains(address) else {
                return
            }
            try tell(FileNode(address: address, kind: .other), supplement, telling)
        }
    }
}
