import Blocks

/// Vital product data page codes (SPC-4 §7.8, SBC-3 §6.6).
public enum VPDPageCode {
    public static let supportedPages: UInt8 = 0x00
    public static let unitSerialNumber: UInt8 = 0x80
    public static let deviceIdentification: UInt8 = 0x83
    public static let extendedInquiry: UInt8 = 0x86
    public static let modePagePolicy: UInt8 = 0x87
    public static let thirdPartyCopy: UInt8 = 0x8F
    public static let blockLimits: UInt8 = 0xB0
    public static let blockDeviceCharacteristics: UInt8 = 0xB1
    public static let logicalBlockProvisioning: UInt8 = 0xB2
}

/// One VPD page: four bytes of header, then a body of at most 65,535.
public struct VPDPage: Hashable, Sendable {
    /// Peripheral qualifier (3 bits) and device type (5 bits).
    public var peripheral: UInt8
    public var code: UInt8
    public var body: [UInt8]

    public init(code: UInt8, body: [UInt8], peripheral: UInt8 = 0) {
        precondition(body.count <= 0xFFFF)
        self.peripheral = peripheral
        self.code = code
        self.body = body
    }

    public func encoded() -> [UInt8] {
        var writer = BigEndianWriter(reserving: 4 + body.count)
        writer.integer(peripheral)
        writer.integer(code)
        writer.integer(UInt16(body.count))
        writer.append(body)
        return writer.bytes
    }

    /// Reads a page that was answered whole.
    /// - Parameter expected: the page code that was asked for.
    public init(decoding bytes: [UInt8], expecting expected: UInt8) throws(MalformedParameterData) {
        let what = "VPD page \(String(expected, radix: 16, uppercase: true))h"
        guard bytes.count >= 4, bytes[1] == expected else { throw MalformedParameterData(what, at: 1) }
        let length = Int(bytes.bigEndian(at: 2, as: UInt16.self))
        guard bytes.count >= 4 + length else { throw MalformedParameterData(what, at: 2) }
        self.init(code: bytes[1], body: Array(bytes[4..<4 + length]), peripheral: bytes[0])
    }

    /// Page 00h; the codes go out in ascending order, as SPC-4 §7.8.14 asks.
    public static func supportedPages(_ codes: [UInt8]) -> VPDPage {
        VPDPage(code: VPDPageCode.supportedPages, body: codes.sorted())
    }

    /// Page 80h.
    public static func unitSerialNumber(_ serial: String) -> VPDPage {
        var writer = BigEndianWriter()
        writer.ascii(serial, width: min(serial.utf8.count, 252))
        return VPDPage(code: VPDPageCode.unitSerialNumber, body: writer.bytes)
    }

    /// The serial number of page 80h.
    public var serialNumber: String { trimmedASCII(body) }

    /// Page 83h.
    public static func deviceIdentification(_ descriptors: [DesignationDescriptor]) -> VPDPage {
        VPDPage(code: VPDPageCode.deviceIdentification, body: descriptors.flatMap { $0.encoded() })
    }

    /// The descriptors of page 83h.
    public func designationDescriptors() throws(MalformedParameterData) -> [DesignationDescriptor] {
        var result: [DesignationDescriptor] = []
        var offset = 0
        while offset < body.count {
            guard let next = DesignationDescriptor(decoding: body, at: offset) else {
                throw MalformedParameterData("VPD page 83h", at: 4 + offset)
            }
            result.append(next)
            offset += 4 + next.designator.count
        }
        return result
    }
}

