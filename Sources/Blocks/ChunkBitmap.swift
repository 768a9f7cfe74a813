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

    /// Sets the bits of all these chunks.
    public func insert(_ chunks: Range<UInt64>) {
        guard !chunks.isEmpty else { return }
        precondition(chunks.upperBound <= count, "a chunk beyond the volume")
        var first = chunks.lowerBound
        while first < chunks.upperBound {
            let bit = first % Self.bitsPerWord
            let number = min(Self.bitsPerWord - bit, chunks.upperBound - first)
            let mask = (UInt64.max >> (Self.bitsPerWord - number)) << bit
            let before = storage.word(Int(first / Self.bitsPerWord)) {
                $0.bitwiseOr(mask, ordering: .acquiringAndReleasing).oldValue
            }
            populationCount.wrappingAdd(
                UInt64((mask & ~before).nonzeroBitCount), ordering: .relaxed)
            first += number
        }
    }

    /// Runs of chunks that any of `bitmaps`, which are of one size, has: in order from chunk `first` on, as long as
    /// can be, at most `limit`. Words of 64 chunks of which nobody has any cost a load each.
    /// - Returns: also the first chunk that was not looked at; nil: all were.
    public static func runs(
        inAnyOf bitmaps: [ChunkBitmap], from first: UInt64, limit: Int
    ) -> (runs: [Range<UInt64>], next: UInt64?) {
        precondition(limit > 0)
        guard let count = bitmaps.first?.count else { return ([], nil) }
        precondition(bitmaps.allSatisfy { $0.count == count })
        var runs: [Range<UInt64>] = []
        var chunk = first
        while chunk < count {
            // The word's bits from this chunk on.
            let bit = chunk % bitsPerWord
            let word =
                bitmaps.reduce(0) { word, bitmap in
                    word | bitmap.storage.word(Int(chunk / bitsPerWord)) { $0.load(ordering: .acquiring) }
                } >> bit
            let skipped = min(UInt64(word.trailingZeroBitCount), bitsPerWord - bit)
            chunk += skipped
            guard word != 0 else { continue }
            let length = UInt64((~(word >> skipped)).trailingZeroBitCount)
            if let last = runs.last, last.upperBound == chunk {
                runs[runs.count - 1] = last.lowerBound..<chunk + length
            } else {
                guard runs.count < limit else { return (runs, chunk) }
                runs.append(chunk..<chunk + length)
            }
            chunk += length
        }
        return (runs, nil)
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
