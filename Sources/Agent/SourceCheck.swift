import Blocks
import Foundation
import Glibc
import HostControl
import OriginalImage
import SCSI

/// Whether a bridge's units are the host's source and cache, and whether what the bridge copied is the source. Called
/// while the epoch is open.
///
/// A unit whose storage the bridge names (``StorageName``) on this machine is the host's, or is not. Elsewhere only the
/// contents tell: they are compared at places drawn anew each time, and whole where the volume is small.
struct SourceCheck {
    let member: CopyMember
    let snapshot: any BlockStore
    let bridge: String
    let cancellation: CancellationToken

    /// - Parameters:
    ///   - source: the bridge's view, as ``cache``.
    /// - Throws: 66 when a unit is another than it should be.
    func checkUnits(
        _ units: (source: UnitDescription, cache: UnitDescription), source: any BlockStore,
        cache: any BlockStore, localCache: any BlockStore
    ) throws(AgentError) {
        try checkCache(cache)
        member.isSourceProven = try isProven(units.source, "source", member.status.source)
        _ = try isProven(units.cache, "cache", member.status.cache)
        let size = member.status.size
        guard source.size >= size, source.size - size < 4096 else {
            throw wrong("source", "it has \(source.size) bytes, and the host's source has \(size)")
        }
        if let place = try difference(of: source, "reading the source unit of", localCache) {
            throw wrong(
                "source", "its contents at \(place) are not those of \(member.status.source)")
        }
    }

    /// After the raw pass. A bridge that read something else than it showed, or did not write what it read, is found
    /// here: the copy's own checksums are made from the copy.
    /// - Throws: 65.
    func checkCopy(_ copy: any BlockStore, localCache: any BlockStore) throws(AgentError) {
        if let place = try difference(of: copy, "reading the copy at", localCache, within: member.used) {
            throw AgentError(
                .corrupt, doing: "checking the copy made by", to: bridge,
                because: "its contents at \(place) are not those of \(member.status.source)",
                advice: "look at the bridge's log and its units; the copy was abandoned")
        }
    }

    /// Whether the bridge says itself, and so that it can be believed, that the unit is what is at `path` here.
    private func isProven(
        _ unit: UnitDescription, _ role: String, _ path: String
    ) throws(AgentError) -> Bool {
        guard let theirs = unit.storage, theirs.boot == MachineBoot.identifier,
            let ours = StorageName(path: path)
        else { return false }
        guard theirs == ours else {
            throw wrong(role, "it is another file or device of this machine than \(path)")
        }
        return true
    }

    /// Compares `theirs` with the logical snapshot.
    /// - Parameter wanted: nil: all of it.
    /// - Returns: a place where it differs and nothing explains that.
    private func difference(
        of theirs: any BlockStore, _ reading: String, _ localCache: any BlockStore,
        within wanted: RangeList? = nil
    ) throws(AgentError) -> UInt64? {
        var differing: Set<UInt64> = []
        let geometry = try geometry()
        let samples = member.isSourceProven ? AgentLimits.samples : AgentLimits.samplesUnproven
        for place in samplePlaces(of: member.status.size, block: 4096, count: samples) {
            try cancellation.check()
            let found = try onStore(reading, bridge) { () throws(StoreError) in
                try theirs.bytes(at: place.offset, count: Int(place.count))
            }
            for (part, ours) in try snapshotParts(of: place, geometry) {
                let start = Int(part.offset - place.offset)
                guard found[start..<start + ours.count] != ours[...] else { continue }
                for chunk in geometry.chunks(touching: part) {
                    guard let part = geometry.range(of: chunk).intersection(part) else { continue }
                    for piece in wanted.map({ Array($0.parts(of: part)) }) ?? [part] {
                        let range = Int(piece.offset - place.offset)..<Int(piece.end - place.offset)
                        if found[range] != ours[range.lowerBound - start..<range.upperBound - start] {
                            differing.insert(chunk)
                        }
                    }
                }
            }
        }
        guard !differing.isEmpty else { return nil }
        // What the applications have overwritten since the instant differs rightly. Its original was in the log
        // before the new bytes came onto the source, so it is in the log that is read now.
        return differing.subtracting(try preservedChunks(localCache)).min().map { $0 * geometry.chunkSize }
    }

    /// The logical snapshot at a place, as far as it has it still: chunks that the copy has passed and that were overwritten then
    /// can be compared with nothing.
    private func snapshotParts(
        of place: ByteRange, _ geometry: ChunkGeometry
    ) throws(AgentError) -> [(ByteRange, [UInt8])] {
        if let bytes = try snapshotBytes(place) { return [(place, bytes)] }
        // It has none any more when its epoch is over.
        try member.checkEpoch()
        var parts: [(ByteRange, [UInt8])] = []
        for chunk in geometry.chunks(touching: place) {
            guard let part = geometry.range(of: chunk).intersection(place) else { continue }
            if let bytes = try snapshotBytes(part) { parts.append((part, bytes)) }
        }
        return parts
    }

    /// Nil: some of it is gone.
    private func snapshotBytes(_ range: ByteRange) throws(AgentError) -> [UInt8]? {
        do throws(StoreError) { return try snapshot.bytes(at: range.offset, count: Int(range.count)) } catch {
            guard error.code == .gone else {
                throw AgentError(error, doing: "reading the logical snapshot of", to: member.status.source)
            }
            return nil
        }
    }

    private func geometry() throws(AgentError) -> ChunkGeometry {
        guard
            let geometry = ChunkGeometry(
                volumeSize: member.status.size, chunkSize: member.status.chunkSize)
        else {
            throw AgentError(
                .software, doing: "asking the host at", to: member.line.path,
                because: "its volume's size or chunk size is impossible")
        }
        return geometry
    }

    private func checkCache(_ cache: any BlockStore) throws(AgentError) {
        let found: [LogSuperblock]
        do throws(LogError) { found = try LogSuperblock.read(from: cache) } catch {
            if case .store(let failure) = error {
                throw AgentError(failure, doing: "reading the cache unit of", to: bridge)
            }
            throw wrong("cache", error.description)
        }
        guard let epoch = found[0].epoch,
            epoch.uuid == member.instituted.flatMap({ UUID(uuidString: $0.uuid) })
        else { throw wrong("cache", "the log in it is not that of this copy's epoch") }
    }

    private func preservedChunks(_ localCache: any BlockStore) throws(AgentError) -> Set<UInt64> {
        var chunks: Set<UInt64> = []
        _ = try onLog("reading the original image cache", member.status.cache) { () throws(LogError) in
            try LogReader(localCache).forEachBatch { batch throws(LogError) in
                for entry in batch.entries { chunks.insert(entry.chunk) }
            }
        }
        return chunks
    }

    private func wrong(_ unit: String, _ reason: String) -> AgentError {
        AgentError(
            .inputMissing, doing: "using the \(unit) unit of", to: bridge, because: reason,
            advice: "name the unit that is the host's \(unit) with --\(unit)-unit")
    }
}

extension StorageName {
    /// Of what is at `path` on this machine. Nil where that cannot be told.
    public init?(path: String) {
        var status = stat()
        guard let boot = MachineBoot.identifier, stat(path, &status) == 0 else { return nil }
        let isDevice = status.st_mode & S_IFMT == S_IFBLK
        self.init(
            boot: boot, device: UInt64(isDevice ? status.st_rdev : status.st_dev),
            inode: isDevice ? 0 : UInt64(status.st_ino), isBlockDevice: isDevice)
    }
}

extension UnitDescription {
    /// What storage its bridge says it has.
    var storage: StorageName? { designators.lazy.compactMap { StorageName($0) }.first }
}
