import Blocks

/// Replays what lies between the log's tail and head, in memory, as recovery does: first a pass that notes which
/// buffers were cancelled (their blocks were freed), then one that applies the rest, transaction by transaction in
/// the order of their commits.
///
/// What recovery does then, finishing what transactions intended and freeing inodes without links, is not done: see
/// ``unfinished``.
struct XFSLogReplay {
    private(set) var patches: XFSPatches
    /// Inodes whose mappings or attributes recovery would go on to change.
    private(set) var unfinished: [UInt64] = []

    /// Where parts of directory blocks begin that were changed. A block that lies in several pieces is logged piece by
    /// piece, and its checksum, which is over all of it, cannot be made from one.
    private(set) var unsealed: Set<UInt64> = []

    private let geometry: XFSGeometry
    private let disk: XFSDisk
    private let ring: XFSLogRing
    private let tail: XFSLogRecord
    private let head: UInt64
    /// Called for each record: what is replayed is no longer read from the volume.
    private let advance: () -> Void
    /// Nothing on disk can be newer.
    private var newest: UInt64 = 0

    private var cancelled: [XFSLogBufferPlace: Int] = [:]
    private var cancelledSectors: [UInt64: Int] = [:]
    private var items = 0
    private var touched: UInt64 = 0
    /// Of the transactions that are being replayed. Several may have the same, and a buffer takes it only when all of
    /// these are through.
    private var sequence: UInt64 = 0
    private var unstamped: [UInt64: Int] = [:]
    private var changed: [UInt64: Int] = [:]
    private var intents: [Intent: [UInt64]] = [:]
    private let scratch = XFSBuffer(count: Int(XFSLimits.logBufferSectors) << 9)

    private struct Intent: Hashable {
        let kind: XFSLogItemKind
        let identifier: UInt64
    }

    init(
        _ geometry: XFSGeometry, _ disk: XFSDisk, _ ring: XFSLogRing, from tail: XFSLogRecord,
        to head: UInt64,
        advance: @escaping () -> Void
    ) {
        self.geometry = geometry
        self.disk = disk
        self.ring = ring
        self.tail = tail
        self.head = head
        self.advance = advance
        patches = XFSPatches(disk)
    }

    /// Throws `damaged` when recovery would refuse the log, or when it has what is not replayed here.
    mutating func run() throws(TocError) {
        try pass { (replay, transaction) throws(TocError) in try replay.note(transaction) }
        try pass { (replay, transaction) throws(TocError) in try replay.apply(transaction) }
        try stamp()
        try seal()
        unfinished = Array(Set(intents.values.joined())).sorted()
    }

    private mutating func pass(
        _ committed: (inout Self, XFSLogTransaction) throws(TocError) -> Void
    ) throws(TocError) {
        var transactions = XFSLogTransactions()
        var left = ring.distance(from: tail.position, to: head)
        guard left * XFSLogRing.sector <= XFSLimits.logBytes else {
            throw TocError(.damaged, "more of it is in use than is taken here")
        }
        var position = tail.position
        var cycle = tail.cycle
        while left > 0 {
            advance()
            let record = try ring.record(at: position)
            guard record.sectors <= left, record.cycle == cycle else {
                throw TocError(.damaged, "its records are not in order")
            }
            newest = max(newest, record.sequence)
            try transactions.add(record, try ring.data(record)) { (transaction) throws(TocError) in
                try committed(&self, transaction)
            }
            left -= record.sectors
            let next = ring.advance(position, by: record.sectors)
            if next <= position { cycle &+= 1 }
            position = next
        }
    }

    // MARK: What was cancelled

    private mutating func note(_ transaction: XFSLogTransaction) throws(TocError) {
        items += transaction.items.count
        guard items <= XFSLimits.logItems else {
            throw TocError(.damaged, "it has more items than are taken here")
        }
        try transaction.forEachItem { (item) throws(TocError) in
            guard try item.known() == .buffer else { return }
            let buffer = try XFSLogBuffer(item)
            guard buffer.isCancelled else { return }
            cancelled[buffer.place, default: 0] += 1
            cancelledSectors[buffer.place.sector, default: 0] += 1
        }
    }

    private mutating func touch(_ bytes: UInt64) throws(TocError) {
        touched += bytes
        guard touched <= XFSLimits.replayedBytes else {
            throw TocError(.damaged, "it changes more, or more often, than is taken here")
        }
    }

