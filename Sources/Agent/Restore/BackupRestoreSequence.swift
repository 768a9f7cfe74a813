import Blocks
import Glibc
import PhysicalCopy
import TableOfContents

/// Restores a volume, or extents of it, from a backup that passes by once. What is restored is known to be whole only
/// when all of it has passed: a new file gets its name only then, and what is there is half done until then.
public final class BackupRestoreSequence {
    private let request: RestoreRequest
    private let world: Collaborators
    private let cancellation: CancellationToken
    private let observer: any SequenceObserver
    private let started = MonotonicClock.now

    /// - Parameter request: `copy` is the backup: a file, a device, or `-` for standard input.
    public init(
        _ request: RestoreRequest, _ world: Collaborators, cancellation: CancellationToken,
        observer: any SequenceObserver
    ) {
        self.request = request
        self.world = world
        self.cancellation = cancellation
        self.observer = observer
    }

    /// Runs it to its end. Called once.
    public func run() throws(AgentError) -> RestoreOutcome {
        let reader = try BackupReader.open(request.copy, cancellation)
        let size = reader.manifest.volume.size
        let plan = try request.plan(of: size)
        // How much of it are holes is not known yet, so how much space it takes is not either.
        let site = try RestoreSite(
            request, plan, taking: 0, volumeSize: size, from: request.copy == "-" ? nil : request.copy,
            world: world, observer: observer)
        if site.isLive { cancellation.beginStandstill() }
        defer { if site.isLive { cancellation.endStandstill() } }
        var streamBytes: UInt64 = 0
        do throws(AgentError) {
            try site.hold()
            streamBytes = try restore(plan, from: reader, to: site)
            try site.complete()
        } catch {
            site.giveUp()
            throw site.reason(of: error, cancellation)
        }
        return RestoreOutcome(
            copy: request.copy, destination: request.destination, volume: reader.manifest.volume.uuid,
            instant: reader.manifest.epoch.institutedAt, bytes: plan.bytes, bytesRead: streamBytes,
            originals: reader.originals, seconds: Double(MonotonicClock.now &- started) / 1e9)
    }

    /// - Returns: bytes of the stream.
    private func restore(
        _ plan: RestorePlan, from reader: BackupReader, to site: RestoreSite
    ) throws(AgentError) -> UInt64 {
        let isStopped: @Sendable () -> Bool = { [cancellation, isLost = site.isLost] in
            cancellation.isCancelled || isLost()
        }
        let destination = try Destination(request, site, world, cancellation, isStopped)
        defer { destination.close() }
        let size = plan.pieces.last?.volume.end ?? 0
        guard destination.store.size >= size, destination.store.capabilities.contains(.writable) else {
            throw AgentError(
                .cannotCreate, doing: "restoring to", to: request.destination,
                because: "it cannot be written, or is too small",
                advice: "it must have at least \(size) bytes")
        }
        let target = PassingVolume(
            destination.store, isBlank: site.isBlank, named: request.destination, cancellation)
        _ = try onCopy { () throws(CopyError) in try reader.readToc() }
        site.begin()
        try reader.restore(plan, to: target, rate: request.maximumRate, cancellation, observer) {
            () throws(AgentError) in try site.check()
        }
        let streamBytes = try onCopy { () throws(CopyError) in try reader.finish() }
        try target.flush()
        return streamBytes
    }
}

/// Where a volume from a backup is written: a file or device of this machine, which nobody else may write meanwhile, or
/// a standing bridge's unit.
private final class Destination {
    let store: any BlockStore
    private let lock: Int32
    private let bridge: (any BridgeConnection)?

    init(
        _ request: RestoreRequest, _ site: RestoreSite, _ world: Collaborators,
        _ cancellation: CancellationToken, _ isStopped: @escaping @Sendable () -> Bool
    ) throws(AgentError) {
        if let unit = request.unit {
            let bridge = try world.connectBridge(unit.bridge, cancellation)
            do throws(AgentError) {
                store = try bridge.copier.store(of: bridge.copier.unit(unit.number), isCancelled: isStopped)
            } catch {
                bridge.end()
                throw error
            }
            self.bridge = bridge
            lock = -1
            return
        }
        bridge = nil
        // The host of a live restore has the lock.
        lock = site.isLive ? -1 : try Self.lock(site.path)
        do throws(AgentError) { store = try world.openStore(site.path, true) } catch {
            if lock >= 0 { Glibc.close(lock) }
            throw error
        }
    }

    private static func lock(_ path: String) throws(AgentError) -> Int32 {
        // Not opened exclusively: while it is, the system refuses to make zeros on a device by another descriptor.
        let descriptor = open(path, O_RDWR | O_CLOEXEC)
        guard descriptor >= 0 else { throw AgentError.system(errno, doing: "restoring to", to: path) }
        guard flock(descriptor, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK else {
            Glibc.close(descriptor)
            throw AgentError(.tryAgain, doing: "restoring to", to: path, because: "it is in use")
        }
        return descriptor
    }

    func close() {
        if lock >= 0 { Glibc.close(lock) }
        bridge?.end()
    }
}

extension BackupReader {
    /// - Parameter path: a file, a device, or `-` for standard input.
    static func open(_ path: String, _ cancellation: CancellationToken) throws(AgentError) -> BackupReader {
        func check() throws(CopyError) {
            do throws(AgentError) { try cancellation.check() } catch { throw error.copyError }
        }
        return try onCopy { () throws(CopyError) in
            let input =
                path == "-"
                ? BackupInput(descriptor: STDIN_FILENO, name: "on standard input", check: check)
                : try BackupInput(path, check: check)
            return try BackupReader(input)
        }
    }

    /// Reads the data and applies a plan to them.
    /// - Parameter check: called often; throws to stop.
    func restore(
        _ plan: RestorePlan, to target: any PassingTarget, rate: UInt64? = nil,
        _ cancellation: CancellationToken, _ observer: any SequenceObserver,
        check: () throws(AgentError) -> Void = {}
    ) throws(AgentError) {
        var restore = PassingRestore(plan, to: target)
        var done: UInt64 = 0
        let started = MonotonicClock.now
        // The reader's steps throw its own errors; what was ours is kept aside.
        var failure: AgentError?
        func own(_ body: () throws(AgentError) -> Void) throws(CopyError) {
            do throws(AgentError) { try body() } catch {
                failure = error
                throw error.copyError
            }
        }
        do throws(CopyError) {
            try readData { count throws(CopyError) in
                done += count
                observer.progress(SequenceProgress(phase: "restoring", done: done, total: dataBytes))
                try own { () throws(AgentError) in
                    try cancellation.check()
                    try check()
                    guard let rate else { return }
                    let due = started &+ UInt64(Double(restore.bytes) / Double(rate) * 1e9)
                    let now = MonotonicClock.now
                    if due > now { try cancellation.pause(nanoseconds: due - now) }
                }
            } to: { offset, passing throws(CopyError) in
                try own { () throws(AgentError) in try restore.take(offset, passing) }
            }
        } catch { throw failure ?? AgentError(error) }
    }
}
