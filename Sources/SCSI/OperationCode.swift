/// The first byte of a CDB (SPC-4 table E.2).
public struct OperationCode: RawRepresentable, Hashable, Sendable {
    public let rawValue: UInt8
    public init(rawValue: UInt8) { self.rawValue = rawValue }

    public static let testUnitReady = OperationCode(rawValue: 0x00)
    public static let requestSense = OperationCode(rawValue: 0x03)
    public static let read6 = OperationCode(rawValue: 0x08)
    public static let write6 = OperationCode(rawValue: 0x0A)
    public static let inquiry = OperationCode(rawValue: 0x12)
    public static let reserve6 = OperationCode(rawValue: 0x16)
    public static let release6 = OperationCode(rawValue: 0x17)
    public static let modeSense6 = OperationCode(rawValue: 0x1A)
    public static let readCapacity10 = OperationCode(rawValue: 0x25)
    public static let read10 = OperationCode(rawValue: 0x28)
    public static let write10 = OperationCode(rawValue: 0x2A)
    public static let synchronizeCache10 = OperationCode(rawValue: 0x35)
    public static let modeSense10 = OperationCode(rawValue: 0x5A)
    public static let persistentReserveIn = OperationCode(rawValue: 0x5E)
    public static let persistentReserveOut = OperationCode(rawValue: 0x5F)
    /// THIRD-PARTY COPY OUT; EXTENDED COPY (LID1) is its service action 00h.
    public static let extendedCopy = OperationCode(rawValue: 0x83)
    /// THIRD-PARTY COPY IN, formerly RECEIVE COPY RESULTS.
    public static let receiveCopyResults = OperationCode(rawValue: 0x84)
    public static let read16 = OperationCode(rawValue: 0x88)
    public static let write16 = OperationCode(rawValue: 0x8A)
    public static let synchronizeCache16 = OperationCode(rawValue: 0x91)
    public static let writeSame16 = OperationCode(rawValue: 0x93)
    public static let serviceActionIn16 = OperationCode(rawValue: 0x9E)
    public static let reportLUNs = OperationCode(rawValue: 0xA0)
    public static let maintenanceIn = OperationCode(rawValue: 0xA3)
    public static let read12 = OperationCode(rawValue: 0xA8)
    public static let write12 = OperationCode(rawValue: 0xAA)

    /// The length of the CDB that the operation code's group gives (SAM-5 §5.2; SPC-4 §4.2.5.1), bytes.
    /// Nil for the reserved and vendor-specific groups.
    public var cdbLength: Int? {
        switch rawValue >> 5 {
        case 0: 6
        case 1, 2: 10
        case 4: 16
        case 5: 12
        default: nil
        }
    }
}

/// Service actions of THIRD-PARTY COPY OUT, SERVICE ACTION IN (16) and so on.
public enum ServiceAction {
    /// EXTENDED COPY (LID1), under 83h.
    public static let extendedCopyLID1: UInt8 = 0x00
    /// EXTENDED COPY (LID4), under 83h.
    public static let extendedCopyLID4: UInt8 = 0x01
    /// COPY OPERATION ABORT, under 83h.
    public static let copyOperationAbort: UInt8 = 0x1C
    /// READ CAPACITY (16), under 9Eh (SBC-3 §5.16).
    public static let readCapacity16: UInt8 = 0x10
    /// REPORT SUPPORTED OPERATION CODES, under A3h (SPC-4 §6.35).
    public static let reportSupportedOperationCodes: UInt8 = 0x0C
    /// REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS, under A3h (SPC-4 §6.36).
    public static let reportSupportedTaskManagementFunctions: UInt8 = 0x0D
}

/// Which results RECEIVE COPY RESULTS (84h) asks for.
public struct CopyResultsServiceAction: RawRepresentable, Hashable, Sendable {
    public let rawValue: UInt8
    public init(rawValue: UInt8) { self.rawValue = rawValue & 0x1F }

    /// RECEIVE COPY STATUS (LID1).
    public static let copyStatus = CopyResultsServiceAction(rawValue: 0x00)
    /// RECEIVE COPY DATA (LID1): held data; nothing that block-to-block segments make.
    public static let receiveData = CopyResultsServiceAction(rawValue: 0x01)
    /// RECEIVE COPY OPERATING PARAMETERS.
    public static let operatingParameters = CopyResultsServiceAction(rawValue: 0x03)
    /// RECEIVE COPY FAILURE DETAILS (LID1), in SPC-3 FAILED SEGMENT DETAILS.
    public static let failedSegmentDetails = CopyResultsServiceAction(rawValue: 0x04)
    /// RECEIVE COPY STATUS (LID4).
    public static let copyStatusLID4 = CopyResultsServiceAction(rawValue: 0x05)
}

/// Peripheral device types (SPC-4 table 147); the ones that matter here.
public enum PeripheralDeviceType {
    public static let directAccessBlock: UInt8 = 0x00
    /// No device at this logical unit number, with qualifier 011b.
    public static let unknown: UInt8 = 0x1F
}
