import Blocks

/// SPC-4 table 55.
public enum SenseKey: UInt8, Hashable, Sendable {
    case noSense = 0x0
    case recoveredError = 0x1
    case notReady = 0x2
    case mediumError = 0x3
    case hardwareError = 0x4
    case illegalRequest = 0x5
    case unitAttention = 0x6
    case dataProtect = 0x7
    case blankCheck = 0x8
    case vendorSpecific = 0x9
    case copyAborted = 0xA
    case abortedCommand = 0xB
    case reserved = 0xC
    case volumeOverflow = 0xD
    case miscompare = 0xE
    case completed = 0xF
}

/// Additional sense code (high byte) and qualifier (low byte) (SPC-4 annex E.2).
public struct AdditionalSenseCode: RawRepresentable, Hashable, Sendable {
    public let rawValue: UInt16
    public init(rawValue: UInt16) { self.rawValue = rawValue }

    public static let noAdditionalSense = AdditionalSenseCode(rawValue: 0x0000)
    public static let operationInProgress = AdditionalSenseCode(rawValue: 0x0016)
    public static let extendedCopyInformationAvailable = AdditionalSenseCode(rawValue: 0x0020)
    public static let logicalUnitNotReady = AdditionalSenseCode(rawValue: 0x0400)
    public static let unreachableCopyTarget = AdditionalSenseCode(rawValue: 0x0804)
    public static let writeError = AdditionalSenseCode(rawValue: 0x0C00)
    public static let thirdPartyDeviceFailure = AdditionalSenseCode(rawValue: 0x0D01)
    public static let copyTargetDeviceNotReachable = AdditionalSenseCode(rawValue: 0x0D02)
    public static let incorrectCopyTargetDeviceType = AdditionalSenseCode(rawValue: 0x0D03)
    public static let copyTargetDeviceDataUnderrun = AdditionalSenseCode(rawValue: 0x0D04)
    public static let copyTargetDeviceDataOverrun = AdditionalSenseCode(rawValue: 0x0D05)
    public static let unrecoveredReadError = AdditionalSenseCode(rawValue: 0x1100)
    public static let parameterListLengthError = AdditionalSenseCode(rawValue: 0x1A00)
    public static let synchronousDataTransferError = AdditionalSenseCode(rawValue: 0x1B00)
    public static let miscompareDuringVerify = AdditionalSenseCode(rawValue: 0x1D00)
    public static let invalidOperationCode = AdditionalSenseCode(rawValue: 0x2000)
    public static let logicalBlockAddressOutOfRange = AdditionalSenseCode(rawValue: 0x2100)
    public static let unsupportedTokenType = AdditionalSenseCode(rawValue: 0x2301)
    public static let tokenUnknown = AdditionalSenseCode(rawValue: 0x2304)
    public static let tokenCorrupt = AdditionalSenseCode(rawValue: 0x2305)
    public static let tokenRevoked = AdditionalSenseCode(rawValue: 0x2306)
    public static let tokenExpired = AdditionalSenseCode(rawValue: 0x2307)
    public static let tokenDeleted = AdditionalSenseCode(rawValue: 0x2309)
    public static let invalidTokenLength = AdditionalSenseCode(rawValue: 0x230A)
    public static let invalidFieldInCDB = AdditionalSenseCode(rawValue: 0x2400)
    public static let logicalUnitNotSupported = AdditionalSenseCode(rawValue: 0x2500)
    public static let invalidFieldInParameterList = AdditionalSenseCode(rawValue: 0x2600)
    public static let tooManyCSCDDescriptors = AdditionalSenseCode(rawValue: 0x2606)
    public static let unsupportedCSCDDescriptorType = AdditionalSenseCode(rawValue: 0x2607)
    public static let tooManySegmentDescriptors = AdditionalSenseCode(rawValue: 0x2608)
    public static let unsupportedSegmentDescriptorType = AdditionalSenseCode(rawValue: 0x2609)
    public static let unexpectedInexactSegment = AdditionalSenseCode(rawValue: 0x260A)
    public static let inlineDataLengthExceeded = AdditionalSenseCode(rawValue: 0x260B)
    public static let invalidOperationForCopySourceOrDestination = AdditionalSenseCode(rawValue: 0x260C)
    public static let copySegmentGranularityViolation = AdditionalSenseCode(rawValue: 0x260D)
    public static let writeProtected = AdditionalSenseCode(rawValue: 0x2700)
    public static let softwareWriteProtected = AdditionalSenseCode(rawValue: 0x2702)
    public static let spaceAllocationFailedWriteProtect = AdditionalSenseCode(rawValue: 0x2707)
    public static let powerOnOrReset = AdditionalSenseCode(rawValue: 0x2900)
    public static let busDeviceReset = AdditionalSenseCode(rawValue: 0x2903)
    public static let nexusLossOccurred = AdditionalSenseCode(rawValue: 0x2907)
    public static let invalidReleaseOfPersistentReservation = AdditionalSenseCode(rawValue: 0x2604)
    public static let modeParametersChanged = AdditionalSenseCode(rawValue: 0x2A01)
    public static let reservationsPreempted = AdditionalSenseCode(rawValue: 0x2A03)
    public static let reservationsReleased = AdditionalSenseCode(rawValue: 0x2A04)
    public static let registrationsPreempted = AdditionalSenseCode(rawValue: 0x2A05)
    public static let insufficientRegistrationResources = AdditionalSenseCode(rawValue: 0x5504)
    public static let commandsClearedByAnotherInitiator = AdditionalSenseCode(rawValue: 0x2F00)
    public static let commandsClearedByDeviceServer = AdditionalSenseCode(rawValue: 0x2F02)
    public static let savingParametersNotSupported = AdditionalSenseCode(rawValue: 0x3900)
    public static let reportedLUNsDataHasChanged = AdditionalSenseCode(rawValue: 0x3F0E)
    public static let internalTargetFailure = AdditionalSenseCode(rawValue: 0x4400)
    public static let incorrectAmountOfData = AdditionalSenseCode(rawValue: 0x0C0D)
    public static let protocolServiceCRCError = AdditionalSenseCode(rawValue: 0x4705)
    public static let dataPhaseError = AdditionalSenseCode(rawValue: 0x4B00)
    public static let overlappedCommandsAttempted = AdditionalSenseCode(rawValue: 0x4E00)
    public static let insufficientResources = AdditionalSenseCode(rawValue: 0x5503)
    public static let insufficientResourcesToCreateRODToken = AdditionalSenseCode(rawValue: 0x550D)
}

