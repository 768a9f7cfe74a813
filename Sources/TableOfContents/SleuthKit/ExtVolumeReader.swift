import Blocks
import CLibTSK

/// Reads ext2, ext3 and ext4: libtsk the inodes, over the replayed journal, and ``ExtFileSystem`` the rest.
struct ExtVolumeReader: FileSystemReader {
    let description: FileSystemDescription
    private let system: ExtFileSystem

    /// Nil: there is no ext superblock.
    init?(_ store: any BlockStore, _ range: ByteRange) throws(TocError) {
        guard let system = try ExtFileSystem(store, range) else { return nil }
        self.system = system
        description = system.description
    }

    func read(_ scope: ReadScope, into sink: any RecordSink) throws(TocError) {
        try sink.put(.fileSystem(description))
        let telling = Telling(sink, range: description.range, blockSize: 1024)
        if scope.contains(.files), description.isListed {
            do throws(TocError) { try files(telling) } catch {
                guard error.kind == .damaged else { throw error }
                try telling.problem(nil, error.description)
            }
        }
        if scope.contains(.use), description.knowsUse { try system.readUse(into: sink) }
        try telling.end()
    }

    private func files(_ telling: Telling) throws(TocError) {
        let superblock = try Probe.bytes(system.replayed, description.range, 1024, 1024)
        let layout = superblock.withUnsafeBytes { InodeWalk.Layout($0) }
        if system.isBeyondLibtsk { return try InodeWalk.run(system, layout, telling) }
        // What libtsk calls ext4 has room in its inodes for what ext3 may have there, too.
        let opened = try TskFileSystem(system.replayed, description.range, TSK_FS_TYPE_EXT4)
        let teller = TskNode(kind: description.kind, range: description.range, blockSize: opened.blockSize)
        try InodeWalk(opened, teller, telling, system.supplement, layout).run()
    }
}
