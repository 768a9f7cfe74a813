import Blocks
import FoundationEssentials

/// Reads a log that lies in a store at some base offset: a cache, or the original-image portion of a copy.
public struct LogReader: Sendable {
    /// The superblock in force.
    public let superblock: LogSuperblock
    /// The epoch whose originals these are.
    public let epoch: LogEpoch
    /// Where reading ends: what was given, or the final marker of an ended epoch; nil: where the last valid
    /// header ends.
    public let end: LogPosition?
    public var geometry: ChunkGeometry { superblock.geometry }

    let store: any BlockStore
    let base: UInt64

    /// - Parameters:
    ///   - base: where in `store` the log starts, bytes.
    ///   - end: a marker that was given for this epoch; a copy of the log up to it is whole.
    ///   - wantsBothSuperblocks: refuse the log unless both superblocks are valid and follow each other: for
    ///     a log that nobody writes any more, where a damaged one is no torn write.
    public init(
        _ store: any BlockStore, base: UInt64 = 0, end: LogPosition? = nil, wantsBothSuperblocks: Bool = false
    ) throws(LogError) {
        let found = try LogSuperblock.read(from: store, base: base)
        if wantsBothSuperblocks {
            guard found.count == 2, found[0].generation == found[1].generation + 1 else {
                throw .corrupt("one of the two superblocks")
            }
        }
        superblock = found[0]
        guard let epoch = superblock.epoch else { throw .wrongState(nil) }
        self.epoch = epoch
        self.end = end ?? (epoch.state == .ended ? epoch.marker : nil)
        self.store = store
        self.base = base
        if let end = self.end {
            guard end.position >= LogFormat.firstBatch, end.position % LogFormat.blockSize == 0 else {
                throw .corrupt("the marker at \(end.position)")
            }
            guard end.position <= store.size - base else {
                throw .tooSmall(needed: end.position, available: store.size - base)
            }
        }
    }

    /// Visits every batch in order, reading headers only.
    /// - Returns: where the log ends.
    /// - Throws: ``LogError/corrupt(_:)`` where the headers do not lead exactly to the end, if that is known.
    @discardableResult
    public func forEachBatch(_ body: (LogBatch) throws(LogError) -> Void) throws(LogError) -> LogPosition {
        let header = ZeroedMemory(count: Int(LogFormat.blockSize))
        let limit = end?.position ?? min(superblock.capacity, store.size - base)
        var place = LogPosition.start
        while place.position < limit {
            var batch: LogBatch?
            if limit - place.position >= LogFormat.blockSize {
                try onStore { () throws(StoreError) in
                    try store.read(at: base + place.position, into: header.buffer)
                }
                batch = LogBatch(
                    decoding: UnsafeRawBufferPointer(header.buffer), at: place.position, epoch: epoch.uuid,
                    sequence: place.sequence, geometry: geometry)
            }
            guard let batch, batch.end <= limit else {
                if end == nil { break }
                throw .corrupt("the header of batch \(place.sequence) at \(place.position)")
            }
            try body(batch)
            place.position = batch.end
            place.sequence += 1
            place.entries += UInt64(batch.entries.count)
        }
        if let end, place != end { throw .corrupt("the log does not end at its marker") }
        return place
    }

    /// All entries. Memory: about 40 bytes each.
    /// - Throws: also when a chunk has two.
    public func index() throws(LogError) -> LogIndex {
        var index = LogIndex(geometry: geometry)
        try forEachBatch { batch throws(LogError) in
            for entry in batch.entries { try index.append(entry) }
        }
        return index
    }

    /// Fills `buffer`, which has the chunk's exact length, with the original.
    /// - Throws: ``LogError/corrupt(_:)`` when its CRC does not fit.
    public func read(_ entry: LogEntry, into buffer: UnsafeMutableRawBufferPointer) throws(LogError) {
        precondition(buffer.count == geometry.length(of: entry.chunk))
        if entry.isZero {
            buffer.initializeMemory(as: UInt8.self, repeating: 0)
            return
        }
        try onStore { () throws(StoreError) in try store.read(at: base + entry.position, into: buffer) }
        guard CRC32C.checksum(UnsafeRawBufferPointer(buffer)) == entry.crc else {
            throw .corrupt("the original of chunk \(entry.chunk) at \(entry.position)")
        }
    }

    /// Reads everything: headers, every original and its padding.
    /// - Parameter progress: is told how far it is, bytes from the log's start, after each batch.
    /// - Returns: where the log ends.
    @discardableResult
    public func verify(
        progress: (UInt64) throws(LogError) -> Void = { _ in }
    ) throws(LogError) -> LogPosition {
        try survey(progress: progress) { _, error throws(LogError) in throw error }
    }

    /// The same, but an original that is damaged is not the end: the headers lead on behind it.
    /// - Parameter damaged: told each such, and why.
    @discardableResult
    public func survey(
        progress: (UInt64) throws(LogError) -> Void = { _ in },
        damaged: (LogEntry, LogError) throws(LogError) -> Void
    ) throws(LogError) -> LogPosition {
        let memory = ZeroedMemory(count: Int(geometry.chunkSize))
        var index = LogIndex(geometry: geometry)
        return try forEachBatch { batch throws(LogError) in
            for entry in batch.entries {
                try index.append(entry)
                do throws(LogError) { try verify(entry, memory) } catch {
                    guard case .corrupt = error else { throw error }
                    try damaged(entry, error)
                }
            }
            try progress(batch.end)
        }
    }

    /// Whether every original of the batch, and its padding, is there as it was written.
    func isWhole(_ batch: LogBatch) throws(LogError) -> Bool {
        let memory = ZeroedMemory(count: Int(geometry.chunkSize))
        for entry in batch.entries {
            do throws(LogError) { try verify(entry, memory) } catch {
                if case .corrupt = error { return false }
                throw error
            }
        }
        return true
    }

    private func verify(_ entry: LogEntry, _ memory: ZeroedMemory) throws(LogError) {
        guard !entry.isZero else { return }
        let padded = UnsafeMutableRawBufferPointer(
            rebasing: memory.buffer[..<geometry.paddedLength(of: entry.chunk)])
        try onStore { () throws(StoreError) in try store.read(at: base + entry.position, into: padded) }
        let length = geometry.length(of: entry.chunk)
        guard CRC32C.checksum(UnsafeRawBufferPointer(rebasing: padded[..<length])) == entry.crc,
            UnsafeRawBufferPointer(rebasing: padded[length...]).isAllZeros
        else { throw .corrupt("the original of chunk \(entry.chunk) at \(entry.position)") }
    }
}

/// The entries of a log, in its order and by chunk.
public struct LogIndex: Sendable {
    public let geometry: ChunkGeometry
    /// In the log's order.
    public private(set) var entries: [LogEntry] = []
    private var places = ChunkTable<UInt32>(none: 0)

    init(geometry: ChunkGeometry) { self.geometry = geometry }

    mutating func append(_ entry: LogEntry) throws(LogError) {
        guard let place = UInt32(exactly: entries.count), places.insert(entry.chunk, place) else {
            throw .corrupt("chunk \(entry.chunk) has two originals")
        }
        entries.append(entry)
    }

    /// The chunk's original, if there is one.
    public subscript(chunk: UInt64) -> LogEntry? { places[chunk].map { entries[Int($0)] } }
}
