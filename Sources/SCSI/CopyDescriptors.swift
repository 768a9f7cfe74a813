import Blocks

/// An identification CSCD descriptor (E4h): a copy source or destination named by one of its
/// designators. 32 bytes.
public struct CSCDDescriptor: Hashable, Sendable {
    /// DESCRIPTOR TYPE CODE of an identification CSCD descriptor.
    public static let typeCode: UInt8 = 0xE4
    /// Bytes of every CSCD descriptor without an extension.
    public static let length = 32

    /// LU ID TYPE: ignored by identification descriptors in SPC-4, where it is reserved.
    public var luIDType: UInt8 = 0
    /// NUL, obsolete: the unit is a null device, which no copy manager here has.
    public var isNullDevice = false
    public var deviceType: UInt8 = PeripheralDeviceType.directAccessBlock
    public var relativeInitiatorPort: UInt16 = 0
    /// At most ``SCSILimits/cscdDesignatorBytes`` bytes of designator.
    public var designation: DesignationDescriptor
    /// PAD: bytes that fill up a partial block are written or dropped (SPC-2 table 30).
    public var pad = false
    /// DISK BLOCK LENGTH, bytes, 24 bits. 0 is foreign: the device server compares with the unit's.
    public var diskBlockLength: UInt32

    /// - Precondition: the designator has at most 20 bytes.
    public init(designation: DesignationDescriptor, diskBlockLength: UInt32) {
        precondition(designation.designator.count <= SCSILimits.cscdDesignatorBytes)
        precondition(diskBlockLength < 1 << 24)
        self.designation = designation
        self.diskBlockLength = diskBlockLength
    }

    public func encoded() -> [UInt8] {
        var writer = BigEndianWriter(reserving: Self.length)
        writer.integer(Self.typeCode)
        writer.integer(luIDType << 6 | (isNullDevice ? 0x20 : 0) | deviceType & 0x1F)
        writer.integer(relativeInitiatorPort)
        writer.integer(designation.codeSet)
        writer.integer(designation.association << 4 | designation.type)
        writer.integer(UInt8(0))
        writer.integer(UInt8(designation.designator.count))
        writer.append(designation.designator)
        writer.zeros(28 - writer.bytes.count)
        writer.integer(UInt32(pad ? 0x0400_0000 : 0) | diskBlockLength)
        return writer.bytes
    }

    /// Reads the descriptor at `offset` of a parameter list; 32 bytes are there.
    init(decoding bytes: [UInt8], at offset: Int) throws(CheckCondition) {
        guard bytes[offset] == Self.typeCode else {
            throw CheckCondition(
                .invalidFieldInParameterList(byte: offset, code: .unsupportedCSCDDescriptorType))
        }
        let length = Int(bytes[offset + 7])
        guard length <= SCSILimits.cscdDesignatorBytes else {
            throw CheckCondition(.invalidFieldInParameterList(byte: offset + 7))
        }
        let parameters: UInt32 = bytes.bigEndian(at: offset + 28)
        self.init(
            designation: DesignationDescriptor(
                codeSet: bytes[offset + 4], association: bytes[offset + 5] >> 4, type: bytes[offset + 5],
                designator: Array(bytes[(offset + 8)..<(offset + 8 + length)])),
            diskBlockLength: parameters & 0xFF_FFFF)
        luIDType = bytes[offset + 1] >> 6
        isNullDevice = bytes[offset + 1] & 0x20 != 0
        deviceType = bytes[offset + 1] & 0x1F
        relativeInitiatorPort = bytes.bigEndian(at: offset + 2)
        pad = parameters & 0x0400_0000 != 0
    }
}

/// A segment descriptor of EXTENDED COPY from block device to block device.
public struct SegmentDescriptor: Hashable, Sendable {
    /// DESCRIPTOR TYPE CODE.
    public enum TypeCode {
        /// Whole blocks (SPC-2 §7.2.7.5).
        public static let blockToBlock: UInt8 = 0x02
        /// Bytes from byte offsets within blocks.
        public static let blockToBlockWithOffset: UInt8 = 0x0A
    }

