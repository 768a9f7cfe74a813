import Blocks
import SCSI

/// Every operation that the device knows: what REPORT SUPPORTED OPERATION CODES tells, and what a reservation
/// of somebody else does to it (the tables of commands that are allowed in the presence of reservations in SPC-2 to SPC-4
/// and SBC).
struct Operation: Sendable {
    /// Who may do it while somebody else holds a reservation.
    enum Access: Sendable {
        /// Everybody.
        case all
        /// Like a read: all but those whom an exclusive access reservation shuts out.
        case read
        /// Like a write: those only whom the reservation admits.
        case write
        /// The reservations decide it by themselves.
        case reservation
    }

    let code: OperationCode
    let serviceAction: UInt8?
    let access: Access
    /// CDB USAGE DATA: the operation code, the service action where there is one, and then for each bit
    /// whether it is looked at.
    let usage: [UInt8]

    init(_ code: OperationCode, _ access: Access, _ mask: [UInt8]) { self.init(code, nil, access, mask) }

    init(_ code: OperationCode, _ serviceAction: UInt8?, _ access: Access, _ mask: [UInt8]) {
        self.code = code
        self.serviceAction = serviceAction
        self.access = access
        var usage = [code.rawValue] + mask
        if let serviceAction { usage[1] |= serviceAction }
        precondition(usage.count == code.cdbLength, "a usage mask as long as the CDB")
        self.usage = usage
    }
}

enum OperationTable {
    private static let none6: [UInt8] = [0, 0, 0, 0, 0]
    private static let transfer6: [UInt8] = [0x1F, 0xFF, 0xFF, 0xFF, 0]
    private static let transfer10: [UInt8] = [0xF8, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, 0]
    private static let transfer12: [UInt8] =
        [0xF8] + [UInt8](repeating: 0xFF, count: 8) + [0, 0]
    private static func wide(_ flags: UInt8) -> [UInt8] {
        [flags] + [UInt8](repeating: 0xFF, count: 12) + [0, 0]
    }
    /// An allocation or parameter list length in bytes 10 to 13.
    private static func thirdParty(_ listIdentifier: UInt8) -> [UInt8] {
        [0, listIdentifier, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0]
    }

    /// Mode, buffer, offset, length.
    private static let buffer: [UInt8] = [0x1F] + [UInt8](repeating: 0xFF, count: 7) + [0]

    /// A list identifier of 32 bits, and a length.
    private static let longIdentifier: [UInt8] = [0] + [UInt8](repeating: 0xFF, count: 4) + [0, 0, 0, 0]

    /// A list identifier in bytes 6 to 9, a parameter list length behind it.
    private static let token: [UInt8] =
        [0, 0, 0, 0, 0] + [UInt8](repeating: 0xFF, count: 8) + [0, 0]

    static let all: [Operation] = primary + blocks + otherBlocks + reservations

    private static let primary: [Operation] = [
        Operation(.testUnitReady, .all, none6),
        Operation(.requestSense, .all, [0x01, 0, 0, 0xFF, 0]),
        Operation(.inquiry, .all, [0x01, 0xFF, 0xFF, 0xFF, 0]),
        Operation(.modeSelect6, .write, [0x11, 0, 0, 0xFF, 0]),
        Operation(.modeSelect10, .write, [0x11, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0]),
        Operation(.modeSense6, .read, [0x08, 0xFF, 0xFF, 0xFF, 0]),
        Operation(.modeSense10, .read, [0x18, 0xFF, 0xFF, 0, 0, 0, 0xFF, 0xFF, 0]),
        Operation(.reportLUNs, .all, [0, 0xFF, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0]),
        Operation(
            .maintenanceIn, ServiceAction.reportSupportedOperationCodes, .read,
            [0, 0x87, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0]),
        Operation(
            .maintenanceIn, ServiceAction.reportSupportedTaskManagementFunctions, .read,
            [0, 0x80, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0]),
        Operation(.writeBuffer, .write, buffer),
        Operation(.readBuffer, .write, buffer),
        Operation(.extendedCopy, ServiceAction.extendedCopyLID1, .write, thirdParty(0)),
        Operation(.extendedCopy, ServiceAction.extendedCopyLID4, .write, thirdParty(0)),
        Operation(
            .extendedCopy, ServiceAction.copyOperationAbort, .write,
            longIdentifier + [0, 0, 0, 0, 0, 0]),
        Operation(.extendedCopy, ServiceAction.populateToken, .read, token),
        Operation(.extendedCopy, ServiceAction.writeUsingToken, .write, token),
        Operation(
            .receiveCopyResults, CopyResultsServiceAction.tokenInformation.rawValue, .write,
            longIdentifier + [0xFF, 0xFF, 0xFF, 0xFF, 0, 0]),
        Operation(.receiveCopyResults, CopyResultsServiceAction.allTokens.rawValue, .write, thirdParty(0)),
        Operation(
            .receiveCopyResults, CopyResultsServiceAction.copyStatusLID4.rawValue, .all,
            longIdentifier + [0xFF, 0xFF, 0xFF, 0xFF, 0, 0]),
        Operation(
            .receiveCopyResults, CopyResultsServiceAction.copyStatus.rawValue, .all, thirdParty(0xFF)),
        Operation(
            .receiveCopyResults, CopyResultsServiceAction.operatingParameters.rawValue, .all, thirdParty(0)),
        Operation(
            .receiveCopyResults, CopyResultsServiceAction.failedSegmentDetails.rawValue, .all,
            thirdParty(0xFF)),
    ]

