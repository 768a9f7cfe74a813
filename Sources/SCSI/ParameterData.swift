import Blocks

/// READ CAPACITY data, in both forms (SBC-3 §5.15.2, §5.16.2).
public struct Capacity: Hashable, Sendable {
    /// The last block's address; a unit has at least one block.
    public var lastLBA: LBA
    /// Bytes of a logical block.
    public var blockLength: UInt32
    /// A physical block holds 2 to this power logical blocks.
    public var physicalBlockExponent: UInt8 = 0
    /// The first logical block that lies at the start of a physical one.
    public var lowestAlignedLBA: UInt16 = 0
    /// LBPME: thin or resource provisioned.
    public var isProvisioned = false
    /// LBPRZ: unmapped blocks read as zeros.
    public var unmappedReadsZeros = false

    public init(lastLBA: LBA, blockLength: UInt32) {
        self.lastLBA = lastLBA
        self.blockLength = blockLength
    }

    /// 8 bytes; FFFFFFFFh where the address does not fit.
    public func encoded10() -> [UInt8] {
        var writer = BigEndianWriter(reserving: 8)
        writer.integer(UInt32(clamping: lastLBA.value))
        writer.integer(blockLength)
        return writer.bytes
    }

    /// 32 bytes.
    public func encoded16() -> [UInt8] {
        var writer = BigEndianWriter(reserving: 32)
        writer.integer(lastLBA.value)
        writer.integer(blockLength)
        writer.integer(UInt8(0))
        writer.integer(physicalBlockExponent & 0xF)
        writer.integer(
            UInt16(isProvisioned ? 0x8000 : 0) | (unmappedReadsZeros ? 0x4000 : 0)
                | lowestAlignedLBA & 0x3FFF)
        writer.zeros(16)
        return writer.bytes
    }

    /// Reads READ CAPACITY (10) data. A last address of FFFFFFFFh says: ask with READ CAPACITY (16).
    public init(decoding10 bytes: [UInt8]) throws(MalformedParameterData) {
        guard bytes.count >= 8 else { throw MalformedParameterData("READ CAPACITY data", at: bytes.count) }
        self.init(
            lastLBA: LBA(UInt64(bytes.bigEndian(at: 0, as: UInt32.self))),
            blockLength: bytes.bigEndian(at: 4))
    }

    /// Reads READ CAPACITY (16) data.
    public init(decoding16 bytes: [UInt8]) throws(MalformedParameterData) {
        guard bytes.count >= 12 else { throw MalformedParameterData("READ CAPACITY data", at: bytes.count) }
        self.init(lastLBA: LBA(bytes.bigEndian(at: 0)), blockLength: bytes.bigEndian(at: 8))
        guard bytes.count >= 16 else { return }
        physicalBlockExponent = bytes[13] & 0xF
        let word = bytes.bigEndian(at: 14, as: UInt16.self)
        isProvisioned = word & 0x8000 != 0
        unmappedReadsZeros = word & 0x4000 != 0
        lowestAlignedLBA = word & 0x3FFF
    }
}

/// REPORT LUNS data (SPC-4 §6.33).
public enum ReportLUNs {
    /// SELECT REPORT: the logical units, without well known ones.
    public static let selectAddressed: UInt8 = 0x00
    /// Well known logical units only.
    public static let selectWellKnown: UInt8 = 0x01
    public static let selectAll: UInt8 = 0x02

    public static func encode(_ units: [LogicalUnitNumber]) -> [UInt8] {
        var writer = BigEndianWriter(reserving: 8 + 8 * units.count)
        writer.integer(UInt32(8 * units.count))
        writer.zeros(4)
        for unit in units { writer.integer(unit.rawValue) }
        return writer.bytes
    }

    /// The units of an answer and how many bytes the whole list would have taken, which is more than there
    /// is when the allocation length was too small.
    public static func decode(
        _ bytes: [UInt8]
    ) throws(MalformedParameterData) -> (units: [LogicalUnitNumber], wholeLength: Int) {
        guard bytes.count >= 8 else { throw MalformedParameterData("REPORT LUNS data", at: bytes.count) }
        let length = Int(bytes.bigEndian(at: 0, as: UInt32.self))
        guard length % 8 == 0 else { throw MalformedParameterData("REPORT LUNS data", at: 0) }
        let end = min(bytes.count, 8 + length)
        let units = stride(from: 8, through: end - 8, by: 8)
            .map { LogicalUnitNumber(rawValue: bytes.bigEndian(at: $0)) }
        return (units, 8 + length)
    }
}

/// One mode page: its code and what follows the length byte (SPC-4 §7.5.7, page_0 form).
public struct ModePage: Hashable, Sendable {
    public static let readWriteErrorRecovery: UInt8 = 0x01
    public static let caching: UInt8 = 0x08
    public static let control: UInt8 = 0x0A
    public static let informationalExceptions: UInt8 = 0x1C

