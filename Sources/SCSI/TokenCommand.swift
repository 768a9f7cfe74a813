import Blocks

extension ServiceAction {
    /// POPULATE TOKEN, under 83h (SBC-3 §5.7).
    public static let populateToken: UInt8 = 0x10
    /// WRITE USING TOKEN, under 83h (SBC-3 §5.48).
    public static let writeUsingToken: UInt8 = 0x11
}

extension CopyResultsServiceAction {
    /// RECEIVE ROD TOKEN INFORMATION.
    public static let tokenInformation = CopyResultsServiceAction(rawValue: 0x07)
    /// REPORT ALL ROD TOKENS.
    public static let allTokens = CopyResultsServiceAction(rawValue: 0x08)
}

/// The commands of ROD tokens. Lengths in bytes.
public enum TokenCommand: Hashable, Sendable {
    /// SBC-3 §5.7: makes a token for ranges of the unit's blocks.
    case populate(listIdentifier: UInt32, parameterListLength: Int)
    /// SBC-3 §5.48: writes what a token represents to ranges of the unit's blocks.
    case write(listIdentifier: UInt32, parameterListLength: Int)
    /// RECEIVE ROD TOKEN INFORMATION (SPC-4 §6.28): how one of the above went, and its token.
    case information(listIdentifier: UInt32, allocationLength: Int)
    /// REPORT ALL ROD TOKENS (SPC-4 §6.31).
    case reportAll(allocationLength: Int)

    /// Nil for a CDB that is none of these.
    init?(_ code: OperationCode, _ cdb: [UInt8]) {
        guard code == .extendedCopy || code == .receiveCopyResults else { return nil }
        let length = Int(cdb.bigEndian(at: 10, as: UInt32.self))
        switch (code, cdb[1] & 0x1F) {
        case (.extendedCopy, ServiceAction.populateToken):
            self = .populate(listIdentifier: cdb.bigEndian(at: 6), parameterListLength: length)
        case (.extendedCopy, ServiceAction.writeUsingToken):
            self = .write(listIdentifier: cdb.bigEndian(at: 6), parameterListLength: length)
        case (.receiveCopyResults, CopyResultsServiceAction.tokenInformation.rawValue):
            self = .information(listIdentifier: cdb.bigEndian(at: 2), allocationLength: length)
        case (.receiveCopyResults, CopyResultsServiceAction.allTokens.rawValue):
            self = .reportAll(allocationLength: length)
        default: return nil
        }
    }

    func encoded() -> [UInt8] {
        switch self {
        case .populate(let identifier, let length):
            Self.cdb(.extendedCopy, ServiceAction.populateToken, identifier, at: 6, length)
        case .write(let identifier, let length):
            Self.cdb(.extendedCopy, ServiceAction.writeUsingToken, identifier, at: 6, length)
        case .information(let identifier, let length):
            Self.cdb(
                .receiveCopyResults, CopyResultsServiceAction.tokenInformation.rawValue, identifier, at: 2,
                length)
        case .reportAll(let length):
            Self.cdb(
                .receiveCopyResults, CopyResultsServiceAction.allTokens.rawValue, 0, at: 2, length)
        }
    }

    private static func cdb(
        _ code: OperationCode, _ action: UInt8, _ identifier: UInt32, at offset: Int, _ length: Int
    ) -> [UInt8] {
        Command.cdb(code) {
            $0.set(action, at: 1)
            $0.set(identifier, at: offset)
            $0.set(UInt32(length), at: 10)
        }
    }
}

/// A block device range descriptor (SBC-3 §5.7.3). 16 bytes.
public struct BlockDeviceRange: Hashable, Sendable {
    public static let length = 16

    public var lba: LBA
    /// 32 bits; 0 is no error and means nothing.
    public var count: BlockCount

    public init(lba: LBA, count: BlockCount) {
        self.lba = lba
        self.count = count
    }

    func append(to writer: inout BigEndianWriter) {
        writer.integer(lba.value)
        writer.integer(UInt32(clamping: count.value))
        writer.zeros(4)
    }

    /// Reads the list of descriptors whose 16-bit length stands at `field`, the descriptors right behind it.
    /// - Parameter most: how many may come.
    /// - Throws: INVALID FIELD IN PARAMETER LIST at the length where there is none or no whole number of
    ///   them, and at the descriptor for one that has blocks of an earlier; TOO MANY SEGMENT DESCRIPTORS.
    static func decodeList(
        _ bytes: [UInt8], lengthAt field: Int, end: Int, most: Int
    ) throws(CheckCondition) -> [BlockDeviceRange] {
        let length = Int(bytes.bigEndian(at: field, as: UInt16.self))
        guard length >= Self.length, length % Self.length == 0 else {
            throw CheckCondition(.invalidFieldInParameterList(byte: field))
        }
        guard length <= end - field - 2 else { throw CheckCondition(.parameterListLengthError) }
        guard length / Self.length <= most else {
            throw CheckCondition(
                .invalidFieldInParameterList(byte: field, code: .tooManySegmentDescriptors))
        }
        let start = field + 2
        let ranges = stride(from: start, to: start + length, by: Self.length).map { offset in
            BlockDeviceRange(
                lba: LBA(bytes.bigEndian(at: offset)),
                count: BlockCount(UInt64(bytes.bigEndian(at: offset + 8, as: UInt32.self))))
        }
        if let index = firstOverlap(ranges) {
            throw CheckCondition(.invalidFieldInParameterList(byte: start + index * Self.length))
        }
        return ranges
    }