    private static let blocks: [Operation] = [
        Operation(.read6, .read, transfer6),
        Operation(.read10, .read, transfer10),
        Operation(.read12, .read, transfer12),
        Operation(.read16, .read, wide(0xF8)),
        Operation(.write6, .write, transfer6),
        Operation(.write10, .write, transfer10),
        Operation(.write12, .write, transfer12),
        Operation(.write16, .write, wide(0xF8)),
        Operation(.readCapacity10, .all, [0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0x01, 0]),
        Operation(
            .serviceActionIn16, ServiceAction.readCapacity16, .all,
            [0] + [UInt8](repeating: 0xFF, count: 12) + [0x01, 0]),
        Operation(.synchronizeCache10, .write, [0x02, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, 0]),
        Operation(.synchronizeCache16, .write, wide(0x02)),
        Operation(.writeSame16, .write, wide(0xF9)),
    ]

    private static let otherBlocks: [Operation] = [
        Operation(.verify10, .read, [0xF6, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, 0]),
        Operation(.verify12, .read, [0xF6] + [UInt8](repeating: 0xFF, count: 8) + [0, 0]),
        Operation(.verify16, .read, wide(0xF6)),
        Operation(.writeAndVerify10, .write, [0xF6, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, 0]),
        Operation(.writeAndVerify12, .write, [0xF6] + [UInt8](repeating: 0xFF, count: 8) + [0, 0]),
        Operation(.writeAndVerify16, .write, wide(0xF6)),
        Operation(.prefetch10, .read, [0x02, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, 0]),
        Operation(.prefetch16, .read, wide(0x02)),
        Operation(.unmap, .write, [0x01, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0]),
        Operation(.writeSame10, .write, transfer10),
        Operation(
            .compareAndWrite, .write,
            [0xF8] + [UInt8](repeating: 0xFF, count: 8) + [0, 0, 0, 0xFF, 0, 0]),
        Operation(.orWrite16, .write, wide(0xF8)),
        Operation(.serviceActionIn16, ServiceAction.getLBAStatus, .read, wide(0)),
        Operation(.readDefectData10, .read, [0, 0x1F, 0, 0, 0, 0, 0xFF, 0xFF, 0]),
        Operation(.readDefectData12, .read, [0x1F, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0]),
        Operation(.startStopUnit, .write, [0, 0, 0, 0xF3, 0]),
        Operation(.preventAllowMediumRemoval, .write, [0, 0, 0, 0x03, 0]),
    ]

    private static let reservations: [Operation] =
        [Operation(.reserve6, .reservation, none6), Operation(.release6, .reservation, none6)]
        + PersistentReserveInAction.allCases.map {
            Operation(.persistentReserveIn, $0.rawValue, .reservation, [0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0])
        }
        + PersistentReserveOutAction.allCases.map {
            Operation(
                .persistentReserveOut, $0.rawValue, .reservation, [0, 0xFF, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0])
        }

    private static let byCode = Dictionary(grouping: all, by: \.code)

    static func operations(of code: OperationCode) -> [Operation] { byCode[code] ?? [] }

    /// Nothing can be unmapped at a unit that is fully provisioned; one that is read-only says that it is.
    private static func isSupported(_ code: OperationCode, by unit: LogicalUnit) -> Bool {
        unit.isThin || unit.isReadOnly || code != .unmap
    }

