import Blocks

/// How a volume falls into chunks. The last one may be short.
public struct ChunkGeometry: Hashable, Sendable {
    /// Bytes, more than 0.
    public let volumeSize: UInt64
    /// Bytes: a power of two within ``LogLimits/chunkSizes``.
    public let chunkSize: UInt64
    private let shift: UInt64

    /// Nil unless size and chunk size are within the format's limits.
    public init?(volumeSize: UInt64, chunkSize: UInt64) {
        guard LogLimits.chunkSizes.contains(chunkSize), chunkSize.nonzeroBitCount == 1,
            volumeSize > 0, volumeSize <= LogLimits.volumeBytes
        else { return nil }
        self.volumeSize = volumeSize
        self.chunkSize = chunkSize
        shift = UInt64(chunkSize.trailingZeroBitCount)
    }

    public var chunkCount: UInt64 { (volumeSize + (chunkSize - 1)) >> shift }

    /// The chunk that holds the byte at `offset`.
    @inline(__always) public func chunk(at offset: UInt64) -> UInt64 { offset >> shift }

    /// The chunks that `range`, not empty, touches.
    public func chunks(touching range: ByteRange) -> Range<UInt64> {
        precondition(!range.isEmpty && range.end <= volumeSize)
        return chunk(at: range.offset)..<(chunk(at: range.end - 1) + 1)
    }

    /// The chunk's bytes in the volume.
    public func range(of chunk: UInt64) -> ByteRange {
        precondition(chunk < chunkCount, "a chunk beyond the volume")
        let offset = chunk << shift
        return ByteRange(offset: offset, count: min(chunkSize, volumeSize - offset))
    }

    /// Bytes of the chunk: the chunk size but for the last.
    public func length(of chunk: UInt64) -> Int { Int(range(of: chunk).count) }

    /// Bytes that the chunk's original takes in the log.
    public func paddedLength(of chunk: UInt64) -> Int {
        Int(range(of: chunk).count.roundedUp(to: LogFormat.blockSize))
    }
}

/// Constants of the format (article <doc:OriginalImageLog>).
public enum LogFormat {
    /// The first one has no flags, and is written as long as none is set.
    public static let versions: ClosedRange<UInt32> = 1...2
    /// What everything in the log is aligned to, and what a superblock and a batch's header take.
    public static let blockSize: UInt64 = 4096
    /// Where the first batch starts.
    public static let firstBatch: UInt64 = 8192
    static let superblockMagic: UInt64 = 0x4F42_4F49_4C53_420A
    static let batchMagic: UInt64 = 0x4F42_4F49_4C42_410A
    static let crcOffset = 4092

    /// Bytes of the smallest log for chunks of `chunkSize` bytes.
    public static func minimumCapacity(chunkSize: UInt64) -> UInt64 { firstBatch + blockSize + chunkSize }
}

/// A place between two batches of the log; as a marker, everything before it is on stable storage.
public struct LogPosition: Hashable, Sendable {
    /// Bytes from the log's start, a multiple of 4096.
    public var position: UInt64
    /// The sequence number of the next batch.
    public var sequence: UInt64
    /// Entries before it.
    public var entries: UInt64

    public init(position: UInt64, sequence: UInt64, entries: UInt64) {
        self.position = position
        self.sequence = sequence
        self.entries = entries
    }

    /// Where the first batch will be.
    public static let start = LogPosition(position: LogFormat.firstBatch, sequence: 0, entries: 0)
}
