import Blocks

/// A volume under readers of file systems: read-only, in large aligned blocks that are kept.
///
/// File systems are read in small pieces, a superblock here, an inode there, while each read of a volume that comes
/// over NBD costs a round trip. A miss reads a whole block, and several when blocks are asked for one behind the
/// other; the least recently used ones go first. Memory is bounded by ``TocLimits/cacheBytes``.
///
/// May be called from many threads at once. One lock is held while the store is read, too: readers of a file system
/// are one thread each, and what one waits for the others would mostly wait for as well.
///
/// What the store said once stands: the cache is for volumes that do not change (a snapshot, a copy).
final class ReadCache: ReadOnlyStore {
    static let blockBytes: UInt64 = 256 << 10
    /// Blocks that one read of the store may fetch.
    static let mostBlocksAtOnce = 4

    /// Blocks of a part, of a volume that is not huge.
    private static let partBlocks: UInt64 = 16
    private static let mostParts: UInt64 = 1 << 24

    private struct Slot {
        let bytes: UnsafeMutableRawPointer
        var block: UInt64
        var lastUse: UInt64
    }

    private struct State: ~Copyable {
        var slots: [Slot] = []
        /// Block number to index in `slots`.
        var places: [UInt64: Int] = [:]
        var uses: UInt64 = 0
        /// The block that comes behind the last one fetched, and how many were fetched then.
        var expected: UInt64 = .max
        var streak = 1
        let window = UnsafeMutableRawPointer.allocate(
            byteCount: Int(ReadCache.blockBytes) * ReadCache.mostBlocksAtOnce, alignment: 4096)

        deinit {
            window.deallocate()
            for slot in slots { slot.bytes.deallocate() }
        }
    }

    private final class Box {
        var state = State()
    }

    private let store: any BlockStore
    private let box: Monitor<Box>
    private let slotCount: Int
    /// Parts of the volume that were read, and blocks of one.
    private let parts: ChunkBitmap
    private let partBlocks: UInt64
    private let advance: @Sendable () -> Void

    /// - Parameters:
    ///   - slots: blocks that are kept.
    ///   - advance: called when a part of the volume is read for the first time: a reader that goes round in circles
    ///     does not come to one.
    init(
        _ store: any BlockStore, slots: Int = Int(TocLimits.cacheBytes / blockBytes),
        advance: @escaping @Sendable () -> Void = {}
    ) {
        precondition(slots >= Self.mostBlocksAtOnce)
        self.store = store
        slotCount = slots
        self.advance = advance
        let blocks = store.size / Self.blockBytes + 1
        partBlocks = max(Self.partBlocks, blocks / Self.mostParts + 1)
        parts = ChunkBitmap(count: blocks / partBlocks + 1)
        box = Monitor(Box())
    }

    var size: UInt64 { store.size }
    var capabilities: StoreCapabilities { store.capabilities.intersection(.knowsAllocation) }
    var isPrompt: Bool { store.isPrompt }

    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
        requireWithin(ByteRange(offset: offset, count: UInt64(buffer.count)))
        // What is larger than a window is content rather than metadata: it would only push that out.
        if buffer.count > Int(Self.blockBytes) * Self.mostBlocksAtOnce {
            return try store.read(at: offset, into: buffer)
        }
        try box.withLock { box throws(StoreError) in
            var done = 0
            while done < buffer.count {
                let position = offset + UInt64(done)
                let block = position / Self.blockBytes
                let skip = Int(position % Self.blockBytes)
                let count = min(buffer.count - done, Int(Self.blockBytes) - skip)
                let target = UnsafeMutableRawBufferPointer(rebasing: buffer[done..<done + count])
                if let slot = try self.slot(of: block, &box.state) {
                    target.copyMemory(
                        from: UnsafeRawBufferPointer(start: box.state.slots[slot].bytes + skip, count: count))
                } else {
                    try store.read(at: position, into: target)
                }
                done += count
            }
        }
    }

    /// Where `block` is kept; nil: around it something cannot be read, so that only what is asked for may be.
    private func slot(of block: UInt64, _ state: inout State) throws(StoreError) -> Int? {
        state.uses += 1
        if let slot = state.places[block] {
            state.slots[slot].lastUse = state.uses
            return slot
        }
        if parts.insert(block / partBlocks) { advance() }
        state.streak = block == state.expected ? min(state.streak * 2, Self.mostBlocksAtOnce) : 1
        var blocks = 1
        let end = (size + Self.blockBytes - 1) / Self.blockBytes
        while blocks < state.streak, block + UInt64(blocks) < end,
            state.places[block + UInt64(blocks)] == nil
        { blocks += 1 }

        let start = block * Self.blockBytes
        let count = Int(min(UInt64(blocks) * Self.blockBytes, size - start))
        do throws(StoreError) {
            try store.read(
                at: start, into: UnsafeMutableRawBufferPointer(start: state.window, count: count))
        } catch {
            if error.code == .io || error.code == .corrupt { return nil }
            throw error
        }
        state.expected = block + UInt64(blocks)
        // Backwards, so that the block asked for is the one used last.
        for index in stride(from: blocks - 1, through: 0, by: -1) {
            let piece = min(count - index * Int(Self.blockBytes), Int(Self.blockBytes))
            keep(
                block + UInt64(index),
                UnsafeRawBufferPointer(
                    start: state.window + index * Int(Self.blockBytes), count: piece), &state)
        }
        return state.places[block]
    }

    private func keep(_ block: UInt64, _ bytes: UnsafeRawBufferPointer, _ state: inout State) {
        let slot: Int
        if state.slots.count < slotCount {
            slot = state.slots.count
            state.slots.append(
                Slot(
                    bytes: .allocate(byteCount: Int(Self.blockBytes), alignment: 4096), block: block,
                    lastUse: 0))
        } else {
            slot = state.slots.indices.min { state.slots[$0].lastUse < state.slots[$1].lastUse }!
            state.places[state.slots[slot].block] = nil
        }
        state.uses += 1
        state.slots[slot].block = block
        state.slots[slot].lastUse = state.uses
        state.slots[slot].bytes.copyMemory(from: bytes.baseAddress!, byteCount: bytes.count)
        state.places[block] = slot
    }

    func allocation(of range: ByteRange, limit: Int) throws(StoreError) -> [AllocationExtent] {
        try store.allocation(of: range, limit: limit)
    }
}
