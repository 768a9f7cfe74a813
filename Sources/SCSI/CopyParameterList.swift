import Blocks

/// What one EXTENDED COPY may hold; a copy manager enforces what it reports in
/// ``CopyOperatingParameters``.
public struct CopyListLimits: Hashable, Sendable {
    public var cscdDescriptors: Int
    public var segmentDescriptors: Int
    /// CSCD and segment descriptors together, bytes.
    public var descriptorListBytes: Int
    public var inlineDataBytes: Int
    /// SNLID: LIST ID USAGE 11b is taken.
    public var supportsNoListIdentifier: Bool

    public init(
        cscdDescriptors: Int, segmentDescriptors: Int, descriptorListBytes: Int, inlineDataBytes: Int,
        supportsNoListIdentifier: Bool
    ) {
        self.cscdDescriptors = cscdDescriptors
        self.segmentDescriptors = segmentDescriptors
        self.descriptorListBytes = descriptorListBytes
        self.inlineDataBytes = inlineDataBytes
        self.supportsNoListIdentifier = supportsNoListIdentifier
    }
}

/// The parameter list of EXTENDED COPY, in the form of LID1 or of LID4 (SPC-4).
public struct CopyParameterList: Hashable, Sendable {
    /// The two commands differ in their header only.
    public enum Form: Hashable, Sendable {
        /// EXTENDED COPY (LID1): list identifiers of 8 bits, segment descriptors up to 32 bits of length.
        case lid1
        /// EXTENDED COPY (LID4): list identifiers of 32 bits, all lengths of 16 bits.
        case lid4

        /// Bytes before the first CSCD descriptor.
        public var headerLength: Int {
            switch self {
            case .lid1: 16
            case .lid4: 48
            }
        }
    }

    /// LIST ID USAGE. 01b is reserved.
    public enum ListIDUsage: UInt8, Sendable {
        /// The identifier is in use; data for RECEIVE COPY DATA are held (NRCR 0 in SPC-3).
        case hold = 0b00
        /// The identifier is in use; nothing need be held (NRCR 1 in SPC-3).
        case discard = 0b10
        /// There is no identifier; its field must be 0. Asked for with SNLID only.
        case none = 0b11
    }

    public var form: Form
    /// At most 255 in the form of LID1.
    public var listIdentifier: UInt32
    public var usage: ListIDUsage
    /// IMMED, LID4 only: status comes when the list is found good, and the copy goes on in the background.
    public var isImmediate = false
    /// G_SENSE, LID4 only: GOOD status comes with sense data that tell how many segments are done.
    public var wantsSense = false
    /// STR: segments are sequential striped; means nothing for block devices.
    public var sequentialStriped = false
    /// 0 to 7, 0 the highest; a hint.
    public var priority: UInt8 = 0
    public var cscds: [CSCDDescriptor]
    public var segments: [SegmentDescriptor]
    public var inlineData: [UInt8] = []

    /// The form of LID1.
    public init(
        listIdentifier: UInt8, usage: ListIDUsage = .hold, cscds: [CSCDDescriptor],
        segments: [SegmentDescriptor]
    ) {
        self.init(.lid1, listIdentifier: UInt32(listIdentifier), usage: usage)
        self.cscds = cscds
        self.segments = segments
    }

    /// The form of LID4.
    public init(
        longListIdentifier: UInt32, usage: ListIDUsage = .hold, cscds: [CSCDDescriptor],
        segments: [SegmentDescriptor]
    ) {
        self.init(.lid4, listIdentifier: longListIdentifier, usage: usage)
        self.cscds = cscds
        self.segments = segments
    }

    private init(_ form: Form, listIdentifier: UInt32, usage: ListIDUsage) {
        self.form = form
        self.listIdentifier = listIdentifier
        self.usage = usage
        cscds = []
        segments = []
    }

    /// Traps where an identifier or a length does not fit the form, which is the caller's bug.
    public func encoded() -> [UInt8] {
        let segmentBytes = segments.flatMap { $0.encoded() }
        let cscdLength = cscds.count * CSCDDescriptor.length
        var writer = BigEndianWriter(reserving: form.headerLength + cscdLength + segmentBytes.count)
        let flags = (sequentialStriped ? 0x20 : 0) | usage.rawValue << 3 | priority & 7
        switch form {
        case .lid1:
            writer.append([UInt8(listIdentifier), flags])
            writer.integer(UInt16(cscdLength))
            writer.zeros(4)
            writer.integer(UInt32(segmentBytes.count))
            writer.integer(UInt32(inlineData.count))
        case .lid4:
            writer.append([Self.format, flags])
            writer.integer(Self.headerDescriptorLength)
            writer.zeros(11)
            writer.append([(isImmediate ? 0x01 : 0) | (wantsSense ? 0x02 : 0), Self.headerDescriptorType])
            writer.zeros(3)
            writer.integer(listIdentifier)
            writer.zeros(18)
            writer.integer(UInt16(cscdLength))
            writer.integer(UInt16(segmentBytes.count))
            writer.integer(UInt16(inlineData.count))
        }
        for cscd in cscds { writer.append(cscd.encoded()) }
        writer.append(segmentBytes)
        writer.append(inlineData)
        return writer.bytes
    }

