/// The methods of the host's control socket: JSON-RPC 2.0, one object a line, UTF-8, no line longer than
/// ``Limits/lineBytes``. Each method has one parameter type and one result type.
public protocol ControlMethod {
    associatedtype Parameters: Codable & Sendable
    associatedtype Result: Codable & Sendable
    /// The method's name on the wire.
    static var name: String { get }
}

public enum Limits {
    /// Bytes of a request or response, its newline included.
    public static let lineBytes = 64 << 10
    /// Bytes of a request's id that is a string.
    public static let idBytes = 1024
    /// Connections to the control socket at once.
    public static let connections = 16
    /// Extents of one request or answer: they fit its line.
    public static let extents = 1024
    /// The longest freeze that may be asked, seconds.
    public static let freezeSeconds = 300.0
}

/// Parameters or a result without members.
public struct Empty: Codable, Hashable, Sendable {
    public init() {}
}

/// `volume.status`.
public enum VolumeStatusMethod: ControlMethod {
    public static let name = "volume.status"
    public typealias Parameters = Empty
    public typealias Result = VolumeStatus
}

/// `volume.freeze`: flushes the source, closes the gate, drains the writes in flight, flushes again. Writes wait at
/// the gate until `volume.thaw`, the time-out or the end of this connection, to which the freeze belongs: until then
/// `volume.freeze`, `volume.thaw` and `snapshot.begin` from another are refused
/// (``ControlError/Code/frozen``). When the writes in flight take longer than the host has patience, or all of it
/// longer than the time-out, the volume is thawed and the call fails (``ControlError/Code/timedOut``).
public enum VolumeFreezeMethod: ControlMethod {
    public static let name = "volume.freeze"
    public struct Parameters: Codable, Hashable, Sendable {
        /// Seconds until the volume thaws by itself, more than 0, at most ``Limits/freezeSeconds``.
        public var timeout: Double
        /// The volume is frozen already, by this connection, and this only begins the time-out anew; refused when it
        /// is not.
        public var renew: Bool?
        public init(timeout: Double, renew: Bool? = nil) {
            self.timeout = timeout
            self.renew = renew
        }
    }
    public typealias Result = Empty
}

/// `volume.thaw`. The result says whether the volume was still frozen: false means that the freeze had timed
/// out, so that several volumes' epochs begun under it do not share one instant. Refused
/// (``ControlError/Code/frozen``) when another connection froze it.
public enum VolumeThawMethod: ControlMethod {
    public static let name = "volume.thaw"
    public typealias Parameters = Empty
    public struct Result: Codable, Hashable, Sendable {
        public var wasFrozen: Bool
        public init(wasFrozen: Bool) { self.wasFrozen = wasFrozen }
    }
}

/// `snapshot.begin`: institutes copy-on-write; the epoch's instant is the moment it says. Works in a freeze
/// of the same connection and without one. Refused (``ControlError/Code/epochOpen``,
/// ``ControlError/Code/cacheRetained``) while an earlier epoch is open or retained, and
/// (``ControlError/Code/frozen``) in a freeze of another connection. Fails with ``ControlError/Code/timedOut`` when
/// the writes in flight take longer than the host has patience.
public enum SnapshotBeginMethod: ControlMethod {
    public static let name = "snapshot.begin"
    public typealias Parameters = Empty
    public typealias Result = EpochStatus
}

/// Names the epoch that is meant, so that nobody ends somebody else's.
public struct EpochParameters: Codable, Hashable, Sendable {
    /// The epoch's UUID as `snapshot.begin` gave it.
    public var epoch: String
    public init(epoch: String) { self.epoch = epoch }
}

/// `snapshot.mark`: makes the log durable up to here and says where here is; the epoch goes on.
public enum SnapshotMarkMethod: ControlMethod {
    public static let name = "snapshot.mark"
    public typealias Parameters = EpochParameters
    public typealias Result = LogMarker
}

/// `snapshot.end`: ends the relation and retains the cache, made durable.
public enum SnapshotEndMethod: ControlMethod {
    public static let name = "snapshot.end"
    public typealias Parameters = EpochParameters
    public typealias Result = LogMarker
}

/// `cache.release`: the retained cache of that epoch is needed no more. Ends the epoch first if it is open.
/// A void epoch is released by it, too.
public enum CacheReleaseMethod: ControlMethod {
    public static let name = "cache.release"
    public typealias Parameters = EpochParameters
    public typealias Result = Empty
}

/// `host.shutdown`: the host stops serving, flushes and exits. Refused while an epoch is open, unless forced. A freeze,
/// whoever's it is, ends by it; from its answer on `volume.freeze` and `snapshot.begin` are refused
/// (``ControlError/Code/ending``).
public enum HostShutdownMethod: ControlMethod {
    public static let name = "host.shutdown"
    public struct Parameters: Codable, Hashable, Sendable {
        public var force: Bool
        public init(force: Bool) { self.force = force }
    }
    public typealias Result = Empty
}

/// What state an epoch is in; also the superblock's (design §4).
public enum EpochState: String, Codable, Hashable, Sendable {
    case open, ended, void, released
}

/// Whether committed originals survive a crash of the process only, or of the machine, too.
public enum Durability: String, Codable, Hashable, Sendable, CaseIterable {
    case process, power
}

/// What happens to the epoch when the cache is full or fails.
public enum CacheFullPolicy: String, Codable, Hashable, Sendable, CaseIterable {
    /// It becomes void at once, and the write goes on.
    case abandon
    /// Writes wait a bounded time for its end, then as `abandon`; for a full cache only while the connection that
    /// began the epoch is there.
    case block
    /// The host begins the next epoch at once; the agent that holds it has what was changed since the first copied again, and
    /// its copy is as of the later instant (`snapshot.changes`). Without an agent as `abandon`.
    case restartFrom = "restart-from"
}