/// What the SENSE KEY SPECIFIC field says (SPC-4 §4.5.2.4).
public enum SenseKeySpecific: Hashable, Sendable {
    /// For ILLEGAL REQUEST: the field in error, in the CDB or in the parameter list. `bit` is its most
    /// significant bit, if told.
    case fieldPointer(inCDB: Bool, byte: UInt16, bit: UInt8?)
    /// For COPY ABORTED: the field in error, counted from the start of the segment descriptor in question or
    /// from the start of the parameter list.
    case segmentPointer(inSegmentDescriptor: Bool, byte: UInt16, bit: UInt8?)
    /// For NO SENSE and NOT READY: progress in parts of 65,536.
    case progress(UInt16)
    /// For the error keys: how often was tried.
    case retryCount(UInt16)

    /// The three bytes with SKSV set.
    var encoded: (UInt8, UInt16) {
        switch self {
        case .fieldPointer(let inCDB, let byte, let bit):
            (0x80 | (inCDB ? 0x40 : 0) | Self.bitPointer(bit), byte)
        case .segmentPointer(let inSegment, let byte, let bit):
            (0x80 | (inSegment ? 0x20 : 0) | Self.bitPointer(bit), byte)
        case .progress(let value), .retryCount(let value): (0x80, value)
        }
    }

    private static func bitPointer(_ bit: UInt8?) -> UInt8 { bit.map { 0x08 | ($0 & 7) } ?? 0 }

    init?(flags: UInt8, value: UInt16, key: SenseKey) {
        guard flags & 0x80 != 0 else { return nil }
        let bit = flags & 0x08 != 0 ? flags & 7 : nil
        switch key {
        case .illegalRequest: self = .fieldPointer(inCDB: flags & 0x40 != 0, byte: value, bit: bit)
        case .copyAborted:
            self = .segmentPointer(inSegmentDescriptor: flags & 0x20 != 0, byte: value, bit: bit)
        case .noSense, .notReady: self = .progress(value)
        case .recoveredError, .mediumError, .hardwareError: self = .retryCount(value)
        default: return nil
        }
    }
}

