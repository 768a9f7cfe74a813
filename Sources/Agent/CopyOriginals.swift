import Blocks
import Foundation
import HostControl
import OriginalImage
import PhysicalCopy

/// The second half of a copy sequence: the original images, the end of the relation, the manifest.
extension CopySequence {
    /// Step 606: the relation ends and the cache is retained; or, when it is to end later, the marker: the log up
    /// to it is as good as the whole, because the raw pass is over.
    func endOrMark(_ member: CopyMember) throws(AgentError) {
        try cancellation.check()
        guard let epoch = member.epoch else { preconditionFailure("no epoch to end") }
        let parameters = EpochParameters(epoch: epoch.uuid)
        let marker: LogMarker
        do throws(AgentError) {
            switch request.ending {
            case .endedBeforeCacheCopy:
                marker = try member.line.call(
                    SnapshotEndMethod.self, parameters, timeout: AgentLimits.hostFlushSeconds)
            case .endedAfterCacheCopy:
                marker = try member.line.call(
                    SnapshotMarkMethod.self, parameters, timeout: AgentLimits.hostFlushSeconds)
            }
        } catch {
            // It may be another one by now.
            if error.cause == .control(.noSuchEpoch) { try member.checkEpoch() }
            throw error
        }
        guard marker.position <= (try member.line.status()).cacheCapacity else {
            throw AgentError(
                .unavailable, doing: "asking the host at", to: member.line.path,
                because: "its log's marker lies beyond the end of its cache",
                advice: "check that the socket is that of an `outboard host` of this version")
        }
        member.marker = LogPosition(
            position: marker.position, sequence: marker.sequence, entries: marker.entries)
    }

    /// Step 608. Where the epoch is open meanwhile, what was copied counts only if it is whole afterwards: begun anew, the log
    /// has another's originals.
    func copyOriginals(_ member: CopyMember) throws(AgentError) {
        do throws(AgentError) { try putOriginals(member) } catch {
            if error.status != .tryAgain { try member.settleEpoch() }
            throw error
        }
        switch request.ending {
        case .endedBeforeCacheCopy: try member.checkEpoch()
        case .endedAfterCacheCopy: try member.settleEpoch()
        }
    }

    /// The cache has grown under the copy: a private bridge, which knows its units as long as they were, opens them anew. What
    /// the one before it had summed up is read back.
    private func followGrowth(_ member: CopyMember) throws(AgentError) {
        guard request.bridge == .privateOne, let marker = member.marker, let cache = member.cache,
            let copy = member.copy
        else { return }
        let needed = request.mode == .append ? member.logBase + marker.position : 0
        guard marker.position > cache.size || needed > copy.size else { return }
        member.bridge?.end()
        if needed > copy.size {
            try onCopy { () throws(CopyError) in try member.draft.resizeData(to: needed) }
        }
        try connectBridge(member)
    }

    private func putOriginals(_ member: CopyMember) throws(AgentError) {
        try followGrowth(member)
        guard let marker = member.marker, let cache = member.cache, let copy = member.copy,
            let copier = member.bridge?.copier
        else { preconditionFailure("no marker") }
        guard cache.size >= marker.position else {
            throw AgentError(
                .inputMissing, doing: "using unit \(cache.number) of", to: copier.name,
                because: "it is shorter than the host's cache is now", advice: "start that bridge anew")
        }
        let target = try copier.store(of: copy, isCancelled: isCancelled)
        switch request.mode {
        case .overlay: try overlay(member, marker, onto: target)
        case .append:
            let base = member.logBase
            guard copy.size >= base, copy.size - base >= marker.position else {
                throw AgentError(
                    .cannotCreate, doing: "appending the original images to unit \(copy.number) of",
                    to: copier.name,
                    because: "it has \(copy.size) bytes, and \(base + marker.position) are needed",
                    advice: "use a larger unit, or --mode overlay")
            }
            try have(
                member, copied: [CopyRun(source: 0, destination: base, count: marker.position)],
                from: cache, phase: "appending original images"
            ) { () throws(AgentError) in try member.checkEpoch() }
        }
        try onStore("flushing the copy at", copier.name) { () throws(StoreError) in try target.flush() }
    }

    private func overlay(
        _ member: CopyMember, _ marker: LogPosition, onto target: any BlockStore
    ) throws(AgentError) {
        guard let cache = member.cache, let copy = member.copy else { preconditionFailure() }
        let log = try world.openStore(member.status.cache, false)
        let entries = try onLog("reading the original image cache", member.status.cache) {
            () throws(LogError) in
            let reader = try LogReader(log, end: marker)
            let geometry = reader.geometry
            // An original of what was free is of no use, and would fill a hole.
            let entries = try reader.index().entries.filter {
                member.used?.overlaps(geometry.range(of: $0.chunk)) ?? true
            }
            return (geometry, entries)
        }
        guard entries.0.volumeSize == member.status.size else {
            throw AgentError(
                .corrupt, doing: "reading the original image cache", to: member.status.cache,
                because: "its log is of a volume of \(entries.0.volumeSize) bytes, and this one has "
                    + "\(member.status.size)")
        }
        let block = UInt64(max(cache.capacity.blockLength, copy.capacity.blockLength))
        let originals = RestorePlan(volumeOf: entries.0.volumeSize)
            .originals(in: VolumeMap(originals: entries.1, geometry: entries.0, base: 0))
        // A short last chunk may end within a block, whose rest is zeros in the log as on the unit.
        let runs = originals.runs.map {
            CopyRun(source: $0.source, destination: $0.offset, count: $0.count.roundedUp(to: block))
        }
        if !runs.isEmpty {
            try have(member, copied: runs, from: cache, phase: "overlaying original images") {
                () throws(AgentError) in try member.checkEpoch()
            }
        }
        for piece in originals.zeros {
            try cancellation.check()
            try onStore("writing zero originals to the copy at", "\(piece.offset)") {
                () throws(StoreError) in try target.writeZeroes(piece.volume, options: [])
            }
        }
        try checkOverlay(entries.1, entries.0, target)
    }

