import Blocks

/// COPY OPERATION STATUS, 7 bits.
public struct CopyOperationStatus: RawRepresentable, Hashable, Sendable {
    public let rawValue: UInt8
    public init(rawValue: UInt8) { self.rawValue = rawValue & 0x7F }

    public static let completed = CopyOperationStatus(rawValue: 0x01)
    /// With errors; the sense data tell which.
    public static let failed = CopyOperationStatus(rawValue: 0x02)
    /// Without errors, but the ROD token stands for a part of what was asked.
    public static let completedPartially = CopyOperationStatus(rawValue: 0x03)
    /// Without errors, but with residual data.
    public static let completedWithResidue = CopyOperationStatus(rawValue: 0x04)
    public static let inProgress = CopyOperationStatus(rawValue: 0x10)
    public static let inForeground = CopyOperationStatus(rawValue: 0x11)
    public static let inBackground = CopyOperationStatus(rawValue: 0x12)
    /// By COPY OPERATION ABORT, task management, a lost nexus or a preempted reservation.
    public static let terminated = CopyOperationStatus(rawValue: 0x60)

    public var isInProgress: Bool { (0x10...0x12).contains(rawValue) }
}

/// RECEIVE COPY STATUS (LID4) parameter data, with which those of RECEIVE ROD TOKEN INFORMATION begin.
public struct CopyOperationReport: Hashable, Sendable {
    /// Bytes in front of the sense data.
    public static let headerLength = 32
    /// An estimated status update delay that says: the status will not change any more.
    public static let noMoreUpdates: UInt32 = 0xFFFF_FFFE
    /// TRANSFER COUNT UNITS: bytes.
    public static let bytes: UInt8 = 0x00
    /// TRANSFER COUNT UNITS: logical blocks of the destination.
    public static let blocks: UInt8 = 0xF1

    /// RESPONSE TO SERVICE ACTION: of the THIRD-PARTY COPY OUT command that began the operation.
    public var serviceAction: UInt8
    public var status: CopyOperationStatus
    /// OPERATION COUNTER: changes whenever something was done; begins again after FFFFh.
    public var operations: UInt16 = 0
    /// ESTIMATED STATUS UPDATE DELAY, milliseconds.
    public var updateDelay: UInt32 = noMoreUpdates
    /// EXTENDED COPY COMPLETION STATUS: the status byte with which the operation ended; 0 while it runs.
    public var completionStatus: UInt8 = 0
    /// Of that status; at most 255 bytes.
    public var sense: [UInt8] = []
    public var transferCountUnits: UInt8 = bytes
    public var transferCount: UInt64 = 0
    public var segmentsProcessed: UInt16 = 0

    public init(serviceAction: UInt8, status: CopyOperationStatus) {
        self.serviceAction = serviceAction
        self.status = status
    }

    /// - Parameter trailer: what comes behind the sense data, as ROD token descriptors do; AVAILABLE DATA counts it.
    public func encoded(followedBy trailer: [UInt8] = []) -> [UInt8] {
        let sense = sense.prefix(SCSILimits.senseBytes)
        var writer = BigEndianWriter(reserving: Self.headerLength + sense.count + trailer.count)
        writer.integer(UInt32(Self.headerLength - 4 + sense.count + trailer.count))
        writer.append([serviceAction & 0x1F, status.rawValue])
        writer.integer(operations)
        writer.integer(updateDelay)
        // The sense data field is as long as the sense data in it.
        writer.append([completionStatus, UInt8(sense.count), UInt8(sense.count), transferCountUnits])
        writer.integer(transferCount)
        writer.integer(segmentsProcessed)
        writer.zeros(6)
        writer.append(Array(sense))
        writer.append(trailer)
        return writer.bytes
    }

    /// Reads an answer. What comes behind the sense data is left to ``trailer(in:)``.
    public init(decoding bytes: [UInt8]) throws(MalformedParameterData) {
        let what = "RECEIVE COPY STATUS (LID4) data"
        guard bytes.count >= Self.headerLength, bytes.bigEndian(at: 0, as: UInt32.self) >= 28 else {
            throw MalformedParameterData(what, at: min(bytes.count, Self.headerLength))
        }
        let (field, length) = (Int(bytes[13]), Int(bytes[14]))
        guard length <= field, bytes.count >= Self.headerLength + field else {
            throw MalformedParameterData(what, at: 13)
        }
        self.init(serviceAction: bytes[4] & 0x1F, status: CopyOperationStatus(rawValue: bytes[5]))
        operations = bytes.bigEndian(at: 6)
        updateDelay = bytes.bigEndian(at: 8)
        completionStatus = bytes[12]
        transferCountUnits = bytes[15]
        transferCount = bytes.bigEndian(at: 16)
        segmentsProcessed = bytes.bigEndian(at: 24)
        sense = Array(bytes[Self.headerLength..<Self.headerLength + length])
    }

    /// What comes behind the sense data of an answer that ``init(decoding:)`` could read.
    public static func trailer(in bytes: [UInt8]) -> ArraySlice<UInt8> {
        guard bytes.count >= headerLength else { return [] }
        return bytes.dropFirst(headerLength + Int(bytes[13]))
    }
}