    /// PARAMETER LIST FORMAT of LID4.
    private static let format: UInt8 = 0x01
    /// LID4's header ends in 32 bytes that have a descriptor's shape and this type code.
    private static let headerDescriptorType: UInt8 = 0xFF
    private static let headerDescriptorLength: UInt16 = 0x20

    /// Reads a parameter list. An empty one (a length of 0) is no error and no list: the caller answers GOOD
    /// before it comes here.
    /// - Throws: ``CheckCondition``: ILLEGAL REQUEST with PARAMETER LIST LENGTH ERROR where bytes are missing,
    ///   TOO MANY CSCD or SEGMENT DESCRIPTORS, UNSUPPORTED … DESCRIPTOR TYPE CODE, INLINE DATA LENGTH
    ///   EXCEEDED, or INVALID FIELD IN PARAMETER LIST with the field's place.
    public init(
        _ form: Form = .lid1, decoding bytes: [UInt8], limits: CopyListLimits
    ) throws(CheckCondition) {
        guard bytes.count >= form.headerLength else { throw CheckCondition(.parameterListLengthError) }
        if form == .lid4 {
            if bytes[0] != Self.format { throw .list(0) }
            if bytes.bigEndian(at: 2) != Self.headerDescriptorLength { throw .list(2) }
            if bytes[16] != Self.headerDescriptorType { throw .list(16) }
        }
        guard let usage = ListIDUsage(rawValue: bytes[1] >> 3 & 3) else { throw .list(1, bit: 4) }
        let identifier = form == .lid1 ? UInt32(bytes[0]) : bytes.bigEndian(at: 20)
        self.init(form, listIdentifier: identifier, usage: usage)
        if form == .lid4 {
            isImmediate = bytes[15] & 0x01 != 0
            wantsSense = bytes[15] & 0x02 != 0
        }
        if usage == .none {
            if !limits.supportsNoListIdentifier { throw .list(1, bit: 4) }
            if identifier != 0 { throw .list(form == .lid1 ? 0 : 20) }
            // Nobody could ask what became of it.
            if isImmediate { throw .list(15, bit: 0) }
        }
        let (cscdEnd, segmentEnd, inlineEnd) = try Self.layout(form, bytes, limits)
        sequentialStriped = bytes[1] & 0x20 != 0
        priority = bytes[1] & 7
        for offset in stride(from: form.headerLength, to: cscdEnd, by: CSCDDescriptor.length) {
            cscds.append(try CSCDDescriptor(decoding: bytes, at: offset))
        }
        var offset = cscdEnd
        while offset < segmentEnd {
            guard segments.count < limits.segmentDescriptors else {
                throw .list(form == .lid1 ? 8 : 44, .tooManySegmentDescriptors)
            }
            let segment = try SegmentDescriptor(decoding: bytes, at: offset, end: segmentEnd)
            segments.append(segment)
            offset += SegmentDescriptor.length(ofType: segment.typeCode) ?? 0
        }
        inlineData = Array(bytes[segmentEnd..<inlineEnd])
    }

    /// The ends of the three parts, from the header's lengths.
    private static func layout(
        _ form: Form, _ bytes: [UInt8], _ limits: CopyListLimits
    ) throws(CheckCondition) -> (cscdEnd: Int, segmentEnd: Int, inlineEnd: Int) {
        func wide(_ place: Int) -> Int { Int(bytes.bigEndian(at: place, as: UInt32.self)) }
        func narrow(_ place: Int) -> Int { Int(bytes.bigEndian(at: place, as: UInt16.self)) }
        let places = form == .lid1 ? (cscd: 2, segment: 8, inline: 12) : (cscd: 42, segment: 44, inline: 46)
        let cscdLength = narrow(places.cscd)
        let segmentLength = form == .lid1 ? wide(places.segment) : narrow(places.segment)
        let inlineLength = form == .lid1 ? wide(places.inline) : narrow(places.inline)
        // First: a list that is too long in all has too many of one kind in any case.
        if cscdLength + segmentLength > limits.descriptorListBytes {
            throw CheckCondition(.parameterListLengthError)
        }
        if cscdLength > limits.cscdDescriptors * CSCDDescriptor.length {
            throw .list(places.cscd, .tooManyCSCDDescriptors)
        }
        // The longest segment descriptor we take has 32 bytes: with more there are too many in any case.
        if segmentLength > limits.segmentDescriptors * 32 {
            throw .list(places.segment, .tooManySegmentDescriptors)
        }
        if inlineLength > limits.inlineDataBytes { throw .list(places.inline, .inlineDataLengthExceeded) }
        if cscdLength % CSCDDescriptor.length != 0 { throw .list(places.cscd) }
        let cscdEnd = form.headerLength + cscdLength
        let segmentEnd = cscdEnd + segmentLength
        let inlineEnd = segmentEnd + inlineLength
        if inlineEnd > bytes.count { throw CheckCondition(.parameterListLengthError) }
        return (cscdEnd, segmentEnd, inlineEnd)
    }
}

extension CheckCondition {
    /// ILLEGAL REQUEST with a place in the parameter list.
    fileprivate static func list(
        _ byte: Int, bit: UInt8? = nil, _ code: AdditionalSenseCode = .invalidFieldInParameterList
    ) -> CheckCondition {
        CheckCondition(.invalidFieldInParameterList(byte: byte, bit: bit, code: code))
    }
}