/// Sense data (SPC-4 §4.5), apart from the two forms in which they are carried.
public struct SenseData: Hashable, Sendable {
    /// Of an earlier command (response codes 71h, 73h).
    public var isDeferred = false
    public var key: SenseKey
    public var code: AdditionalSenseCode
    /// The INFORMATION field, e.g. the first LBA that failed. In fixed form it is left out where it does not
    /// fit 32 bits.
    public var information: UInt64?
    /// The COMMAND-SPECIFIC INFORMATION field; see ``copyAborted(_:segment:pointer:information:)``.
    public var commandSpecificInformation: UInt64?
    public var specific: SenseKeySpecific?

    public init(
        _ key: SenseKey, _ code: AdditionalSenseCode, information: UInt64? = nil,
        commandSpecificInformation: UInt64? = nil, specific: SenseKeySpecific? = nil
    ) {
        self.key = key
        self.code = code
        self.information = information
        self.commandSpecificInformation = commandSpecificInformation
        self.specific = specific
    }

    /// ILLEGAL REQUEST, INVALID FIELD IN CDB, with the field's place.
    public static func invalidFieldInCDB(byte: Int, bit: UInt8? = nil) -> SenseData {
        SenseData(
            .illegalRequest, .invalidFieldInCDB,
            specific: .fieldPointer(inCDB: true, byte: UInt16(clamping: byte), bit: bit))
    }

    /// ILLEGAL REQUEST with the place in the parameter list; by default INVALID FIELD IN PARAMETER LIST.
    public static func invalidFieldInParameterList(
        byte: Int, bit: UInt8? = nil, code: AdditionalSenseCode = .invalidFieldInParameterList
    ) -> SenseData {
        SenseData(
            .illegalRequest, code,
            specific: .fieldPointer(inCDB: false, byte: UInt16(clamping: byte), bit: bit))
    }

    /// ILLEGAL REQUEST, PARAMETER LIST LENGTH ERROR.
    public static let parameterListLengthError = SenseData(.illegalRequest, .parameterListLengthError)
    /// ILLEGAL REQUEST, INVALID COMMAND OPERATION CODE.
    public static let invalidOperationCode = SenseData(.illegalRequest, .invalidOperationCode)

    /// COPY ABORTED while segment number `segment` was processed: the number stands in the third and fourth
    /// byte of the four-byte COMMAND-SPECIFIC INFORMATION (SPC-2 §7.2.3). The first two are 0: there is no area with
    /// sense data of the source's or of the destination's, because the copy manager sends them no commands.
    /// - Parameter information: the residue in destination blocks, where some of the segment was written.
    public static func copyAborted(
        _ code: AdditionalSenseCode, segment: UInt16, pointer: SenseKeySpecific? = nil,
        information: UInt64? = nil
    ) -> SenseData {
        SenseData(
            .copyAborted, code, information: information, commandSpecificInformation: UInt64(segment),
            specific: pointer)
    }

    /// Fixed form (SPC-4 §4.5.3): 18 bytes.
    public func encodedFixed() -> [UInt8] {
        var writer = BigEndianWriter(reserving: 18)
        let info = information.flatMap { UInt32(exactly: $0) }
        writer.integer(UInt8((info == nil ? 0 : 0x80) | (isDeferred ? 0x71 : 0x70)))
        writer.integer(UInt8(0))
        writer.integer(key.rawValue)
        writer.integer(info ?? 0)
        writer.integer(UInt8(10))
        writer.integer(commandSpecificInformation.flatMap { UInt32(exactly: $0) } ?? 0)
        writer.integer(code.rawValue)
        writer.integer(UInt8(0))
        let (flags, value) = specific?.encoded ?? (0, 0)
        writer.integer(flags)
        writer.integer(value)
        return writer.bytes
    }

