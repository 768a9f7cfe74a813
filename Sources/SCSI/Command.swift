import Blocks

/// The width of a CDB among those of one command, e.g. READ (10).
public enum CDBForm: Int, Hashable, Sendable {
    case six = 6
    case ten = 10
    case twelve = 12
    case sixteen = 16
}

/// The fields of READ and WRITE (SBC-3 §5.8 … §5.11, §5.29 … §5.32).
public struct BlockTransfer: Hashable, Sendable {
    public var form: CDBForm
    public var lba: LBA
    /// May be 0, which transfers nothing; in the six-byte form 1 to 256.
    public var count: BlockCount
    /// RDPROTECT or WRPROTECT, 0 to 7. A unit without protection information refuses all but 0.
    public var protect: UInt8 = 0
    /// Disable page out: a hint.
    public var dpo = false
    /// Force unit access: on stable storage at GOOD status; read from there.
    public var fua = false

    public init(_ form: CDBForm, lba: LBA, count: BlockCount, fua: Bool = false) {
        self.form = form
        self.lba = lba
        self.count = count
        self.fua = fua
    }
}

/// The fields of SYNCHRONIZE CACHE (SBC-3 §5.22, §5.23).
public struct SynchronizeCache: Hashable, Sendable {
    public var form: CDBForm
    public var lba: LBA
    /// 0: to the end of the unit.
    public var count: BlockCount
    /// IMMED: status before the work is done.
    public var immediate = false

    public init(_ form: CDBForm, lba: LBA, count: BlockCount, immediate: Bool = false) {
        self.form = form
        self.lba = lba
        self.count = count
        self.immediate = immediate
    }
}

/// The fields of WRITE SAME (10) and (16) (SBC-3 §5.44, §5.46). The data-out is one block, or none with ``noDataOut``.
public struct WriteSame: Hashable, Sendable {
    public var lba: LBA
    /// 0: to the end of the unit (where WSNZ in VPD page B0h is 0).
    public var count: BlockCount
    public var protect: UInt8 = 0
    public var anchor = false
    public var unmap = false
    /// NDOB: there is no data-out and the block is zeros.
    public var noDataOut = false

    public init(lba: LBA, count: BlockCount, unmap: Bool = false, noDataOut: Bool = false) {
        self.lba = lba
        self.count = count
        self.unmap = unmap
        self.noDataOut = noDataOut
    }
}

/// The fields of MODE SENSE (SPC-4 §6.13, §6.14).
public struct ModeSense: Hashable, Sendable {
    /// PC (SPC-4 table 184).
    public enum PageControl: UInt8, Sendable {
        case current = 0
        case changeable = 1
        case defaults = 2
        case saved = 3
    }
    /// Asks for all mode pages.
    public static let allPages: UInt8 = 0x3F
    public static let allSubpages: UInt8 = 0xFF

    public var form: CDBForm
    /// DBD: no block descriptors in the answer.
    public var disableBlockDescriptors = false
    /// LLBAA, ten-byte form only: a long block descriptor may come.
    public var longLBAAccepted = false
    public var control: PageControl = .current
    public var page: UInt8
    public var subpage: UInt8 = 0
    /// Bytes.
    public var allocationLength: Int

    public init(_ form: CDBForm, page: UInt8, allocationLength: Int) {
        self.form = form
        self.page = page
        self.allocationLength = allocationLength
    }
}

/// A command that this module knows, as its CDB says it. Lengths are in bytes. Every field is what the
/// initiator asked; whether the unit has such blocks or pages is the device server's to check.
public enum Command: Hashable, Sendable {
    /// SPC-4 §6.47.
    case testUnitReady
    /// SPC-4 §6.39.
    case requestSense(descriptorFormat: Bool, allocationLength: Int)
    /// SPC-4 §6.6; `page` is nil for standard INQUIRY data.
    case inquiry(page: UInt8?, allocationLength: Int)
    /// SPC-4 §6.33.
    case reportLUNs(select: UInt8, allocationLength: Int)
    /// SBC-3 §5.15.
    case readCapacity10
    /// SBC-3 §5.16.
    case readCapacity16(allocationLength: Int)
    case read(BlockTransfer)
    case write(BlockTransfer)
    case synchronizeCache(SynchronizeCache)
    case writeSame16(WriteSame)
    case block(BlockCommand)
    case modeSense(ModeSense)
    case modeSelect(ModeSelect)
    case reservation(ReservationCommand)
    case capabilityReport(CapabilityReport)
    case token(TokenCommand)
    case buffer(BufferCommand)
    /// EXTENDED COPY (LID1).
    case extendedCopy(parameterListLength: Int)
    /// RECEIVE COPY RESULTS; the list identifier counts for LID1's service actions only.
    case receiveCopyResults(
        CopyResultsServiceAction, listIdentifier: UInt8, allocationLength: Int)
    /// The other commands of third-party copy.
    case copy(CopyCommand)

