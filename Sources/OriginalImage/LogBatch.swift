import Blocks
import FoundationEssentials

/// One original of the log.
public struct LogEntry: Hashable, Sendable {
    /// The chunk's number in the volume.
    public var chunk: UInt64
    /// Where the original lies, bytes from the log's start; 0 for a zero original, which lies nowhere.
    public var position: UInt64
    /// CRC-32C of the chunk's bytes; 0 for a zero original.
    public var crc: UInt32
    public var isZero: Bool { position == 0 }

    public init(chunk: UInt64, position: UInt64, crc: UInt32) {
        self.chunk = chunk
        self.position = position
        self.crc = crc
    }
}

/// A batch as its header describes it.
public struct LogBatch: Hashable, Sendable {
    private static let entriesOffset = 40
    private static let entryBytes = 16
    private static let zeroFlag: UInt32 = 1

    public var sequence: UInt64
    /// Where the header lies, bytes from the log's start.
    public var position: UInt64
    /// In the order of their originals.
    public var entries: [LogEntry]
    /// Where the batch ends.
    public var end: UInt64

    /// Writes a header over `block`, 4096 bytes.
    static func encode(
        epoch: UUID, sequence: UInt64, originals: [LogOriginal], into block: UnsafeMutableRawBufferPointer
    ) {
        precondition((1...LogLimits.entriesPerBatch).contains(originals.count))
        block.initializeMemory(as: UInt8.self, repeating: 0)
        block.storeBigEndian(LogFormat.batchMagic, at: 0)
        withUnsafeBytes(of: epoch.uuid) { bytes in
            UnsafeMutableRawBufferPointer(rebasing: block[8..<24]).copyMemory(from: bytes)
        }
        block.storeBigEndian(sequence, at: 24)
        block.storeBigEndian(UInt32(originals.count), at: 32)
        for (index, original) in originals.enumerated() {
            let offset = entriesOffset + index * entryBytes
            block.storeBigEndian(original.chunk, at: offset)
            block.storeBigEndian(original.crc, at: offset + 8)
            block.storeBigEndian(original.isZero ? zeroFlag : 0, at: offset + 12)
        }
        let sum = CRC32C.checksum(UnsafeRawBufferPointer(rebasing: block[..<LogFormat.crcOffset]))
        block.storeBigEndian(sum, at: LogFormat.crcOffset)
    }

    /// Reads a header of 4096 foreign bytes that stood at `position`; nil unless it is the valid header of batch
    /// `sequence` of that epoch.
    init?(
        decoding block: UnsafeRawBufferPointer, at position: UInt64, epoch: UUID, sequence: UInt64,
        geometry: ChunkGeometry
    ) {
        precondition(block.count == Int(LogFormat.blockSize))
        let sum = CRC32C.checksum(UnsafeRawBufferPointer(rebasing: block[..<LogFormat.crcOffset]))
        let count = Int(block.bigEndian(at: 32, as: UInt32.self))
        guard sum == block.bigEndian(at: LogFormat.crcOffset, as: UInt32.self),
            block.bigEndian(at: 0, as: UInt64.self) == LogFormat.batchMagic, block.uuid(at: 8) == epoch,
            block.bigEndian(at: 24, as: UInt64.self) == sequence,
            (1...LogLimits.entriesPerBatch).contains(count), block.bigEndian(at: 36, as: UInt32.self) == 0
        else { return nil }
        entries = []
        entries.reserveCapacity(count)
        var place = position + LogFormat.blockSize
        for index in 0..<count {
            let offset = Self.entriesOffset + index * Self.entryBytes
            let chunk: UInt64 = block.bigEndian(at: offset)
            let crc: UInt32 = block.bigEndian(at: offset + 8)
            let flags: UInt32 = block.bigEndian(at: offset + 12)
            guard chunk < geometry.chunkCount, flags & ~Self.zeroFlag == 0 else { return nil }
            if flags == Self.zeroFlag {
                guard crc == 0 else { return nil }
                entries.append(LogEntry(chunk: chunk, position: 0, crc: 0))
            } else {
                entries.append(LogEntry(chunk: chunk, position: place, crc: crc))
                place += UInt64(geometry.paddedLength(of: chunk))
            }
        }
        let unused = block[(Self.entriesOffset + count * Self.entryBytes)..<LogFormat.crcOffset]
        guard UnsafeRawBufferPointer(rebasing: unused).isAllZeros else { return nil }
        self.sequence = sequence
        self.position = position
        end = place
    }
}

/// A chunk's original on its way into the log.
public struct LogOriginal {
    public let chunk: UInt64
    /// The chunk's bytes.
    public let bytes: UnsafeRawBufferPointer
    public let isZero: Bool
    let crc: UInt32

    /// Looks at all bytes once or twice, on the caller's thread.
    /// - Parameter bytes: the chunk's, of its exact length; must stay as they are until
    ///   ``OriginalImageLog/append(_:)`` returns.
    public init(chunk: UInt64, bytes: UnsafeRawBufferPointer) {
        self.chunk = chunk
        self.bytes = bytes
        isZero = bytes.isAllZeros
        crc = isZero ? 0 : CRC32C.checksum(bytes)
    }
}
