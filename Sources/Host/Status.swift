import Blocks
import Glibc
import HostControl
import OriginalImage

extension CopyOnWriteVolume {
    /// The logical snapshot, while an epoch is open.
    public var snapshot: (any BlockStore)? {
        guard let epoch = currentEpoch, epoch.phase == .open else { return nil }
        return LogicalSnapshot(of: self, epoch)
    }

    func statusOfEpoch() throws(ControlError) -> EpochStatus {
        guard let status = epochStatus else {
            throw ControlError(.internalError, "the epoch is gone")
        }
        return status
    }

    /// The current epoch or the last one. One whose log is lost and in whose place the host begins another is told as
    /// open until that is done: its copy goes on.
    public var epochStatus: EpochStatus? {
        while true {
            let (lost, current, events) = control.withLock { ($0.restarting, $0.epoch, $0.restartEvents) }
            if let lost { return status(ofLost: lost) }
            let found = log.epoch
            // While the host begins anew, what the log says is of no epoch, or of another.
            guard control.withLock({ $0.restartEvents }) == events else { continue }
            guard let found else { return nil }
            return status(of: found, current.flatMap { $0.uuid == found.uuid ? $0 : nil })
        }
    }

    private func status(ofLost lost: Epoch) -> EpochStatus {
        EpochStatus(
            number: lost.number, uuid: lost.uuid.uuidString, state: .open,
            institutedAt: lost.instant.load(ordering: .relaxed),
            gateNanoseconds: lost.gateNanoseconds.load(ordering: .relaxed), isHeld: lost.isHeld,
            restartedFrom: lost.lineage.root, restarts: lost.lineage.restarts)
    }

    private func status(of found: LogEpoch, _ live: Epoch?) -> EpochStatus? {
        guard let state = EpochState(rawValue: found.state.description) else { return nil }
        let failure = live?.restartFailure.map { "; the host could not begin anew: \($0)" } ?? ""
        return EpochStatus(
            number: found.number, uuid: found.uuid.uuidString, state: state,
            institutedAt: found.institutedAt,
            gateNanoseconds: live?.gateNanoseconds.load(ordering: .relaxed) ?? 0,
            isHeld: live?.isHeld ?? false,
            voidReason: found.state == .void ? found.voidReason + failure : nil,
            restartedFrom: live?.lineage.root, restarts: live?.lineage.restarts)
    }

    /// `volume.status`.
    public func status(of place: HostDescriptor) -> VolumeStatus {
        let (used, capacity) = (log.usedBytes, log.totalCapacity)
        let open = currentEpoch.flatMap { $0.phase == .open ? $0 : nil }
        return VolumeStatus(
            volumeUUID: settings.uuid.uuidString, source: place.source, cache: place.cache, size: size,
            chunkSize: geometry.chunkSize, durability: settings.durability,
            onCacheFull: settings.onCacheFull, isFrozen: isFrozen, uris: place.uris, socket: place.socket,
            epoch: epochStatus, cacheCapacity: capacity, cacheUsed: used,
            counters: meters.counters(batches: log.head.sequence), latencies: meters.latencies,
            flushFailure: flushFailure.text,
            secondsToFull: open?.fill.secondsToFull(used: used, capacity: capacity, at: MonotonicClock.now),
            clients: place.clients?())
    }
}

extension Epoch.Lineage {
    /// The epoch that an agent began, if it is not this one.
    fileprivate var root: String? { predecessors.first?.uuidString }
    fileprivate var restarts: UInt64? { predecessors.isEmpty ? nil : UInt64(predecessors.count) }
}

/// What the host's control socket says of paths and addresses, which the volume itself does not know.
public struct HostDescriptor: Sendable {
    /// Absolute paths.
    public var source: String
    public var cache: String
    /// The NBD URIs, the local one first.
    public var uris: [String]
    /// The unix socket on which NBD is served.
    public var socket: String
    /// Connections of NBD clients at this moment; nil: nobody knows.
    public var clients: (@Sendable () -> Int)?

    public init(
        source: String, cache: String, uris: [String], socket: String,
        clients: (@Sendable () -> Int)? = nil
    ) {
        self.clients = clients
        self.source = source
        self.cache = cache
        self.uris = uris
        self.socket = socket
    }
}

extension LogMarker {
    init(_ place: LogPosition) {
        self.init(position: place.position, sequence: place.sequence, entries: place.entries)
    }
}

extension VolumeSettings {
    /// Nanoseconds since 1970.
    public static var systemTime: Int64 {
        var time = timespec()
        clock_gettime(CLOCK_REALTIME, &time)
        return Int64(time.tv_sec) * 1_000_000_000 + Int64(time.tv_nsec)
    }
}