    /// Reads a CDB. Those that a transport has filled up with zeros are welcome.
    /// - Throws: ``CheckCondition`` with INVALID COMMAND OPERATION CODE for a command that is not known, with
    ///   INVALID FIELD IN CDB and the field's place for fields that no device server here could honour.
    public init(decoding cdb: [UInt8]) throws(CheckCondition) {
        guard let first = cdb.first, let length = OperationCode(rawValue: first).cdbLength,
            cdb.count >= length
        else { throw CheckCondition(.invalidOperationCode) }
        let cdb = Array(cdb[..<length])
        let code = OperationCode(rawValue: first)
        if let transfer = try Self.decodeTransfer(code, cdb) {
            self = transfer
        } else if let block = try BlockCommand(code, cdb) {
            self = .block(block)
        } else if let token = TokenCommand(code, cdb) {
            self = .token(token)
        } else if let buffer = BufferCommand(code, cdb) {
            self = .buffer(buffer)
        } else if let other = try Self.decodeBlockCommand(code, cdb) {
            self = other
        } else {
            self = try Self.decodePrimary(code, cdb)
        }
        // NACA: no ACA here (SAM-5 §5.3.2); only after the operation code is known to be one of ours.
        if cdb[length - 1] & 0x04 != 0 { throw .cdb(length - 1, bit: 2) }
    }

    private static func decodeTransfer(
        _ code: OperationCode, _ cdb: [UInt8]
    ) throws(CheckCondition) -> Command? {
        let transfer: BlockTransfer
        switch code {
        case .read6, .write6:
            let lba = UInt64(cdb.bigEndian(at: 0, as: UInt32.self) & 0x1F_FFFF)
            let count = cdb[4] == 0 ? SCSILimits.sixByteBlocks : UInt64(cdb[4])
            transfer = BlockTransfer(.six, lba: LBA(lba), count: BlockCount(count))
        case .read10, .write10:
            transfer = flagged(
                cdb,
                BlockTransfer(
                    .ten, lba: LBA(UInt64(cdb.bigEndian(at: 2, as: UInt32.self))),
                    count: BlockCount(UInt64(cdb.bigEndian(at: 7, as: UInt16.self)))))
        case .read12, .write12:
            transfer = flagged(
                cdb,
                BlockTransfer(
                    .twelve, lba: LBA(UInt64(cdb.bigEndian(at: 2, as: UInt32.self))),
                    count: BlockCount(UInt64(cdb.bigEndian(at: 6, as: UInt32.self)))))
        case .read16, .write16:
            transfer = flagged(
                cdb,
                BlockTransfer(
                    .sixteen, lba: LBA(cdb.bigEndian(at: 2)),
                    count: BlockCount(UInt64(cdb.bigEndian(at: 10, as: UInt32.self)))))
        default: return nil
        }
        switch code {
        case .read6, .read10, .read12, .read16: return .read(transfer)
        default: return .write(transfer)
        }
    }

    /// The second byte of READ and WRITE above the six-byte form.
    private static func flagged(_ cdb: [UInt8], _ transfer: BlockTransfer) -> BlockTransfer {
        var transfer = transfer
        transfer.protect = cdb[1] >> 5
        transfer.dpo = cdb[1] & 0x10 != 0
        transfer.fua = cdb[1] & 0x08 != 0
        return transfer
    }

