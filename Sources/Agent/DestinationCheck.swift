import Blocks
import HostControl
import OriginalImage
import SCSI

/// Whether a standing bridge's unit may be overwritten with the copy. Its number was typed by hand, and what is there
/// is gone afterwards.
struct DestinationCheck {
    let status: VolumeStatus
    let bridge: String
    let copy: UnitDescription
    let store: any BlockStore

    /// - Parameter force: what is on the unit may go; never the source or its cache.
    /// - Throws: 64 for those, 73 for a unit that is not empty.
    func run(
        others: [UnitDescription], force: Bool, _ cancellation: CancellationToken
    ) throws(AgentError) {
        if let storage = copy.storage {
            let kept = others.map(\.storage) + [status.source, status.cache].map { StorageName(path: $0) }
            guard !kept.contains(storage) else { throw overwrites("the source or its cache") }
        }
        guard try !holdsCache() else { throw overwrites("an original image cache of this volume") }
        guard !force else { return }
        for place in samplePlaces(of: copy.size, block: 4096, count: AgentLimits.samples) {
            try cancellation.check()
            let bytes = try onStore("looking at unit \(copy.number) of", bridge) { () throws(StoreError) in
                try store.bytes(at: place.offset, count: Int(place.count))
            }
            guard bytes.allSatisfy({ $0 == 0 }) else {
                throw AgentError(
                    .cannotCreate, doing: "using unit \(copy.number) of", to: bridge,
                    because: "there is something on it, at \(place.offset) or after it",
                    advice: "name another unit, or give --force to have it overwritten")
            }
        }
    }

    private func holdsCache() throws(AgentError) -> Bool {
        do throws(LogError) {
            return try LogSuperblock.read(from: store).contains {
                $0.volume.uuidString.lowercased() == status.volumeUUID.lowercased()
            }
        } catch {
            if case .store(let failure) = error {
                throw AgentError(failure, doing: "looking at unit \(copy.number) of", to: bridge)
            }
            // It is no log.
            return false
        }
    }

    private func overwrites(_ what: String) -> AgentError {
        AgentError(
            .usage, doing: "using unit \(copy.number) of", to: bridge,
            because: "the copy would overwrite \(what)", advice: "name another unit with --copy-unit")
    }
}
