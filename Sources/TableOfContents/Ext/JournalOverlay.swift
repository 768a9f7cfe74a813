import Blocks

/// A volume as it will be when an ext file system's journal has been replayed; nothing is written.
///
/// A block that is to be replayed is read from where the journal has it. Memory: 16 bytes for each such block.
final class JournalOverlay: ReadOnlyStore {
    private let store: any BlockStore
    /// Of the file system on the volume.
    private let base: UInt64
    private let blockSize: UInt64
    /// By target, without doubles.
    private let blocks: [JournalledBlock]
    /// Where on the volume the journal's magic number stands.
    private let magicOffset: UInt64

    static let magic: [UInt8] = [0xC0, 0x3B, 0x39, 0x98]

    /// - Parameters:
    ///   - blocks: by target, without doubles; those whose sources or targets are not on the volume trap.
    ///   - magicOffset: of the journal's superblock.
    init(
        _ store: any BlockStore, base: UInt64, blockSize: Int, blocks: [JournalledBlock], magicOffset: UInt64
    ) {
        self.store = store
        self.base = base
        self.blockSize = UInt64(blockSize)
        self.blocks = blocks
        self.magicOffset = magicOffset
    }

    var size: UInt64 { store.size }
    var capabilities: StoreCapabilities { [] }
    var isPrompt: Bool { store.isPrompt }
    /// How many blocks are taken from the journal.
    var blockCount: Int { blocks.count }

    private func firstIndex(from target: UInt64) -> Int {
        var low = 0
        var high = blocks.count
        while low < high {
            let middle = (low + high) / 2
            if blocks[middle].target < target { low = middle + 1 } else { high = middle }
        }
        return low
    }

    private func offset(ofBlock block: UInt64) -> UInt64 { base + block * blockSize }

    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
        let range = ByteRange(offset: offset, count: UInt64(buffer.count))
        requireWithin(range)
        try store.read(at: offset, into: buffer)
        guard range.end > base else { return }
        var index = firstIndex(from: (max(offset, base) - base) / blockSize)
        while index < blocks.count {
            let block = blocks[index]
            index += 1
            let start = self.offset(ofBlock: block.target)
            guard start < range.end else { return }
            // The first block may have begun before the range.
            let from = max(start, range.offset)
            let count = min(start + blockSize, range.end) - from
            let part = UnsafeMutableRawBufferPointer(
                rebasing: buffer[Int(from - range.offset)..<Int(from - range.offset + count)])
            try store.read(at: self.offset(ofBlock: block.source) + (from - start), into: part)
            if block.isEscaped, from - start < 4 {
                for (index, byte) in Self.magic[Int(from - start)...].enumerated() where index < part.count {
                    part[index] = byte
                }
            }
        }
    }

    /// Where the bytes of an extent lie on the volume as it is: those of blocks that only the journal has up to date
    /// (journalled data) in the journal. For a block whose first bytes were escaped, these come from the journal's
    /// superblock, which begins with the same ones.
    func placed(_ extent: FileExtent) -> [FileExtent] {
        let end = extent.volumeOffset + extent.count
        guard extent.volumeOffset >= base else { return [extent] }
        var index = firstIndex(from: (extent.volumeOffset - base) / blockSize)
        var position = extent.volumeOffset
        var result: [FileExtent] = []
        func add(_ volumeOffset: UInt64, upTo stop: UInt64) {
            guard position < stop else { return }
            result.append(
                FileExtent(
                    fileOffset: extent.fileOffset + (position - extent.volumeOffset),
                    volumeOffset: volumeOffset, count: stop - position))
            position = stop
        }
        while index < blocks.count {
            let block = blocks[index]
            let start = offset(ofBlock: block.target)
            guard start < end else { break }
            add(position, upTo: start)
            let source = offset(ofBlock: block.source)
            let stop = min(start + blockSize, end)
            if block.isEscaped, position - start < 4 {
                add(magicOffset + (position - start), upTo: min(start + 4, stop))
            }
            add(source + (position - start), upTo: stop)
            index += 1
        }
        add(position, upTo: end)
        return result
    }
}
