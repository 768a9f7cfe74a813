import Blocks
import CLibTSK

/// Reads NTFS, FAT and exFAT by libtsk, and HFS+, of which libtsk only unpacks what is compressed.
struct SleuthKitReader: FileSystemReader {
    let description: FileSystemDescription
    private let store: any BlockStore
    private let system: TskFileSystem

    /// - Parameters:
    ///   - store: the volume.
    ///   - found: what the superblock at the start of `range` says.
    /// - Throws: ``TocError`` `damaged` when libtsk cannot open it.
    init(_ store: any BlockStore, _ range: ByteRange, _ found: Probe.Found) throws(TocError) {
        system = try TskFileSystem(store, range, Self.type(found.kind))
        self.store = store
        let use = try UsedBlocks(system, store, range, found)
        description = FileSystemDescription(
            index: 0, kind: found.kind, range: range, blockSize: use.clusterSize,
            label: try Self.label(system, found), uuid: found.uuid, root: system.info.pointee.root_inum,
            isListed: true, knowsUse: use.doubt == nil, remark: use.doubt ?? "")
    }

    private static func type(_ kind: FileSystemKind) -> TSK_FS_TYPE_ENUM {
        switch kind {
        case .ntfs: TSK_FS_TYPE_NTFS
        case .fat12: TSK_FS_TYPE_FAT12
        case .fat16: TSK_FS_TYPE_FAT16
        case .fat32: TSK_FS_TYPE_FAT32
        case .exfat: TSK_FS_TYPE_EXFAT
        case .hfsPlus: TSK_FS_TYPE_HFS
        default: preconditionFailure("libtsk is not asked for \(kind)")
        }
    }

    /// NTFS keeps it in a file of its own.
    private static func label(_ system: TskFileSystem, _ found: Probe.Found) throws(TocError) -> String {
        guard found.kind == .ntfs else { return found.label }
        let volume = try TskFile(system, 3)
        defer { withExtendedLifetime(volume) {} }
        guard let attributes = try volume?.attributes(),
            let name = attributes.first(where: { $0.pointee.type == TSK_FS_ATTR_TYPE_NTFS_VNAME })?.resident
        else { return found.label }
        let units = (0..<name.count / 2).map { name.littleEndian(at: 2 * $0, as: UInt16.self) }
        return String(decoding: units, as: UTF16.self)
    }

    func read(_ scope: ReadScope, into sink: any RecordSink) throws(TocError) {
        try sink.put(.fileSystem(description))
        let telling = Telling(sink, range: description.range, blockSize: system.blockSize)
        if scope.contains(.files) {
            do throws(TocError) { try files(telling) } catch {
                // What was told stands, and what follows may be read yet.
                guard error.kind == .damaged else { throw error }
                try telling.problem(nil, error.description)
            }
        }
        if scope.contains(.use), description.knowsUse {
            let found = Probe.Found(kind: description.kind, size: 0)
            try UsedBlocks(system, store, description.range, found).tell(to: telling)
        }
        try telling.end()
    }

    private func files(_ telling: Telling) throws(TocError) {
        let teller = TskNode(kind: description.kind, range: description.range, blockSize: system.blockSize)
        switch description.kind {
        case .ntfs: try MFTWalk(system, teller, telling).run()
        case .fat12, .fat16, .fat32, .exfat:
            var walk = try FATWalk(system, store, teller, telling)
            try walk.run()
        default:
            try HFSWalk(store, description.range, system, telling).run()
        }
    }
}
