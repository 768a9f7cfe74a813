/// Bounds of what is read from hostile disks.
public enum TocLimits {
    /// Bytes of a name.
    public static let nameBytes = 1024
    /// Bytes of a symbolic link's target (PATH_MAX; HFS+ and NTFS allow as much).
    public static let targetBytes = 65_536
    /// Bytes of data kept in the database itself.
    public static let inlineBytes = 65_536
    /// Bytes of an extended attribute (XATTR_SIZE_MAX).
    public static let attributeBytes = 65_536
    public static let extentsPerRecord = 4096
    /// Partitions of a volume.
    public static let fileSystems = 256
    /// Ranges of blocks in use that are kept apart.
    public static let usedRanges = 1 << 20
    /// Bytes of free space between blocks in use that are worth leaving out.
    public static let smallestGap: UInt64 = 64 << 10
    /// Directories one in another.
    public static let depth = 4096
    /// A node's address is below it.
    public static let address: UInt64 = 1 << 56
    /// Bytes of a text for people: a reason, a remark, a label.
    public static let textBytes = 4096

    // The stream of records between the process that reads and the one that keeps.
    /// Bytes of a frame's payload.
    static let frameBytes = 128 << 10
    /// Bytes that are written at once.
    static let streamBufferBytes = 256 << 10

    // The database.
    /// Problems that are kept one by one; of more, their number.
    public static let problems = 100_000
    /// Bytes of a database's page cache while it is built, and while it is asked.
    static let buildingCacheBytes = 32 << 20
    static let readingCacheBytes = 16 << 20
    /// Bytes of trigrams that are gathered before they are written.
    static let searchHashBytes = 8 << 20
    /// Directories whose paths are kept while names are looked for.
    static let cachedPaths = 4096
    /// Entries of a directory that are read at once in a walk.
    static let walkBatch = 256
    /// Streams and extended attributes of one node.
    public static let streams = 65_536
    public static let attributes = 65_536
    /// Bytes of a node's extended attributes together, names and values.
    public static let nodeAttributeBytes = 64 << 20
    /// Bytes of a row of a database that is asked, and of any of its values.
    static let rowBytes = 1 << 20
    /// Bytes of a text that is read: what cannot be decoded takes three bytes for each.
    static let storedTextBytes = 3 * textBytes
    /// Bytes of a pattern that is looked for.
    public static let patternBytes = 4096

    // Reading volumes.
    /// Memory for what was read of a volume.
    public static let cacheBytes: UInt64 = 32 << 20
    /// Attributes, streams among them, that are looked at of one node.
    public static let attributesPerNode = 4096
    /// Problems told one by one of a file system; what comes behind is counted.
    public static let toldProblems = 10_000
    /// Extents of a stream that libtsk reads, which are kept until the stream is told.
    public static let extentsPerStream = 2_097_152

    // ISO 9660.
    /// Continuation areas of one record, and bytes of one.
    static let isoContinuations = 64
    static let isoContinuation = 65_536
    /// Bytes of a directory.
    static let isoDirectory: UInt64 = 64 << 20
}
