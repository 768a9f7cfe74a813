import Blocks

/// ROD TYPE (SPC-4 §5.17.6.2): what a representation of data keeps of the instant at which it was made.
public struct RODType: RawRepresentable, Hashable, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// The data are whatever is there when they are read.
    public static let accessUponReference = RODType(rawValue: 0x0001_0000)
    /// Asks for the point in time copy that the copy manager makes by default.
    public static let pointInTimeDefault = RODType(rawValue: 0x0080_0000)
    /// The data as of the token's making; a change of them ends the token.
    public static let pointInTimeChangeVulnerable = RODType(rawValue: 0x0080_0001)
    /// The data as of the token's making, whatever happens to the source.
    public static let pointInTimePersistent = RODType(rawValue: 0x0080_0002)
    /// Asks for any point in time copy.
    public static let pointInTimeAny = RODType(rawValue: 0x0080_FFFF)
    /// The well-known token for zeros (SBC-3 §4.28.4); nobody makes it.
    public static let blockDeviceZero = RODType(rawValue: 0xFFFF_0001)
}

/// A ROD token of a block device (SPC-4 §5.17.6.5.2, SBC-3 §4.28.3). 512 bytes.
public struct RODToken: Hashable, Sendable {
    /// Bytes of a whole token.
    public static let length = 512
    /// Bytes at its start that REPORT ALL ROD TOKENS tells: nothing secret among them.
    public static let managementLength = 96
    /// What ROD TOKEN LENGTH says: the bytes behind the eighth.
    public static let lengthField: UInt16 = 504
    private static let deviceOffset = 128

    public var type: RODType
    /// COPY MANAGER ROD TOKEN IDENTIFIER; no secret.
    public var identifier: UInt64
    /// The unit that made it, named as EXTENDED COPY would name it.
    public var creator: CSCDDescriptor
    /// NUMBER OF BYTES REPRESENTED; the field has 128 bits.
    public var bytesRepresented: UInt64
    /// Of the unit that made it; the last address is not part of a token.
    public var capacity: Capacity
    /// Names the target device; at most 20 bytes of designator.
    public var device: DesignationDescriptor
    /// EXTENDED ROD TOKEN DATA: the copy manager's own, behind the target device descriptor; they fill the token up
    /// with zeros.
    public var extendedData: [UInt8]

    public init(
        type: RODType, identifier: UInt64, creator: CSCDDescriptor, bytesRepresented: UInt64,
        capacity: Capacity, device: DesignationDescriptor, extendedData: [UInt8]
    ) {
        self.type = type
        self.identifier = identifier
        self.creator = creator
        self.bytesRepresented = bytesRepresented
        self.capacity = capacity
        self.capacity.lastLBA = LBA(0)
        self.device = device
        self.extendedData = extendedData
    }

    /// Traps where the extended data do not fit.
    public func encoded() -> [UInt8] {
        var writer = BigEndianWriter(reserving: Self.length)
        writer.integer(type.rawValue)
        writer.zeros(2)
        writer.integer(Self.lengthField)
        writer.integer(identifier)
        writer.append(creator.encoded())
        writer.zeros(8)
        writer.integer(bytesRepresented)
        writer.zeros(Self.managementLength - writer.bytes.count)
        // As READ CAPACITY (16) has it, without the address.
        writer.append(capacity.encoded16()[8...])
        writer.zeros(Self.deviceOffset - writer.bytes.count)
        writer.append(device.encoded())
        writer.append(extendedData)
        precondition(writer.bytes.count <= Self.length, "more extended data than a token holds")
        writer.zeros(Self.length - writer.bytes.count)
        return writer.bytes
    }

    /// Reads a token that some copy manager made.
    public init(decoding bytes: [UInt8]) throws(MalformedParameterData) {
        let what = "ROD token"
        guard bytes.count == Self.length else { throw MalformedParameterData(what, at: bytes.count) }
        guard bytes.bigEndian(at: 6, as: UInt16.self) == Self.lengthField else {
            throw MalformedParameterData(what, at: 6)
        }
        let creator: CSCDDescriptor
        do throws(CheckCondition) { creator = try CSCDDescriptor(decoding: bytes, at: 16) } catch {
            throw MalformedParameterData(what, at: 16)
        }
        guard bytes.bigEndian(at: 48, as: UInt64.self) == 0 else {
            throw MalformedParameterData(what, at: 48)
        }
        guard let device = DesignationDescriptor(decoding: bytes, at: Self.deviceOffset) else {
            throw MalformedParameterData(what, at: Self.deviceOffset)
        }
        let rest = bytes[(Self.deviceOffset + 4 + device.designator.count)...]
        let told = [UInt8](repeating: 0, count: 8) + bytes[Self.managementLength..<Self.deviceOffset]
        self.init(
            type: RODType(rawValue: bytes.bigEndian(at: 0)), identifier: bytes.bigEndian(at: 8),
            creator: creator, bytesRepresented: bytes.bigEndian(at: 56),
            capacity: try Capacity(decoding16: told), device: device, extendedData: Array(rest))
    }

    /// The well-known token that represents zeros, as many as are asked of it (SBC-3 §4.28.4).
    public static let blockDeviceZero: [UInt8] = {
        var writer = BigEndianWriter(reserving: length)
        writer.integer(RODType.blockDeviceZero.rawValue)
        writer.zeros(2)
        writer.integer(lengthField)
        writer.zeros(length - writer.bytes.count)
        return writer.bytes
    }()
}

/// REPORT ALL ROD TOKENS parameter data (SPC-4 §6.31.2): the first 96 bytes of each token.
public enum AllRODTokens {
    /// - Parameter tokens: whole ones.
    public static func encode(_ tokens: [[UInt8]]) -> [UInt8] {
        var writer = BigEndianWriter(reserving: 8 + tokens.count * RODToken.managementLength)
        writer.integer(UInt32(4 + tokens.count * RODToken.managementLength))
        writer.zeros(4)
        for token in tokens { writer.append(token.prefix(RODToken.managementLength)) }
        return writer.bytes
    }

    /// - Returns: the management tokens, 96 bytes each, of an answer that came whole.
    public static func decode(_ bytes: [UInt8]) throws(MalformedParameterData) -> [[UInt8]] {
        let what = "REPORT ALL ROD TOKENS data"
        guard bytes.count >= 8 else { throw MalformedParameterData(what, at: bytes.count) }
        let length = Int(bytes.bigEndian(at: 0, as: UInt32.self)) - 4
        guard length >= 0, length % RODToken.managementLength == 0, length <= bytes.count - 8 else {
            throw MalformedParameterData(what, at: 0)
        }
        return stride(from: 8, to: 8 + length, by: RODToken.managementLength).map {
            Array(bytes[$0..<$0 + RODToken.managementLength])
        }
    }
}