    /// How much, and from where within the first blocks.
    public enum Amount: Hashable, Sendable {
        /// 02h: at most 65,535 blocks: the source's, or with DC the destination's. 0 copies nothing and is
        /// no error.
        case blocks(UInt16, ofDestination: Bool)
        /// 0Ah: bytes, and the byte offsets into source's and destination's first block.
        case bytes(UInt32, sourceOffset: UInt16, destinationOffset: UInt16)
    }

    /// Indexes into the CSCD descriptor list. They may point beyond it; the copy manager answers that with
    /// COPY ABORTED, UNREACHABLE COPY TARGET when it comes to the segment.
    public var source: UInt16
    public var destination: UInt16
    public var sourceLBA: LBA
    public var destinationLBA: LBA
    public var amount: Amount
    /// CAT: a residue of this segment goes in front of the next (SPC-2 table 30).
    public var concatenate = false
    /// The index that stands for no device (FFFFh).
    public static let nullIndex: UInt16 = 0xFFFF

    public init(
        source: UInt16, sourceLBA: LBA, destination: UInt16, destinationLBA: LBA, amount: Amount
    ) {
        self.source = source
        self.destination = destination
        self.sourceLBA = sourceLBA
        self.destinationLBA = destinationLBA
        self.amount = amount
    }

    public var typeCode: UInt8 {
        switch amount {
        case .blocks: TypeCode.blockToBlock
        case .bytes: TypeCode.blockToBlockWithOffset
        }
    }

    /// Bytes of the descriptor of a type, its four of header included; nil for other types.
    static func length(ofType code: UInt8) -> Int? {
        switch code {
        case TypeCode.blockToBlock: 28
        case TypeCode.blockToBlockWithOffset: 32
        default: nil
        }
    }

    public func encoded() -> [UInt8] {
        guard let length = Self.length(ofType: typeCode) else { preconditionFailure("a type without length") }
        var writer = BigEndianWriter(reserving: length)
        writer.integer(typeCode)
        var flags: UInt8 = concatenate ? 0x01 : 0
        if case .blocks(_, ofDestination: true) = amount { flags |= 0x02 }
        writer.integer(flags)
        writer.integer(UInt16(length - 4))
        writer.integer(source)
        writer.integer(destination)
        switch amount {
        case .blocks(let count, _): writer.integer(UInt32(count))
        case .bytes(let count, _, _): writer.integer(count)
        }
        writer.integer(sourceLBA.value)
        writer.integer(destinationLBA.value)
        if case .bytes(_, let sourceOffset, let destinationOffset) = amount {
            writer.integer(sourceOffset)
            writer.integer(destinationOffset)
        }
        return writer.bytes
    }

    /// Reads the descriptor at `offset`, which may reach to `end`.
    init(decoding bytes: [UInt8], at offset: Int, end: Int) throws(CheckCondition) {
        guard end - offset >= 4 else { throw CheckCondition(.parameterListLengthError) }
        let code = bytes[offset]
        guard let length = Self.length(ofType: code) else {
            throw CheckCondition(
                .invalidFieldInParameterList(byte: offset, code: .unsupportedSegmentDescriptorType))
        }
        guard Int(bytes.bigEndian(at: offset + 2, as: UInt16.self)) == length - 4 else {
            throw CheckCondition(.invalidFieldInParameterList(byte: offset + 2))
        }
        guard end - offset >= length else { throw CheckCondition(.parameterListLengthError) }
        let amount: Amount
        if code == TypeCode.blockToBlock {
            amount = .blocks(
                bytes.bigEndian(at: offset + 10), ofDestination: bytes[offset + 1] & 0x02 != 0)
        } else {
            amount = .bytes(
                bytes.bigEndian(at: offset + 8), sourceOffset: bytes.bigEndian(at: offset + 28),
                destinationOffset: bytes.bigEndian(at: offset + 30))
        }
        self.init(
            source: bytes.bigEndian(at: offset + 4), sourceLBA: LBA(bytes.bigEndian(at: offset + 12)),
            destination: bytes.bigEndian(at: offset + 6),
            destinationLBA: LBA(bytes.bigEndian(at: offset + 20)), amount: amount)
        concatenate = bytes[offset + 1] & 0x01 != 0
    }
}
