import Blocks

/// A designation descriptor (SPC-4 §7.8.6): a name of a logical unit, a port or a device.
public struct DesignationDescriptor: Hashable, Sendable {
    public enum CodeSet {
        public static let binary: UInt8 = 1
        public static let ascii: UInt8 = 2
        public static let utf8: UInt8 = 3
    }
    public enum Association {
        public static let logicalUnit: UInt8 = 0
        public static let targetPort: UInt8 = 1
        public static let targetDevice: UInt8 = 2
    }
    /// DESIGNATOR TYPE (SPC-4 table 594).
    public enum DesignatorType {
        public static let vendorSpecific: UInt8 = 0
        public static let t10VendorID: UInt8 = 1
        public static let eui64: UInt8 = 2
        public static let naa: UInt8 = 3
        public static let relativeTargetPort: UInt8 = 4
        public static let scsiNameString: UInt8 = 8
    }

    /// 4 bits.
    public var codeSet: UInt8
    /// 2 bits.
    public var association: UInt8
    /// 4 bits.
    public var type: UInt8
    /// PROTOCOL IDENTIFIER, told (PIV) for ports and devices only: 5 is iSCSI.
    public var protocolIdentifier: UInt8?
    /// At most ``SCSILimits/designatorBytes``.
    public var designator: [UInt8]

    public init(
        codeSet: UInt8, association: UInt8 = Association.logicalUnit, type: UInt8,
        protocolIdentifier: UInt8? = nil, designator: [UInt8]
    ) {
        precondition(designator.count <= SCSILimits.designatorBytes)
        self.codeSet = codeSet & 0xF
        self.association = association & 3
        self.type = type & 0xF
        self.protocolIdentifier = protocolIdentifier.map { $0 & 0xF }
        self.designator = designator
    }

    /// NAA 3h, locally assigned: 60 bits (SPC-4 §7.8.6.6.4), 8 bytes.
    public static func naaLocallyAssigned(_ value: UInt64) -> DesignationDescriptor {
        naa(UInt64(3) << 60 | value & (1 << 60 - 1))
    }

    /// NAA 6h, IEEE registered extended (SPC-4 §7.8.6.6.6): 24-bit company, 36-bit and 64-bit vendor-specific
    /// parts, 16 bytes.
    public static func naaRegisteredExtended(
        company: UInt32, vendor: UInt64, extensionValue: UInt64
    ) -> DesignationDescriptor {
        var writer = BigEndianWriter(reserving: 16)
        let companyField = UInt64(company & 0xFF_FFFF) << 36
        writer.integer(UInt64(6) << 60 | companyField | vendor & (1 << 36 - 1))
        writer.integer(extensionValue)
        return DesignationDescriptor(
            codeSet: CodeSet.binary, type: DesignatorType.naa, designator: writer.bytes)
    }

    private static func naa(_ value: UInt64) -> DesignationDescriptor {
        var writer = BigEndianWriter(reserving: 8)
        writer.integer(value)
        return DesignationDescriptor(
            codeSet: CodeSet.binary, type: DesignatorType.naa, designator: writer.bytes)
    }

    /// T10 vendor identification, then what that vendor calls unique (SPC-4 §7.8.6.4).
    public static func t10Vendor(_ vendor: String, unique: String) -> DesignationDescriptor {
        var writer = BigEndianWriter(reserving: 8 + unique.utf8.count)
        writer.ascii(vendor, width: 8)
        writer.ascii(unique, width: min(unique.utf8.count, SCSILimits.designatorBytes - 8))
        return DesignationDescriptor(
            codeSet: CodeSet.ascii, type: DesignatorType.t10VendorID, designator: writer.bytes)
    }

    /// EUI-64 (SPC-4 §7.8.6.5.2).
    public static func eui64(_ value: UInt64) -> DesignationDescriptor {
        var writer = BigEndianWriter(reserving: 8)
        writer.integer(value)
        return DesignationDescriptor(
            codeSet: CodeSet.binary, type: DesignatorType.eui64, designator: writer.bytes)
    }

    /// The descriptor as in VPD page 83h: four bytes and the designator.
    public func encoded() -> [UInt8] {
        var writer = BigEndianWriter(reserving: 4 + designator.count)
        writer.integer((protocolIdentifier ?? 0) << 4 | codeSet)
        writer.integer(UInt8(protocolIdentifier == nil ? 0 : 0x80) | association << 4 | type)
        writer.integer(UInt8(0))
        writer.integer(UInt8(designator.count))
        writer.append(designator)
        return writer.bytes
    }

    /// Reads one descriptor at `offset`. Nil when it does not lie wholly within `bytes`.
    init?(decoding bytes: [UInt8], at offset: Int) {
        guard offset >= 0, bytes.count - offset >= 4 else { return nil }
        let length = Int(bytes[offset + 3])
        guard bytes.count - offset - 4 >= length else { return nil }
        self.init(
            codeSet: bytes[offset], association: bytes[offset + 1] >> 4, type: bytes[offset + 1],
            protocolIdentifier: bytes[offset + 1] & 0x80 != 0 ? bytes[offset] >> 4 : nil,
            designator: Array(bytes[(offset + 4)..<(offset + 4 + length)]))
    }

    /// Whether both name the same thing: type, association, code set and the designator to its last byte.
    /// The protocol identifier is no part of the name.
    public func names(sameAs other: DesignationDescriptor) -> Bool {
        type == other.type && association == other.association && codeSet == other.codeSet
            && designator == other.designator
    }
}
