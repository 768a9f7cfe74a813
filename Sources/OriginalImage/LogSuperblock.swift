import Blocks
import FoundationEssentials

/// The state of an epoch, with the superblock's number.
public enum LogState: UInt8, Hashable, Sendable, CustomStringConvertible {
    case open = 1
    case ended
    case void
    case released

    public var description: String {
        switch self {
        case .open: "open"
        case .ended: "ended"
        case .void: "void"
        case .released: "released"
        }
    }
}

/// What committed originals survive, with the superblock's number.
public enum LogDurability: UInt8, Hashable, Sendable {
    /// The crash of the process.
    case process
    /// The crash of the machine.
    case power
}

/// What a reader must know of an epoch's originals beyond their being there.
public struct LogFlags: OptionSet, Hashable, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// Originals may be missing of chunks that the epoch's copy had on stable storage before they were overwritten.
    public static let passed = LogFlags(rawValue: 1 << 0)
    static let known: LogFlags = [.passed]
}

/// One copy-on-write relation as the superblock describes it.
public struct LogEpoch: Hashable, Sendable {
    /// 1 to ``LogLimits/counter``.
    public var number: UInt64
    public var uuid: UUID
    public var state: LogState
    /// Nanoseconds since 1970, or ``notInstituted``.
    public var institutedAt: Int64
    /// The machine's boot id at institution.
    public var boot: UUID
    /// The last marker given; final when the state is `ended`.
    public var marker: LogPosition
    /// Why it is void, in words for people; empty otherwise.
    public var voidReason: String
    public var flags: LogFlags

    /// The instant has not come yet: the superblock is there before it. A host that dies meanwhile leaves nobody who
    /// has heard of the epoch.
    public static let notInstituted: Int64 = 0

    public init(
        number: UInt64, uuid: UUID, state: LogState = .open, institutedAt: Int64, boot: UUID,
        marker: LogPosition = .start, voidReason: String = "", flags: LogFlags = []
    ) {
        self.flags = flags
        self.number = number
        self.uuid = uuid
        self.state = state
        self.institutedAt = institutedAt
        self.boot = boot
        self.marker = marker
        self.voidReason = voidReason
    }
}

/// A superblock of the log (article <doc:OriginalImageLog>).
public struct LogSuperblock: Hashable, Sendable {
    public var generation: UInt64
    public var volume: UUID
    public var geometry: ChunkGeometry
    /// Bytes of the log, superblocks included.
    public var capacity: UInt64
    public var durability: LogDurability
    /// Nil before the first epoch.
    public var epoch: LogEpoch?

    public init(
        generation: UInt64, volume: UUID, geometry: ChunkGeometry, capacity: UInt64,
        durability: LogDurability, epoch: LogEpoch? = nil
    ) {
        self.generation = generation
        self.volume = volume
        self.geometry = geometry
        self.capacity = capacity
        self.durability = durability
        self.epoch = epoch
    }

    /// Where this generation lies.
    public var position: UInt64 { generation % 2 * LogFormat.blockSize }

    /// The 4096 bytes.
    public func encoded() -> [UInt8] {
        var writer = BigEndianWriter(reserving: Int(LogFormat.blockSize))
        let reason = epoch.map { Self.cut($0.voidReason) } ?? []
        writer.integer(LogFormat.superblockMagic)
        let flags = epoch?.flags ?? []
        writer.integer(flags.isEmpty ? LogFormat.versions.lowerBound : LogFormat.versions.upperBound)
        writer.integer(UInt32(geometry.chunkSize))
        writer.integer(generation)
        writer.uuid(volume)
        writer.integer(geometry.volumeSize)
        writer.integer(capacity)
        writer.integer(durability.rawValue)
        writer.integer(epoch?.state.rawValue ?? 0)
        writer.integer(UInt16(reason.count))
        writer.integer(flags.rawValue)
        if let epoch {
            writer.integer(epoch.number)
            writer.uuid(epoch.uuid)
            writer.integer(epoch.institutedAt)
            writer.uuid(epoch.boot)
            writer.integer(epoch.marker.position)
            writer.integer(epoch.marker.sequence)
            writer.integer(epoch.marker.entries)
            writer.append(reason)
        }
        writer.zeros(LogFormat.crcOffset - writer.bytes.count)
        writer.integer(CRC32C.checksum(writer.bytes))
        return writer.bytes
    }

    /// The reason's UTF-8, cut to its limit between two characters.
    private static func cut(_ reason: String) -> [UInt8] {
        var reason = Substring(reason)
        while reason.utf8.count > LogLimits.voidReasonBytes { reason.removeLast() }
        return Array(reason.utf8)
    }
}

