import Blocks

/// Which blocks of an ext file system are in use, told a little more rather than a block less.
///
/// See <doc:Ext> for why a copy of these alone is whole.
struct ExtUse {
    private let reader: ExtReader
    private var superblock: ExtSuperblock { reader.superblock }
    /// Blocks in use whatever the bitmaps say, in order, without overlaps.
    private var fixed: [Range<UInt64>] = []
    private var fixedIndex = 0
    private var pending: [ByteRange] = []

    init(_ reader: ExtReader, journal: [ExtRun]) throws(TocError) {
        self.reader = reader
        var all: [Range<UInt64>] = journal.map { $0.physical..<$0.physical + $0.count }
        if superblock.firstDataBlock > 0 { all.append(0..<superblock.firstDataBlock) }
        if superblock.has(incompatible: ExtFeature.Incompatible.multipleMount),
            reader.isValid(superblock.multipleMountBlock)
        {
            all.append(superblock.multipleMountBlock..<superblock.multipleMountBlock + 1)
        }
        for number in 0..<superblock.groupCount {
            let start = superblock.firstBlock(ofGroup: number)
            let count = min(superblock.baseBlocks(ofGroup: number), superblock.blockCount - start)
            if count > 0 { all.append(start..<start + count) }
            let group = try Self.descriptor(ofGroup: number, reader)
            for (block, count) in [
                (group.blockBitmap, 1), (group.inodeBitmap, 1),
                (group.inodeTable, superblock.inodeTableBlocks),
            ] where reader.isValid(block, count: count) {
                all.append(block..<block + count)
            }
            // Tables of neighbours lie side by side: this keeps the list short.
            if all.count > 1 << 20 { all = Self.united(all) }
        }
        fixed = Self.united(all)
    }

    private static func descriptor(
        ofGroup number: UInt64, _ reader: ExtReader
    ) throws(TocError) -> ExtGroup {
        do throws(TocError) {
            return try reader.descriptor(ofGroup: number)
        } catch {
            guard error.isDamage else { throw error }
            // Its table lies beyond the end: nothing in it can be right.
            return ExtGroup(
                [UInt8](repeating: 0xFF, count: reader.superblock.descriptorSize), number, reader.superblock)
        }
    }

    private static func united(_ ranges: [Range<UInt64>]) -> [Range<UInt64>] {
        var result: [Range<UInt64>] = []
        for range in ranges.sorted(by: { $0.lowerBound < $1.lowerBound }) {
            if let last = result.last, range.lowerBound <= last.upperBound {
                result[result.count - 1] = last.lowerBound..<max(last.upperBound, range.upperBound)
            } else {
                result.append(range)
            }
        }
        return result
    }

    /// Hands on all ranges of use, in order.
    mutating func read(into sink: any RecordSink) throws(TocError) {
        if superblock.firstDataBlock > 0 { try add(0..<superblock.firstDataBlock, sink) }
        for number in 0..<superblock.groupCount {
            let start = superblock.firstBlock(ofGroup: number)
            let count = superblock.blockCount(ofGroup: number)
            do throws(TocError) {
                try addBits(of: try bitmap(ofGroup: number), from: start, count, sink)
            } catch {
                guard error.isDamage else { throw error }
                try sink.put(
                    .problem(
                        ReadProblem(
                            reason: "block group \(number) is taken for used: \(error.description)")))
                try add(start..<start + count, sink)
            }
        }
        let end = reader.range.offset + superblock.byteCount
        if end < reader.range.end {
            try add(bytes: ByteRange(offset: end, count: reader.range.end - end), sink)
        }
        if !pending.isEmpty { try sink.put(.used(pending)) }
        pending = []
    }

