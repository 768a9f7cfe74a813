// What an agent and a host say to each other of an epoch that is under way, beyond its beginning and its end.

/// Bytes of the volume.
public struct VolumeExtent: Codable, Hashable, Sendable {
    /// Byte address.
    public var offset: UInt64
    /// Bytes.
    public var count: UInt64

    public init(offset: UInt64, count: UInt64) {
        self.offset = offset
        self.count = count
    }
}

/// `snapshot.adopt`: this connection holds the epoch from now on, as if it had begun it. Refused unless the epoch is open,
/// nobody holds it (``ControlError/Code/epochHeld``), and it was begun in this very process: of one that a restarted
/// host found in its cache nobody knows what was written meanwhile (``ControlError/Code/noSuchEpoch``).
public enum SnapshotAdoptMethod: ControlMethod {
    public static let name = "snapshot.adopt"
    public typealias Parameters = EpochParameters
    public typealias Result = EpochStatus
}

/// `snapshot.passed`, the watermark: the copy has these bytes of the source on stable storage, as they were at the epoch's
/// instant or with their original in the log, so that no original of them is needed any more. Only chunks that lie wholly in
/// an extent count; said again it changes nothing. What is then overwritten without being preserved is gone from the
/// logical snapshot: reading it there fails.
public enum SnapshotPassedMethod: ControlMethod {
    public static let name = "snapshot.passed"
    public struct Parameters: Codable, Hashable, Sendable {
        /// The epoch's UUID: what is passed for one is not for the next.
        public var epoch: String
        /// At most ``Limits/extents``.
        public var extents: [VolumeExtent]

        public init(epoch: String, extents: [VolumeExtent]) {
            self.epoch = epoch
            self.extents = extents
        }
    }
    public typealias Result = Empty
}

/// `snapshot.changes`: the chunks that were changed between the epoch before and this one, when the cache was full and the
/// host began anew (``CacheFullPolicy/restartFrom``). Once the last part was asked for, a later epoch's changes are
/// counted from this epoch's instant; until then from the instant from which this one's are.
public enum SnapshotChangesMethod: ControlMethod {
    public static let name = "snapshot.changes"
    public struct Parameters: Codable, Hashable, Sendable {
        public var epoch: String
        /// Byte address from which to go on: 0, then what ``Result/next`` said.
        public var from: UInt64

        public init(epoch: String, from: UInt64) {
            self.epoch = epoch
            self.from = from
        }
    }
    public struct Result: Codable, Hashable, Sendable {
        /// In order, whole chunks; at most ``Limits/extents``.
        public var extents: [VolumeExtent]
        /// Where the next part begins; nil: this was the last.
        public var next: UInt64?

        public init(extents: [VolumeExtent], next: UInt64?) {
            self.extents = extents
            self.next = next
        }
    }
}

/// `cache.grow`: the log may take so many bytes of its cache from now on, also while an epoch is open. A cache that is a file is
/// made longer when need be; a device has to have them. Smaller than it is: refused.
public enum CacheGrowMethod: ControlMethod {
    public static let name = "cache.grow"
    public struct Parameters: Codable, Hashable, Sendable {
        /// Bytes in all, superblocks included; rounded down to a multiple of 4096.
        public var capacity: UInt64
        public init(capacity: UInt64) { self.capacity = capacity }
    }
    public struct Result: Codable, Hashable, Sendable {
        /// Bytes that it may take now.
        public var capacity: UInt64
        public init(capacity: UInt64) { self.capacity = capacity }
    }
}
