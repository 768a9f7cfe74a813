import Blocks
import SCSI

/// The one place where errors become sense data.
enum SenseTable {
    /// What was being done when a store failed.
    enum Direction: Hashable, Sendable {
        case read
        case write
    }

    /// A unit's own READ, WRITE, WRITE SAME or SYNCHRONIZE CACHE failed.
    /// - Parameter lba: the first block of what failed, if known.
    static func sense(_ error: StoreError, _ direction: Direction, lba: LBA? = nil) -> SenseData {
        let (key, code): (SenseKey, AdditionalSenseCode) =
            switch (error.code, direction) {
            case (.io, .read), (.corrupt, .read): (.mediumError, .unrecoveredReadError)
            case (.io, .write), (.corrupt, .write): (.mediumError, .writeError)
            case (.noSpace, _): (.dataProtect, .spaceAllocationFailedWriteProtect)
            case (.readOnly, _): (.dataProtect, .writeProtected)
            case (.notSupported, _): (.hardwareError, .internalTargetFailure)
            case (.gone, _): (.notReady, .logicalUnitNotReady)
            }
        return SenseData(key, code, information: lba?.value)
    }

    /// Segment `segment` of a copy failed while it ran.
    /// - Parameter residue: destination blocks of the segment that were not written; nil when none was.
    static func sense(copy segment: Int, _ failure: MoveFailure.Reason, residue: UInt64?) -> SenseData {
        let code: AdditionalSenseCode =
            switch failure {
            case .store(let error, .write) where error.code == .noSpace: .spaceAllocationFailedWriteProtect
            case .store(let error, .write) where error.code == .readOnly: .writeProtected
            case .store(let error, _) where error.code == .gone: .copyTargetDeviceNotReachable
            case .store: .thirdPartyDeviceFailure
            case .engine: .insufficientResources
            case .cancelled: .noAdditionalSense
            }
        return .copyAborted(code, segment: UInt16(clamping: segment), information: residue)
    }

    /// COPY OPERATION ABORT ended a copy whose command waits for its status.
    static func clearedByDevice(segment: Int) -> SenseData {
        .copyAborted(.commandsClearedByDeviceServer, segment: UInt16(clamping: segment))
    }

    /// A destination came under software write protection while the copy ran.
    static func protectedMeanwhile(segment: Int) -> SenseData {
        .copyAborted(.softwareWriteProtected, segment: UInt16(clamping: segment))
    }

    /// A copy that completed and was to tell how many segments it processed (G_SENSE).
    static func copied(segments: Int) -> SenseData {
        SenseData(
            .completed, .extendedCopyInformationAvailable, commandSpecificInformation: UInt64(segments))
    }

    static let writeProtected = SenseData(.dataProtect, .writeProtected)
    static let unitNotSupported = SenseData(.illegalRequest, .logicalUnitNotSupported)
    static let savedNotSupported = SenseData(.illegalRequest, .savingParametersNotSupported)
    static let operationInProgress = SenseData(.illegalRequest, .operationInProgress)
    /// The data-out is not what the CDB asks for; no field of the CDB is at fault by itself.
    static let wrongDataLength = SenseData(.illegalRequest, .invalidFieldInCDB)
    /// What must outlive the process could not be written; nothing was changed.
    static let stateNotKept = SenseData(.hardwareError, .internalTargetFailure)
    static let dataPhaseError = SenseData(.abortedCommand, .dataPhaseError)

    static func outOfRange(_ lba: LBA) -> SenseData {
        SenseData(.illegalRequest, .logicalBlockAddressOutOfRange, information: lba.value)
    }
}

extension CheckCondition {
    static func cdb(_ byte: Int, bit: UInt8? = nil) -> CheckCondition {
        CheckCondition(.invalidFieldInCDB(byte: byte, bit: bit))
    }
}
