import Blocks

/// One thing that a reader found on a volume. Readers hand these on as they find them; what takes them (the
/// database's builder, the planner of a copy of used blocks) keeps no more than it needs.
///
/// Everything between ``fileSystem(_:)`` and ``end`` belongs to that file system. There, names, nodes, streams and
/// extents come in any order, except that a stream comes before its extents.
public enum VolumeRecord: Hashable, Sendable {
    /// A file system, or a range that holds something else, begins.
    case fileSystem(FileSystemDescription)
    case node(FileNode)
    case name(FileName)
    case stream(FileStream)
    /// More of a stream's extents, in the order of their offsets in it; at most ``TocLimits/extentsPerRecord``.
    case extents(StreamIdentifier, [FileExtent])
    case attribute(ExtendedAttribute)
    /// Ranges of the volume that are in use, in order. What no record of this kind covers of a file system whose
    /// ``FileSystemDescription/knowsUse`` is true is free.
    case used([ByteRange])
    /// Something that could not be read; reading went on.
    case problem(ReadProblem)
    /// The file system's end; nothing of it comes any more.
    case end
}

/// Where records go. Throwing ends the reading.
public protocol RecordSink: AnyObject {
    func put(_ record: VolumeRecord) throws(TocError)
}

/// What lies on a range of a volume.
public struct FileSystemDescription: Hashable, Sendable {
    /// Its number on the volume, from 0, in the order of offsets.
    public var index: Int
    public var kind: FileSystemKind
    /// Of the volume; a partition's, or the whole's.
    public var range: ByteRange
    /// Bytes of its allocation unit; 0: not known.
    public var blockSize: UInt64
    /// As its superblock has it; empty: none.
    public var label: String
    /// Lower case, as its own tools print it; empty: none.
    public var uuid: String
    /// The root directory's node.
    public var root: UInt64
    /// Whether files are listed.
    public var isListed: Bool
    /// Whether ``VolumeRecord/used(_:)`` tells all that is in use. False: everything must be taken for used.
    public var knowsUse: Bool
    /// Why files are not listed, or use is not known; for people, empty when there is nothing to say.
    public var remark: String

    public init(
        index: Int, kind: FileSystemKind, range: ByteRange, blockSize: UInt64 = 0, label: String = "",
        uuid: String = "", root: UInt64 = 0, isListed: Bool, knowsUse: Bool = false, remark: String = ""
    ) {
        self.index = index
        self.kind = kind
        self.range = range
        self.blockSize = blockSize
        self.label = label
        self.uuid = uuid
        self.root = root
        self.isListed = isListed
        self.knowsUse = knowsUse
        self.remark = remark
    }
}

/// What a range holds, by what its first sectors say. Raw values stand in the database.
public enum FileSystemKind: String, Hashable, Sendable, CaseIterable {
    case ext2, ext3, ext4, xfs, btrfs, ntfs, fat12, fat16, fat32, exfat, iso9660
    case hfsPlus = "hfs+"
    case swap, lvm, luks, raid
    /// Something that nobody here knows, or nothing at all.
    case unknown
}

/// An inode: what is at an address, whatever its names.
public struct FileNode: Hashable, Sendable {
    public enum Kind: UInt8, Hashable, Sendable, CaseIterable {
        case regular = 1
        case directory, symbolicLink, blockDevice, characterDevice, fifo, socket, other
    }

    /// Inode number, MFT entry, CNID…; unique in its file system, below 2^56.
    public var address: UInt64
    public var kind: Kind
    /// The twelve low bits of st_mode; nil where the file system has none.
    public var permissions: UInt16?
    public var owner: UInt32?
    public var group: UInt32?
    /// Hard links, as the file system counts them.
    public var links: UInt32
    /// Bytes of the unnamed stream.
    public var size: UInt64
    public var modified: FileTime?
    public var accessed: FileTime?
    /// st_ctime.
    public var changed: FileTime?
    /// Birth.
    public var created: FileTime?
    /// Of a symbolic link, byte for byte.
    public var target: [UInt8]?
    /// Major and minor number of a device.
    public var device: DeviceNumber?

