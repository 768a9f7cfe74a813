import Blocks

/// A store whose size was rounded up to whole blocks. What lies beyond the base's end, less than one block,
/// reads as zeros and takes nothing but zeros: other bytes have no place to go, and losing them
/// silently would be the worst of answers, so they are refused with ``StoreError/Code/noSpace``.
final class PaddedStore: BlockStore {
    private let base: any BlockStore
    let size: UInt64

    init(_ base: any BlockStore, size: UInt64) {
        precondition(size >= base.size)
        self.base = base
        self.size = size
    }

    var capabilities: StoreCapabilities { base.capabilities }
    var isPrompt: Bool { base.isPrompt }

    /// How many of `count` bytes from `offset` the base has.
    private func inside(_ offset: UInt64, _ count: Int) -> Int {
        offset >= base.size ? 0 : Int(min(UInt64(count), base.size - offset))
    }

    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
        requireWithin(ByteRange(offset: offset, count: UInt64(buffer.count)))
        let count = inside(offset, buffer.count)
        if count > 0 {
            try base.read(at: offset, into: UnsafeMutableRawBufferPointer(rebasing: buffer[..<count]))
        }
        if count < buffer.count {
            UnsafeMutableRawBufferPointer(rebasing: buffer[count...]).initializeMemory(
                as: UInt8.self, repeating: 0)
        }
    }

    func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64, durable: Bool) throws(StoreError) {
        requireWithin(ByteRange(offset: offset, count: UInt64(buffer.count)))
        guard capabilities.contains(.writable) else { throw StoreError(.readOnly) }
        let count = inside(offset, buffer.count)
        let padding = UnsafeRawBufferPointer(rebasing: buffer[count...])
        guard padding.isAllZeros else { throw StoreError(.noSpace) }
        if count > 0 {
            try base.write(
                UnsafeRawBufferPointer(rebasing: buffer[..<count]), at: offset, durable: durable)
        } else if durable {
            try base.flush()
        }
    }

    private func cut(_ range: ByteRange) -> ByteRange? {
        requireWithin(range)
        return range.intersection(ByteRange(offset: 0, count: base.size))
    }

    func writeZeroes(_ range: ByteRange, options: ZeroOptions) throws(StoreError) {
        if let part = cut(range) { try base.writeZeroes(part, options: options) }
    }

    func trim(_ range: ByteRange, durable: Bool) throws(StoreError) {
        if let part = cut(range) { try base.trim(part, durable: durable) }
    }

    func flush() throws(StoreError) { try base.flush() }

    func prefetch(_ range: ByteRange) throws(StoreError) {
        if let part = cut(range) { try base.prefetch(part) }
    }

    /// What lies beyond the base's end is never stored: a hole.
    func allocation(of range: ByteRange, limit: Int) throws(StoreError) -> [AllocationExtent] {
        guard let part = cut(range) else {
            return [AllocationExtent(count: range.count, isHole: true, readsAsZeros: true)]
        }
        var extents = try base.allocation(of: part, limit: limit)
        let told = extents.reduce(0) { $0 + $1.count }
        if told == part.count, part.count < range.count, extents.count < limit {
            extents.append(
                AllocationExtent(count: range.count - part.count, isHole: true, readsAsZeros: true))
        }
        return extents
    }
}
