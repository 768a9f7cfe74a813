import Synchronization

/// One bit for each chunk of a volume, set and asked by many threads at once without a lock.
/// The memory is zeroed by the system as it is touched, so that making one costs nothing, however large.
public final class ChunkBitmap: Sendable {
    private static let bitsPerWord = UInt64(64)

    /// Number of chunks.
    public let count: UInt64
    private let storage: ZeroedMemory
    private let populationCount = Atomic<UInt64>(0)

    public init(count: UInt64) {
        self.count = count
        storage = ZeroedMemory(count: max(8, Int(count.roundedUp(to: 64) / 8)))
    }

    /// Bits that are set.
    public var population: UInt64 { populationCount.load(ordering: .relaxed) }

    public func contains(_ chunk: UInt64) -> Bool {
        let (word, mask) = place(chunk)
        return storage.word(word) { $0.load(ordering: .acquiring) } & mask != 0
    }

    /// Sets the bit; what was written before is seen by whoever then finds it set.
    /// - Returns: whether it was clear before: of several callers exactly one hears true.
    @discardableResult
    public func insert(_ chunk: UInt64) -> Bool {
        let (word, mask) = place(chunk)
        let before = storage.word(word) { $0.bitwiseOr(mask, ordering: .acquiringAndReleasing).oldValue }
        guard before & mask == 0 else { return false }
        populationCount.wrappingAdd(1, ordering: .relaxed)
        return true
    }

    /// Clears the bit.
    public func remove(_ chunk: UInt64) {
        let (word, mask) = place(chunk)
        let before = storage.word(word) { $0.bitwiseAnd(~mask, ordering: .acquiringAndReleasing).oldValue }
        if before & mask != 0 { populationCount.wrappingSubtract(1, ordering: .relaxed) }
    }

    private func place(_ chunk: UInt64) -> (word: Int, mask: UInt64) {
        precondition(chunk < count, "a chunk beyond the volume")
        return (Int(chunk / Self.bitsPerWord), 1 << (chunk % Self.bitsPerWord))
    }
}
