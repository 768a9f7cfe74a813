import Blocks
import Host

/// Ways for the product to be wrong, one at a time, to prove that a simulation finds them. Most are made at the seams, where a
/// product that has the defect cannot be told from one that is treated so.
enum SeededDefect: String, CaseIterable {
    /// The source is overwritten before the original is in the log.
    case preservesAfterWriting
    /// A chunk is taken for preserved that is not.
    case forgetsOneBit
    /// An epoch opens while writes are in flight.
    case skipsDrain
    /// Durability `power` without its flush.
    case logWithoutFlush

    var host: Defects {
        switch self {
        case .preservesAfterWriting: .preservesAfterWriting
        case .forgetsOneBit: .forgetsOneBit
        case .skipsDrain: .skipsDrain
        default: []
        }
    }

    func wrap(_ store: any BlockStore, _ role: SimulatedDisk.Role) -> any BlockStore {
        switch self {
        case .logWithoutFlush where role == .cache: UnflushedStore(store)
        default: store
        }
    }
}

/// Says that it has flushed.
private final class UnflushedStore: BlockStore {
    private let below: any BlockStore
    init(_ below: any BlockStore) { self.below = below }

    var size: UInt64 { below.size }
    var capabilities: StoreCapabilities { below.capabilities }
    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
        try below.read(at: offset, into: buffer)
    }
    func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64, durable: Bool) throws(StoreError) {
        // The superblocks are flushed nevertheless: it is the batches' flush that is forgotten.
        try below.write(buffer, at: offset, durable: durable && offset < 8192)
    }
    func write(
        gathering buffers: UnsafeBufferPointer<UnsafeRawBufferPointer>, at offset: UInt64, durable: Bool
    ) throws(StoreError) {
        try below.write(gathering: buffers, at: offset, durable: durable && offset < 8192)
    }
    func writeZeroes(_ range: ByteRange, options: ZeroOptions) throws(StoreError) {
        try below.writeZeroes(range, options: options)
    }
    func flush() throws(StoreError) { try below.flush() }
}
