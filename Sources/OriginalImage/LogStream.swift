import Blocks
import FoundationEssentials

/// Reads an ended log that passes by once, from its first byte to its end: what ``LogReader`` does where there is a
/// store. Every header and every original is checked as it passes. Memory: that of one chunk.
public struct LogStream {
    /// An original that has passed by.
    public struct Original {
        /// The chunk's bytes in the volume.
        public var range: ByteRange
        /// Valid until the stream is asked again; nil: they are all zeros.
        public var bytes: UnsafeRawBufferPointer?
    }

    private enum State {
        case superblocks
        case header
        case originals(LogBatch, next: Int)
        case over
    }

    private let geometry: ChunkGeometry
    private let epoch: UUID
    private let end: LogPosition
    private let memory: ZeroedMemory
    /// Bytes of what is being put together that are there.
    private var filled = 0
    private var state = State.superblocks
    /// The next batch.
    private var place = LogPosition.start

    /// - Parameters:
    ///   - epoch: whose batches these must be.
    ///   - end: where they must end.
    public init(geometry: ChunkGeometry, epoch: UUID, end: LogPosition) {
        self.geometry = geometry
        self.epoch = epoch
        self.end = end
        memory = ZeroedMemory(count: Int(max(geometry.chunkSize, LogFormat.firstBatch)))
    }

    /// Whether the end was reached, and just where it had to be.
    public var isOver: Bool {
        if case .over = state { return true }
        return false
    }

    /// Takes bytes from the front of `input` until an original is complete.
    /// - Returns: nil when more is needed, or the log is over: then `input` is empty.
    public mutating func next(_ input: inout UnsafeRawBufferPointer) throws(LogError) -> Original? {
        while true {
            switch state {
            case .superblocks:
                // What they say stands in the copy's manifest, and the portion's checksums cover them.
                guard fill(Int(LogFormat.firstBatch), from: &input) else { return nil }
                state = .header
            case .header:
                if place == end {
                    state = .over
                    continue
                }
                guard fill(Int(LogFormat.blockSize), from: &input) else { return nil }
                state = .originals(try batch(), next: 0)
            case .originals(let batch, let next):
                guard next < batch.entries.count else {
                    place.position = batch.end
                    place.sequence += 1
                    place.entries += UInt64(batch.entries.count)
                    state = .header
                    continue
                }
                let entry = batch.entries[next]
                guard entry.isZero || fill(geometry.paddedLength(of: entry.chunk), from: &input) else {
                    return nil
                }
                state = .originals(batch, next: next + 1)
                return try original(entry)
            case .over:
                input = UnsafeRawBufferPointer(start: nil, count: 0)
                return nil
            }
        }
    }

    /// - Returns: whether `count` bytes are together now, from the start of the memory.
    private mutating func fill(_ count: Int, from input: inout UnsafeRawBufferPointer) -> Bool {
        let part = UnsafeRawBufferPointer(rebasing: input.prefix(count - filled))
        UnsafeMutableRawBufferPointer(rebasing: memory.buffer[filled..<filled + part.count])
            .copyMemory(from: part)
        input = UnsafeRawBufferPointer(rebasing: input.dropFirst(part.count))
        filled += part.count
        guard filled == count else { return false }
        filled = 0
        return true
    }

    private func batch() throws(LogError) -> LogBatch {
        let block = UnsafeRawBufferPointer(rebasing: memory.buffer[..<Int(LogFormat.blockSize)])
        let batch = LogBatch(
            decoding: block, at: place.position, epoch: epoch, sequence: place.sequence, geometry: geometry)
        guard let batch, batch.end <= end.position,
            UInt64(batch.entries.count) <= end.entries - min(place.entries, end.entries)
        else {
            throw .corrupt("the header of batch \(place.sequence) at \(place.position)")
        }
        return batch
    }

    private func original(_ entry: LogEntry) throws(LogError) -> Original {
        let range = geometry.range(of: entry.chunk)
        guard !entry.isZero else { return Original(range: range, bytes: nil) }
        let padded = memory.buffer[..<geometry.paddedLength(of: entry.chunk)]
        let bytes = UnsafeRawBufferPointer(rebasing: padded[..<Int(range.count)])
        guard CRC32C.checksum(bytes) == entry.crc,
            UnsafeRawBufferPointer(rebasing: padded[Int(range.count)...]).isAllZeros
        else { throw .corrupt("the original of chunk \(entry.chunk) at \(entry.position)") }
        return Original(range: range, bytes: bytes)
    }
}
