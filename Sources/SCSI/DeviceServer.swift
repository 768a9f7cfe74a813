import Synchronization

/// The line between a transport (module `ISCSI`) and a SCSI target device (module `Bridge`): neither knows
/// the other (design §2). The transport delivers whole commands and whole data, the device executes.
///
/// All functions are synchronous, may block, and may be called from many threads at once: the transport
/// calls ``execute(_:)`` on threads made for that, one command each.
public protocol SCSITargetDevice: AnyObject, Sendable {
    /// A new I_T nexus. Called after login succeeded; what the initiator may see is decided here.
    func openNexus(_ nexus: Nexus)

    /// The I_T nexus is lost: its commands have been marked aborted; reservations, list identifiers and
    /// copies that belong to it end. Some of its commands may still run on other threads, or come: the device
    /// gives others what the nexus had reserved only when the former have ended, and refuses the latter.
    func closeNexus(_ nexus: Nexus)

    /// Executes one command to its end. The transport has already refused a command whose expected
    /// transfer length exceeds ``SCSITargetLimits/dataOutBytes``.
    /// Never throws: what fails is told by status and sense.
    func execute(_ task: SCSITask) -> SCSIOutcome

    /// Whether sense data of the unit come in descriptor form (D_SENSE of its control mode page): for what the
    /// transport itself answers with CHECK CONDITION.
    func usesDescriptorSense(_ lun: LogicalUnitNumber, _ nexus: Nexus) -> Bool

    /// Logical unit reset: whatever runs on that unit has been marked aborted by the transport.
    func resetLogicalUnit(_ lun: LogicalUnitNumber, from nexus: Nexus)
}

extension SCSITargetDevice {
    public func usesDescriptorSense(_ lun: LogicalUnitNumber, _ nexus: Nexus) -> Bool { false }
}

public enum SCSITargetLimits {
    /// The greatest data-out or data-in of one command, bytes.
    public static let dataOutBytes = 32 << 20
    public static let dataInBytes = 32 << 20
    /// Commands of one I_T nexus that a transport has executed at the same time; more wait for one of these to end.
    public static let nexusThreads = 32
}

/// A logical unit number as SAM-5 §4.7 lays it out in eight bytes.
public struct LogicalUnitNumber: Hashable, Sendable {
    /// Eight bytes, the first the most significant.
    public var rawValue: UInt64

    public init(rawValue: UInt64) { self.rawValue = rawValue }

    /// Peripheral device addressing to 255, flat space addressing to 16383. Nil above.
    public init?(_ number: Int) {
        switch number {
        case 0...255: rawValue = UInt64(number) << 48
        case 256...16383: rawValue = UInt64(0x4000 | number) << 48
        default: return nil
        }
    }

    /// The number, if it is one of the two single-level forms above; nil for others.
    public var number: Int? {
        let first = UInt16(truncatingIfNeeded: rawValue >> 48)
        guard rawValue & 0xFFFF_FFFF_FFFF == 0 else { return nil }
        switch first >> 14 {
        case 0 where first >> 8 == 0: return Int(first & 0xFF)
        case 1: return Int(first & 0x3FFF)
        default: return nil
        }
    }
}

/// One I_T nexus: one initiator port's session with the target.
public final class Nexus: Sendable {
    /// The initiator's name (for iSCSI its IQN; RFC 7143 §4.2.7) as given at login.
    public let initiatorName: String
    /// What tells apart several sessions of one initiator (for iSCSI the ISID, 48 bits).
    public let sessionIdentifier: UInt64
    /// The CHAP name that was proven, or nil without authentication.
    public let authenticatedName: String?

    public init(initiatorName: String, sessionIdentifier: UInt64, authenticatedName: String?) {
        self.initiatorName = initiatorName
        self.sessionIdentifier = sessionIdentifier
        self.authenticatedName = authenticatedName
    }
}

/// One command from its arrival to its status.
public final class SCSITask: Sendable {
    public let nexus: Nexus
    public let lun: LogicalUnitNumber
    /// The CDB, 6 to 260 bytes; iSCSI pads shorter ones to 16 with zeros.
    public let cdb: [UInt8]
    /// All data-out of the command.
    public let dataOut: [UInt8]
    /// The initiator's expected length of data-in, bytes; more is not delivered.
    public let expectedDataIn: Int
    /// The initiator's expected length of data-out, bytes.
    public let expectedDataOut: Int
    private let aborted = Atomic(false)

    public init(
        nexus: Nexus, lun: LogicalUnitNumber, cdb: [UInt8], dataOut: [UInt8], expectedDataIn: Int,
        expectedDataOut: Int
    ) {
        self.nexus = nexus
        self.lun = lun
        self.cdb = cdb
        self.dataOut = dataOut
        self.expectedDataIn = expectedDataIn
        self.expectedDataOut = expectedDataOut
    }

    /// Set by the transport (task management, lost session); long commands look at it often and stop.
    public var isAborted: Bool { aborted.load(ordering: .acquiring) }
    public func abort() { aborted.store(true, ordering: .releasing) }
}

/// How a command ended. The transport computes residuals from `dataIn.count`, ``dataOutUsed`` and what the
/// initiator expected.
public struct SCSIOutcome: Sendable {
    public var status: SCSIStatus
    /// Data-in; the transport cuts it at what the initiator expected.
    public var dataIn: [UInt8]
    /// Bytes of data-out that the command wanted, whether or not they came (for residual and overflow).
    public var dataOutUsed: Int
    /// Sense data in their wire form (SPC-4 §4.5). Always there with CHECK CONDITION; with GOOD only where a copy
    /// was asked to tell by them how far it came (G_SENSE).
    public var sense: [UInt8]

    public init(status: SCSIStatus, dataIn: [UInt8] = [], dataOutUsed: Int = 0, sense: [UInt8] = []) {
        self.status = status
        self.dataIn = dataIn
        self.dataOutUsed = dataOutUsed
        self.sense = sense
    }

    public static let good = SCSIOutcome(status: .good)
}

/// SAM-5 §5.3.
public enum SCSIStatus: UInt8, Sendable {
    case good = 0x00
    case checkCondition = 0x02
    case conditionMet = 0x04
    case busy = 0x08
    case reservationConflict = 0x18
    case taskSetFull = 0x28
    case acaActive = 0x30
    case taskAborted = 0x40
}
