import Blocks

extension OperationCode {
    public static let startStopUnit = OperationCode(rawValue: 0x1B)
    public static let preventAllowMediumRemoval = OperationCode(rawValue: 0x1E)
    public static let writeAndVerify10 = OperationCode(rawValue: 0x2E)
    public static let verify10 = OperationCode(rawValue: 0x2F)
    public static let prefetch10 = OperationCode(rawValue: 0x34)
    public static let readDefectData10 = OperationCode(rawValue: 0x37)
    public static let readDefectData12 = OperationCode(rawValue: 0xB7)
    public static let writeSame10 = OperationCode(rawValue: 0x41)
    public static let unmap = OperationCode(rawValue: 0x42)
    public static let compareAndWrite = OperationCode(rawValue: 0x89)
    public static let orWrite16 = OperationCode(rawValue: 0x8B)
    public static let writeAndVerify16 = OperationCode(rawValue: 0x8E)
    public static let verify16 = OperationCode(rawValue: 0x8F)
    public static let prefetch16 = OperationCode(rawValue: 0x90)
    public static let writeAndVerify12 = OperationCode(rawValue: 0xAE)
    public static let verify12 = OperationCode(rawValue: 0xAF)
}

extension ServiceAction {
    /// GET LBA STATUS, under 9Eh (SBC-3 §5.6).
    public static let getLBAStatus: UInt8 = 0x12
}

/// BYTCHK of VERIFY (SBC-3 table 103). 10b is reserved and refused when decoded.
public enum ByteCheck: UInt8, Hashable, Sendable {
    /// The medium is read; there is no data-out.
    case medium = 0
    /// Each block is compared with its own in the data-out.
    case data = 1
    /// Each block is compared with the one block of the data-out.
    case oneBlock = 3
}

/// Commands of a block device beyond READ and WRITE (SBC-3 §5). As in ``Command``, every field is what the
/// initiator asked.
public enum BlockCommand: Hashable, Sendable {
    /// VERIFY (10), (12), (16): SBC-3 §5.30 … §5.32; FUA does not occur.
    case verify(BlockTransfer, ByteCheck)
    /// WRITE AND VERIFY (10), (12), (16): SBC-3 §5.40 … §5.42; ``ByteCheck/oneBlock`` does not occur.
    case writeAndVerify(BlockTransfer, ByteCheck)
    /// PRE-FETCH (10), (16): SBC-3 §5.11; a count of 0 reaches to the end of the unit.
    case prefetch(BlockTransfer, immediate: Bool)
    /// UNMAP: SBC-3 §5.28.
    case unmap(anchor: Bool, parameterListLength: Int)
    /// WRITE SAME (10): SBC-3 §5.44; NDOB does not occur.
    case writeSame10(WriteSame)
    /// COMPARE AND WRITE: SBC-3 §5.2; the data-out has twice ``BlockTransfer/count`` blocks.
    case compareAndWrite(BlockTransfer)
    /// ORWRITE (16): SBC-3 §5.9.
    case orWrite(BlockTransfer)
    /// GET LBA STATUS: SBC-3 §5.6.
    case getLBAStatus(lba: LBA, allocationLength: Int)
    /// READ DEFECT DATA (10), (12): SBC-3 §5.17, §5.18.
    case readDefectData(ReadDefectData)
    /// START STOP UNIT: SBC-3 §5.24. `powerCondition` has 4 bits.
    case startStop(start: Bool, loadOrEject: Bool, powerCondition: UInt8)
    /// PREVENT ALLOW MEDIUM REMOVAL: SBC-3 §5.13. `prevent` has 2 bits.
    case preventAllow(prevent: UInt8)

    /// Nil for an operation code that is none of these.
    init?(_ code: OperationCode, _ cdb: [UInt8]) throws(CheckCondition) {
        switch code {
        case .verify10, .verify12, .verify16:
            var transfer = Self.transfer(cdb)
            transfer.fua = false
            self = .verify(transfer, try Self.byteCheck(cdb))
        case .writeAndVerify10, .writeAndVerify12, .writeAndVerify16:
            var transfer = Self.transfer(cdb)
            transfer.fua = false
            let check = try Self.byteCheck(cdb)
            if check == .oneBlock { throw .cdb(1, bit: 2) }
            self = .writeAndVerify(transfer, check)
        case .prefetch10, .prefetch16:
            var transfer = Self.transfer(cdb)
            (transfer.protect, transfer.dpo, transfer.fua) = (0, false, false)
            self = .prefetch(transfer, immediate: cdb[1] & 0x02 != 0)
        case .unmap:
            self = .unmap(
                anchor: cdb[1] & 1 != 0,
                parameterListLength: Int(cdb.bigEndian(at: 7, as: UInt16.self)))
        case .writeSame10: self = .writeSame10(try Self.writeSame(cdb))
        case .compareAndWrite:
            var transfer = Self.transfer(cdb)
            transfer.count = BlockCount(UInt64(cdb[13]))
            self = .compareAndWrite(transfer)
        case .orWrite16: self = .orWrite(Self.transfer(cdb))
        case .serviceActionIn16 where cdb[1] & 0x1F == ServiceAction.getLBAStatus:
            self = .getLBAStatus(
                lba: LBA(cdb.bigEndian(at: 2)), allocationLength: Int(cdb.bigEndian(at: 10, as: UInt32.self)))
        case .readDefectData10, .readDefectData12: self = .readDefectData(try ReadDefectData(decoding: cdb))
        case .startStopUnit:
            self = .startStop(
                start: cdb[4] & 1 != 0, loadOrEject: cdb[4] & 2 != 0, powerCondition: cdb[4] >> 4)
        case .preventAllowMediumRemoval: self = .preventAllow(prevent: cdb[4] & 3)
        default: return nil
        }
    }

