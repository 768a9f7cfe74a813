import Synchronization

/// CRC-32C of each chunk of a store's bytes, as far as they are known from what was written: whoever writes says so before
/// and after. Many threads at once, without a lock.
///
/// A chunk is known while the last write that touched any byte of it covered all of it, gave its bytes, was done, and no
/// other was under way at the same time. What several writes at once leave in a chunk nobody knows.
///
/// Memory: 8 bytes for each chunk, the checksum and the write that it came with, zeroed by the system as it is touched.
public final class ChunkChecksums: Sendable {
    /// What is known of a chunk.
    public enum Entry: Hashable, Sendable {
        /// Nobody has written any of it.
        case untouched
        /// It was written in part, or by somebody who does not sum up, or is being written.
        case unknown
        case known(UInt32)
    }

    /// What is written to a range.
    public enum Contents {
        case bytes(UnsafeRawBufferPointer)
        case zeros
        /// Nobody sums them up.
        case other
    }

    /// A write that is under way.
    public struct Write: Sendable {
        fileprivate let range: ByteRange
        fileprivate let number: UInt64
    }

    /// A name that whoever wants them kept has given them.
    public let identifier: UInt64
    /// Bytes of the store, from its start, that have checksums.
    public let length: UInt64
    /// Bytes of each chunk but the last, a power of two.
    public let chunkSize: UInt64
    public let count: Int

    // A chunk's word: its state, 30 bits of the number of the write that set it, the checksum. A number comes again after
    // 2^30 writes: none is under way for so long.
    private let words: ZeroedMemory
    private let writes = Atomic<UInt64>(0)
    private let zeros: (whole: UInt32, last: UInt32)

    private static let isUnknown: UInt64 = 1 << 62
    private static let isPending: UInt64 = 2 << 62
    private static let isKnown: UInt64 = 3 << 62
    private static let stateMask: UInt64 = 3 << 62
    private static let numberMask: UInt64 = 1 << 30 - 1

    /// - Precondition: `length` is more than 0, `chunkSize` a power of two.
    public init(identifier: UInt64 = 0, length: UInt64, chunkSize: UInt64) {
        precondition(length > 0 && chunkSize > 0 && chunkSize & (chunkSize - 1) == 0)
        self.identifier = identifier
        self.length = length
        self.chunkSize = chunkSize
        count = Int((length - 1) / chunkSize) + 1
        words = ZeroedMemory(count: count * 8)
        var (whole, last) = (CRC32C(), CRC32C())
        whole.update(zeros: min(chunkSize, length))
        last.update(zeros: length - UInt64(count - 1) * chunkSize)
        zeros = (whole.value, last.value)
    }

    /// The bytes of a chunk.
    public func range(of chunk: Int) -> ByteRange {
        let offset = UInt64(chunk) * chunkSize
        return ByteRange(offset: offset, count: min(chunkSize, length - offset))
    }

    public subscript(chunk: Int) -> Entry {
        let word = words.word(chunk) { $0.load(ordering: .acquiring) }
        switch word & Self.stateMask {
        case 0: return .untouched
        case Self.isKnown: return .known(UInt32(truncatingIfNeeded: word))
        default: return .unknown
        }
    }

    /// Somebody begins to write `range`, not a byte of it was written yet. Must be followed by ``end(_:isDone:)``.
    /// - Parameter contents: bytes as many as the range has.
    public func begin(_ range: ByteRange, _ contents: Contents) -> Write {
        let number = writes.wrappingAdd(1, ordering: .relaxed).newValue & Self.numberMask
        for chunk in chunks(of: range) {
            let place = self.range(of: chunk)
            let isWhole = range.offset <= place.offset && place.end <= range.end
            var word = Self.isUnknown
            switch contents {
            case .bytes(let bytes) where isWhole:
                let start = Int(place.offset - range.offset)
                let part = UnsafeRawBufferPointer(rebasing: bytes[start..<start + Int(place.count)])
                word = Self.isPending | number << 32 | UInt64(CRC32C.checksum(part))
            case .zeros where isWhole:
                let sum = chunk == count - 1 ? zeros.last : zeros.whole
                word = Self.isPending | number << 32 | UInt64(sum)
            default: break
            }
            words.word(chunk) { $0.store(word, ordering: .sequentiallyConsistent) }
        }
        return Write(range: range, number: number)
    }

    /// The write is over.
    /// - Parameter isDone: all of it was written; without, nobody knows what is there.
    public func end(_ write: Write, isDone: Bool) {
        let own = Self.isPending | write.number << 32
        for chunk in chunks(of: write.range) {
            words.word(chunk) { word in
                let found = word.load(ordering: .sequentiallyConsistent)
                if isDone, found & ~UInt64(UInt32.max) == own {
                    let known = Self.isKnown | (found & ~Self.stateMask)
                    let isSet = word.compareExchange(
                        expected: found, desired: known, ordering: .sequentiallyConsistent)
                    if isSet.exchanged { return }
                }
                // Another has begun meanwhile. It finds this when it ends, and does not know either who came last.
                word.store(Self.isUnknown, ordering: .sequentiallyConsistent)
            }
        }
    }

    private func chunks(of range: ByteRange) -> Range<Int> {
        let end = min(range.end, length)
        guard range.offset < end else { return 0..<0 }
        return Int(range.offset / chunkSize)..<Int((end - 1) / chunkSize) + 1
    }
}

/// Whether checksums are kept of a store, and which. Asked at each write, so that asking costs a load where none are.
public final class ChecksumKeeper: Sendable {
    private let isKeeping = Atomic(false)
    private let table = Monitor<ChunkChecksums?>(nil)

    public init() {}

    /// Nil: none are kept.
    public var current: ChunkChecksums? {
        isKeeping.load(ordering: .acquiring) ? table.withLock { $0 } : nil
    }

    /// Begins to keep checksums, all untouched, or ends it. No write may be under way: one that began before would not be
    /// told to them.
    public func keep(_ checksums: ChunkChecksums?) {
        table.withLock { $0 = checksums }
        isKeeping.store(checksums != nil, ordering: .releasing)
    }
}