    /// Descriptor form (SPC-4 §4.5.2).
    public func encodedDescriptor() -> [UInt8] {
        var writer = BigEndianWriter(reserving: 40)
        writer.integer(UInt8(isDeferred ? 0x73 : 0x72))
        writer.integer(key.rawValue)
        writer.integer(code.rawValue)
        writer.zeros(4)
        if let information {
            writer.append([0x00, 0x0A, 0x80, 0])
            writer.integer(information)
        }
        if let commandSpecificInformation {
            writer.append([0x01, 0x0A, 0, 0])
            writer.integer(commandSpecificInformation)
        }
        if let (flags, value) = specific?.encoded {
            writer.append([0x02, 0x06, 0, 0, flags])
            writer.integer(value)
            writer.integer(UInt8(0))
        }
        writer.set(UInt8(writer.bytes.count - 8), at: 7)
        return writer.bytes
    }

    /// Either form.
    public func encoded(descriptorFormat: Bool) -> [UInt8] {
        descriptorFormat ? encodedDescriptor() : encodedFixed()
    }

    /// Reads either form. Nil when the bytes are neither, or end before the additional sense code; what a
    /// cut-off end would have told is left out.
    public init?(decoding bytes: [UInt8]) {
        let bytes = Array(bytes.prefix(SCSILimits.senseBytes))
        guard let first = bytes.first else { return nil }
        switch first & 0x7F {
        case 0x70, 0x71: self.init(fixed: bytes, isDeferred: first & 1 != 0)
        case 0x72, 0x73: self.init(descriptors: bytes, isDeferred: first & 1 != 0)
        default: return nil
        }
    }

    private init?(fixed bytes: [UInt8], isDeferred: Bool) {
        guard bytes.count >= 3, let key = SenseKey(rawValue: bytes[2] & 0xF) else { return nil }
        let end = min(bytes.count, bytes.count >= 8 ? 8 + Int(bytes[7]) : bytes.count)
        self.init(
            key, AdditionalSenseCode(rawValue: end >= 14 ? bytes.bigEndian(at: 12) : 0))
        self.isDeferred = isDeferred
        if bytes[0] & 0x80 != 0, end >= 7 { information = UInt64(bytes.bigEndian(at: 3, as: UInt32.self)) }
        if end >= 12 {
            let value = bytes.bigEndian(at: 8, as: UInt32.self)
            if value != 0 { commandSpecificInformation = UInt64(value) }
        }
        if end >= 18 {
            specific = SenseKeySpecific(flags: bytes[15], value: bytes.bigEndian(at: 16), key: key)
        }
    }

    private init?(descriptors bytes: [UInt8], isDeferred: Bool) {
        guard bytes.count >= 4, let key = SenseKey(rawValue: bytes[1] & 0xF) else { return nil }
        self.init(key, AdditionalSenseCode(rawValue: bytes.bigEndian(at: 2)))
        self.isDeferred = isDeferred
        guard bytes.count >= 8 else { return }
        let end = min(bytes.count, 8 + Int(bytes[7]))
        var offset = 8
        while offset + 2 <= end {
            let next = offset + 2 + Int(bytes[offset + 1])
            guard next <= end else { return }
            switch (bytes[offset], next - offset) {
            case (0x00, 12...): information = bytes.bigEndian(at: offset + 4)
            case (0x01, 12...): commandSpecificInformation = bytes.bigEndian(at: offset + 4)
            case (0x02, 8...):
                specific = SenseKeySpecific(
                    flags: bytes[offset + 4], value: bytes.bigEndian(at: offset + 5), key: key)
            default: break
            }
            offset = next
        }
    }
}

/// A command that ends with CHECK CONDITION.
public struct CheckCondition: Error, Hashable, Sendable {
    public var sense: SenseData
    public init(_ sense: SenseData) { self.sense = sense }

    /// ILLEGAL REQUEST, INVALID FIELD IN CDB.
    static func cdb(_ byte: Int, bit: UInt8? = nil) -> CheckCondition {
        CheckCondition(.invalidFieldInCDB(byte: byte, bit: bit))
    }
}

extension SCSIOutcome {
    /// CHECK CONDITION with `sense`, in fixed form unless the unit's control mode page (D_SENSE) says else.
    public static func checkCondition(
        _ sense: SenseData, descriptorFormat: Bool = false, dataOutUsed: Int = 0
    ) -> SCSIOutcome {
        SCSIOutcome(
            status: .checkCondition, dataOutUsed: dataOutUsed,
            sense: sense.encoded(descriptorFormat: descriptorFormat))
    }
}
