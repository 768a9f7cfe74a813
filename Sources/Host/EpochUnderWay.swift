import Blocks
import FoundationEssentials
import HostControl
import OriginalImage

/// What can be done with an epoch between its beginning and its end.
extension CopyOnWriteVolume {
    /// Has the open epoch held by another connection, after the one that held it has gone.
    /// - Throws: ``ControlError/Code/epochHeld``; ``ControlError/Code/noSuchEpoch`` also for one that was found in the
    ///   cache.
    public func adopt(epoch uuid: UUID, holder: EpochHolder) throws(ControlError) -> EpochStatus {
        try inTurn(of: uuid) { () throws(ControlError) in
            guard try epochOfThisProcess(uuid).adopt(by: holder) else {
                throw ControlError(.epochHeld, "another connection holds the epoch \(uuid)")
            }
            return try statusOfEpoch()
        }
    }

    /// The epoch's copy has these bytes on stable storage: chunks that lie wholly in them, touching extents taken as
    /// one, need no original any more.
    /// - Throws: ``ControlError/Code/invalidParameters`` for more than ``Limits/extents``, or beyond the volume;
    ///   ``ControlError/Code/noSuchEpoch`` also for an epoch that was found in the cache.
    public func passed(_ extents: [VolumeExtent], epoch uuid: UUID) throws(ControlError) {
        guard extents.count <= Limits.extents else {
            throw ControlError(.invalidParameters, "more than \(Limits.extents) extents")
        }
        var ranges: [ByteRange] = []
        for extent in extents {
            guard let range = ByteRange(checking: extent.offset, extent.count, within: size) else {
                throw ControlError(.invalidParameters, "an extent lies beyond the volume")
            }
            ranges.append(range)
        }
        var bytes = RangeList(merging: ranges)
        if defects.contains(.passesParts) { bytes = bytes.touchedBlocks(of: geometry.chunkSize, upTo: size) }
        let whole = bytes.wholeBlocks(of: geometry.chunkSize, upTo: size)
        try inTurn(of: uuid) { () throws(ControlError) in
            let epoch = try epochOfThisProcess(uuid)
            guard !whole.isEmpty else { return }
            // Before any of it is overwritten without its original.
            do throws(LogError) { try log.notePassed(epoch: uuid) } catch {
                try requireOpen(uuid)
                throw ControlError(.io, "the cache: \(error)")
            }
            for range in whole.ranges { epoch.passed.insert(geometry.chunks(touching: range)) }
        }
    }

    /// A part of what was changed before the epoch's instant, from the chunk at byte address `from` on. The changes of
    /// an epoch that an agent began are none.
    /// - Throws: ``ControlError/Code/invalidParameters`` when `from` lies beyond the volume;
    ///   ``ControlError/Code/noSuchEpoch`` also for an epoch that was found in the cache.
    public func changes(
        before uuid: UUID, from: UInt64
    ) throws(ControlError) -> SnapshotChangesMethod.Result {
        guard from <= size else { throw ControlError(.invalidParameters, "from lies beyond the volume") }
        return try inTurn(of: uuid) { () throws(ControlError) in
            let epoch = try epochOfThisProcess(uuid)
            let (runs, next) = ChunkBitmap.runs(
                inAnyOf: epoch.lineage.changed, from: geometry.chunk(at: from), limit: Limits.extents)
            // Only who asks for the last part has had them all.
            if next == nil { epoch.takeChanges() }
            return SnapshotChangesMethod.Result(
                extents: runs.map { run in
                    let offset = geometry.range(of: run.lowerBound).offset
                    let end = geometry.range(of: run.upperBound - 1).end
                    return VolumeExtent(offset: offset, count: end - offset)
                }, next: next.map { geometry.range(of: $0).offset })
        }
    }

    /// Lets the log take more bytes of its cache; writers that wait for a full cache go on.
    /// - Returns: bytes that it may take now.
    /// - Throws: ``ControlError/Code/invalidParameters`` for less than it may take already, or more than the cache has
    ///   or can be made to have; ``ControlError/Code/io``.
    public func grow(to capacity: UInt64) throws(ControlError) -> UInt64 {
        try inTurn { () throws(ControlError) in
            try requireNotEnding()
            let current = log.totalCapacity
            guard capacity <= LogLimits.volumeBytes, capacity >= current else {
                throw ControlError(
                    .invalidParameters, "the cache may take \(current) bytes already, and can only grow")
            }
            let grown: UInt64
            do throws(LogError) { grown = try log.grow(to: capacity) } catch {
                if case .tooSmall(_, let available) = error {
                    throw ControlError(
                        .invalidParameters, "the cache has \(available) bytes and cannot be made longer")
                }
                throw ControlError(.io, "the cache: \(error)")
            }
            growths.wrappingAdd(1, ordering: .acquiringAndReleasing)
            currentEpoch?.changes.withLockAndNotify { _ in }
            return grown
        }
    }

    /// The open epoch of that UUID, of which this process knows all that was written.
    private func epochOfThisProcess(_ uuid: UUID) throws(ControlError) -> Epoch {
        try requireOpen(uuid)
        guard let live = currentEpoch, live.uuid == uuid, !live.isResumed else {
            throw ControlError(
                .noSuchEpoch,
                "the epoch \(uuid) was begun before the host was started anew, and what was written past "
                    + "the host meanwhile is not known; release it and begin another")
        }
        return live
    }
}