    /// A cancellation counts for what was logged before it.
    private mutating func pass(_ cancellation: XFSLogBufferPlace) {
        func less(_ count: Int?) -> Int? { count.flatMap { $0 > 1 ? $0 - 1 : nil } }
        cancelled[cancellation] = less(cancelled[cancellation])
        cancelledSectors[cancellation.sector] = less(cancelledSectors[cancellation.sector])
    }

    // MARK: What is applied

    /// Buffers and new inodes first, because inodes are changed in them; cancellations last.
    private mutating func apply(_ transaction: XFSLogTransaction) throws(TocError) {
        if transaction.sequence != sequence {
            try stamp()
            sequence = transaction.sequence
        }
        try transaction.forEachItem { (item) throws(TocError) in
            switch try item.known() {
            case .buffer:
                let buffer = try XFSLogBuffer(item)
                if !buffer.isCancelled { try apply(buffer) }
            case .inodeCreation: try apply(try XFSLogInodeCreation(item, geometry))
            default: break
            }
        }
        try transaction.forEachItem { (item) throws(TocError) in
            switch try item.known() {
            case .inode: try apply(try XFSLogInode(item, coreBytes: XFSLogCore.bytes(geometry)))
            case .buffer, .inodeCreation: break
            case let kind: try note(kind, item)
            }
        }
        try transaction.forEachItem { (item) throws(TocError) in
            guard try item.known() == .buffer else { return }
            let buffer = try XFSLogBuffer(item)
            if buffer.isCancelled { pass(buffer.place) }
        }
    }

    private mutating func apply(_ buffer: XFSLogBuffer) throws(TocError) {
        // Of inodes' buffers only the lists of unlinked inodes are replayed, and quotas hold no files.
        guard buffer.flags & (XFSLogBuffer.Flags.inodes | XFSLogBuffer.Flags.quotas) == 0,
            cancelled[buffer.place] == nil
        else { return }
        try buffer.place.check(disk)
        try touch(UInt64(buffer.place.count))
        let memory = UnsafeMutableRawBufferPointer(rebasing: scratch.memory[..<buffer.place.count])
        try patches.read(buffer.place.offset, memory)
        if try isCurrent(XFSView(UnsafeRawBufferPointer(memory))) { return }
        try buffer.forEachChange { offset, bytes in
            UnsafeMutableRawBufferPointer(rebasing: memory[offset..<offset + bytes.count])
                .copyMemory(from: bytes.view.bytes)
        }
        try patches.write(UnsafeRawBufferPointer(memory), at: buffer.place.offset)
        unstamped[buffer.place.offset] = buffer.place.count
        changed[buffer.place.offset] = buffer.place.count
    }

    /// Whether a buffer has the transaction's changes already. Earlier than version 5 nothing tells.
    private func isCurrent(_ view: XFSView) throws(TocError) -> Bool {
        guard let stamp = stamp(of: view) else { return false }
        return try isNewer(view.u64(stamp.sequenceAt), orEqual: true)
    }

    /// Nil for what is no structure of this file system, whatever it looks like.
    private func stamp(of view: XFSView) -> XFSStamp? {
        guard geometry.isVersion5, let stamp = XFSStamp(view, geometry),
            view.equals(geometry.metaUUID, at: stamp.uuidAt)
        else { return nil }
        return stamp
    }

    private func isNewer(_ found: UInt64, orEqual: Bool) throws(TocError) -> Bool {
        guard found != 0, found != .max else { return false }
        guard found <= newest else {
            throw TocError(.damaged, "what is on disk is newer than the log's end")
        }
        return found > sequence || orEqual && found == sequence
    }

    /// Buffers are written: they say now how old they are.
    private mutating func stamp() throws(TocError) {
        defer { unstamped = [:] }
        guard geometry.isVersion5 else { return }
        for (offset, count) in unstamped {
            let memory = UnsafeMutableRawBufferPointer(rebasing: scratch.memory[..<count])
            try patches.read(offset, memory)
            guard let stamp = stamp(of: XFSView(UnsafeRawBufferPointer(memory))) else { continue }
            memory.storeBytes(of: sequence.bigEndian, toByteOffset: stamp.sequenceAt, as: UInt64.self)
            let place = stamp.sequenceAt
            try patches.write(
                UnsafeRawBufferPointer(rebasing: memory[place..<place + 8]), at: offset + UInt64(place))
        }
    }

