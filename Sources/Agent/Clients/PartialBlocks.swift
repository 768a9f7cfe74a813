import Blocks

/// Access at any byte to what can be read and written in whole blocks only: the edges of a write are read,
/// changed and written back.
struct PartialBlocks: Sendable {
    /// Bytes, a power of two.
    let blockLength: UInt64
    // Two writes into parts of one block must not undo each other. A write of a whole block that overlaps with
    // one of them needs no lock: their order is nobody's promise.
    private let edges = Monitor(false)

    init(blockLength: UInt64) {
        precondition(blockLength > 0 && blockLength & (blockLength - 1) == 0)
        self.blockLength = blockLength
    }

    private typealias Piece = (blocks: ByteRange, inner: Range<Int>)

    /// The parts of `range`: what begins or ends within a block, each as that one block and the bytes of it; and
    /// the whole blocks between.
    private func parts(of range: ByteRange) -> (edges: [Piece], whole: ByteRange?) {
        let first = range.offset.roundedUp(to: blockLength)
        let last = range.end.roundedDown(to: blockLength)
        var edges: [Piece] = []
        func edge(_ start: UInt64, _ end: UInt64) {
            let block = start.roundedDown(to: blockLength)
            edges.append(
                (ByteRange(offset: block, count: blockLength), Int(start - block)..<Int(end - block)))
        }
        if first > range.offset { edge(range.offset, min(first, range.end)) }
        if last < range.end, last >= first { edge(last, range.end) }
        return (edges, first < last ? ByteRange(offset: first, count: last - first) : nil)
    }

    func read(
        at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer,
        whole: (UInt64, UnsafeMutableRawBufferPointer) throws(StoreError) -> Void
    ) throws(StoreError) {
        let (edges, middle) = parts(of: ByteRange(offset: offset, count: UInt64(buffer.count)))
        if let middle {
            let start = Int(middle.offset - offset)
            try whole(
                middle.offset,
                UnsafeMutableRawBufferPointer(rebasing: buffer[start..<start + Int(middle.count)]))
        }
        for (block, inner) in edges {
            let scratch = UnsafeMutableRawBufferPointer.allocate(
                byteCount: Int(blockLength), alignment: 4096)
            defer { scratch.deallocate() }
            try whole(block.offset, scratch)
            let start = Int(block.offset + UInt64(inner.lowerBound) - offset)
            UnsafeMutableRawBufferPointer(rebasing: buffer[start..<start + inner.count])
                .copyMemory(from: UnsafeRawBufferPointer(rebasing: scratch[inner]))
        }
    }

    /// Writes a buffer.
    /// - Parameter whole: writes whole blocks.
    func write(
        _ buffer: UnsafeRawBufferPointer, at offset: UInt64,
        read: (UInt64, UnsafeMutableRawBufferPointer) throws(StoreError) -> Void,
        whole: (UInt64, UnsafeRawBufferPointer) throws(StoreError) -> Void
    ) throws(StoreError) {
        func bytes(_ position: UInt64, _ count: Int) -> UnsafeRawBufferPointer {
            let start = Int(position - offset)
            return UnsafeRawBufferPointer(rebasing: buffer[start..<start + count])
        }
        try change(
            ByteRange(offset: offset, count: UInt64(buffer.count)),
            edge: { position, target in target.copyMemory(from: bytes(position, target.count)) },
            middle: { range throws(StoreError) in
                try whole(range.offset, bytes(range.offset, Int(range.count)))
            },
            read: read, write: whole)
    }

    /// Writes zeros.
    /// - Parameters:
    ///   - whole: zeroes a range of whole blocks.
    ///   - write: writes whole blocks.
    func writeZeroes(
        _ range: ByteRange,
        whole: (ByteRange) throws(StoreError) -> Void,
        read: (UInt64, UnsafeMutableRawBufferPointer) throws(StoreError) -> Void,
        write: (UInt64, UnsafeRawBufferPointer) throws(StoreError) -> Void
    ) throws(StoreError) {
        try change(
            range, edge: { _, target in target.initializeMemory(as: UInt8.self, repeating: 0) },
            middle: whole, read: read, write: write)
    }

    /// - Parameters:
    ///   - edge: puts the new bytes at a byte offset into a buffer.
    ///   - middle: writes the range of whole blocks.
    private func change(
        _ range: ByteRange,
        edge: (UInt64, UnsafeMutableRawBufferPointer) -> Void,
        middle: (ByteRange) throws(StoreError) -> Void,
        read: (UInt64, UnsafeMutableRawBufferPointer) throws(StoreError) -> Void,
        write: (UInt64, UnsafeRawBufferPointer) throws(StoreError) -> Void
    ) throws(StoreError) {
        let (pieces, whole) = parts(of: range)
        if let whole { try middle(whole) }
        guard !pieces.isEmpty else { return }
        edges.wait { isBusy -> Void? in
            guard !isBusy else { return nil }
            isBusy = true
            return ()
        }
        defer { edges.withLockAndNotify { $0 = false } }
        for (block, inner) in pieces {
            let scratch = UnsafeMutableRawBufferPointer.allocate(
                byteCount: Int(blockLength), alignment: 4096)
            defer { scratch.deallocate() }
            try read(block.offset, scratch)
            edge(
                block.offset + UInt64(inner.lowerBound),
                UnsafeMutableRawBufferPointer(rebasing: scratch[inner]))
            try write(block.offset, UnsafeRawBufferPointer(scratch))
        }
    }
}