    private static func decodeBlockCommand(
        _ code: OperationCode, _ cdb: [UInt8]
    ) throws(CheckCondition) -> Command? {
        switch code {
        case .readCapacity10:
            // PMI is obsolete: an address without it must be 0 (SBC-2 §5.10).
            if cdb[8] & 1 == 0, cdb.bigEndian(at: 2, as: UInt32.self) != 0 { throw .cdb(2) }
            return .readCapacity10
        case .synchronizeCache10:
            return .synchronizeCache(
                SynchronizeCache(
                    .ten, lba: LBA(UInt64(cdb.bigEndian(at: 2, as: UInt32.self))),
                    count: BlockCount(UInt64(cdb.bigEndian(at: 7, as: UInt16.self))),
                    immediate: cdb[1] & 0x02 != 0))
        case .synchronizeCache16:
            return .synchronizeCache(
                SynchronizeCache(
                    .sixteen, lba: LBA(cdb.bigEndian(at: 2)),
                    count: BlockCount(UInt64(cdb.bigEndian(at: 10, as: UInt32.self))),
                    immediate: cdb[1] & 0x02 != 0))
        case .writeSame16:
            // PBDATA and LBDATA: obsolete, and neither is honoured.
            if cdb[1] & 0x04 != 0 { throw .cdb(1, bit: 2) }
            if cdb[1] & 0x02 != 0 { throw .cdb(1, bit: 1) }
            var same = WriteSame(
                lba: LBA(cdb.bigEndian(at: 2)),
                count: BlockCount(UInt64(cdb.bigEndian(at: 10, as: UInt32.self))),
                unmap: cdb[1] & 0x08 != 0, noDataOut: cdb[1] & 0x01 != 0)
            same.protect = cdb[1] >> 5
            same.anchor = cdb[1] & 0x10 != 0
            return .writeSame16(same)
        case .serviceActionIn16:
            guard cdb[1] & 0x1F == ServiceAction.readCapacity16 else { throw .cdb(1, bit: 4) }
            if cdb[14] & 1 == 0, cdb.bigEndian(at: 2, as: UInt64.self) != 0 { throw .cdb(2) }
            return .readCapacity16(allocationLength: Int(cdb.bigEndian(at: 10, as: UInt32.self)))
        default: return nil
        }
    }

    private static func decodePrimary(_ code: OperationCode, _ cdb: [UInt8]) throws(CheckCondition) -> Command
    {
        switch code {
        case .testUnitReady: return .testUnitReady
        case .requestSense:
            return .requestSense(descriptorFormat: cdb[1] & 1 != 0, allocationLength: Int(cdb[4]))
        case .inquiry:
            // CMDDT is obsolete; a page code without EVPD is refused (SPC-4 §6.6.1).
            if cdb[1] & 0x02 != 0 { throw .cdb(1, bit: 1) }
            let hasPage = cdb[1] & 1 != 0
            if !hasPage, cdb[2] != 0 { throw .cdb(2) }
            return .inquiry(
                page: hasPage ? cdb[2] : nil, allocationLength: Int(cdb.bigEndian(at: 3, as: UInt16.self)))
        case .modeSense6:
            var sense = ModeSense(.six, page: cdb[2] & 0x3F, allocationLength: Int(cdb[4]))
            sense.control = ModeSense.PageControl(rawValue: cdb[2] >> 6) ?? .current
            sense.subpage = cdb[3]
            sense.disableBlockDescriptors = cdb[1] & 0x08 != 0
            return .modeSense(sense)
        case .modeSense10:
            var sense = ModeSense(
                .ten, page: cdb[2] & 0x3F, allocationLength: Int(cdb.bigEndian(at: 7, as: UInt16.self)))
            sense.control = ModeSense.PageControl(rawValue: cdb[2] >> 6) ?? .current
            sense.subpage = cdb[3]
            sense.disableBlockDescriptors = cdb[1] & 0x08 != 0
            sense.longLBAAccepted = cdb[1] & 0x10 != 0
            return .modeSense(sense)
        case .modeSelect6, .modeSelect10: return .modeSelect(ModeSelect(decoding: cdb))
        case .reportLUNs:
            let length = Int(cdb.bigEndian(at: 6, as: UInt32.self))
            // SPC-4 §6.33: fewer than 16 bytes is an error.
            if length < 16 { throw .cdb(6) }
            return .reportLUNs(select: cdb[2], allocationLength: length)
        case .extendedCopy, .receiveCopyResults:
            if let command = try CopyCommand(code, cdb) { return .copy(command) }
            if code == .receiveCopyResults {
                return .receiveCopyResults(
                    CopyResultsServiceAction(rawValue: cdb[1]), listIdentifier: cdb[2],
                    allocationLength: Int(cdb.bigEndian(at: 10, as: UInt32.self)))
            }
            guard cdb[1] & 0x1F == ServiceAction.extendedCopyLID1 else { throw .cdb(1, bit: 4) }
            return .extendedCopy(parameterListLength: Int(cdb.bigEndian(at: 10, as: UInt32.self)))
        case .maintenanceIn: return .capabilityReport(try CapabilityReport(decoding: cdb))
        default:
            if let command = try ReservationCommand(code, cdb) { return .reservation(command) }
            throw CheckCondition(.invalidOperationCode)
        }
    }
}
