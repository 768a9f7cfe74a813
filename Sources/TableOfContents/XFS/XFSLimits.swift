/// Bounds of what is believed of an XFS, besides ``TocLimits``.
enum XFSLimits {
    /// Levels of a B+tree: the format's own bound for any tree of any size.
    static let treeLevels = 9
    /// Levels of an attribute fork's hash tree, likewise.
    static let attributeTreeLevels = 5
    /// Problems told one by one; a last one says that there are more.
    static let problems = 10_000
    /// Extents of one file held before they are handed on; longer lists are read twice, once to check them.
    static let heldExtents = 16_384
    /// Extents of an attribute fork. The format lets them be 2^16 − 1, and more with large extent counters, which
    /// no real fork of 64 KiB values needs.
    static let attributeExtents = 1 << 17
    /// Attributes of one inode.
    static let attributes = 1 << 20
    /// Bytes of a symbolic link's target.
    static let targetBytes = 1024
    /// Bytes of an inode window: several chunks of 64 inodes that lie near each other are read at once.
    static let inodeWindow = 1 << 20
    /// Bytes and number of the windows through which single blocks are read.
    static let windowBytes = 16 << 10
    static let windows = 512
    /// Bytes between the log's tail and head, and items there, that are replayed.
    static let logBytes: UInt64 = 512 << 20
    static let logItems = 1 << 22
    /// Bytes of buffers and inodes that a replay reads or writes: some seconds of one processor. An item of a few bytes
    /// may make thousands of inodes.
    static let replayedBytes: UInt64 = 8 << 30
    /// Bytes of transactions that are put together at one time. The kernel makes them no larger than 64 MiB.
    static let transactionBytes = 96 << 20
    static let openTransactions = 1024
    /// Bytes that are kept of what the log changes.
    static let overlayBytes = 128 << 20
    /// Sectors of a buffer in the log: a directory block or a cluster of inodes, and as much again.
    static let logBufferSectors: UInt64 = 256
    /// Changes that the log only intends.
    static let intents = 1 << 16
    /// Ranges in one ``VolumeRecord/used(_:)``.
    static let rangesPerRecord = 4096
    /// Seconds of the widest time that counts nanoseconds from 1901 in 64 bits.
    static let bigTimeOffset: Int64 = 1 << 31
}
