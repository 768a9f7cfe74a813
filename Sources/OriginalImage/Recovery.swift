import Blocks

/// What a host makes of an epoch that it finds open (article <doc:OriginalImageLog>, Recovery).
extension OriginalImageLog {
    enum Recovery {
        /// It goes on from there.
        case resumed(LogPosition)
        /// It cannot go on, and why.
        case lost(String)
    }

    /// Whatever is wrong with the log costs the epoch and not the volume, which is served: applications come
    /// before copies.
    /// - Throws: only when this cannot be the cache of this volume as it is now.
    static func recover(
        _ superblock: LogSuperblock, isAlone: Bool, _ store: any BlockStore, _ settings: Settings,
        _ index: OriginalIndex
    ) throws(LogError) -> Recovery {
        guard let epoch = superblock.epoch else { preconditionFailure("an open epoch has a description") }
        let geometry = superblock.geometry
        guard geometry.volumeSize == settings.geometry.volumeSize else {
            throw .otherGeometry("a volume of \(geometry.volumeSize) bytes")
        }
        if epoch.boot != settings.boot, superblock.durability == .process {
            return .lost("the machine restarted and the epoch's durability was process")
        }
        guard geometry == settings.geometry else {
            return .lost(
                "the host was started with chunks of \(ByteCount(settings.geometry.chunkSize)), and the epoch "
                    + "was begun with chunks of \(ByteCount(geometry.chunkSize))")
        }
        guard epoch.institutedAt != LogEpoch.notInstituted else {
            return .lost("the host ended before the epoch's instant")
        }
        guard superblock.capacity <= store.size else {
            return .lost("the cache is smaller than the \(superblock.capacity) bytes that it had")
        }
        guard !isAlone else {
            // It may have been the one in force, which said that the epoch had ended.
            return .lost("one of the cache's two superblocks is damaged, or its write was cut short")
        }
        guard !epoch.flags.contains(.passed) else {
            return .lost("its copy had passed some chunks, whose originals were not kept any more")
        }
        do throws(LogError) { return .resumed(try scan(epoch, store, index)) } catch {
            return .lost("the cache was damaged while no host served it: \(error)")
        }
    }

    /// Enters the entries of every batch that is whole.
    /// - Returns: where the next batch goes.
    private static func scan(
        _ epoch: LogEpoch, _ store: any BlockStore, _ index: OriginalIndex
    ) throws(LogError) -> LogPosition {
        let reader = try LogReader(store)
        var head = LogPosition.start
        var last: LogBatch?
        func take(_ batch: LogBatch) throws(LogError) {
            for entry in batch.entries {
                guard index.insert(entry) else { throw .corrupt("chunk \(entry.chunk) has two originals") }
            }
            head.position = batch.end
            head.sequence += 1
            head.entries += UInt64(batch.entries.count)
        }
        let end = try reader.forEachBatch { batch throws(LogError) in
            if let committed = last { try take(committed) }
            last = batch
        }
        if let later = try reader.batch(behind: end) {
            throw .corrupt(
                "the header of batch \(end.sequence) at \(end.position), which batch \(later) follows")
        }
        // Only the last can be torn: the article says why.
        if let last, try reader.isWhole(last) { try take(last) }
        if head.sequence < epoch.marker.sequence {
            throw .corrupt("batches before the marker are missing")
        }
        return head
    }
}

extension LogReader {
    /// Looks for a batch of the epoch behind the place where the chain of headers ends. A crash leaves none
    /// there, because the batch that it tore was the last: the header at `place` was damaged afterwards.
    /// - Returns: the first one's sequence number.
    func batch(behind place: LogPosition) throws(LogError) -> UInt64? {
        let block = LogFormat.blockSize
        let limit = min(
            superblock.capacity, store.size - base,
            place.position + UInt64(LogLimits.batchBytes) + 2 * block)
        let memory = ZeroedMemory(count: LogLimits.lookBytes)
        var position = place.position
        while limit - min(position, limit) >= block {
            let count = min(UInt64(LogLimits.lookBytes), limit - position).roundedDown(to: block)
            let part = UnsafeMutableRawBufferPointer(rebasing: memory.buffer[..<Int(count)])
            try onStore { () throws(StoreError) in try store.read(at: base + position, into: part) }
            for offset in stride(from: 0, to: Int(count), by: Int(block)) {
                let header = UnsafeRawBufferPointer(rebasing: part[offset..<offset + Int(block)])
                let sequence: UInt64 = header.bigEndian(at: 24)
                guard header.bigEndian(at: 0, as: UInt64.self) == LogFormat.batchMagic,
                    sequence >= place.sequence,
                    LogBatch(
                        decoding: header, at: position + UInt64(offset), epoch: epoch.uuid,
                        sequence: sequence, geometry: geometry) != nil
                else { continue }
                return sequence
            }
            position += count
        }
        return nil
    }
}
