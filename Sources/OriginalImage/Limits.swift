/// The bounds of the format (article <doc:OriginalImageLog>) and of its writer.
public enum LogLimits {
    /// Bytes of a chunk.
    public static let chunkSizes: ClosedRange<UInt64> = (4 << 10)...(1 << 20)
    /// Entries of a batch; with the header's fields and CRC they fit its 4096 bytes.
    public static let entriesPerBatch = 250
    /// Bytes of originals after which a batch takes no more, so that a commit stays short. One original
    /// always fits.
    public static let batchBytes = 16 << 20
    /// Bytes of a void reason, UTF-8.
    public static let voidReasonBytes = 512
    /// Bytes at the start of a cache that must be zeros for it to be taken as new.
    public static let blankBytes: UInt64 = 1 << 20
    /// Bytes that recovery reads at a time where it looks for batches behind the log's end.
    static let lookBytes = 1 << 20
    /// The last generation of a superblock and the last number of an epoch: one more can still be counted.
    public static let counter = UInt64(Int64.max)
    /// Nanoseconds until a superblock that could not be written is tried again; twice as long each time, up to
    /// the last.
    public static let recordRetry: ClosedRange<UInt64> = 1_000_000_000...30_000_000_000
    /// Bytes of a volume or a log, as large as a file can be.
    public static let volumeBytes = UInt64(Int64.max)
}
