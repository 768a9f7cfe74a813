/// The bounds of a physical copy and its manifest.
public enum CopyLimits {
    /// Bytes of a `manifest.json`; a longer one is not read.
    public static let manifestBytes = 8 << 20
    /// Bytes of the reason that an abandoned copy tells; what is longer is cut.
    public static let reasonBytes = 16 << 10
    /// Slices of one portion; the slice size grows with the portion so that there are no more.
    public static let slices: UInt64 = 65_536
    /// Bytes of the smallest slice.
    public static let smallestSlice: UInt64 = 16 << 20
    /// Chunks of a file of checksums, 4 bytes each; the chunk size grows with the data portion so that there are no more.
    public static let checksumChunks: UInt64 = 1 << 22
    /// Bytes of the smallest such chunk.
    public static let smallestChunk: UInt64 = 64 << 10
    /// Slices whose sums are held at once while they are read.
    static let slicesAtOnce: UInt64 = 1 << 16
    /// In append mode the original-image portion begins at the next multiple of this, bytes.
    public static let portionAlignment: UInt64 = 1 << 20
    /// Bytes read or written at once by verify, integrate and the checksums.
    public static let transferBytes = 4 << 20
    /// Findings after which `verify` stops listing: the copy is bad enough.
    public static let findings = 1_000
    /// Where a file in the making is locked, bytes; far behind whatever it holds.
    static let draftLockOffset: UInt64 = 1 << 62
    /// So often a directory or a file in the making is locked when another one is in its place each time.
    static let lockAttempts = 16
    /// So long, seconds, a table of contents that was built waits until nobody else uses the copy.
    public static let attachSeconds: UInt64 = 600
    /// The chunk sizes that a manifest may name, bytes; powers of two.
    public static let chunkSizes: ClosedRange<UInt64> = 4_096...(1 << 20)
    /// Bytes of a `resume.json`; a longer one is not read.
    public static let resumeBytes = 2 << 20
    /// Extents that one lists.
    public static let resumeExtents = 16_384
    /// Bytes of the list of what is copied where that is not all.
    public static let usedBytes = 64 << 20
    /// The largest volume that a manifest may name, bytes.
    public static let volumeBytes: UInt64 = 1 << 60
}
