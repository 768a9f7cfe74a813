/// Bounds of what is read from hostile disks with ext2, ext3 and ext4.
extension TocLimits {
    /// Blocks that replaying a journal may write or revoke: 16 GiB of them with blocks of 4 KiB.
    static let journalBlocks = 1 << 22
    /// Pieces that a journal lies in.
    static let journalRuns = 1 << 20
    /// Block groups of a file system whose use is told: 128 TiB with blocks of 4 KiB.
    static let blockGroups: UInt64 = 1 << 20
    /// Problems told of one file system.
    static let extProblems = 1000
}
