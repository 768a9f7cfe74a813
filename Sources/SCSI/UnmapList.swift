import Blocks

/// The parameter list of UNMAP (SBC-3 §5.28.2): ranges of blocks.
public struct UnmapList: Hashable, Sendable {
    public struct Range: Hashable, Sendable {
        public var lba: LBA
        /// 32 bits; 0 is no error.
        public var count: BlockCount

        public init(lba: LBA, count: BlockCount) {
            self.lba = lba
            self.count = count
        }
    }
    private static let headerBytes = 8
    private static let descriptorBytes = 16

    public var ranges: [Range]

    public init(_ ranges: [Range]) { self.ranges = ranges }

    public func encoded() -> [UInt8] {
        let length = ranges.count * Self.descriptorBytes
        var writer = BigEndianWriter(reserving: Self.headerBytes + length)
        writer.integer(UInt16(6 + length))
        writer.integer(UInt16(length))
        writer.zeros(4)
        for range in ranges {
            writer.integer(range.lba.value)
            writer.integer(UInt32(range.count.value))
            writer.zeros(4)
        }
        return writer.bytes
    }

    /// An empty list asks for nothing. A last descriptor that is cut off by its length field is left out, as
    /// the standard has it.
    /// - Parameter limit: block descriptors, as VPD page B0h tells them.
    /// - Throws: PARAMETER LIST LENGTH ERROR for a list shorter than it says; INVALID FIELD IN PARAMETER
    ///   LIST for too many descriptors.
    public init(decoding bytes: [UInt8], limit: Int) throws(CheckCondition) {
        ranges = []
        guard !bytes.isEmpty else { return }
        guard bytes.count >= Self.headerBytes else { throw CheckCondition(.parameterListLengthError) }
        let dataLength = Int(bytes.bigEndian(at: 0, as: UInt16.self))
        let length = Int(bytes.bigEndian(at: 2, as: UInt16.self))
        guard dataLength + 2 <= bytes.count, length + Self.headerBytes <= dataLength + 2 else {
            throw CheckCondition(.parameterListLengthError)
        }
        let count = length / Self.descriptorBytes
        guard count <= limit else { throw CheckCondition(.invalidFieldInParameterList(byte: 2)) }
        for index in 0..<count {
            let offset = Self.headerBytes + index * Self.descriptorBytes
            ranges.append(
                Range(
                    lba: LBA(bytes.bigEndian(at: offset)),
                    count: BlockCount(UInt64(bytes.bigEndian(at: offset + 8, as: UInt32.self)))))
        }
    }
}

/// GET LBA STATUS data (SBC-3 §5.6.2).
public struct LBAStatus: Hashable, Sendable {
    /// PROVISIONING STATUS.
    public enum Provisioning: UInt8, Hashable, Sendable {
        /// Mapped, or not known.
        case mapped = 0
        case deallocated = 1
        case anchored = 2
    }
    public struct Extent: Hashable, Sendable {
        public var lba: LBA
        /// 32 bits.
        public var count: BlockCount
        public var provisioning: Provisioning

        public init(lba: LBA, count: BlockCount, _ provisioning: Provisioning) {
            self.lba = lba
            self.count = count
            self.provisioning = provisioning
        }
    }
    /// Bytes of a descriptor, and of what stands before the first.
    public static let descriptorBytes = 16
    public static let headerBytes = 8

    public var extents: [Extent]

    public init(_ extents: [Extent]) { self.extents = extents }

    public func encoded() -> [UInt8] {
        var writer = BigEndianWriter(reserving: Self.headerBytes + extents.count * Self.descriptorBytes)
        writer.integer(UInt32(4 + extents.count * Self.descriptorBytes))
        writer.zeros(4)
        for extent in extents {
            writer.integer(extent.lba.value)
            writer.integer(UInt32(extent.count.value))
            writer.integer(extent.provisioning.rawValue)
            writer.zeros(3)
        }
        return writer.bytes
    }
}
