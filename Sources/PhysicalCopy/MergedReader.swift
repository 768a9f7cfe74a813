import Blocks
import Glibc
import OriginalImage

/// The volume as of the instant, from an append copy: where there is an original image, it wins; all else comes
/// from the raw data. Read-only. Every original that is read is checked against its CRC.
public final class MergedReader: BlockStore {
    private let data: any BlockStore
    private let reader: LogReader
    private let index: LogIndex
    /// The chunks that have an original, sorted.
    private let chunks: [UInt64]

    public var size: UInt64 { reader.geometry.volumeSize }
    public let capabilities: StoreCapabilities

    /// - Parameters:
    ///   - data: the raw data from offset 0; at least the volume's size.
    ///   - index: of `reader`.
    public init(data: any BlockStore, reader: LogReader, index: LogIndex) {
        precondition(data.size >= reader.geometry.volumeSize)
        self.data = data
        self.reader = reader
        self.index = index
        capabilities = data.capabilities.intersection(.knowsAllocation)
        chunks = capabilities.isEmpty ? [] : index.entries.map(\.chunk).sorted()
    }

    /// An original is a hole where it is all zeros, and data otherwise; all else is as in the raw data.
    public func allocation(of range: ByteRange, limit: Int) throws(StoreError) -> [AllocationExtent] {
        requireWithin(range)
        precondition(limit > 0 && !range.isEmpty)
        guard capabilities.contains(.knowsAllocation) else {
            return [AllocationExtent(count: range.count, isHole: false, readsAsZeros: false)]
        }
        var extents: [AllocationExtent] = []
        var position = range.offset
        func append(_ end: UInt64, isHole: Bool, readsAsZeros: Bool) {
            let count = end - position
            position = end
            if let last = extents.last, last.isHole == isHole, last.readsAsZeros == readsAsZeros {
                extents[extents.count - 1].count += count
            } else {
                extents.append(
                    AllocationExtent(count: count, isHole: isHole, readsAsZeros: readsAsZeros))
            }
        }
        var next = firstChunk(from: position)
        while position < range.end, extents.count < limit {
            let chunk = next < chunks.count ? chunks[next] : nil
            let own = chunk.map { reader.geometry.range(of: $0) }
            if let chunk, let own, own.offset <= position {
                let isZero = index[chunk]?.isZero ?? false
                append(min(own.end, range.end), isHole: isZero, readsAsZeros: isZero)
                next += 1
                continue
            }
            let end = min(own?.offset ?? range.end, range.end)
            let raw = ByteRange(offset: position, count: end - position)
            for extent in try data.allocation(of: raw, limit: limit) where extents.count < limit {
                append(
                    position + extent.count, isHole: extent.isHole, readsAsZeros: extent.readsAsZeros)
            }
        }
        return extents
    }

    /// The place in ``chunks`` of the first that does not end before `offset`.
    private func firstChunk(from offset: UInt64) -> Int {
        let chunk = reader.geometry.chunk(at: offset)
        var (low, high) = (0, chunks.count)
        while low < high {
            let middle = (low + high) / 2
            if chunks[middle] < chunk { low = middle + 1 } else { high = middle }
        }
        return low
    }

    public func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
        let range = ByteRange(offset: offset, count: UInt64(buffer.count))
        requireWithin(range)
        guard !range.isEmpty else { return }
        var raw: ByteRange?  // raw bytes that lie one behind the other are read at once
        for chunk in reader.geometry.chunks(touching: range) {
            guard let part = reader.geometry.range(of: chunk).intersection(range) else { continue }
            guard let entry = index[chunk] else {
                let start = raw?.offset ?? part.offset
                raw = ByteRange(offset: start, count: part.end - start)
                continue
            }
            if let known = raw { try readRaw(known, of: range, into: buffer) }
            raw = nil
            try readOriginal(entry, part, into: Self.part(part, of: range, buffer))
        }
        if let raw { try readRaw(raw, of: range, into: buffer) }
    }

    private static func part(
        _ part: ByteRange, of range: ByteRange, _ buffer: UnsafeMutableRawBufferPointer
    ) -> UnsafeMutableRawBufferPointer {
        let start = Int(part.offset - range.offset)
        return UnsafeMutableRawBufferPointer(rebasing: buffer[start..<start + Int(part.count)])
    }

    private func readRaw(
        _ raw: ByteRange, of range: ByteRange, into buffer: UnsafeMutableRawBufferPointer
    ) throws(StoreError) {
        try data.read(at: raw.offset, into: Self.part(raw, of: range, buffer))
    }

    private func readOriginal(
        _ entry: LogEntry, _ part: ByteRange, into target: UnsafeMutableRawBufferPointer
    ) throws(StoreError) {
        let chunk = reader.geometry.range(of: entry.chunk)
        do throws(LogError) {
            if part == chunk || entry.isZero {
                if entry.isZero {
                    target.initializeMemory(as: UInt8.self, repeating: 0)
                } else {
                    try reader.read(entry, into: target)
                }
                return
            }
            // The CRC is the whole chunk's.
            let whole = UnsafeMutableRawBufferPointer.allocate(byteCount: Int(chunk.count), alignment: 4096)
            defer { whole.deallocate() }
            try reader.read(entry, into: whole)
            let start = Int(part.offset - chunk.offset)
            target.copyMemory(from: UnsafeRawBufferPointer(rebasing: whole[start..<start + target.count]))
        } catch {
            if case .store(let failure) = error { throw failure }
            throw StoreError(.corrupt)
        }
    }

    public func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64, durable: Bool) throws(StoreError) {
        throw StoreError(.readOnly)
    }
    public func writeZeroes(_ range: ByteRange, options: ZeroOptions) throws(StoreError) {
        throw StoreError(.readOnly)
    }
    public func trim(_ range: ByteRange, durable: Bool) throws(StoreError) { throw StoreError(.readOnly) }
    public func flush() throws(StoreError) { throw StoreError(.readOnly) }
}

/// A range of a store as a store of its own, read-only.
public final class PortionView: BlockStore {
    private let base: any BlockStore
    private let range: ByteRange

    public var size: UInt64 { range.count }
    public let capabilities: StoreCapabilities

    /// - Precondition: `range` lies within `base`.
    public init(_ base: any BlockStore, _ range: ByteRange) {
        base.requireWithin(range)
        self.base = base
        self.range = range
        capabilities = base.capabilities.intersection(.knowsAllocation)
    }

    public func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
        requireWithin(ByteRange(offset: offset, count: UInt64(buffer.count)))
        try base.read(at: range.offset + offset, into: buffer)
    }
    public func allocation(of part: ByteRange, limit: Int) throws(StoreError) -> [AllocationExtent] {
        requireWithin(part)
        return try base.allocation(
            of: ByteRange(offset: range.offset + part.offset, count: part.count), limit: limit)
    }
    public func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64, durable: Bool) throws(StoreError) {
        throw StoreError(.readOnly)
    }
    public func writeZeroes(_ range: ByteRange, options: ZeroOptions) throws(StoreError) {
        throw StoreError(.readOnly)
    }
    public func trim(_ range: ByteRange, durable: Bool) throws(StoreError) { throw StoreError(.readOnly) }
    public func flush() throws(StoreError) { throw StoreError(.readOnly) }
}
