import Blocks
import Foundation
import HostControl
import OriginalImage

/// Whether a bridge's units are the host's source and cache. Called while the epoch is open.
struct SourceCheck {
    let member: CopyMember
    let snapshot: any BlockStore
    /// The bridge's views.
    let source: any BlockStore
    let cache: any BlockStore
    /// The host's cache as this machine has it.
    let localCache: any BlockStore
    let bridge: String

    /// - Throws: 66 when a unit is another than it should be.
    func run(_ cancellation: CancellationToken) throws(AgentError) {
        try checkCache()
        let size = member.status.size
        guard source.size >= size, source.size - size < 4096 else {
            throw wrong("source", "it has \(source.size) bytes, and the host's source has \(size)")
        }
        var differing: Set<UInt64> = []
        let geometry = try geometry()
        for place in samplePlaces(of: size, block: 4096) {
            try cancellation.check()
            let theirs = try onStore("reading the source unit of", bridge) { () throws(StoreError) in
                try source.bytes(at: place.offset, count: Int(place.count))
            }
            let ours = try onStore("reading the logical snapshot of", member.status.source) {
                () throws(StoreError) in try snapshot.bytes(at: place.offset, count: Int(place.count))
            }
            guard theirs != ours else { continue }
            for chunk in geometry.chunks(touching: place) {
                guard let part = geometry.range(of: chunk).intersection(place) else { continue }
                let range = Int(part.offset - place.offset)..<Int(part.end - place.offset)
                if theirs[range] != ours[range] { differing.insert(chunk) }
            }
        }
        guard !differing.isEmpty else { return }
        // What the applications have overwritten since the instant differs rightly. Its original was in the log
        // before the new bytes came onto the source, so it is in the log that is read now.
        let preserved = try preservedChunks()
        if let chunk = differing.subtracting(preserved).min() {
            throw wrong(
                "source",
                "its contents at \(chunk * geometry.chunkSize) are not those of \(member.status.source)")
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

    private func checkCache() throws(AgentError) {
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

    private func preservedChunks() throws(AgentError) -> Set<UInt64> {
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