    /// Reads every overlaid chunk back and compares it with its original's CRC.
    private func checkOverlay(
        _ entries: [LogEntry], _ geometry: ChunkGeometry, _ target: any BlockStore
    ) throws(AgentError) {
        let buffer = ZeroedMemory(count: Int(geometry.chunkSize))
        for (done, entry) in entries.sorted(by: { $0.chunk < $1.chunk }).enumerated() {
            let range = geometry.range(of: entry.chunk)
            let chunk = UnsafeMutableRawBufferPointer(rebasing: buffer.buffer.prefix(Int(range.count)))
            try onStore("reading the copy back at", "\(range.offset)") { () throws(StoreError) in
                try target.read(at: range.offset, into: chunk)
            }
            let bytes = UnsafeRawBufferPointer(chunk)
            guard entry.isZero ? bytes.isAllZeros : CRC32C.checksum(bytes) == entry.crc else {
                throw AgentError(
                    .corrupt, doing: "checking the overlaid original images at", to: "\(range.offset)",
                    because: "what is there is not the original",
                    advice: "check the devices of cache and copy; the copy was abandoned")
            }
            if done % 64 == 0 {
                try cancellation.check()
                observer.progress(
                    SequenceProgress(
                        phase: "checking original images", done: UInt64(done) * geometry.chunkSize,
                        total: UInt64(entries.count) * geometry.chunkSize))
            }
        }
    }

    /// The relation ends, if it has not, and the cache is needed no more; unless it is to be kept.
    func finishEpoch(_ member: CopyMember) throws(AgentError) {
        if request.keepsEpoch { return }
        guard let epoch = member.epoch else { preconditionFailure("no epoch to release") }
        // An open one ends by it. The copy has all of it: what becomes of it now is nothing to it.
        try member.release(epoch, by: member.line)
        member.epoch = nil
    }

    // MARK: Step 610

    /// Closes the bridge, sums the copy up, and writes its manifest (not yet in place).
    func seal(_ member: CopyMember, _ group: GroupDescription?) throws(AgentError) -> Manifest {
        guard let epoch = member.instituted, let marker = member.marker, let copy = member.copy,
            let bridge = member.bridge
        else { preconditionFailure("nothing to seal") }
        let known = try bridgeChecksums(member)
        let location: DataLocation
        let store: any BlockStore
        switch request.bridge {
        case .privateOne:
            bridge.end()
            let size = request.mode == .append ? member.logBase + marker.position : member.status.size
            try onCopy { () throws(CopyError) in try member.draft.resizeData(to: size) }
            location = .usual
            store = try world.openStore(member.draft.path(of: DataLocation.usualName), false)
        case .standing(let address, _, _, _):
            location = .unit(target: "\(address)", number: copy.number)
            store = try bridge.copier.store(of: copy, isCancelled: isCancelled)
        }
        let data = try dataPortion(member, store, known)
        var originals: Portion?
        if request.mode == .append {
            originals = try portion(store, member.logBase, marker.position)
            try checkAppendedLog(store, member.logBase, marker)
        }
        bridge.end()
        var manifest = Manifest(
            tool: request.tool, uuid: UUID.fresh().uuidString, completedAt: world.realTime(),
            volume: member.volume, mode: request.mode,
            epoch: EpochDescription(
                number: epoch.number, uuid: epoch.uuid, institutedAt: epoch.institutedAt,
                ending: request.ending, logBytes: marker.position, batches: marker.sequence,
                entries: marker.entries),
            group: group, frozen: member.resumed?.frozen ?? request.freeze, location: location, data: data,
            originals: originals)
        if member.restarts > 0 { manifest.epoch.restarts = member.restarts }
        manifest.usedBytes = member.used.map { min($0.total, member.status.size) }
        manifest.toc = try tocDescription(member)
        return manifest
    }

    private func portion(
        _ store: any BlockStore, _ offset: UInt64, _ length: UInt64
    ) throws(AgentError) -> Portion {
        var done: UInt64 = 0
        let checksums = try onCopy { () throws(CopyError) in
            try SliceChecksums.compute(of: ByteRange(offset: offset, count: length), in: store) {
                count throws(CopyError) in
                done += count
                observer.progress(SequenceProgress(phase: "summing up", done: done, total: length))
                do throws(AgentError) { try cancellation.check() } catch { throw error.copyError }
            }
        }
        return Portion(offset: offset, length: length, checksums: checksums)
    }

    private func checkAppendedLog(
        _ store: any BlockStore, _ base: UInt64, _ marker: LogPosition
    ) throws(AgentError) {
        _ = try onLog("checking the appended", "original images") { () throws(LogError) in
            try LogReader(store, base: base, end: marker, wantsBothSuperblocks: true).verify()
        }
    }
}
