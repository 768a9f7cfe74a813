import Blocks

/// RECEIVE COPY STATUS (LID1) parameter data (SPC-3 and before: COPY STATUS). 12 bytes.
public struct CopyStatus: Hashable, Sendable {
    /// COPY MANAGER STATUS, 7 bits.
    public struct State: RawRepresentable, Hashable, Sendable {
        public let rawValue: UInt8
        public init(rawValue: UInt8) { self.rawValue = rawValue & 0x7F }
        public static let inProgress = State(rawValue: 0x00)
        public static let completed = State(rawValue: 0x01)
        public static let failed = State(rawValue: 0x02)
    }

    /// HDD: held data were discarded.
    public var heldDataDiscarded = false
    public var state: State
    /// Segments done, the one that runs not counted.
    public var segmentsProcessed: UInt16
    /// TRANSFER COUNT UNITS: 00h … 06h are 1 byte, 1 KiB, 1 MiB … 1 EiB; F1h is the destination's blocks.
    public var transferCountUnits: UInt8
    /// In those units, rounded down.
    public var transferCount: UInt32

    /// - Parameter bytes: bytes written to destinations so far; told in the smallest unit that fits.
    public init(state: State, segmentsProcessed: UInt16, bytes: UInt64) {
        self.state = state
        self.segmentsProcessed = segmentsProcessed
        var units: UInt8 = 0
        while bytes >> (10 * UInt64(units)) > UInt32.max { units += 1 }
        transferCountUnits = units
        transferCount = UInt32(bytes >> (10 * UInt64(units)))
    }

    /// Bytes, in as much as the units tell them; nil for units that are not bytes.
    public var transferredBytes: UInt64? {
        guard transferCountUnits <= 6 else { return nil }
        let (high, low) = UInt64(transferCount)
            .multipliedFullWidth(by: 1 << (10 * UInt64(transferCountUnits)))
        return high == 0 ? low : nil
    }

    public func encoded() -> [UInt8] {
        var writer = BigEndianWriter(reserving: 12)
        writer.integer(UInt32(8))
        writer.integer((heldDataDiscarded ? 0x80 : 0) | state.rawValue)
        writer.integer(segmentsProcessed)
        writer.integer(transferCountUnits)
        writer.integer(transferCount)
        return writer.bytes
    }

    public init(decoding bytes: [UInt8]) throws(MalformedParameterData) {
        guard bytes.count >= 12, bytes.bigEndian(at: 0, as: UInt32.self) >= 8 else {
            throw MalformedParameterData("COPY STATUS data", at: min(bytes.count, 12))
        }
        heldDataDiscarded = bytes[4] & 0x80 != 0
        state = State(rawValue: bytes[4])
        segmentsProcessed = bytes.bigEndian(at: 5)
        transferCountUnits = bytes[7]
        transferCount = bytes.bigEndian(at: 8)
    }
}

/// RECEIVE COPY OPERATING PARAMETERS parameter data (SPC-3 and before: OPERATING PARAMETERS).
public struct CopyOperatingParameters: Hashable, Sendable {
    /// SNLID: LIST ID USAGE 11b is supported.
    public var supportsNoListIdentifier = false
    public var maximumCSCDDescriptors: UInt16 = 0
    public var maximumSegmentDescriptors: UInt16 = 0
    /// CSCD and segment descriptors of one command together, bytes.
    public var maximumDescriptorListLength: UInt32 = 0
    /// Bytes of one segment; 0: not limited.
    public var maximumSegmentLength: UInt32 = 0
    public var maximumInlineDataLength: UInt32 = 0
    /// Bytes.
    public var heldDataLimit: UInt32 = 0
    /// Bytes.
    public var maximumStreamTransferSize: UInt32 = 0
    /// Of all initiators together; 0: not told.
    public var totalConcurrentCopies: UInt16 = 0
    public var maximumConcurrentCopies: UInt8 = 0
    /// The granularities are powers of two, in bytes: the exponent.
    public var dataSegmentGranularity: UInt8 = 0
    public var inlineDataGranularity: UInt8 = 0
    public var heldDataGranularity: UInt8 = 0
    /// CSCD and segment descriptor type codes; they go out in ascending order. At most 255.
    public var implementedDescriptorTypes: [UInt8] = []

    public init() {}

