import AsyncIO

/// A logical unit as it is configured.
public struct BridgeUnit: Hashable, Sendable {
    /// Its logical unit number, within ``BridgeLimits/unitNumbers``.
    public var number: Int
    /// A regular file or block device.
    public var path: String
    /// Never written: WRITE is answered with DATA PROTECT, and the unit is never a copy destination.
    public var readOnly: Bool
    /// Bytes of a logical block, one of ``BridgeLimits/blockSizes``.
    public var blockSize: UInt32
    /// Taken for itself when it is written. Without, somebody else may have it locked: a restore writes the source
    /// of a host that stands still and keeps its lock.
    public var isLocked = true
    /// Whether initiators may unmap blocks, which gives their space back. Nil: if it is a writable file whose file
    /// system can. True is refused where the file system or device cannot. False also keeps the space of blocks that
    /// are written with zeros.
    public var isThin: Bool?
    /// Bytes of what the storage below reads and writes at once, which READ CAPACITY (16) tells: the block size times
    /// a power of two up to 2^15. Nil: the block size.
    public var physicalBlockSize: UInt32?
    /// What people call it, in the log; the path unless given.
    public var name: String?
    /// The names of the initiators that may see and name it; nil: all. Compared without regard to case.
    public var initiators: Set<String>?

    public init(
        number: Int, path: String, readOnly: Bool = false, blockSize: UInt32 = 512, name: String? = nil
    ) {
        self.number = number
        self.path = path
        self.readOnly = readOnly
        self.blockSize = blockSize
        self.name = name
    }
}

extension BridgeUnit {
    /// Why what lies at `path` cannot be a thin unit.
    public static func cannotBeThin(_ path: String) -> String {
        "\(path) cannot be thin: its file system or device gives no space back; leave `thin` out"
    }
}

/// Why the units cannot be served as configured.
public enum BridgeError: Error, Sendable, CustomStringConvertible {
    /// The configuration contradicts itself or the limits.
    case configuration(unit: Int, reason: String)
    /// The unit's file or device cannot be had.
    case storage(unit: Int, StorageError)
    /// What the bridge keeps from run to run cannot be had.
    case state(BridgeStateError)

    public var description: String {
        switch self {
        case .configuration(let unit, let reason): "cannot serve unit \(unit): \(reason)"
        case .storage(let unit, let error): "cannot serve unit \(unit): \(error)"
        case .state(let error): "\(error)"
        }
    }
}

/// A unit as it is served.
public struct BridgeUnitSummary: Hashable, Sendable {
    public var number: Int
    public var name: String
    public var path: String
    public var readOnly: Bool
    /// Its blocks can be unmapped.
    public var isThin: Bool
    /// Bytes of a logical block.
    public var blockSize: UInt32
    /// Logical blocks; the last may lie partly beyond the file's end, see ``paddingBytes``.
    public var blockCount: UInt64
    /// Bytes of the last block beyond the file's end: they read as zeros and take nothing but zeros.
    public var paddingBytes: UInt64
    /// The NAA designator of VPD page 83h in hexadecimal digits.
    public var designator: String
    /// False where the file or device refused direct I/O, and why.
    public var isDirect: Bool
    public var directRefusal: String?
}
