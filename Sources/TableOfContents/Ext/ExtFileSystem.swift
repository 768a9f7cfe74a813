import Blocks

/// An ext2, ext3 or ext4 file system, its journal replayed in memory.
struct ExtFileSystem {
    /// ``FileSystemDescription/index`` is 0: who knows the volume's others sets it.
    let description: FileSystemDescription
    /// The volume, same size and offsets, as it will be when the journal has been replayed: what libtsk is to read.
    let replayed: any BlockStore

    private let reader: ExtReader?
    private let overlay: JournalOverlay?
    /// The journal's blocks, and all other blocks that are in use whatever the bitmaps say.
    private let journalRuns: [ExtRun]
    private let problems: [String]

    /// What keeps files from being listed, or use from being known.
    private struct Doubts {
        var listing: [String] = []
        var use: [String] = []
    }

    /// - Parameters:
    ///   - store: the volume.
    ///   - range: of it, where the file system begins, as far as it may reach.
    /// - Returns: nil when there is no ext superblock.
    /// - Throws: `store`.
    init?(_ store: any BlockStore, _ range: ByteRange) throws(TocError) {
        precondition(range.end <= store.size)
        guard range.count >= ExtSuperblock.offset + UInt64(ExtSuperblock.size) else { return nil }
        let bytes = try Self.superblock(of: store, range)
        guard !ExtSuperblock.isJournal(bytes) else {
            let description = FileSystemDescription(
                index: 0, kind: .unknown, range: range, isListed: false,
                remark: "it is the external journal of another file system")
            self.init(description: description, replayed: store)
            return
        }
        guard let raw = ExtSuperblock(bytes) else { return nil }
        var doubts = Doubts()
        var problems: [String] = []
        var current = raw
        var overlay: JournalOverlay?
        var journalRuns: [ExtRun] = []
        Self.gate(raw, range, &doubts)
        if doubts.listing.isEmpty {
            let recovery = try Recovery(ExtReader(raw, store, range))
            journalRuns = recovery.runs
            overlay = recovery.overlay
            if let problem = recovery.problem {
                problems.append(problem)
                doubts.use.append(problem)
            }
            if let overlay, let after = ExtSuperblock(try Self.superblock(of: overlay, range)) {
                current = after
            }
            if current.byteCount > range.count || current.blockSize != raw.blockSize {
                doubts.listing.append("the journal has another file system's superblock")
            }
        }
        Self.examine(current, &doubts)
        let isListed = doubts.listing.isEmpty
        let description = FileSystemDescription(
            index: 0, kind: raw.kind, range: range,
            blockSize: UInt64(current.blockSize) * current.blocksPerCluster,
            label: String(decoding: current.label, as: UTF8.self), uuid: current.uuidText, root: 2,
            isListed: isListed, knowsUse: isListed && doubts.use.isEmpty,
            remark: (doubts.listing + doubts.use).joined(separator: "; "))
        let replayed = overlay ?? store
        self.init(
            description: description, replayed: replayed,
            reader: isListed ? ExtReader(current, replayed, range) : nil, overlay: overlay,
            journalRuns: journalRuns, problems: problems)
    }

    private init(
        description: FileSystemDescription, replayed: any BlockStore, reader: ExtReader? = nil,
        overlay: JournalOverlay? = nil, journalRuns: [ExtRun] = [], problems: [String] = []
    ) {
        self.description = description
        self.replayed = replayed
        self.reader = reader
        self.overlay = overlay
        self.journalRuns = journalRuns
        self.problems = problems
    }

    private static func superblock(
        of store: any BlockStore, _ range: ByteRange
    ) throws(TocError) -> [UInt8] {
        do throws(StoreError) {
            return try store.bytes(at: range.offset + ExtSuperblock.offset, count: ExtSuperblock.size)
        } catch {
            throw TocError(.store(error), "reading the superblock at \(range.offset): \(error)")
        }
    }

    /// What forbids to read on.
    private static func gate(_ superblock: ExtSuperblock, _ range: ByteRange, _ doubts: inout Doubts) {
        let unknown = superblock.incompatible & ~ExtFeature.Incompatible.known
        if unknown != 0 {
            doubts.listing.append(
                "it has incompatible features that are not known here (0x\(String(unknown, radix: 16)))")
        }
        if superblock.byteCount > range.count {
            doubts.listing.append(
                "it says that it has \(superblock.byteCount) bytes, more than there are (\(range.count))")
        }
    }

    /// What leaves a doubt of which blocks are in use.
    private static func examine(_ superblock: ExtSuperblock, _ doubts: inout Doubts) {
        if !superblock.isIntact { doubts.use.append("its superblock does not verify") }
        let unknown = superblock.readOnlyCompatible & ~ExtFeature.ReadOnlyCompatible.known
        if unknown != 0 {
            doubts.use.append("it has features that are not known here (0x\(String(unknown, radix: 16)))")
        }
        // Without a journal, a driver clears this at mount and sets it again at unmount.
        if superblock.state & 1 == 0 {
            doubts.use.append("it is in use without a journal, or was not unmounted")
        }
        if superblock.state & 2 != 0 { doubts.use.append("it has errors that e2fsck has not yet mended") }
        if superblock.groupCount > TocLimits.blockGroups {
            doubts.use.append("it has more block groups than are taken here")
        }
    }

