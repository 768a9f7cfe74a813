import Blocks

/// Standard INQUIRY data (SPC-4 §6.6.2).
public struct StandardInquiry: Hashable, Sendable {
    /// 000b: a unit is here; 011b: none can be.
    public var peripheralQualifier: UInt8 = 0
    public var deviceType: UInt8 = PeripheralDeviceType.directAccessBlock
    public var isRemovable = false
    /// 06h: SPC-4.
    public var version: UInt8 = 0x06
    /// 3PC: the unit has a copy manager.
    public var thirdPartyCopy = false
    public var protect = false
    /// CMDQUE.
    public var commandQueueing = true
    /// At most 8, 16 and 4 ASCII characters.
    public var vendor: String
    public var product: String
    public var revision: String
    /// At most eight (SPC-4 table 149), e.g. 0460h SPC-4, 04C0h SBC-3, 0960h iSCSI.
    public var versionDescriptors: [UInt16] = []

    public init(vendor: String, product: String, revision: String) {
        self.vendor = vendor
        self.product = product
        self.revision = revision
    }

    /// 96 bytes in all, the descriptors included.
    public func encoded() -> [UInt8] {
        var writer = BigEndianWriter(reserving: 96)
        writer.integer(peripheralQualifier << 5 | deviceType & 0x1F)
        writer.integer(UInt8(isRemovable ? 0x80 : 0))
        writer.integer(version)
        // HISUP (REPORT LUNS is there) and response data format 2.
        writer.integer(UInt8(0x12))
        writer.integer(UInt8(91))
        writer.integer(UInt8((thirdPartyCopy ? 0x08 : 0) | (protect ? 0x01 : 0)))
        writer.integer(UInt8(0))
        writer.integer(UInt8(commandQueueing ? 0x02 : 0))
        writer.ascii(vendor, width: 8)
        writer.ascii(product, width: 16)
        writer.ascii(revision, width: 4)
        writer.zeros(22)
        precondition(versionDescriptors.count <= 8)
        for descriptor in versionDescriptors { writer.integer(descriptor) }
        writer.zeros(96 - writer.bytes.count)
        return writer.bytes
    }

    /// Reads what a device answered: 36 bytes at least.
    public init(decoding bytes: [UInt8]) throws(MalformedParameterData) {
        guard bytes.count >= 36 else { throw MalformedParameterData("INQUIRY data", at: bytes.count) }
        self.init(
            vendor: trimmedASCII(bytes[8..<16]), product: trimmedASCII(bytes[16..<32]),
            revision: trimmedASCII(bytes[32..<36]))
        peripheralQualifier = bytes[0] >> 5
        deviceType = bytes[0] & 0x1F
        isRemovable = bytes[1] & 0x80 != 0
        version = bytes[2]
        thirdPartyCopy = bytes[5] & 0x08 != 0
        protect = bytes[5] & 0x01 != 0
        commandQueueing = bytes[7] & 0x02 != 0
        let end = min(bytes.count, 74)
        versionDescriptors = stride(from: 58, to: end - 1, by: 2)
            .map { bytes.bigEndian(at: $0) }.filter { $0 != 0 }
    }
}
