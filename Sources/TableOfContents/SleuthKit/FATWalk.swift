import Blocks
import CLibTSK

/// Walks FAT and exFAT, directory after directory: entries are read here, chains of clusters by libtsk.
struct FATWalk {
    private let system: TskFileSystem
    private let store: any BlockStore
    private let teller: TskNode
    private let telling: Telling
    private let file: TskFile
    /// The first sector that libtsk counts nodes from.
    private let firstSector: UInt64
    private let isExtended: Bool
    private var seen = AddressSet()

    /// - Parameter store: the volume.
    init(
        _ system: TskFileSystem, _ store: any BlockStore, _ teller: TskNode, _ telling: Telling
    ) throws(TocError) {
        self.system = system
        self.store = store
        self.teller = teller
        self.telling = telling
        isExtended = teller.kind == .exfat
        let head = try Probe.bytes(store, teller.range, 0, 512)
        let geometry = head.withUnsafeBytes { FATGeometry($0) }
        firstSector =
            isExtended
            ? head.withUnsafeBytes { UInt64($0.littleEndian(at: 88, as: UInt32.self)) }
            : geometry?.firstDataSector ?? 0
        guard let file = try TskFile(system, system.info.pointee.root_inum) else {
            throw TocError(.damaged, "the root directory cannot be read: \(TskFileSystem.lastError())")
        }
        self.file = file
    }

    mutating func run() throws(TocError) {
        let root = system.info.pointee.root_inum
        var node = FileNode(address: root, kind: .directory)
        node.size = UInt64(clamping: file.pointer.pointee.meta?.pointee.size ?? 0)
        try telling.put(.node(node))
        _ = seen.insert(root)
        var waiting: [(address: UInt64, depth: Int)] = [(root, 1)]
        while let (address, depth) = waiting.popLast() {
            do throws(TocError) {
                for child in try directory(address) {
                    if depth >= TocLimits.depth {
                        try telling.problem(child, "the directory lies deeper than \(TocLimits.depth)")
                    } else {
                        waiting.append((child, depth + 1))
                    }
                }
            } catch {
                guard error.kind == .damaged else { throw error }
                try telling.problem(address, "the directory cannot be read: \(error.description)")
            }
        }
    }

    /// Where a node's bytes lie, by libtsk.
    private func content(_ address: UInt64) throws(TocError) -> (stream: FileStream, extents: [FileExtent]) {
        guard try file.open(address) != nil, let attributes = try file.attributes(),
            let attribute = attributes.first(where: { $0.pointee.type == TSK_FS_ATTR_TYPE_DEFAULT })
        else { throw TocError(.damaged, TskFileSystem.lastError()) }
        return teller.stream(StreamIdentifier(node: address), attribute)
    }

    /// - Returns: its directories.
    private mutating func directory(_ address: UInt64) throws(TocError) -> [UInt64] {
        let (stream, extents) = try content(address)
        if case .unavailable(let reason) = stream.storage { throw TocError(.damaged, reason) }
        let count = extents.reduce(0) { $0 + $1.count }
        guard telling.mayRead(count), count <= Self.mostDirectoryBytes else {
            throw TocError(.damaged, "it is larger than a directory can be")
        }
        var bytes: [UInt8] = []
        bytes.reserveCapacity(Int(count))
        for extent in extents {
            do throws(StoreError) {
                bytes += try store.bytes(at: extent.volumeOffset, count: Int(extent.count))
            } catch {
                throw TocError(.store(error), "the volume cannot be read: \(error.code)")
            }
        }
        let isExtended = isExtended
        let (entries, isWhole) = bytes.withUnsafeBytes {
            isExtended ? FATEntries.exfat($0) : FATEntries.fat($0)
        }
        if !isWhole { try telling.problem(address, "some entries of the directory are damaged") }
        var children: [UInt64] = []
        var places = Places(extents)
        for entry in entries {
            let position = places.position(of: UInt64(entry.offset)) - teller.range.offset
            let sector = position / system.blockSize
            let node =
                (sector - firstSector) * (system.blockSize / UInt64(FATEntries.size))
                + position % system.blockSize / UInt64(FATEntries.size) + 3
            guard seen.insert(node) else {
                try telling.problem(node, "the directory entry was met before: a loop")
                continue
            }
            try telling.put(.name(FileName(parent: address, name: entry.name, node: node)))
            try tell(entry, node)
            if entry.isDirectory { children.append(node) }
        }
        return children
    }

    /// FAT allows 65,536 entries in a directory, exFAT 256 MiB.
    private static let mostDirectoryBytes: UInt64 = 256 << 20

    private func tell(_ entry: FATEntry, _ address: UInt64) throws(TocError) {
        var node = FileNode(address: address, kind: entry.isDirectory ? .directory : .regular)
        node.size = entry.size
        node.modified = entry.modified
        node.accessed = entry.accessed
        node.changed = entry.changed
        node.created = entry.created
        if entry.isDirectory {
            if let meta = try file.open(address) { node.size = UInt64(clamping: meta.pointee.size) }
            return try telling.put(.node(node))
        }
        try telling.put(.node(node))
        var told = (
            stream: FileStream(StreamIdentifier(node: address), size: entry.size, storage: .extents),
            extents: [FileExtent]()
        )
        if entry.size > 0 {
            do throws(TocError) {
                told = try content(address)
                if entry.validSize < entry.size {
                    told.extents = told.extents.compactMap { $0.before(entry.validSize) }
                }
                if told.stream.size != entry.size { throw TocError(.damaged, "libtsk finds another size") }
            } catch {
                guard error.kind == .damaged else { throw error }
                told.stream.storage = .unavailable("its content cannot be found: \(error.description)")
            }
            if case .unavailable(let reason) = told.stream.storage {
                try telling.problem(address, reason)
                told = (
                    FileStream(
                        StreamIdentifier(node: address), size: entry.size, storage: told.stream.storage), []
                )
            }
        }
        try telling.stream(told.stream, told.extents)
    }
}

/// Finds places in extents for offsets that only grow.
private struct Places {
    private var extents: ArraySlice<FileExtent>
    private var start: UInt64 = 0

    init(_ extents: [FileExtent]) { self.extents = extents[...] }

    /// - Parameter offset: in the bytes of all extents, one behind the other.
    mutating func position(of offset: UInt64) -> UInt64 {
        while let first = extents.first, offset >= start + first.count {
            start += first.count
            extents = extents.dropFirst()
        }
        return extents.first!.volumeOffset + (offset - start)
    }
}

extension FileExtent {
    /// What of it lies before an offset of its stream; nil: nothing.
    func before(_ end: UInt64) -> FileExtent? {
        guard fileOffset < end else { return nil }
        var part = self
        // A valid size in the last block leaves the rest of the block as it is: it is beyond the end, or zeros.
        part.count = min(count, end - fileOffset)
        return part
    }
}
