import SCSI

extension SenseKey {
    /// The name of SPC-4 table 55.
    var text: String {
        switch self {
        case .noSense: "NO SENSE"
        case .recoveredError: "RECOVERED ERROR"
        case .notReady: "NOT READY"
        case .mediumError: "MEDIUM ERROR"
        case .hardwareError: "HARDWARE ERROR"
        case .illegalRequest: "ILLEGAL REQUEST"
        case .unitAttention: "UNIT ATTENTION"
        case .dataProtect: "DATA PROTECT"
        case .blankCheck: "BLANK CHECK"
        case .vendorSpecific: "VENDOR SPECIFIC"
        case .copyAborted: "COPY ABORTED"
        case .abortedCommand: "ABORTED COMMAND"
        case .reserved: "RESERVED"
        case .volumeOverflow: "VOLUME OVERFLOW"
        case .miscompare: "MISCOMPARE"
        case .completed: "COMPLETED"
        }
    }
}

extension AdditionalSenseCode {
    /// The words of SPC-4 annex E.2 for the codes that a copy manager may well answer, else the number.
    var text: String {
        let number = "ASC/ASCQ \(hex(UInt8(rawValue >> 8)))/\(hex(UInt8(rawValue & 0xFF)))"
        return Self.texts[self].map { "\($0) (\(number))" } ?? number
    }

    private func hex(_ byte: UInt8) -> String {
        (byte < 16 ? "0" : "") + String(byte, radix: 16, uppercase: true) + "h"
    }

    private static let texts: [AdditionalSenseCode: String] = [
        .noAdditionalSense: "NO ADDITIONAL SENSE INFORMATION",
        .operationInProgress: "OPERATION IN PROGRESS",
        .logicalUnitNotReady: "LOGICAL UNIT NOT READY",
        .unreachableCopyTarget: "UNREACHABLE COPY TARGET",
        .writeError: "WRITE ERROR",
        .thirdPartyDeviceFailure: "THIRD PARTY DEVICE FAILURE",
        .copyTargetDeviceNotReachable: "COPY TARGET DEVICE NOT REACHABLE",
        .incorrectCopyTargetDeviceType: "INCORRECT COPY TARGET DEVICE TYPE",
        .copyTargetDeviceDataUnderrun: "COPY TARGET DEVICE DATA UNDERRUN",
        .copyTargetDeviceDataOverrun: "COPY TARGET DEVICE DATA OVERRUN",
        .unrecoveredReadError: "UNRECOVERED READ ERROR",
        .parameterListLengthError: "PARAMETER LIST LENGTH ERROR",
        .synchronousDataTransferError: "SYNCHRONOUS DATA TRANSFER ERROR",
        .miscompareDuringVerify: "MISCOMPARE DURING VERIFY OPERATION",
        .invalidOperationCode: "INVALID COMMAND OPERATION CODE",
        .logicalBlockAddressOutOfRange: "LOGICAL BLOCK ADDRESS OUT OF RANGE",
        .invalidFieldInCDB: "INVALID FIELD IN CDB",
        .logicalUnitNotSupported: "LOGICAL UNIT NOT SUPPORTED",
        .invalidFieldInParameterList: "INVALID FIELD IN PARAMETER LIST",
        .tooManyCSCDDescriptors: "TOO MANY TARGET DESCRIPTORS",
        .unsupportedCSCDDescriptorType: "UNSUPPORTED TARGET DESCRIPTOR TYPE CODE",
        .tooManySegmentDescriptors: "TOO MANY SEGMENT DESCRIPTORS",
        .unsupportedSegmentDescriptorType: "UNSUPPORTED SEGMENT DESCRIPTOR TYPE CODE",
        .unexpectedInexactSegment: "UNEXPECTED INEXACT SEGMENT",
        .inlineDataLengthExceeded: "INLINE DATA LENGTH EXCEEDED",
        .invalidOperationForCopySourceOrDestination: "INVALID OPERATION FOR COPY SOURCE OR DESTINATION",
        .copySegmentGranularityViolation: "COPY SEGMENT GRANULARITY VIOLATION",
        .writeProtected: "WRITE PROTECTED",
        .spaceAllocationFailedWriteProtect: "SPACE ALLOCATION FAILED WRITE PROTECT",
        .powerOnOrReset: "POWER ON, RESET, OR BUS DEVICE RESET OCCURRED",
        .busDeviceReset: "BUS DEVICE RESET FUNCTION OCCURRED",
        .reportedLUNsDataHasChanged: "REPORTED LUNS DATA HAS CHANGED",
        .internalTargetFailure: "INTERNAL TARGET FAILURE",
        .insufficientResources: "INSUFFICIENT RESOURCES",
    ]
}

extension SenseData {
    /// For people: `COPY ABORTED, WRITE ERROR (ASC/ASCQ 0Ch/00h), segment 3`.
    var text: String {
        var text = "\(key.text), \(code.text)"
        switch specific {
        case .fieldPointer(let inCDB, let byte, _):
            text += ", byte \(byte) of the \(inCDB ? "CDB" : "parameter list")"
        case .segmentPointer(let inSegment, let byte, _):
            text += ", byte \(byte) of the \(inSegment ? "segment descriptor" : "parameter list")"
        case .progress, .retryCount, nil: break
        }
        if key == .copyAborted, let segment = commandSpecificInformation { text += ", segment \(segment)" }
        if let information { text += ", information \(information)" }
        return text
    }
}