extension LogSuperblock {
    /// Reads 4096 foreign bytes that stood at `position` of a log.
    /// - Throws: ``LogError/unsupportedVersion(_:)`` when it is ours but of another version,
    ///   ``LogError/noValidSuperblock`` when it is none at all, ``LogError/corrupt(_:)`` otherwise.
    public init(decoding bytes: UnsafeRawBufferPointer, at position: UInt64) throws(LogError) {
        precondition(bytes.count == Int(LogFormat.blockSize))
        guard bytes.bigEndian(at: 0, as: UInt64.self) == LogFormat.superblockMagic else {
            throw .noValidSuperblock
        }
        let damaged = LogError.corrupt("the superblock at \(position)")
        let sum = CRC32C.checksum(UnsafeRawBufferPointer(rebasing: bytes[..<LogFormat.crcOffset]))
        guard sum == bytes.bigEndian(at: LogFormat.crcOffset, as: UInt32.self) else { throw damaged }
        let version = bytes.bigEndian(at: 8, as: UInt32.self)
        guard LogFormat.versions.contains(version) else { throw .unsupportedVersion(version) }
        guard
            let geometry = ChunkGeometry(
                volumeSize: bytes.bigEndian(at: 40),
                chunkSize: UInt64(bytes.bigEndian(at: 12, as: UInt32.self))),
            let durability = LogDurability(rawValue: bytes[56]),
            case let reasonCount = Int(bytes.bigEndian(at: 58, as: UInt16.self)),
            reasonCount <= LogLimits.voidReasonBytes
        else { throw damaged }
        self.init(
            generation: bytes.bigEndian(at: 16), volume: bytes.uuid(at: 24), geometry: geometry,
            capacity: bytes.bigEndian(at: 48), durability: durability)
        if bytes[57] != 0 {
            guard let state = LogState(rawValue: bytes[57]) else { throw damaged }
            epoch = LogEpoch(
                number: bytes.bigEndian(at: 64), uuid: bytes.uuid(at: 72), state: state,
                institutedAt: bytes.bigEndian(at: 88), boot: bytes.uuid(at: 96),
                marker: LogPosition(
                    position: bytes.bigEndian(at: 112), sequence: bytes.bigEndian(at: 120),
                    entries: bytes.bigEndian(at: 128)),
                voidReason: String(decoding: bytes[136..<136 + reasonCount], as: UTF8.self),
                flags: LogFlags(rawValue: bytes.bigEndian(at: 60)))
        }
        // The one check for everything reserved: what we understood must be all there is.
        guard (1...LogLimits.counter).contains(generation), self.position == position,
            capacity >= LogFormat.minimumCapacity(chunkSize: geometry.chunkSize),
            capacity <= LogLimits.volumeBytes, capacity % LogFormat.blockSize == 0,
            epoch.map({
                (1...LogLimits.counter).contains($0.number) && $0.marker.position <= capacity
                    && $0.flags.isSubset(of: .known)
            }) ?? true,
            encoded() == [UInt8](bytes)
        else { throw damaged }
    }

    /// Reads both superblocks of a log at `base`.
    /// - Returns: the valid ones, the one in force first.
    /// - Throws: when none is valid, the reason that says most.
    public static func read(
        from store: any BlockStore, base: UInt64 = 0
    ) throws(LogError) -> [LogSuperblock] {
        guard store.size >= base, store.size - base >= LogFormat.firstBatch else {
            throw .tooSmall(needed: LogFormat.firstBatch, available: store.size - min(base, store.size))
        }
        let block = ZeroedMemory(count: Int(LogFormat.blockSize))
        var found: [LogSuperblock] = []
        var failure = LogError.noValidSuperblock
        for position in [0, LogFormat.blockSize] {
            try onStore { () throws(StoreError) in try store.read(at: base + position, into: block.buffer) }
            do throws(LogError) {
                found.append(try LogSuperblock(decoding: UnsafeRawBufferPointer(block.buffer), at: position))
            } catch {
                if error != .noValidSuperblock { failure = error }
                if case .unsupportedVersion = error { throw error }
            }
        }
        guard !found.isEmpty else { throw failure }
        return found.sorted { $0.generation > $1.generation }
    }
}

extension BigEndianWriter {
    mutating func uuid(_ value: UUID) { withUnsafeBytes(of: value.uuid) { append($0) } }
}

extension UnsafeRawBufferPointer {
    func uuid(at offset: Int) -> UUID { UUID(uuid: loadUnaligned(fromByteOffset: offset, as: uuid_t.self)) }
}