    public init(address: UInt64, kind: Kind) {
        self.address = address
        self.kind = kind
        links = 1
        size = 0
    }
}

/// A time since 1970-01-01 00:00 UTC; without a zone where the file system has none (FAT): taken as UTC then.
public struct FileTime: Hashable, Sendable {
    public var seconds: Int64
    /// 0 to 999,999,999.
    public var nanoseconds: UInt32

    public init(seconds: Int64, nanoseconds: UInt32 = 0) {
        self.seconds = seconds
        self.nanoseconds = nanoseconds
    }
}

public struct DeviceNumber: Hashable, Sendable {
    public var major: UInt32
    public var minor: UInt32

    public init(major: UInt32, minor: UInt32) {
        self.major = major
        self.minor = minor
    }
}

/// A directory entry.
public struct FileName: Hashable, Sendable {
    /// The directory's address.
    public var parent: UInt64
    /// As on disk, or UTF-8 where the disk has UTF-16; 1 to ``TocLimits/nameBytes``. Hostile: may hold anything but
    /// a zero byte, also `/` and `..`.
    public var name: [UInt8]
    public var node: UInt64

    public init(parent: UInt64, name: [UInt8], node: UInt64) {
        self.parent = parent
        self.name = name
        self.node = node
    }
}

/// Which stream of which node.
public struct StreamIdentifier: Hashable, Sendable {
    public var node: UInt64
    /// 0: the unnamed one, a file's content.
    public var number: UInt32

    public init(node: UInt64, number: UInt32 = 0) {
        self.node = node
        self.number = number
    }
}

/// Bytes that belong to a node: its content, or an NTFS alternate stream.
public struct FileStream: Hashable, Sendable {
    public enum Storage: Hashable, Sendable {
        /// By ``VolumeRecord/extents(_:_:)``; what they do not cover of `size` reads as zeros.
        case extents
        /// Here: inline and resident data, at most ``TocLimits/inlineBytes``.
        case inline([UInt8])
        /// The reason: compressed, encrypted, damaged.
        case unavailable(String)
    }

    public var identifier: StreamIdentifier
    /// Empty: the unnamed one.
    public var name: [UInt8]
    public var size: UInt64
    public var storage: Storage

    public init(_ identifier: StreamIdentifier, name: [UInt8] = [], size: UInt64, storage: Storage) {
        self.identifier = identifier
        self.name = name
        self.size = size
        self.storage = storage
    }
}

/// Bytes of a stream that lie on the volume one behind the other. Holes, unwritten extents and what lies behind a
/// valid data length are not extents: they read as zeros.
public struct FileExtent: Hashable, Sendable {
    public var fileOffset: UInt64
    /// From the volume's start, not the file system's.
    public var volumeOffset: UInt64
    /// Bytes, more than 0; the last one may reach beyond the stream's size, up to its block's end.
    public var count: UInt64

    public init(fileOffset: UInt64, volumeOffset: UInt64, count: UInt64) {
        self.fileOffset = fileOffset
        self.volumeOffset = volumeOffset
        self.count = count
    }
}

/// As Linux has it: the name with its namespace (`user.`, `security.`, `system.posix_acl_access`), the value as
/// setxattr(2) takes it.
public struct ExtendedAttribute: Hashable, Sendable {
    public var node: UInt64
    public var name: [UInt8]
    /// At most ``TocLimits/attributeBytes``.
    public var value: [UInt8]

    public init(node: UInt64, name: [UInt8], value: [UInt8]) {
        self.node = node
        self.name = name
        self.value = value
    }
}

/// What could not be read.
public struct ReadProblem: Hashable, Sendable {
    /// The node it concerns; nil: the file system as such.
    public var node: UInt64?
    /// For people.
    public var reason: String

    public init(node: UInt64? = nil, reason: String) {
        self.node = node
        self.reason = reason
    }
}
