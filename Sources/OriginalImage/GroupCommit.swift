import Blocks
import FoundationEssentials

/// A batch to which appenders still add, or whose outcome they wait for. All of it is used under the lock of
/// the log's state, or by the one leader that writes it.
final class GatheringBatch: @unchecked Sendable {  // its users take turns, as said
    enum Outcome {
        case committed
        case failed(LogError)
    }

    /// The epoch that the originals belong to.
    let epoch: UUID
    var originals: [LogOriginal] = []
    /// Bytes that the originals take in the log.
    var bytes = 0
    var outcome: Outcome?

    init(epoch: UUID) { self.epoch = epoch }

    func hasRoom(for count: Int, _ more: Int) -> Bool {
        originals.count + count <= LogLimits.entriesPerBatch && bytes + more <= LogLimits.batchBytes
    }
}

/// The header and the list of buffers of the batch that is being written: one at a time.
final class GatherBuffers: @unchecked Sendable {  // only the leader uses it, and there is one
    let header = ZeroedMemory(count: Int(LogFormat.blockSize))
    let padding = ZeroedMemory(count: Int(LogFormat.blockSize))
    let list = UnsafeMutableBufferPointer<UnsafeRawBufferPointer>.allocate(
        capacity: 2 * LogLimits.entriesPerBatch + 1)

    deinit { list.deallocate() }
}

extension OriginalImageLog {
    /// Commits originals of `epoch`: at return they survive what its durability says, and
    /// ``readOriginal(of:into:)`` finds them. Many callers at once share a batch. More originals than a batch
    /// takes go into several, one after the other.
    /// - Throws: ``LogError/full``, ``LogError/store(_:)``, ``LogError/corrupt(_:)`` when a chunk has an original in
    ///   the log already, or ``LogError/wrongState(_:)`` when that epoch is not
    ///   open (any more), even if a later one is; then some of them may be in the log nevertheless, and the same
    ///   call may be tried again only for those that ``contains(_:)`` denies.
    public func append(
        _ originals: UnsafeBufferPointer<LogOriginal>, epoch: UUID
    ) throws(LogError) {
        let geometry = settings.geometry
        var next = originals.startIndex
        while next < originals.endIndex {
            let first = next
            var bytes = 0
            while next < originals.endIndex, next - first < LogLimits.entriesPerBatch {
                let original = originals[next]
                precondition(original.bytes.count == geometry.length(of: original.chunk))
                // What a resumed epoch holds was read from the cache: that no chunk comes twice is not ours alone.
                guard index[original.chunk] == nil else { throw twice(original.chunk, epoch) }
                let more = original.isZero ? 0 : geometry.paddedLength(of: original.chunk)
                if next > first, bytes + more > LogLimits.batchBytes { break }
                bytes += more
                next += 1
            }
            try commit(UnsafeBufferPointer(rebasing: originals[first..<next]), bytes, epoch)
        }
    }

    /// Why a chunk that is in the log is not appended: the index may be of another epoch.
    private func twice(_ chunk: UInt64, _ uuid: UUID) -> LogError {
        guard let epoch else { return .wrongState(nil) }
        guard epoch.state == .open else { return .wrongState(epoch.state) }
        return epoch.uuid == uuid
            ? .corrupt("chunk \(chunk) has an original already") : .wrongState(.released)
    }

    private enum Turn {
        case done(GatheringBatch.Outcome)
        case lead(LogPosition, durable: Bool, capacity: UInt64)
    }

    private func commit(
        _ originals: UnsafeBufferPointer<LogOriginal>, _ bytes: Int, _ uuid: UUID
    ) throws(LogError) {
        var mine: GatheringBatch?
        let turn = state.wait { state -> Turn? in
            let batch: GatheringBatch
            if let mine {
                batch = mine
            } else {
                guard let epoch = state.superblock.epoch, epoch.state == .open else {
                    return .done(.failed(.wrongState(state.superblock.epoch?.state)))
                }
                // A slow writer may come when its epoch is released and the next one open.
                guard epoch.uuid == uuid else { return .done(.failed(.wrongState(.released))) }
                if let last = state.queue.last, last.epoch == uuid, last.hasRoom(for: originals.count, bytes)
                {
                    batch = last
                } else {
                    batch = GatheringBatch(epoch: uuid)
                    state.queue.append(batch)
                }
                batch.originals.append(contentsOf: originals)
                batch.bytes += bytes
                mine = batch
            }
            if let outcome = batch.outcome { return .done(outcome) }
            guard !state.isCommitting, state.queue.first === batch else { return nil }
            state.isCommitting = true
            state.queue.removeFirst()
            return .lead(
                state.head, durable: state.superblock.durability == .power,
                capacity: state.superblock.capacity)
        }
        switch turn {
        case .done(.committed): return
        case .done(.failed(let error)): throw error
        case .lead(let place, let durable, let capacity):
            guard let batch = mine else { preconditionFailure("a leader has a batch") }
            try lead(batch, at: place, durable: durable, capacity: capacity)
        }
    }