    /// A bit for each cluster of the group, with all that is always in use.
    private mutating func bitmap(ofGroup number: UInt64) throws(TocError) -> [UInt8] {
        let group = try Self.descriptor(ofGroup: number, reader)
        guard group.isIntact else { throw .damaged("its descriptor does not verify") }
        guard reader.isValid(group.inodeBitmap),
            reader.isValid(group.inodeTable, count: superblock.inodeTableBlocks)
        else { throw .damaged("its inodes are not in the file system") }
        let start = superblock.firstBlock(ofGroup: number)
        let count = superblock.blockCount(ofGroup: number)
        let clusters = (count + superblock.blocksPerCluster - 1) / superblock.blocksPerCluster
        let kept = Int(superblock.blocksPerGroup / superblock.blocksPerCluster / 8)
        var bits: [UInt8]
        if group.isBlockBitmapUninitialized {
            bits = [UInt8](repeating: 0, count: kept)
        } else {
            guard reader.isValid(group.blockBitmap) else {
                throw .damaged("its bitmap is not in the file system")
            }
            bits = Array(
                try reader.bytes(
                    at: group.blockBitmap * UInt64(superblock.blockSize), count: superblock.blockSize)[
                        ..<kept])
            if superblock.hasChecksums {
                let checksum = ExtChecksum.crc32c(superblock.checksumSeed, bits)
                guard checksum & group.bitmapChecksum.mask == group.bitmapChecksum.value else {
                    throw .damaged("its bitmap does not verify")
                }
            }
            guard Self.freeBits(bits, clusters) == group.freeCount else {
                throw .damaged("its bitmap does not have as many free blocks as its descriptor says")
            }
        }
        while fixedIndex < fixed.count, fixed[fixedIndex].upperBound <= start { fixedIndex += 1 }
        var index = fixedIndex
        while index < fixed.count, fixed[index].lowerBound < start + count {
            let range = fixed[index].clamped(to: start..<start + count)
            let first = (range.lowerBound - start) / superblock.blocksPerCluster
            let last = (range.upperBound - 1 - start) / superblock.blocksPerCluster
            for bit in first...last { bits[Int(bit / 8)] |= 1 << UInt8(bit % 8) }
            index += 1
        }
        return bits
    }

    private static func freeBits(_ bits: [UInt8], _ count: UInt64) -> UInt64 {
        let whole = Int(count / 8)
        var free = bits[..<whole].reduce(UInt64(0)) { $0 + UInt64((~$1).nonzeroBitCount) }
        if count % 8 != 0 {
            free += UInt64((~bits[whole] & (1 << UInt8(count % 8) - 1)).nonzeroBitCount)
        }
        return free
    }

    private mutating func addBits(
        of bits: [UInt8], from start: UInt64, _ count: UInt64, _ sink: any RecordSink
    ) throws(TocError) {
        let width = superblock.blocksPerCluster
        let clusters = (count + width - 1) / width
        var first: UInt64?
        var bit: UInt64 = 0
        while bit < clusters {
            let byte = bits[Int(bit / 8)]
            // Whole bytes of one kind are most of a bitmap.
            let step: UInt64
            let isUsed: Bool
            if bit % 8 == 0, byte == 0 || byte == 0xFF, bit + 8 <= clusters {
                (step, isUsed) = (8, byte != 0)
            } else {
                (step, isUsed) = (1, byte >> UInt8(bit % 8) & 1 != 0)
            }
            if isUsed, first == nil { first = bit }
            if !isUsed, let from = first {
                try add(start + from * width..<start + bit * width, sink)
                first = nil
            }
            bit += step
        }
        if let from = first { try add(start + from * width..<start + count, sink) }
    }

    private mutating func add(_ blocks: Range<UInt64>, _ sink: any RecordSink) throws(TocError) {
        let size = UInt64(superblock.blockSize)
        try add(
            bytes: ByteRange(
                offset: reader.range.offset + blocks.lowerBound * size,
                count: (blocks.upperBound - blocks.lowerBound) * size), sink)
    }

    private mutating func add(bytes range: ByteRange, _ sink: any RecordSink) throws(TocError) {
        if let last = pending.last, last.end == range.offset {
            pending[pending.count - 1] = ByteRange(offset: last.offset, count: last.count + range.count)
            return
        }
        if pending.count == TocLimits.extentsPerRecord {
            try sink.put(.used(pending))
            pending.removeAll(keepingCapacity: true)
        }
        pending.append(range)
    }
}