    /// Completes what libtsk reads of ``replayed``. Only where the description says that files are listed.
    var supplement: any NodeSupplement {
        guard let reader else { preconditionFailure("files of this file system are not listed") }
        return ExtSupplement(
            ExtReader(reader.superblock, replayed, reader.range), overlay: overlay, problems: problems)
    }

    /// Whether libtsk 4.11.1 does not open it (clusters), looks for its inodes at wrong places (meta groups, blocks
    /// beyond 2^32), or would go by a bitmap of inodes that may be older than they are (in use without a journal).
    var isBeyondLibtsk: Bool {
        guard let superblock = reader?.superblock else { return true }
        return superblock.blocksPerCluster > 1
            || superblock.has(incompatible: ExtFeature.Incompatible.metaGroups)
            || superblock.blockCount >> 32 != 0 || superblock.state & 1 == 0
    }

    /// Calls for each inode that has links, in order.
    /// - Parameter damaged: told of what could not be read.
    /// - Throws: what the callbacks throw; `store`.
    func forEachLinkedInode(
        _ damaged: (UInt64?, String) throws(TocError) -> Void, _ body: (UInt64) throws(TocError) -> Void
    ) throws(TocError) {
        guard let superblock = reader?.superblock, let range = reader?.range else { return }
        let reader = ExtReader(superblock, replayed, range)
        let perGroup = UInt64(superblock.inodesPerGroup)
        for group in 0..<superblock.groupCount where group * perGroup < UInt64(superblock.inodeCount) {
            let last = min((group + 1) * perGroup, UInt64(superblock.inodeCount))
            var address = group * perGroup + 1
            do throws(TocError) {
                while address <= last, try reader.isInitialized(inode: address) {
                    if try reader.inode(address).links > 0 { try body(address) }
                    address += 1
                }
            } catch {
                guard error.isDamage else { throw error }
                try damaged(nil, "inodes \(address) to \(last): \(error.description)")
            }
        }
    }

    /// Hands on what is in use. Nothing when the description says that this is not known.
    /// - Throws: what `sink` throws; `store`.
    func readUse(into sink: any RecordSink) throws(TocError) {
        guard description.knowsUse, let reader else { return }
        var use = try ExtUse(reader, journal: journalRuns)
        try use.read(into: sink)
    }
}

/// What the journal asks for, if anything.
private struct Recovery {
    /// Nil: nothing is to be replayed.
    private(set) var overlay: JournalOverlay?
    /// The journal's blocks.
    private(set) var runs: [ExtRun] = []
    /// Why the state on disk, as read with ``overlay``, is not the one a driver would show.
    private(set) var problem: String?

    init(_ reader: ExtReader) throws(TocError) {
        let superblock = reader.superblock
        let isNeeded = superblock.has(incompatible: ExtFeature.Incompatible.needsRecovery)
        guard superblock.has(compatible: ExtFeature.Compatible.hasJournal) else {
            if isNeeded { problem = "it needs recovery, but says that it has no journal" }
            return
        }
        guard superblock.journalInode != 0 else {
            if isNeeded {
                problem =
                    "its journal is on another device and was not replayed: files are listed as they were"
            }
            return
        }
        do throws(TocError) {
            let blocks = try JournalBlocks(reader, inode: superblock.journalInode)
            runs = blocks.pieces
            let journal = try JournalSuperblock(
                try blocks.block(0), blockSize: superblock.blockSize, blockCount: blocks.blockCount)
            guard isNeeded else {
                // The kernel wipes such a journal without replaying it.
                if journal.start != 0 { problem = "its journal holds changes, but it does not ask for them" }
                return
            }
            try replay(journal, blocks, reader)
        } catch {
            guard error.isDamage else { throw error }
            problem =
                isNeeded
                ? "its journal could not be replayed (\(error.description)): files are listed as they were"
                : "its journal is damaged (\(error.description))"
        }
    }

    private mutating func replay(
        _ journal: JournalSuperblock, _ blocks: JournalBlocks, _ reader: ExtReader
    ) throws(TocError) {
        let replay = try JournalReplay(journal, blocks)
        let superblock = reader.superblock
        let valid = replay.blocks.filter { $0.target < superblock.blockCount }
        if !valid.isEmpty {
            overlay = JournalOverlay(
                reader.store, base: reader.range.offset, blockSize: superblock.blockSize, blocks: valid,
                magicOffset: reader.range.offset + (try blocks.position(0)) * UInt64(superblock.blockSize))
        }
        if let damage = replay.damage {
            problem = "its journal is damaged (\(damage)): files are listed as they were before that"
        } else if valid.count < replay.blocks.count {
            problem = "its journal is damaged (blocks outside of the file system)"
        } else if replay.hasFastCommits {
            problem = "its last changes are fast commits, which are not replayed: they are not listed"
        }
    }
}
