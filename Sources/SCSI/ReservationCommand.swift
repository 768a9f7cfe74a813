import Blocks

/// The commands of reservations, persistent ones and those of SPC-2.
public enum ReservationCommand: Hashable, Sendable {
    /// SPC-4 §6.15. The allocation length in bytes.
    case persistentIn(PersistentReserveInAction, allocationLength: Int)
    /// SPC-4 §6.16.
    case persistentOut(PersistentReserveOut)
    /// RESERVE (6), the whole unit (SPC-2 §7.21).
    case reserve6
    /// RELEASE (6) (SPC-2 §7.16).
    case release6

    /// Nil for an operation code that is none of these.
    init?(_ code: OperationCode, _ cdb: [UInt8]) throws(CheckCondition) {
        switch code {
        case .persistentReserveIn:
            guard let action = PersistentReserveInAction(rawValue: cdb[1] & 0x1F) else {
                throw .cdb(1, bit: 4)
            }
            self = .persistentIn(action, allocationLength: Int(cdb.bigEndian(at: 7, as: UInt16.self)))
        case .persistentReserveOut: self = .persistentOut(try PersistentReserveOut(decoding: cdb))
        case .reserve6, .release6:
            // Neither third-party reservations nor those of extents.
            if cdb[1] & 0x10 != 0 { throw .cdb(1, bit: 4) }
            if cdb[1] & 0x01 != 0 { throw .cdb(1, bit: 0) }
            self = code == .reserve6 ? .reserve6 : .release6
        default: return nil
        }
    }

    func encoded() -> [UInt8] {
        switch self {
        case .persistentIn(let action, let length):
            var cdb = [OperationCode.persistentReserveIn.rawValue, action.rawValue, 0, 0, 0, 0, 0]
            cdb += [UInt8(length >> 8), UInt8(length & 0xFF), 0]
            return cdb
        case .persistentOut(let fields):
            var writer = BigEndianWriter(reserving: 10)
            writer.append([OperationCode.persistentReserveOut.rawValue, fields.action.rawValue])
            writer.append([fields.scope << 4 | fields.type & 0xF, 0, 0])
            writer.integer(UInt32(fields.parameterListLength))
            writer.integer(UInt8(0))
            return writer.bytes
        case .reserve6: return [OperationCode.reserve6.rawValue, 0, 0, 0, 0, 0]
        case .release6: return [OperationCode.release6.rawValue, 0, 0, 0, 0, 0]
        }
    }
}

/// The service actions of MAINTENANCE IN (A3h) that tell what a unit can do. Allocation lengths in bytes.
public enum CapabilityReport: Hashable, Sendable {
    /// Which operations REPORT SUPPORTED OPERATION CODES tells (SPC-4 table 261).
    public enum Selection: Hashable, Sendable {
        case all
        /// 001b: an operation code that has no service actions.
        case code(OperationCode)
        /// 010b: a service action of an operation code that has them.
        case serviceAction(OperationCode, UInt16)
        /// 011b: either; one that is not there is told as unsupported.
        case either(OperationCode, UInt16)
    }

    /// REPORT SUPPORTED OPERATION CODES (SPC-4 §6.35).
    case operationCodes(Selection, timeouts: Bool, allocationLength: Int)
    /// REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS (SPC-4 §6.36).
    case taskManagementFunctions(extended: Bool, allocationLength: Int)

    init(decoding cdb: [UInt8]) throws(CheckCondition) {
        let length = Int(cdb.bigEndian(at: 6, as: UInt32.self))
        switch cdb[1] & 0x1F {
        case ServiceAction.reportSupportedOperationCodes:
            let code = OperationCode(rawValue: cdb[3])
            let action = cdb.bigEndian(at: 4, as: UInt16.self)
            let selection: Selection
            switch cdb[2] & 7 {
            case 0: selection = .all
            case 1: selection = .code(code)
            case 2: selection = .serviceAction(code, action)
            case 3: selection = .either(code, action)
            default: throw .cdb(2, bit: 2)
            }
            self = .operationCodes(selection, timeouts: cdb[2] & 0x80 != 0, allocationLength: length)
        case ServiceAction.reportSupportedTaskManagementFunctions:
            // SPC-4 §6.36: fewer than 4 bytes is an error.
            guard length >= 4 else { throw .cdb(6) }
            self = .taskManagementFunctions(extended: cdb[2] & 0x80 != 0, allocationLength: length)
        default: throw .cdb(1, bit: 4)
        }
    }

    func encoded() -> [UInt8] {
        var writer = BigEndianWriter(reserving: 12)
        writer.integer(OperationCode.maintenanceIn.rawValue)
        switch self {
        case .operationCodes(let selection, let timeouts, let length):
            let (option, code, action): (UInt8, UInt8, UInt16) =
                switch selection {
                case .all: (0, 0, 0)
                case .code(let code): (1, code.rawValue, 0)
                case .serviceAction(let code, let action): (2, code.rawValue, action)
                case .either(let code, let action): (3, code.rawValue, action)
                }
            writer.append([ServiceAction.reportSupportedOperationCodes, (timeouts ? 0x80 : 0) | option, code])
            writer.integer(action)
            writer.integer(UInt32(length))
        case .taskManagementFunctions(let extended, let length):
            writer.append([ServiceAction.reportSupportedTaskManagementFunctions, extended ? 0x80 : 0])
            writer.zeros(3)
            writer.integer(UInt32(length))
        }
        writer.zeros(2)
        return writer.bytes
    }
}
