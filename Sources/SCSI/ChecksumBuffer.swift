import Blocks

/// What INQUIRY says of a bridge of ours: only what says so is sent commands that mean something else to others.
public enum BridgeIdentity {
    public static let vendor = "OUTBOARD"
    public static let product = "BRIDGE"
}

/// The vendor-specific buffer by which a bridge keeps checksums of what is written to a unit, and tells them. The format's
/// article is in the module Bridge: Checksums.
public enum ChecksumBuffer {
    /// BUFFER ID.
    public static let identifier: UInt8 = 0x43
    static let magic: UInt32 = 0x4F42_4353  // OBCS
    static let version: UInt8 = 1

    /// READ BUFFER of checksums.
    /// - Parameter chunk: the first that is asked for, below 2^24.
    public static func read(from chunk: UInt32, allocationLength: Int) -> Command {
        .buffer(
            .read(
                .init(mode: BufferCommand.vendorSpecific, buffer: identifier, offset: chunk),
                allocationLength: allocationLength))
    }

    /// WRITE BUFFER of a ``ChecksumKeeping``.
    public static func write() -> Command {
        .buffer(
            .write(
                .init(mode: BufferCommand.vendorSpecific, buffer: identifier),
                parameterListLength: ChecksumKeeping.encodedLength))
    }
}

/// Data of WRITE BUFFER: which checksums a unit shall keep from now on.
public struct ChecksumKeeping: Hashable, Sendable {
    public static let encodedLength = 32
    /// Where fields stand in the data.
    public static let versionField = 4
    public static let lengthField = 16
    public static let chunkSizeField = 24

    /// Whoever asks gives them a name, by which he knows them again: others may ask for others.
    public var identifier: UInt64
    /// Bytes of the unit from its start; 0: none are kept any more.
    public var length: UInt64
    /// Bytes, a power of two.
    public var chunkSize: UInt64

    public init(identifier: UInt64, length: UInt64, chunkSize: UInt64) {
        self.identifier = identifier
        self.length = length
        self.chunkSize = chunkSize
    }

    public func encoded() -> [UInt8] {
        var writer = BigEndianWriter(reserving: Self.encodedLength)
        writer.integer(ChecksumBuffer.magic)
        writer.integer(ChecksumBuffer.version)
        writer.zeros(3)
        writer.integer(identifier)
        writer.integer(length)
        writer.integer(chunkSize)
        return writer.bytes
    }

    /// - Throws: PARAMETER LIST LENGTH ERROR, or INVALID FIELD IN PARAMETER LIST where it is none.
    public init(decoding bytes: [UInt8]) throws(CheckCondition) {
        guard bytes.count == Self.encodedLength else { throw CheckCondition(.parameterListLengthError) }
        guard bytes.bigEndian(at: 0) == ChecksumBuffer.magic else {
            throw CheckCondition(.invalidFieldInParameterList(byte: 0))
        }
        guard bytes[Self.versionField] == ChecksumBuffer.version else {
            throw CheckCondition(.invalidFieldInParameterList(byte: Self.versionField))
        }
        identifier = bytes.bigEndian(at: 8)
        length = bytes.bigEndian(at: Self.lengthField)
        chunkSize = bytes.bigEndian(at: Self.chunkSizeField)
    }
}

/// Data of READ BUFFER: what a unit keeps, and the checksums of some chunks.
public struct KeptChecksums: Hashable, Sendable {
    public static let headerLength = 40

    /// What is kept; nil: nothing is.
    public var keeping: ChecksumKeeping?
    /// The number of the first chunk that is told.
    public var first: UInt32 = 0
    public var entries: [ChunkChecksums.Entry] = []

    public init(keeping: ChecksumKeeping?) { self.keeping = keeping }

    /// Bytes of an answer with so many chunks.
    public static func length(chunks: Int) -> Int { headerLength + statesLength(chunks) + 4 * chunks }

    /// One byte each, up to a multiple of four.
    private static func statesLength(_ chunks: Int) -> Int { (chunks + 3) / 4 * 4 }

    /// The most chunks that an answer of so many bytes has room for.
    public static func chunks(inLength length: Int) -> Int {
        var count = max(0, length - headerLength) / 5
        while count > 0, Self.length(chunks: count) > length { count -= 1 }
        return count
    }

    public func encoded() -> [UInt8] {
        var writer = BigEndianWriter(reserving: Self.length(chunks: entries.count))
        writer.integer(ChecksumBuffer.magic)
        writer.integer(ChecksumBuffer.version)
        writer.integer(UInt8(keeping == nil ? 0 : 1))
        writer.zeros(2)
        writer.integer(keeping?.identifier ?? 0)
        writer.integer(keeping?.length ?? 0)
        writer.integer(keeping?.chunkSize ?? 0)
        writer.integer(first)
        writer.integer(UInt32(entries.count))
        for entry in entries { writer.integer(entry.state) }
        writer.zeros(Self.statesLength(entries.count) - entries.count)
        for entry in entries {
            if case .known(let value) = entry { writer.integer(value) } else { writer.integer(UInt32(0)) }
        }
        return writer.bytes
    }

    public init(decoding bytes: [UInt8]) throws(MalformedParameterData) {
        func malformed(_ offset: Int) -> MalformedParameterData {
            MalformedParameterData("checksums", at: offset)
        }
        guard bytes.count >= Self.headerLength else { throw malformed(bytes.count) }
        guard bytes.bigEndian(at: 0) == ChecksumBuffer.magic else { throw malformed(0) }
        guard bytes[4] == ChecksumBuffer.version else { throw malformed(4) }
        guard bytes[5] & 1 != 0 else { return }
        keeping = ChecksumKeeping(
            identifier: bytes.bigEndian(at: 8), length: bytes.bigEndian(at: 16),
            chunkSize: bytes.bigEndian(at: 24))
        first = bytes.bigEndian(at: 32)
        let count = Int(bytes.bigEndian(at: 36, as: UInt32.self))
        guard count <= Self.chunks(inLength: bytes.count) else { throw malformed(36) }
        let sums = Self.headerLength + Self.statesLength(count)
        entries.reserveCapacity(count)
        for index in 0..<count {
            switch bytes[Self.headerLength + index] {
            case 0: entries.append(.untouched)
            case 1: entries.append(.unknown)
            case 2: entries.append(.known(bytes.bigEndian(at: sums + 4 * index)))
            default: throw malformed(Self.headerLength + index)
            }
        }
    }
}

extension ChunkChecksums.Entry {
    fileprivate var state: UInt8 {
        switch self {
        case .untouched: 0
        case .unknown: 1
        case .known: 2
        }
    }
}