    private func lead(
        _ batch: GatheringBatch, at place: LogPosition, durable: Bool, capacity: UInt64
    ) throws(LogError) {
        let length = LogFormat.blockSize + UInt64(batch.bytes)
        var failure: LogError?
        let limit = min(capacity, store.size)
        if place.position > limit || limit - place.position < length {
            failure = .full
        } else {
            do throws(LogError) {
                try write(batch.originals, at: place, epoch: batch.epoch, durable: durable)
            } catch { failure = error }
        }
        if failure == nil { enter(batch.originals, at: place) }
        state.withLockAndNotify { state in
            state.isCommitting = false
            if let failure {
                batch.outcome = .failed(failure)
            } else {
                batch.outcome = .committed
                state.head.position += length
                state.head.sequence += 1
                state.head.entries += UInt64(batch.originals.count)
            }
        }
        if let failure { throw failure }
    }

    private func write(
        _ originals: [LogOriginal], at place: LogPosition, epoch: UUID, durable: Bool
    ) throws(LogError) {
        LogBatch.encode(
            epoch: epoch, sequence: place.sequence, originals: originals, into: gather.header.buffer)
        gather.list[0] = UnsafeRawBufferPointer(gather.header.buffer)
        var count = 1
        for original in originals where !original.isZero {
            gather.list[count] = original.bytes
            count += 1
            let gap = settings.geometry.paddedLength(of: original.chunk) - original.bytes.count
            if gap > 0 {
                gather.list[count] = UnsafeRawBufferPointer(rebasing: gather.padding.buffer[..<gap])
                count += 1
            }
        }
        let list = UnsafeBufferPointer(rebasing: gather.list[..<count])
        try onStore { () throws(StoreError) in
            try store.write(gathering: list, at: place.position, durable: durable)
        }
    }

    private func enter(_ originals: [LogOriginal], at place: LogPosition) {
        var position = place.position + LogFormat.blockSize
        for original in originals {
            let entry = LogEntry(
                chunk: original.chunk, position: original.isZero ? 0 : position, crc: original.crc)
            precondition(index.insert(entry), "a chunk's original was appended twice")
            if !original.isZero { position += UInt64(settings.geometry.paddedLength(of: original.chunk)) }
        }
    }

    /// Whether the chunk's original is in the log.
    public func contains(_ chunk: UInt64) -> Bool { index[chunk] != nil }

    /// The entries in no particular order, for a resumed epoch's bitmap.
    public func forEachChunk(_ body: (UInt64) -> Void) { index.forEachChunk(body) }

    /// Fills `buffer`, which has the chunk's exact length, with its original.
    /// - Throws: ``LogError/corrupt(_:)`` when its CRC does not fit, or there is none.
    public func readOriginal(
        of chunk: UInt64, into buffer: UnsafeMutableRawBufferPointer
    ) throws(LogError) {
        guard let entry = index[chunk] else { throw .corrupt("chunk \(chunk) has no original") }
        precondition(buffer.count == settings.geometry.length(of: chunk))
        if entry.isZero {
            buffer.initializeMemory(as: UInt8.self, repeating: 0)
            return
        }
        try onStore { () throws(StoreError) in try store.read(at: entry.position, into: buffer) }
        guard CRC32C.checksum(UnsafeRawBufferPointer(buffer)) == entry.crc else {
            throw .corrupt("the original of chunk \(chunk) at \(entry.position)")
        }
    }
}

/// Where the open epoch's originals are: tables behind locks of their own, so that neither lookups nor a
/// table's growth hold up everybody.
final class OriginalIndex: Sendable {
    private struct Place: BitwiseCopyable, Sendable {
        var position: UInt64
        var crc: UInt32
    }
    private static let shardCount: UInt64 = 64
    private let shards = (0..<shardCount).map { _ in
        Monitor(ChunkTable<Place>(none: Place(position: 0, crc: 0)))
    }

    private func shard(_ chunk: UInt64) -> Monitor<ChunkTable<Place>> {
        shards[Int(chunk % Self.shardCount)]
    }

    func insert(_ entry: LogEntry) -> Bool {
        shard(entry.chunk).withLock {
            $0.insert(entry.chunk, Place(position: entry.position, crc: entry.crc))
        }
    }

    subscript(chunk: UInt64) -> LogEntry? {
        shard(chunk).withLock { $0[chunk] }.map {
            LogEntry(chunk: chunk, position: $0.position, crc: $0.crc)
        }
    }

    func removeAll() {
        for shard in shards { shard.withLock { $0 = ChunkTable(none: Place(position: 0, crc: 0)) } }
    }

    func forEachChunk(_ body: (UInt64) -> Void) {
        for shard in shards { for chunk in shard.withLock({ $0.chunks }) { body(chunk) } }
    }
}
