import Blocks
import Synchronization

/// A store that counts what is read of it, and is not written.
final class CountingStore: ReadOnlyStore {
    private let base: any BlockStore
    private let bytes = Atomic<UInt64>(0)

    let size: UInt64
    let capabilities: StoreCapabilities

    init(_ base: any BlockStore) {
        self.base = base
        size = base.size
        capabilities = base.capabilities.intersection(.knowsAllocation)
    }

    var count: UInt64 { bytes.load(ordering: .relaxed) }
    func add(_ more: UInt64) { bytes.wrappingAdd(more, ordering: .relaxed) }

    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
        try base.read(at: offset, into: buffer)
        add(UInt64(buffer.count))
    }
    func allocation(of range: ByteRange, limit: Int) throws(StoreError) -> [AllocationExtent] {
        try base.allocation(of: range, limit: limit)
    }
    func prefetch(_ range: ByteRange) throws(StoreError) { try base.prefetch(range) }
    var isPrompt: Bool { base.isPrompt }
}