    public func encoded() -> [UInt8] {
        let types = implementedDescriptorTypes.sorted()
        var writer = BigEndianWriter(reserving: 44 + types.count)
        writer.integer(UInt32(40 + types.count))
        writer.integer(UInt8(supportsNoListIdentifier ? 1 : 0))
        writer.zeros(3)
        writer.integer(maximumCSCDDescriptors)
        writer.integer(maximumSegmentDescriptors)
        writer.integer(maximumDescriptorListLength)
        writer.integer(maximumSegmentLength)
        writer.integer(maximumInlineDataLength)
        writer.integer(heldDataLimit)
        writer.integer(maximumStreamTransferSize)
        writer.zeros(2)
        writer.integer(totalConcurrentCopies)
        writer.integer(maximumConcurrentCopies)
        writer.integer(dataSegmentGranularity)
        writer.integer(inlineDataGranularity)
        writer.integer(heldDataGranularity)
        writer.zeros(3)
        writer.integer(UInt8(types.count))
        writer.append(types)
        return writer.bytes
    }

    public init(decoding bytes: [UInt8]) throws(MalformedParameterData) {
        let what = "OPERATING PARAMETERS data"
        guard bytes.count >= 44 else { throw MalformedParameterData(what, at: bytes.count) }
        guard bytes.bigEndian(at: 0, as: UInt32.self) >= 40 else { throw MalformedParameterData(what, at: 0) }
        supportsNoListIdentifier = bytes[4] & 1 != 0
        maximumCSCDDescriptors = bytes.bigEndian(at: 8)
        maximumSegmentDescriptors = bytes.bigEndian(at: 10)
        maximumDescriptorListLength = bytes.bigEndian(at: 12)
        maximumSegmentLength = bytes.bigEndian(at: 16)
        maximumInlineDataLength = bytes.bigEndian(at: 20)
        heldDataLimit = bytes.bigEndian(at: 24)
        maximumStreamTransferSize = bytes.bigEndian(at: 28)
        totalConcurrentCopies = bytes.bigEndian(at: 34)
        maximumConcurrentCopies = bytes[36]
        dataSegmentGranularity = bytes[37]
        inlineDataGranularity = bytes[38]
        heldDataGranularity = bytes[39]
        guard bytes.count - 44 >= Int(bytes[43]) else { throw MalformedParameterData(what, at: 43) }
        implementedDescriptorTypes = Array(bytes[44..<44 + Int(bytes[43])])
    }
}

/// RECEIVE COPY FAILURE DETAILS (LID1) parameter data (SPC-3 and before: FAILED SEGMENT DETAILS).
public struct FailedSegmentDetails: Hashable, Sendable {
    /// The status with which the EXTENDED COPY ended, as its raw byte.
    public var status: UInt8
    /// The sense data of that status; at most ``SCSILimits/senseBytes``.
    public var sense: [UInt8]

    public init(status: UInt8, sense: [UInt8]) {
        self.status = status
        self.sense = Array(sense.prefix(SCSILimits.senseBytes))
    }

    /// What is answered when nothing is held: AVAILABLE DATA is 0.
    public static let nothingHeld: [UInt8] = [0, 0, 0, 0]

    public func encoded() -> [UInt8] {
        var writer = BigEndianWriter(reserving: 60 + sense.count)
        writer.integer(UInt32(56 + sense.count))
        writer.zeros(52)
        writer.integer(status)
        writer.integer(UInt8(0))
        writer.integer(UInt16(sense.count))
        writer.append(sense)
        return writer.bytes
    }

    /// Reads an answer; nil where nothing was held.
    public static func decode(_ bytes: [UInt8]) throws(MalformedParameterData) -> FailedSegmentDetails? {
        let what = "FAILED SEGMENT DETAILS data"
        guard bytes.count >= 4 else { throw MalformedParameterData(what, at: bytes.count) }
        if bytes.bigEndian(at: 0, as: UInt32.self) == 0 { return nil }
        guard bytes.count >= 60 else { throw MalformedParameterData(what, at: bytes.count) }
        let length = Int(bytes.bigEndian(at: 58, as: UInt16.self))
        guard bytes.count - 60 >= length else { throw MalformedParameterData(what, at: 58) }
        return FailedSegmentDetails(status: bytes[56], sense: Array(bytes[60..<60 + length]))
    }
}