    /// The later one of two ranges that share a block (SBC-3 §5.7.2 lets none do so); nil where none do.
    private static func firstOverlap(_ ranges: [BlockDeviceRange]) -> Int? {
        let order = ranges.indices.filter { ranges[$0].count.value > 0 }
            .sorted { ranges[$0].lba < ranges[$1].lba }
        for (one, next) in zip(order, order.dropFirst()) {
            // No overflow: the next range starts at or behind this one.
            if ranges[next].lba.value - ranges[one].lba.value < ranges[one].count.value {
                return max(one, next)
            }
        }
        return nil
    }
}

/// The parameter list of POPULATE TOKEN (SBC-3 §5.7.2).
public struct PopulateTokenList: Hashable, Sendable {
    /// Bytes before the first range descriptor.
    public static let headerLength = 16

    /// IMMED: status before the token is made.
    public var immediate = false
    /// ROD TYPE, if told (RTV).
    public var type: RODType?
    /// Seconds without use after which the token ends; 0: the copy manager's default.
    public var inactivityTimeout: UInt32 = 0
    public var ranges: [BlockDeviceRange]

    public init(_ ranges: [BlockDeviceRange]) { self.ranges = ranges }

    public func encoded() -> [UInt8] {
        let length = ranges.count * BlockDeviceRange.length
        var writer = BigEndianWriter(reserving: Self.headerLength + length)
        writer.integer(UInt16(Self.headerLength - 2 + length))
        writer.integer(UInt8((type == nil ? 0 : 0x02) | (immediate ? 0x01 : 0)))
        writer.integer(UInt8(0))
        writer.integer(inactivityTimeout)
        writer.integer(type?.rawValue ?? 0)
        writer.zeros(2)
        writer.integer(UInt16(length))
        for range in ranges { range.append(to: &writer) }
        return writer.bytes
    }

    /// - Parameter most: range descriptors that are taken.
    /// - Throws: PARAMETER LIST LENGTH ERROR where bytes are missing, INVALID FIELD IN PARAMETER LIST with the
    ///   field's place, TOO MANY SEGMENT DESCRIPTORS.
    public init(decoding bytes: [UInt8], most: Int) throws(CheckCondition) {
        let end = try tokenListEnd(bytes, header: Self.headerLength)
        self.init(try BlockDeviceRange.decodeList(bytes, lengthAt: 14, end: end, most: most))
        immediate = bytes[2] & 0x01 != 0
        inactivityTimeout = bytes.bigEndian(at: 4)
        if bytes[2] & 0x02 != 0 { type = RODType(rawValue: bytes.bigEndian(at: 8)) }
    }
}

/// The parameter list of WRITE USING TOKEN (SBC-3 §5.48.2).
public struct WriteUsingTokenList: Hashable, Sendable {
    /// Bytes before the first range descriptor.
    public static let headerLength = 536
    /// Where the token stands.
    public static let tokenOffset = 16

    /// IMMED: status before the data are written.
    public var immediate = false
    /// DEL_TKN: the token is needed no more once the command is done.
    public var deleteToken = false
    /// OFFSET INTO ROD: blocks of the unit that is written, from the start of the represented data.
    public var offset: BlockCount = BlockCount(0)
    /// ``RODToken/length`` bytes.
    public var token: [UInt8]
    public var ranges: [BlockDeviceRange]

    /// - Precondition: a token has 512 bytes.
    public init(token: [UInt8], _ ranges: [BlockDeviceRange]) {
        precondition(token.count == RODToken.length)
        self.token = token
        self.ranges = ranges
    }

    public func encoded() -> [UInt8] {
        let length = ranges.count * BlockDeviceRange.length
        var writer = BigEndianWriter(reserving: Self.headerLength + length)
        writer.integer(UInt16(Self.headerLength - 2 + length))
        writer.integer(UInt8((deleteToken ? 0x02 : 0) | (immediate ? 0x01 : 0)))
        writer.zeros(5)
        writer.integer(offset.value)
        writer.append(token)
        writer.zeros(6)
        writer.integer(UInt16(length))
        for range in ranges { range.append(to: &writer) }
        return writer.bytes
    }

    /// - Parameter most: range descriptors that are taken.
    /// - Throws: as ``PopulateTokenList/init(decoding:most:)`` does.
    public init(decoding bytes: [UInt8], most: Int) throws(CheckCondition) {
        let end = try tokenListEnd(bytes, header: Self.headerLength)
        let ranges = try BlockDeviceRange.decodeList(bytes, lengthAt: 534, end: end, most: most)
        self.init(token: Array(bytes[Self.tokenOffset..<Self.tokenOffset + RODToken.length]), ranges)
        immediate = bytes[2] & 0x01 != 0
        deleteToken = bytes[2] & 0x02 != 0
        offset = BlockCount(bytes.bigEndian(at: 8))
    }
}

/// The end of a list whose first two bytes tell how many follow, at least one range descriptor among them.
private func tokenListEnd(_ bytes: [UInt8], header: Int) throws(CheckCondition) -> Int {
    guard bytes.count >= header else { throw CheckCondition(.parameterListLengthError) }
    let length = Int(bytes.bigEndian(at: 0, as: UInt16.self))
    guard length >= header - 2 + BlockDeviceRange.length else {
        throw CheckCondition(.invalidFieldInParameterList(byte: 0))
    }
    guard length + 2 <= bytes.count else { throw CheckCondition(.parameterListLengthError) }
    return length + 2
}