    /// 6 bits.
    public var code: UInt8
    /// PS: the page can be saved.
    public var isSavable = false
    /// At most 255 bytes.
    public var body: [UInt8]

    public init(code: UInt8, body: [UInt8]) {
        precondition(code < 0x3F && body.count <= 255)
        self.code = code
        self.body = body
    }

    func encoded() -> [UInt8] { [UInt8(isSavable ? 0x80 : 0) | code, UInt8(body.count)] + body }

    /// Caching (SBC-3 §6.5.5).
    /// - Parameters:
    ///   - writeCache: WCE: GOOD may come before the data are on stable storage.
    ///   - readCacheDisabled: RCD.
    public static func caching(writeCache: Bool, readCacheDisabled: Bool = false) -> ModePage {
        var body = [UInt8](repeating: 0, count: 18)
        body[0] = (writeCache ? 0x04 : 0) | (readCacheDisabled ? 0x01 : 0)
        return ModePage(code: caching, body: body)
    }

    /// Control (SPC-4 §7.5.8).
    /// - Parameters:
    ///   - descriptorSense: D_SENSE: sense data come in descriptor form.
    ///   - softwareWriteProtect: SWP.
    public static func control(
        descriptorSense: Bool = false, softwareWriteProtect: Bool = false
    ) -> ModePage {
        var body = [UInt8](repeating: 0, count: 10)
        body[0] = descriptorSense ? 0x04 : 0
        // QUEUE ALGORITHM MODIFIER 1: reordering is not restricted.
        body[1] = 0x10
        body[2] = softwareWriteProtect ? 0x08 : 0
        // TAS: what another nexus aborts ends with TASK ABORTED, as the transport does it.
        body[3] = 0x40
        // BUSY TIMEOUT PERIOD: unlimited.
        body[6] = 0xFF
        body[7] = 0xFF
        return ModePage(code: control, body: body)
    }
}

/// Mode parameters of a direct-access block device (SPC-4 §7.5.4 … §7.5.6; SBC-3 §6.5).
public struct ModeParameters: Hashable, Sendable {
    /// WP: medium or unit is write-protected.
    public var isWriteProtected: Bool
    /// DPOFUA: READ and WRITE take DPO and FUA.
    public var supportsFUA: Bool
    /// Told in a block descriptor, unless nil.
    public var capacity: Capacity?
    public var pages: [ModePage]

    public init(isWriteProtected: Bool, supportsFUA: Bool, capacity: Capacity?, pages: [ModePage]) {
        self.isWriteProtected = isWriteProtected
        self.supportsFUA = supportsFUA
        self.capacity = capacity
        self.pages = pages
    }

    private var deviceSpecific: UInt8 { (isWriteProtected ? 0x80 : 0) | (supportsFUA ? 0x10 : 0) }

    /// The short block descriptor (SBC-3 §6.5.2.2); a count that does not fit is FFFFFFFFh.
    private var shortDescriptor: [UInt8] {
        guard let capacity else { return [] }
        var writer = BigEndianWriter(reserving: 8)
        writer.integer(UInt32(clamping: capacity.lastLBA.value.addingReportingOverflow(1).partialValue))
        writer.integer(capacity.blockLength & 0xFF_FFFF)
        return writer.bytes
    }

    private var longDescriptor: [UInt8] {
        guard let capacity else { return [] }
        var writer = BigEndianWriter(reserving: 16)
        writer.integer(capacity.lastLBA.value.addingReportingOverflow(1).partialValue)
        writer.zeros(4)
        writer.integer(capacity.blockLength)
        return writer.bytes
    }

    /// MODE SENSE (6) data. Traps above 256 bytes.
    public func encoded6() -> [UInt8] {
        let rest = shortDescriptor + pages.flatMap { $0.encoded() }
        return [UInt8(3 + rest.count), 0, deviceSpecific, UInt8(shortDescriptor.count)] + rest
    }

    /// MODE SENSE (10) data.
    /// - Parameter longDescriptor: the initiator takes a long block descriptor (LLBAA).
    public func encoded10(longDescriptor isLong: Bool) -> [UInt8] {
        let descriptor = isLong ? longDescriptor : shortDescriptor
        let rest = pages.flatMap { $0.encoded() }
        var writer = BigEndianWriter(reserving: 8 + descriptor.count + rest.count)
        writer.integer(UInt16(6 + descriptor.count + rest.count))
        writer.integer(UInt8(0))
        writer.integer(deviceSpecific)
        writer.integer(UInt8(isLong && !descriptor.isEmpty ? 1 : 0))
        writer.integer(UInt8(0))
        writer.integer(UInt16(descriptor.count))
        writer.append(descriptor)
        writer.append(rest)
        return writer.bytes
    }
}
