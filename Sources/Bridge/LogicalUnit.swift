import AsyncIO
import Blocks
import SCSI

/// One logical unit as it is served: whole blocks over a store, and its names.
final class LogicalUnit: Sendable {
    let number: Int
    let name: String
    let path: String
    let isReadOnly: Bool
    let meters = UnitMeters()
    private let modeValues = Monitor(ModeValues.defaults)
    /// Bytes.
    let blockSize: UInt32
    let blockCount: UInt64
    /// Bytes: the block size times a power of two.
    let physicalBlockSize: UInt32
    /// Its blocks can be unmapped, and read as zeros then.
    let isThin: Bool
    /// How blocks of zeros are stored: a unit that is to stay fully provisioned keeps their space.
    let zeroOptions: ZeroOptions
    /// Keeps commands that read and write in one go apart from all others, copies included. Units over the same
    /// storage have the same. Who holds some of it exclusively waits for no other unit's.
    let ranges: RangeLock
    /// Of its bytes, where an initiator has asked for them. Units over the same storage have the same.
    let checksums: ChecksumKeeper
    /// Told by the store of what is written through it; what writes to the file tells it, too.
    let watch = ChangeWatch()
    /// Nobody but this device changes its bytes, so that a change of them can be known.
    let keepsInstants: Bool
    /// All blocks, so its size is a multiple of the block size.
    let store: any BlockStore
    /// What lies below, for the copy engine; nil in tests.
    let file: StorageFile?
    /// Bytes that are really there: less than the store's size where the last block is padded.
    let backedBytes: UInt64
    /// Equal for two units exactly if they lie on the same bytes.
    let storage: StorageKey
    let naa: DesignationDescriptor
    /// The 60 bits of the NAA.
    let identity: UInt64
    /// 60 bits in 16 hexadecimal digits, the NAA's first among them.
    let serial: String
    /// The names in lower case of those who may see and name it; nil: all.
    let initiators: Set<String>?

    init(
        _ unit: BridgeUnit, store: any BlockStore, storage: StorageKey, file: StorageFile? = nil,
        locks: StorageLocks = StorageLocks()
    ) throws(BridgeError) {
        let size = store.size
        let blockSize = UInt64(unit.blockSize)
        guard size > 0 else {
            throw .configuration(
                unit: unit.number, reason: "\(unit.path) is empty; a unit has a block at least")
        }
        guard size <= UInt64(Int64.max) else {
            throw .configuration(unit: unit.number, reason: "\(unit.path) is larger than 2^63 bytes")
        }
        number = unit.number
        name = unit.name ?? unit.path
        path = unit.path
        isReadOnly = unit.readOnly
        self.blockSize = unit.blockSize
        let padded = size.roundedUp(to: blockSize)
        let whole = padded == size ? store : PaddedStore(store, size: padded)
        (ranges, checksums) = locks.shared(by: storage)
        self.store = unit.readOnly ? whole : WatchedStore(whole, watch, checksums)
        keepsInstants = !unit.readOnly && unit.isLocked
        blockCount = padded / blockSize
        physicalBlockSize = unit.physicalBlockSize ?? unit.blockSize
        let canUnmap = store.capabilities.contains(.unmaps)
        if unit.isThin == true, !unit.readOnly, !canUnmap {
            throw .configuration(unit: unit.number, reason: BridgeUnit.cannotBeThin(unit.path))
        }
        isThin =
            !unit.readOnly && (unit.isThin ?? (canUnmap && store.capabilities.contains(.knowsAllocation)))
        zeroOptions = unit.isThin == false ? [.keepAllocated] : []
        backedBytes = size
        self.file = file
        self.storage = storage
        initiators = unit.initiators.map { Set($0.map { $0.lowercased() }) }
        let value = storage.hash(unitNumber: unit.number)
        identity = value
        naa = .naaLocallyAssigned(value)
        serial = naa.designator.map { byte in
            let digits = String(byte, radix: 16, uppercase: true)
            return digits.count == 1 ? "0" + digits : digits
        }.joined()
    }

    /// Opens what `unit` names.
    static func open(_ unit: BridgeUnit, _ locks: StorageLocks) throws(BridgeError) -> LogicalUnit {
        let file: StorageFile
        do throws(StorageError) {
            // A source is read while the host that serves it holds its lock; what is written must be
            // nobody else's, unless it was said that it is.
            file = try StorageFile.open(
                unit.path, access: unit.readOnly ? .readOnly : .readWrite, mode: .direct,
                lock: unit.readOnly || !unit.isLocked ? .none : .exclusive)
        } catch { throw .storage(unit: unit.number, error) }
        do throws(BridgeError) {
            return try LogicalUnit(
                unit, store: file, storage: StorageKey(file.identity), file: file, locks: locks)
        } catch {
            file.close()
            throw error
        }
    }

