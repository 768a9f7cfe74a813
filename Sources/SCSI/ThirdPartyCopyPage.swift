import Blocks

/// VPD page 8Fh (SPC-4 §7.8.17): what the copy manager of a unit has and how far its limits go.
public struct ThirdPartyCopyPage: Hashable, Sendable {
    /// One third-party copy descriptor (SPC-4 table 612). Bodies have whole multiples of four bytes.
    public struct Descriptor: Hashable, Sendable {
        public var type: UInt16
        public var body: [UInt8]

        init(_ type: UInt16, _ fill: (inout BigEndianWriter) -> Void) {
            var writer = BigEndianWriter()
            fill(&writer)
            writer.zeros((4 - writer.bytes.count % 4) % 4)
            self.type = type
            body = writer.bytes
        }

        init(type: UInt16, body: [UInt8]) {
            self.type = type
            self.body = body
        }
    }

    /// In any order; they go out in that of their types.
    public var descriptors: [Descriptor]

    public init(_ descriptors: [Descriptor]) { self.descriptors = descriptors }

    public var page: VPDPage {
        var writer = BigEndianWriter()
        for descriptor in descriptors.sorted(by: { $0.type < $1.type }) {
            writer.integer(descriptor.type)
            writer.integer(UInt16(descriptor.body.count))
            writer.append(descriptor.body)
        }
        return VPDPage(code: VPDPageCode.thirdPartyCopy, body: writer.bytes)
    }

    public init(page: VPDPage) throws(MalformedParameterData) {
        descriptors = []
        var offset = 0
        let body = page.body
        while offset < body.count {
            guard body.count - offset >= 4 else {
                throw MalformedParameterData("VPD page 8Fh", at: 4 + offset)
            }
            let length = Int(body.bigEndian(at: offset + 2, as: UInt16.self))
            guard body.count - offset - 4 >= length else {
                throw MalformedParameterData("VPD page 8Fh", at: 6 + offset)
            }
            descriptors.append(
                Descriptor(
                    type: body.bigEndian(at: offset), body: Array(body[offset + 4..<offset + 4 + length])))
            offset += 4 + length
        }
    }
}

extension ThirdPartyCopyPage.Descriptor {
    /// Type codes (SPC-4 table 613, SBC-3 §6.6.7).
    public enum TypeCode {
        public static let blockDeviceTokenLimits: UInt16 = 0x0000
        public static let supportedCommands: UInt16 = 0x0001
        public static let parameterData: UInt16 = 0x0004
        public static let supportedDescriptors: UInt16 = 0x0008
        public static let copyGroup: UInt16 = 0x000D
        public static let tokenFeatures: UInt16 = 0x0106
        public static let supportedRODs: UInt16 = 0x0108
        public static let generalOperations: UInt16 = 0x8001
        public static let heldData: UInt16 = 0xC001
    }

    /// Operation codes and their service actions, in the order they go out.
    public static func supportedCommands(_ commands: [(code: OperationCode, serviceActions: [UInt8])]) -> Self
    {
        Self(TypeCode.supportedCommands) {
            let list = commands.flatMap {
                [$0.code.rawValue, UInt8($0.serviceActions.count)] + $0.serviceActions
            }
            $0.integer(UInt8(list.count))
            $0.append(list)
        }
    }

    /// The block device ROD token limits (SBC-3 §6.6.7.3).
    /// - Parameters:
    ///   - inactivityTimeout: seconds, the most that may be asked for, and what is taken for 0.
    ///   - blocks: the most that a token represents, and how many one command does best.
    public static func blockDeviceTokenLimits(
        rangeDescriptors: UInt16, inactivityTimeout: (most: UInt32, byDefault: UInt32),
        blocks: (most: UInt64, best: UInt64)
    ) -> Self {
        Self(TypeCode.blockDeviceTokenLimits) {
            $0.zeros(6)
            $0.integer(rangeDescriptors)
            $0.integer(inactivityTimeout.most)
            $0.integer(inactivityTimeout.byDefault)
            $0.integer(blocks.most)
            $0.integer(blocks.best)
        }
    }

    /// Limits of EXTENDED COPY's parameter list. Lengths in bytes.
    public static func parameterData(
        cscdDescriptors: UInt16, segmentDescriptors: UInt16, descriptorListLength: UInt32,
        inlineDataLength: UInt32
    ) -> Self {
        Self(TypeCode.parameterData) {
            $0.zeros(4)
            $0.integer(cscdDescriptors)
            $0.integer(segmentDescriptors)
            $0.integer(descriptorListLength)
            $0.integer(inlineDataLength)
            $0.zeros(12)
        }
    }

