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
}
