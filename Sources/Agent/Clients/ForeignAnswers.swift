import Foundation
import HostControl
import OriginalImage

/// An answer of a host whose numbers the agent reckons with: checked once, where it comes in.
protocol ForeignAnswer {
    /// What in it cannot be; nil: it may be believed.
    var flaw: String? { get }
}

extension VolumeStatus: ForeignAnswer {
    var flaw: String? {
        guard UUID(uuidString: volumeUUID) != nil else { return "its volume's UUID is none" }
        guard size <= ClientLimits.hostBytes, ChunkGeometry(volumeSize: size, chunkSize: chunkSize) != nil
        else { return "its volume's size or chunk size is impossible" }
        guard cacheCapacity <= ClientLimits.hostBytes, cacheUsed <= cacheCapacity else {
            return "its cache's numbers are impossible"
        }
        guard source.hasPrefix("/"), cache.hasPrefix("/") else { return "its paths are not absolute" }
        return epoch?.flaw
    }
}

extension EpochStatus: ForeignAnswer {
    var flaw: String? {
        guard UUID(uuidString: uuid) != nil else { return "its epoch's UUID is none" }
        guard let restartedFrom else { return nil }
        guard UUID(uuidString: restartedFrom) != nil, let restarts, restarts > 0, restarts < number else {
            return "how often it has begun anew is impossible"
        }
        return nil
    }
}

extension LogMarker: ForeignAnswer {
    var flaw: String? {
        // A batch takes a block at least, so that neither number can be greater than the bytes.
        position > 0 && position <= ClientLimits.hostBytes && position % LogFormat.blockSize == 0
            && sequence <= position && entries <= position ? nil : "its log's marker is impossible"
    }
}