    /// What MODE SELECT has made of it.
    var mode: ModeValues { modeValues.withLock { $0 } }

    /// - Returns: the values before and after.
    func changeMode(
        _ change: (inout ModeValues) throws(CheckCondition) -> Void
    ) throws(CheckCondition) -> (old: ModeValues, new: ModeValues) {
        try modeValues.withLock { values throws(CheckCondition) in
            let old = values
            try change(&values)
            return (old, values)
        }
    }

    /// A reset brings the default values back.
    func resetMode() { modeValues.withLock { $0 = .defaults } }

    /// Why nothing may be written to it now; nil: it may be.
    var writeProtection: AdditionalSenseCode? {
        if isReadOnly { return .writeProtected }
        return mode.softwareWriteProtect ? .softwareWriteProtected : nil
    }

    /// Whether what is written must be on stable storage before GOOD, whatever the command says.
    var isWriteThrough: Bool { !mode.writeCache }

    var lun: LogicalUnitNumber {
        guard let lun = LogicalUnitNumber(number) else { preconditionFailure("a unit number beyond 16383") }
        return lun
    }

    var capacity: Capacity {
        var capacity = Capacity(lastLBA: LBA(blockCount - 1), blockLength: blockSize)
        capacity.physicalBlockExponent = UInt8((physicalBlockSize / blockSize).trailingZeroBitCount)
        capacity.isProvisioned = isThin
        capacity.unmappedReadsZeros = isThin
        return capacity
    }

    /// What names this unit to the copy manager, nothing else does; VPD page 83h tells them first.
    var designations: [DesignationDescriptor] { [naa, .t10Vendor(Identity.vendor, unique: serial)] }

    /// What storage this is, for who knows it by itself; units may share it, so it names none of them.
    var storageDesignations: [DesignationDescriptor] {
        guard file != nil, let boot = MachineBoot.identifier else { return [] }
        let name = StorageName(
            boot: boot, device: storage.device, inode: storage.inode, isBlockDevice: storage.isBlockDevice)
        return [name.designation]
    }

    /// The bytes of `count` blocks from `lba`; nil when one of them, or `lba` itself, is not there.
    func range(_ lba: LBA, _ count: UInt64) -> ByteRange? {
        guard lba.value < blockCount, count <= blockCount - lba.value else { return nil }
        return ByteRange(offset: lba.value * UInt64(blockSize), count: count * UInt64(blockSize))
    }

    var summary: BridgeUnitSummary {
        BridgeUnitSummary(
            number: number, name: name, path: path, readOnly: isReadOnly, isThin: isThin,
            blockSize: blockSize,
            blockCount: blockCount, paddingBytes: store.size - backedBytes, designator: serial,
            isDirect: file?.isDirect ?? false, directRefusal: file?.directRefusal)
    }
}

/// One range lock and one keeper of checksums for each storage, however many units lie over it.
final class StorageLocks: Sendable {
    typealias Shared = (ranges: RangeLock, checksums: ChecksumKeeper)
    private let all = Monitor<[StorageKey: Shared]>([:])

    func shared(by storage: StorageKey) -> Shared {
        all.withLock { all in
            if let shared = all[storage] { return shared }
            let shared = (RangeLock(), ChecksumKeeper())
            all[storage] = shared
            return shared
        }
    }
}

/// What INQUIRY says.
enum Identity {
    static let vendor = BridgeIdentity.vendor
    static let product = BridgeIdentity.product
    static let revision = "1.0"
}

/// What tells storage apart: device and inode.
struct StorageKey: Hashable, Sendable {
    var device: UInt64
    var inode: UInt64
    var isBlockDevice: Bool

    init(device: UInt64, inode: UInt64, isBlockDevice: Bool = false) {
        self.device = device
        self.inode = inode
        self.isBlockDevice = isBlockDevice
    }

    init(_ identity: StorageIdentity) {
        self.init(
            device: identity.device, inode: identity.inode, isBlockDevice: identity.isBlockDevice)
    }

    /// 60 bits that stay the same from run to run. The unit number belongs to it: a read-only and a
    /// writable unit over the same file are two units. FNV-1a, then mixed so that each bit of the input
    /// reaches each bit of the result; collisions within a device are refused when it is configured.
    func hash(unitNumber: Int) -> UInt64 {
        var writer = BigEndianWriter(reserving: 25)
        writer.integer(device)
        writer.integer(inode)
        writer.integer(UInt8(isBlockDevice ? 1 : 0))
        writer.integer(UInt64(unitNumber))
        var hash: UInt64 = 0xCBF2_9CE4_8422_2325
        for byte in writer.bytes { hash = (hash ^ UInt64(byte)) &* 0x0000_0100_0000_01B3 }
        hash ^= hash >> 33
        hash = hash &* 0xFF51_AFD7_ED55_8CCD
        hash ^= hash >> 33
        return hash & (1 << 60 - 1)
    }
}