/// VPD page B0h (SBC-3 §6.6.4). Blocks unless said otherwise; 0 means not reported.
public struct BlockLimits: Hashable, Sendable {
    /// WSNZ: WRITE SAME with a count of 0 is refused.
    public var writeSameNonZero = false
    public var maximumCompareAndWrite: UInt8 = 0
    public var optimalTransferGranularity: UInt16 = 0
    public var maximumTransfer: UInt32 = 0
    public var optimalTransfer: UInt32 = 0
    public var maximumPrefetch: UInt32 = 0
    public var maximumUnmapLBAs: UInt32 = 0
    /// Block descriptors of one UNMAP.
    public var maximumUnmapDescriptors: UInt32 = 0
    public var optimalUnmapGranularity: UInt32 = 0
    /// Nil: not told (UGAVALID 0).
    public var unmapGranularityAlignment: UInt32?
    public var maximumWriteSame: UInt64 = 0

    public init() {}

    public var page: VPDPage {
        var writer = BigEndianWriter(reserving: 60)
        writer.integer(UInt8(writeSameNonZero ? 1 : 0))
        writer.integer(maximumCompareAndWrite)
        writer.integer(optimalTransferGranularity)
        writer.integer(maximumTransfer)
        writer.integer(optimalTransfer)
        writer.integer(maximumPrefetch)
        writer.integer(maximumUnmapLBAs)
        writer.integer(maximumUnmapDescriptors)
        writer.integer(optimalUnmapGranularity)
        writer.integer(unmapGranularityAlignment.map { 0x8000_0000 | $0 } ?? 0)
        writer.integer(maximumWriteSame)
        writer.zeros(60 - writer.bytes.count)
        return VPDPage(code: VPDPageCode.blockLimits, body: writer.bytes)
    }

    public init(page: VPDPage) throws(MalformedParameterData) {
        let body = page.body
        guard body.count >= 12 else { throw MalformedParameterData("VPD page B0h", at: 4 + body.count) }
        writeSameNonZero = body[0] & 1 != 0
        maximumCompareAndWrite = body[1]
        optimalTransferGranularity = body.bigEndian(at: 2)
        maximumTransfer = body.bigEndian(at: 4)
        optimalTransfer = body.bigEndian(at: 8)
        // SBC-2's page ends here.
        guard body.count >= 40 else { return }
        maximumPrefetch = body.bigEndian(at: 12)
        maximumUnmapLBAs = body.bigEndian(at: 16)
        maximumUnmapDescriptors = body.bigEndian(at: 20)
        optimalUnmapGranularity = body.bigEndian(at: 24)
        let alignment = body.bigEndian(at: 28, as: UInt32.self)
        unmapGranularityAlignment = alignment >> 31 == 1 ? alignment & 0x7FFF_FFFF : nil
        maximumWriteSame = body.bigEndian(at: 32)
    }
}

/// VPD page B1h (SBC-3 §6.6.3).
public struct BlockDeviceCharacteristics: Hashable, Sendable {
    /// 0 not reported, 1 non-rotating, 0401h to FFFEh rotations in a minute.
    public var rotationRate: UInt16

    public init(rotationRate: UInt16) { self.rotationRate = rotationRate }

    public var page: VPDPage {
        var writer = BigEndianWriter(reserving: 60)
        writer.integer(rotationRate)
        writer.zeros(58)
        return VPDPage(code: VPDPageCode.blockDeviceCharacteristics, body: writer.bytes)
    }
}

/// VPD page B2h (SBC-3 §6.6.6).
public struct LogicalBlockProvisioning: Hashable, Sendable {
    public enum ProvisioningType: UInt8, Sendable {
        case full = 0
        case resource = 1
        case thin = 2
    }
    public var unmap = false
    public var writeSame16Unmap = false
    public var writeSame10Unmap = false
    /// LBPRZ: unmapped blocks read as zeros.
    public var unmappedReadsZeros = false
    public var type: ProvisioningType = .full

    public init() {}

    public var page: VPDPage {
        let flags =
            UInt8(unmap ? 0x80 : 0) | (writeSame16Unmap ? 0x40 : 0) | (writeSame10Unmap ? 0x20 : 0)
            | (unmappedReadsZeros ? 0x04 : 0)
        return VPDPage(
            code: VPDPageCode.logicalBlockProvisioning, body: [0, flags, type.rawValue, 0])
    }
}
