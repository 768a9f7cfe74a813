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

/// The parameter list of EXTENDED COPY (LID1) (SPC-4 §6.4.2).
public struct CopyParameterList: Hashable, Sendable {
    /// Bytes before the first CSCD descriptor.
    public static let headerLength = 16

    /// LIST ID USAGE (SPC-4 table 92).
    public enum ListIDUsage: UInt8, Sendable {
        /// The identifier is in use; data for RECEIVE COPY DATA are held (NRCR 0 in SPC-3).
        case hold = 0b00
        /// The identifier is in use; nothing need be held (NRCR 1 in SPC-3).
        case discard = 0b10
        /// There is no identifier; its field must be 0. Asked for with SNLID only.
        case none = 0b11
    }

    public var listIdentifier: UInt8
    public var usage: ListIDUsage
    /// STR: segments are sequential striped; means nothing for block devices.
    public var sequentialStriped = false
    /// 0 to 7, 0 the highest; a hint.
    public var priority: UInt8 = 0
    public var cscds: [CSCDDescriptor]
    public var segments: [SegmentDescriptor]
    public var inlineData: [UInt8] = []

    public init(
        listIdentifier: UInt8, usage: ListIDUsage = .hold, cscds: [CSCDDescriptor],
        segments: [SegmentDescriptor]
    ) {
        self.listIdentifier = listIdentifier
        self.usage = usage
        self.cscds = cscds
        self.segments = segments
    }

    public func encoded() -> [UInt8] {
        let segmentBytes = segments.flatMap { $0.encoded() }
        var writer = BigEndianWriter(
            reserving: Self.headerLength + cscds.count * CSCDDescriptor.length + segmentBytes.count)
        writer.integer(listIdentifier)
        writer.integer((sequentialStriped ? 0x20 : 0) | usage.rawValue << 3 | priority & 7)
        writer.integer(UInt16(cscds.count * CSCDDescriptor.length))
        writer.zeros(4)
        writer.integer(UInt32(segmentBytes.count))
        writer.integer(UInt32(inlineData.count))
        for cscd in cscds { writer.append(cscd.encoded()) }
        writer.append(segmentBytes)
        writer.append(inlineData)
        return writer.bytes
    }

    /// Reads a parameter list. An empty one (a length of 0) is no error and no list: the caller answers GOOD
    /// before it comes here.
    /// - Throws: ``CheckCondition``: ILLEGAL REQUEST with PARAMETER LIST LENGTH ERROR where bytes are missing,
    ///   TOO MANY CSCD or SEGMENT DESCRIPTORS, UNSUPPORTED … DESCRIPTOR TYPE CODE, INLINE DATA LENGTH
    ///   EXCEEDED, or INVALID FIELD IN PARAMETER LIST with the field's place.
    public init(decoding bytes: [UInt8], limits: CopyListLimits) throws(CheckCondition) {
        guard bytes.count >= Self.headerLength else { throw CheckCondition(.parameterListLengthError) }
        guard let usage = ListIDUsage(rawValue: bytes[1] >> 3 & 3) else {
            throw CheckCondition(.invalidFieldInParameterList(byte: 1, bit: 4))
        }
        if usage == .none {
            if !limits.supportsNoListIdentifier {
                throw CheckCondition(.invalidFieldInParameterList(byte: 1, bit: 4))
            }
            if bytes[0] != 0 { throw CheckCondition(.invalidFieldInParameterList(byte: 0)) }
        }
        let (cscdEnd, segmentEnd, inlineEnd) = try Self.layout(bytes, limits)
        self.init(listIdentifier: bytes[0], usage: usage, cscds: [], segments: [])
        sequentialStriped = bytes[1] & 0x20 != 0
        priority = bytes[1] & 7
        for offset in stride(from: Self.headerLength, to: cscdEnd, by: CSCDDescriptor.length) {
            cscds.append(try CSCDDescriptor(decoding: bytes, at: offset))
        }
        var offset = cscdEnd
        while offset < segmentEnd {
            guard segments.count < limits.segmentDescriptors else {
                throw CheckCondition(.invalidFieldInParameterList(byte: 8, code: .tooManySegmentDescriptors))
            }
            let segment = try SegmentDescriptor(decoding: bytes, at: offset, end: segmentEnd)
            segments.append(segment)
            offset += SegmentDescriptor.length(ofType: segment.typeCode) ?? 0
        }
        inlineData = Array(bytes[segmentEnd..<inlineEnd])
    }

    /// The ends of the three parts, from the header's lengths.
    private static func layout(
        _ bytes: [UInt8], _ limits: CopyListLimits
    ) throws(CheckCondition) -> (cscdEnd: Int, segmentEnd: Int, inlineEnd: Int) {
        let cscdLength = Int(bytes.bigEndian(at: 2, as: UInt16.self))
        let segmentLength = Int(bytes.bigEndian(at: 8, as: UInt32.self))
        let inlineLength = Int(bytes.bigEndian(at: 12, as: UInt32.self))
        // First: a list that is too long in all has too many of one kind in any case.
        if cscdLength + segmentLength > limits.descriptorListBytes {
            throw CheckCondition(.parameterListLengthError)
        }
        if cscdLength > limits.cscdDescriptors * CSCDDescriptor.length {
            throw CheckCondition(.invalidFieldInParameterList(byte: 2, code: .tooManyCSCDDescriptors))
        }
        // The shortest segment descriptor we take has 28 bytes: with more there are too many in any case.
        if segmentLength > limits.segmentDescriptors * 32 {
            throw CheckCondition(.invalidFieldInParameterList(byte: 8, code: .tooManySegmentDescriptors))
        }
        if inlineLength > limits.inlineDataBytes {
            throw CheckCondition(.invalidFieldInParameterList(byte: 12, code: .inlineDataLengthExceeded))
        }
        if cscdLength % CSCDDescriptor.length != 0 {
            throw CheckCondition(.invalidFieldInParameterList(byte: 2))
        }
        let cscdEnd = headerLength + cscdLength
        let segmentEnd = cscdEnd + segmentLength
        let inlineEnd = segmentEnd + inlineLength
        if inlineEnd > bytes.count { throw CheckCondition(.parameterListLengthError) }
        return (cscdEnd, segmentEnd, inlineEnd)
    }
}