    /// Checksums of all that was changed.
    private mutating func seal() throws(TocError) {
        guard geometry.isVersion5 else { return }
        for (offset, count) in changed {
            let memory = UnsafeMutableRawBufferPointer(rebasing: scratch.memory[..<count])
            try patches.read(offset, memory)
            let view = XFSView(UnsafeRawBufferPointer(memory))
            let stamp = stamp(of: view)
            if count < geometry.directoryBlockSize, stamp?.isOfDirectory ?? true {
                unsealed.insert(offset)
                continue
            }
            guard let stamp else { continue }
            let place = stamp.checksumAt
            memory.storeBytes(
                of: view.checksum(at: place).littleEndian, toByteOffset: place, as: UInt32.self)
            try patches.write(
                UnsafeRawBufferPointer(rebasing: memory[place..<place + 4]), at: offset + UInt64(place))
        }
    }

    private mutating func apply(_ creation: XFSLogInodeCreation) throws(TocError) {
        let offset = geometry.groupOffset(creation.group) + creation.block << geometry.blockLog
        for sector in 0..<creation.blocks << (geometry.blockLog - 9)
        where cancelledSectors[offset >> 9 + sector] != nil { return }
        try touch(creation.inodes << geometry.inodeLog)
        let first = creation.block << geometry.inodesPerBlockLog
        for index in 0..<creation.inodes {
            let number = geometry.inodeNumber(group: creation.group, first + index)
            let memory = UnsafeMutableRawBufferPointer(rebasing: scratch.memory[..<geometry.inodeSize])
            XFSLogCore.makeFree(memory, number: number, generation: creation.generation, geometry)
            try patches.write(UnsafeRawBufferPointer(memory), at: offset + index << geometry.inodeLog)
        }
    }

    private mutating func apply(_ inode: XFSLogInode) throws(TocError) {
        guard cancelled[inode.place] == nil else { return }
        try inode.place.check(disk)
        guard inode.fields & XFSLogInode.Fields.owners == 0 else {
            throw TocError(.damaged, "it exchanges forks of inodes, which is not replayed here")
        }
        let size = UInt64(geometry.inodeSize)
        guard inode.offset % size == 0, inode.offset + size <= UInt64(inode.place.count) else {
            throw TocError(.damaged, "it has an inode that lies nowhere")
        }
        try touch(size)
        let offset = inode.place.offset + inode.offset
        let memory = UnsafeMutableRawBufferPointer(rebasing: scratch.memory[..<geometry.inodeSize])
        try patches.read(offset, memory)
        let view = XFSView(UnsafeRawBufferPointer(memory))
        guard view.u16(0) == XFSLogCore.magic, inode.core.u16(0) == XFSLogCore.magic else {
            throw TocError(.damaged, "there is no inode where it changes one")
        }
        if geometry.isVersion5 {
            if view.u8(4) >= 3, try isNewer(view.u64(112), orEqual: false) { return }
        } else if XFSLogCore.isOlder(inode.core, than: view) {
            return
        }
        try XFSLogCore.replay(inode, into: memory, sequence: sequence, geometry)
        try patches.write(UnsafeRawBufferPointer(memory), at: offset)
    }

    // MARK: Intents

    /// Freeing blocks, and counting who owns them, changes no file, and what is to be freed counts as used until it is.
    private mutating func note(_ kind: XFSLogItemKind, _ item: XFSLogItem) throws(TocError) {
        switch kind {
        case .mapIntent:
            let format = try item.region(0, atLeast: 24)
            try begin(kind, item, [format.u64(16)])
        case .attributeIntent:
            let format = try item.region(0, atLeast: 24)
            try begin(kind, item, [format.u64(16)])
        case .exchangeIntent:
            let format = try item.region(0, atLeast: 32)
            try begin(kind, item, [format.u64(16), format.u64(24)])
        case .mapDone: try end(.mapIntent, item)
        case .attributeDone: try end(.attributeIntent, item)
        case .exchangeDone: try end(.exchangeIntent, item)
        default: break
        }
    }

    private mutating func begin(
        _ kind: XFSLogItemKind, _ item: XFSLogItem, _ inodes: [UInt64]
    ) throws(TocError) {
        guard intents.count < XFSLimits.intents else {
            throw TocError(.damaged, "it has more unfinished changes than are taken here")
        }
        intents[Intent(kind: kind, identifier: item.format.u64(8))] = inodes
    }

    private mutating func end(_ kind: XFSLogItemKind, _ item: XFSLogItem) throws(TocError) {
        intents[Intent(kind: kind, identifier: try item.region(0, atLeast: 16).u64(8))] = nil
    }
}