public struct EpochStatus: Codable, Hashable, Sendable {
    public var number: UInt64
    public var uuid: String
    public var state: EpochState
    /// The instant, nanoseconds since 1970 by the host's real-time clock.
    public var institutedAt: Int64
    /// Nanoseconds for which the gate was closed at institution.
    public var gateNanoseconds: UInt64
    /// Whether the connection that began it is still there: if not, its agent died.
    public var isHeld: Bool
    /// Why it is void, in words for people.
    public var voidReason: String?
    /// Where the cache was full and the host began anew: the UUID of the epoch that the agent began, and how often the host
    /// has begun anew since. Nil for an epoch that an agent began.
    public var restartedFrom: String?
    public var restarts: UInt64?

    public init(
        number: UInt64, uuid: String, state: EpochState, institutedAt: Int64, gateNanoseconds: UInt64,
        isHeld: Bool, voidReason: String? = nil, restartedFrom: String? = nil, restarts: UInt64? = nil
    ) {
        self.restartedFrom = restartedFrom
        self.restarts = restarts
        self.number = number
        self.uuid = uuid
        self.state = state
        self.institutedAt = institutedAt
        self.gateNanoseconds = gateNanoseconds
        self.isHeld = isHeld
        self.voidReason = voidReason
    }
}

/// A place in the original image log: everything before it is committed and durable.
public struct LogMarker: Codable, Hashable, Sendable {
    /// Bytes from the log's start, a multiple of 4096: as many of the log make it whole up to here.
    public var position: UInt64
    /// The sequence number that the next batch will have; so many batches (counted from 0) lie before.
    public var sequence: UInt64
    /// Entries before it.
    public var entries: UInt64

    public init(position: UInt64, sequence: UInt64, entries: UInt64) {
        self.position = position
        self.sequence = sequence
        self.entries = entries
    }
}

public struct VolumeStatus: Codable, Sendable {
    public var volumeUUID: String
    /// Absolute paths, as the host opened them.
    public var source: String
    public var cache: String
    /// Bytes.
    public var size: UInt64
    public var chunkSize: UInt64
    public var durability: Durability
    public var onCacheFull: CacheFullPolicy
    public var isFrozen: Bool
    /// The NBD URIs that clients can use; the first is the local one. `snapshot` is added as its path.
    public var uris: [String]
    /// The unix socket on which NBD is served.
    public var socket: String
    /// The current epoch, or the last one.
    public var epoch: EpochStatus?
    public var cacheCapacity: UInt64
    public var cacheUsed: UInt64
    /// While an epoch is open and its cache fills: seconds until it is full, if it goes on as in the last seconds.
    public var secondsToFull: Double?
    public var counters: VolumeCounters
    /// What writers waited, by kind.
    public var latencies: [String: LatencyHistogram]
    /// That a flush of the source has failed, in words for people: until the host is started anew all flushes and
    /// FUA writes fail, and no epoch can begin. Absent as long as none has.
    public var flushFailure: String?
    /// Connections of NBD clients, where that is known.
    public var clients: Int?

    public init(
        volumeUUID: String, source: String, cache: String, size: UInt64, chunkSize: UInt64,
        durability: Durability, onCacheFull: CacheFullPolicy, isFrozen: Bool, uris: [String], socket: String,
        epoch: EpochStatus?, cacheCapacity: UInt64, cacheUsed: UInt64, counters: VolumeCounters,
        latencies: [String: LatencyHistogram], flushFailure: String? = nil,
        secondsToFull: Double? = nil, clients: Int? = nil
    ) {
        self.secondsToFull = secondsToFull
        self.clients = clients
        self.volumeUUID = volumeUUID
        self.source = source
        self.cache = cache
        self.size = size
        self.chunkSize = chunkSize
        self.durability = durability
        self.onCacheFull = onCacheFull
        self.isFrozen = isFrozen
        self.uris = uris
        self.socket = socket
        self.epoch = epoch
        self.cacheCapacity = cacheCapacity
        self.cacheUsed = cacheUsed
        self.counters = counters
        self.latencies = latencies
        self.flushFailure = flushFailure
    }
}

/// Since the host started.
public struct VolumeCounters: Codable, Hashable, Sendable {
    public var reads: UInt64 = 0
    public var readBytes: UInt64 = 0
    public var writes: UInt64 = 0
    public var writtenBytes: UInt64 = 0
    public var zeroes: UInt64 = 0
    public var trims: UInt64 = 0
    public var trimsIgnored: UInt64 = 0
    public var flushes: UInt64 = 0
    /// Chunks whose originals were preserved, and those of them that were all zeros.
    public var chunksPreserved: UInt64 = 0
    public var zeroChunks: UInt64 = 0
    /// Chunks that were overwritten for the first time in an epoch and whose originals nobody needed: the copy had
    /// them already (`snapshot.passed`), or the cache was full and the host began anew.
    public var chunksSpared: UInt64?
    public var batches: UInt64 = 0

    public init() {}
}

/// Counts by powers of two: `buckets[i]` operations took less than 2^(i+10) ns and no less than half of it
/// (the first: less; the last: anything more).
public struct LatencyHistogram: Codable, Hashable, Sendable {
    public var buckets: [UInt64]
    public init(buckets: [UInt64]) { self.buckets = buckets }
}