    /// The fields that stand where READ of the same length has them.
    private static func transfer(_ cdb: [UInt8]) -> BlockTransfer {
        var transfer: BlockTransfer
        switch cdb.count {
        case 10:
            transfer = BlockTransfer(
                .ten, lba: LBA(UInt64(cdb.bigEndian(at: 2, as: UInt32.self))),
                count: BlockCount(UInt64(cdb.bigEndian(at: 7, as: UInt16.self))))
        case 12:
            transfer = BlockTransfer(
                .twelve, lba: LBA(UInt64(cdb.bigEndian(at: 2, as: UInt32.self))),
                count: BlockCount(UInt64(cdb.bigEndian(at: 6, as: UInt32.self))))
        default:
            transfer = BlockTransfer(
                .sixteen, lba: LBA(cdb.bigEndian(at: 2)),
                count: BlockCount(UInt64(cdb.bigEndian(at: 10, as: UInt32.self))))
        }
        transfer.protect = cdb[1] >> 5
        transfer.dpo = cdb[1] & 0x10 != 0
        transfer.fua = cdb[1] & 0x08 != 0
        return transfer
    }

    private static func byteCheck(_ cdb: [UInt8]) throws(CheckCondition) -> ByteCheck {
        guard let check = ByteCheck(rawValue: cdb[1] >> 1 & 3) else { throw .cdb(1, bit: 2) }
        return check
    }

    private static func writeSame(_ cdb: [UInt8]) throws(CheckCondition) -> WriteSame {
        // PBDATA and LBDATA, as in the sixteen-byte form; the last bit is reserved here.
        for bit in [2, 1, 0] as [UInt8] where cdb[1] & 1 << bit != 0 { throw .cdb(1, bit: bit) }
        var same = WriteSame(
            lba: LBA(UInt64(cdb.bigEndian(at: 2, as: UInt32.self))),
            count: BlockCount(UInt64(cdb.bigEndian(at: 7, as: UInt16.self))), unmap: cdb[1] & 0x08 != 0)
        same.protect = cdb[1] >> 5
        same.anchor = cdb[1] & 0x10 != 0
        return same
    }

    // MARK: Encoding

    /// The CDB. Traps where a field does not fit the form that was chosen, which is the caller's bug.
    func encoded() -> [UInt8] {
        switch self {
        case .verify(let transfer, let check):
            Self.encode(
                transfer, [.ten: .verify10, .twelve: .verify12, .sixteen: .verify16], check.rawValue << 1)
        case .writeAndVerify(let transfer, let check):
            Self.encode(
                transfer, [.ten: .writeAndVerify10, .twelve: .writeAndVerify12, .sixteen: .writeAndVerify16],
                check.rawValue << 1)
        case .prefetch(let transfer, let immediate):
            Self.encode(transfer, [.ten: .prefetch10, .sixteen: .prefetch16], immediate ? 2 : 0)
        case .writeSame10(let same):
            Self.cdb(.writeSame10) {
                $0.set(
                    same.protect << 5 | UInt8(same.anchor ? 0x10 : 0) | UInt8(same.unmap ? 0x08 : 0), at: 1)
                $0.set(UInt32(same.lba.value), at: 2)
                $0.set(UInt16(same.count.value), at: 7)
            }
        case .compareAndWrite(let transfer):
            Self.cdb(.compareAndWrite) {
                $0.set(Self.flags(transfer), at: 1)
                $0.set(transfer.lba.value, at: 2)
                $0.set(UInt8(transfer.count.value), at: 13)
            }
        case .orWrite(let transfer): Self.encode(transfer, [.sixteen: .orWrite16], 0)
        case .unmap(let anchor, let length):
            Self.cdb(.unmap) {
                $0.set(UInt8(anchor ? 1 : 0), at: 1)
                $0.set(UInt16(length), at: 7)
            }
        case .getLBAStatus(let lba, let length):
            Self.cdb(.serviceActionIn16) {
                $0.set(ServiceAction.getLBAStatus, at: 1)
                $0.set(lba.value, at: 2)
                $0.set(UInt32(length), at: 10)
            }
        case .readDefectData(let fields): fields.encoded()
        case .startStop(let start, let eject, let power):
            Self.cdb(.startStopUnit) { $0.set(power << 4 | (eject ? 2 : 0) | (start ? 1 : 0), at: 4) }
        case .preventAllow(let prevent):
            Self.cdb(.preventAllowMediumRemoval) { $0.set(prevent, at: 4) }
        }
    }

    private static func flags(_ transfer: BlockTransfer) -> UInt8 {
        transfer.protect << 5 | (transfer.dpo ? 0x10 : 0) | (transfer.fua ? 0x08 : 0)
    }

    private static func encode(
        _ transfer: BlockTransfer, _ codes: [CDBForm: OperationCode], _ more: UInt8
    ) -> [UInt8] {
        guard let code = codes[transfer.form] else { preconditionFailure("the command has no such form") }
        return cdb(code) {
            $0.set(flags(transfer) | more, at: 1)
            switch transfer.form {
            case .six, .ten:
                $0.set(UInt32(transfer.lba.value), at: 2)
                $0.set(UInt16(transfer.count.value), at: 7)
            case .twelve:
                $0.set(UInt32(transfer.lba.value), at: 2)
                $0.set(UInt32(transfer.count.value), at: 6)
            case .sixteen:
                $0.set(transfer.lba.value, at: 2)
                $0.set(UInt32(transfer.count.value), at: 10)
            }
        }
    }

    private static func cdb(_ code: OperationCode, _ fill: (inout BigEndianWriter) -> Void) -> [UInt8] {
        Command.cdb(code, fill)
    }
}