    /// Type codes of CSCD and segment descriptors, at most 255; they go out in ascending order.
    public static func supportedDescriptors(_ codes: [UInt8]) -> Self {
        Self(TypeCode.supportedDescriptors) {
            $0.integer(UInt8(codes.count))
            $0.append(codes.sorted())
        }
    }

    /// Equal for units that a copy manager copies among.
    /// - Parameter uuid: 16 bytes.
    public static func copyGroup(uuid: [UInt8]) -> Self {
        precondition(uuid.count == 16)
        return Self(TypeCode.copyGroup) {
            $0.integer(UInt8(uuid.count + 2))
            // As a UUID designator has it: type 1, then nothing.
            $0.append([0x10, 0x00])
            $0.append(uuid)
        }
    }

    /// The ROD token features of a block device whose tokens are good at this copy manager only.
    /// - Parameters:
    ///   - lifetime: seconds.
    ///   - inactivityTimeout: seconds, the most.
    ///   - bytes: the most that a ROD has, and how many one transfer does best.
    public static func tokenFeatures(
        lifetime: ClosedRange<UInt32>, inactivityTimeout: UInt32, bytes: (most: UInt64, best: UInt64)
    ) -> Self {
        Self(TypeCode.tokenFeatures) {
            // REMOTE TOKENS: 0.
            $0.zeros(12)
            $0.integer(lifetime.lowerBound)
            $0.integer(lifetime.upperBound)
            $0.integer(inactivityTimeout)
            $0.zeros(18)
            $0.integer(UInt16(48))
            // Of block devices: format 0, device type 0.
            $0.zeros(2)
            $0.integer(UInt16(44))
            $0.zeros(4)
            $0.integer(bytes.most)
            $0.integer(bytes.best)
            $0.integer(bytes.most)
            $0.integer(bytes.best)
            $0.zeros(8)
        }
    }

    /// One ROD type (SPC-4 §7.8.17.9).
    public struct SupportedROD: Hashable, Sendable {
        public var type: RODType
        /// TOKEN_OUT: tokens of it are made.
        public var isMade: Bool
        /// TOKEN_IN: tokens of it are taken.
        public var isTaken: Bool
        /// PREFERENCE INDICATOR: the lower, the better liked; 0: not told.
        public var preference: UInt16 = 0

        public init(_ type: RODType, isMade: Bool, isTaken: Bool) {
            self.type = type
            self.isMade = isMade
            self.isTaken = isTaken
        }
    }

    public static func supportedRODs(_ types: [SupportedROD]) -> Self {
        Self(TypeCode.supportedRODs) {
            $0.zeros(2)
            $0.integer(UInt16(types.count * 64))
            for type in types {
                $0.integer(type.type.rawValue)
                $0.append([(type.isTaken ? 0x02 : 0) | (type.isMade ? 0x01 : 0), 0])
                $0.integer(type.preference)
                $0.zeros(56)
            }
        }
    }

    /// The types of a descriptor that ``supportedRODs(_:)`` or another device made.
    public func rodTypes() throws(MalformedParameterData) -> [SupportedROD] {
        guard type == TypeCode.supportedRODs, body.count >= 4,
            body.count - 4 >= Int(body.bigEndian(at: 2, as: UInt16.self))
        else { throw MalformedParameterData("ROD types of VPD page 8Fh", at: 0) }
        let count = Int(body.bigEndian(at: 2, as: UInt16.self)) / 64
        return (0..<count).map { index in
            let offset = 4 + index * 64
            var rod = SupportedROD(
                RODType(rawValue: body.bigEndian(at: offset)), isMade: body[offset + 4] & 1 != 0,
                isTaken: body[offset + 4] & 2 != 0)
            rod.preference = body.bigEndian(at: offset + 6)
            return rod
        }
    }

    /// How many copies run at once, in all and with list identifiers; bytes of a segment; granularities as powers of
    /// two.
    public static func generalOperations(
        concurrentCopies: UInt32, identifiedCopies: UInt32, segmentLength: UInt32
    ) -> Self {
        Self(TypeCode.generalOperations) {
            $0.integer(concurrentCopies)
            $0.integer(identifiedCopies)
            $0.integer(segmentLength)
            $0.zeros(20)
        }
    }

    /// Bytes of held data, and their granularity as a power of two.
    public static func heldData(limit: UInt32, granularity: UInt8) -> Self {
        Self(TypeCode.heldData) {
            $0.integer(limit)
            $0.integer(granularity)
            $0.zeros(23)
        }
    }
}