    static func operation(_ code: OperationCode, _ serviceAction: UInt16) -> Operation? {
        operations(of: code).first { $0.serviceAction.map(UInt16.init) ?? serviceAction == serviceAction }
    }

    /// What a reservation does to a command. One that is not in the table is taken for a write.
    static func access(of cdb: [UInt8]) -> Operation.Access {
        guard cdb.count > 1 else { return .write }
        let code = OperationCode(rawValue: cdb[0])
        // Harmless in one direction only: to start, with no power condition, and to allow removal.
        if code == .startStopUnit || code == .preventAllowMediumRemoval, cdb.count > 4 {
            let isHarmless = code == .startStopUnit ? cdb[4] & 0xF1 == 0x01 : cdb[4] & 0x03 == 0
            return isHarmless ? .all : .write
        }
        let found = operations(of: code)
        return (found.first { $0.serviceAction.map { $0 == cdb[1] & 0x1F } ?? true })?.access ?? .write
    }

    /// Whether a command may write blocks of the unit that it is addressed to by itself. What copies write is known
    /// when they are planned.
    static func writesBlocks(_ cdb: [UInt8]) -> Bool {
        let others: [OperationCode] = [
            .extendedCopy, .receiveCopyResults, .modeSelect6, .modeSelect10, .writeBuffer, .readBuffer,
        ]
        return access(of: cdb) == .write && !others.contains { $0.rawValue == cdb.first }
    }

    // MARK: What is told

    /// At one unit: not all have the same operations.
    static func report(
        _ report: CapabilityReport, _ unit: LogicalUnit
    ) throws(CheckCondition) -> SCSIOutcome {
        switch report {
        case .operationCodes(let selection, let timeouts, let length):
            return .data(try data(selection, timeouts, unit), allocationLength: length)
        case .taskManagementFunctions(let extended, let length):
            // ABORT TASK, ABORT TASK SET, CLEAR TASK SET, LOGICAL UNIT RESET and TARGET RESET; time-outs are not told.
            let data: [UInt8] =
                [0xDA, 0, 0, extended ? 12 : 0] + [UInt8](repeating: 0, count: extended ? 12 : 0)
            return .data(data, allocationLength: length)
        }
    }

    private static func data(
        _ selection: CapabilityReport.Selection, _ timeouts: Bool, _ unit: LogicalUnit
    ) throws(CheckCondition) -> [UInt8] {
        switch selection {
        case .all: return list(all.filter { isSupported($0.code, by: unit) }, timeouts)
        case .code(let code):
            let found = isSupported(code, by: unit) ? operations(of: code) : []
            if found.contains(where: { $0.serviceAction != nil }) {
                throw CheckCondition(.invalidFieldInCDB(byte: 2, bit: 2))
            }
            return describe(found.first, timeouts)
        case .serviceAction(let code, let action):
            let found = operations(of: code)
            if found.contains(where: { $0.serviceAction == nil }) {
                throw CheckCondition(.invalidFieldInCDB(byte: 2, bit: 2))
            }
            return describe(operation(code, action), timeouts)
        case .either(let code, let action):
            let found = isSupported(code, by: unit) ? operation(code, action) : nil
            return describe(found?.serviceAction == nil && action != 0 ? nil : found, timeouts)
        }
    }

    /// The command timeouts descriptor, in which nothing is indicated (SPC-4 §6.35.4).
    private static let timeoutsDescriptor: [UInt8] = [0, 10] + [UInt8](repeating: 0, count: 10)

    private static func list(_ operations: [Operation], _ timeouts: Bool) -> [UInt8] {
        var writer = BigEndianWriter()
        writer.integer(UInt32(operations.count * (timeouts ? 20 : 8)))
        for operation in operations {
            writer.append([operation.code.rawValue, 0])
            writer.integer(UInt16(operation.serviceAction ?? 0))
            writer.append([0, (timeouts ? 0x02 : 0) | (operation.serviceAction == nil ? 0 : 0x01)])
            writer.integer(UInt16(operation.usage.count))
            if timeouts { writer.append(timeoutsDescriptor) }
        }
        return writer.bytes
    }

    private static func describe(_ operation: Operation?, _ timeouts: Bool) -> [UInt8] {
        // SUPPORT: 001b not supported, 011b as the standard has it.
        guard let operation else { return [0, 0x01, 0, 0] }
        let header: [UInt8] = [0, (timeouts ? 0x80 : 0) | 0x03, 0, UInt8(operation.usage.count)]
        return header + operation.usage + (timeouts ? timeoutsDescriptor : [])
    }
}
