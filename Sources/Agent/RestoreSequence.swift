import Blocks
import Foundation
import Glibc
import HostControl
import OriginalImage
import PhysicalCopy

/// What a restore sequence is asked to do.
public struct RestoreRequest: Sendable {
    /// The copy's directory.
    public var copy: String
    /// A file or block device.
    public var destination: String
    /// Overwrite what is there.
    public var force: Bool
    /// The control socket of the host that serves the destination as its source.
    public var host: String?
    /// Bytes a second.
    public var maximumRate: UInt64?
    /// For the standing bridge on one of whose units the copy's data lie.
    public var credentials: InitiatorCredentials?

    public init(
        copy: String, destination: String, force: Bool = false, host: String? = nil,
        maximumRate: UInt64? = nil, credentials: InitiatorCredentials? = nil
    ) {
        self.copy = copy
        self.destination = destination
        self.force = force
        self.host = host
        self.maximumRate = maximumRate
        self.credentials = credentials
    }
}

/// What a restore sequence did.
public struct RestoreOutcome: Codable, Hashable, Sendable {
    public var copy: String
    public var destination: String
    public var volume: String
    /// The instant as of which the destination is now, nanoseconds since 1970.
    public var instant: Int64
    public var bytes: UInt64
    /// Original images that were applied (7A).
    public var originals: UInt64
    public var seconds: Double
}

/// The restore sequences of a whole volume, by a private bridge: FIG. 7A for an append copy (the data, then the
/// original images over them), 7B for one that is consistent as it stands. Data on a standing bridge's unit are read
/// from there and written by the private one. It returns when all is flushed; a new file gets its name only then.
public final class RestoreSequence {
    private let request: RestoreRequest
    private let world: Collaborators
    private let cancellation: CancellationToken
    private let observer: any SequenceObserver
    private let started = MonotonicClock.now

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
        let copy = try onCopy { () throws(CopyError) in try PhysicalCopy(request.copy) }
        let data = try CopyData(copy, world, request.credentials, cancellation)
        defer { data.close() }
        let manifest = copy.manifest
        let plan = try plan(copy, in: data.store)
        let site = try RestoreSite(
            request, size: manifest.volume.size, isOf: copy, world: world, observer: observer)
        // The host of a live restore thaws before this process may end.
        if site.isLive { cancellation.beginStandstill() }
        defer { if site.isLive { cancellation.endStandstill() } }
        do throws(AgentError) {
            try check(copy, in: data.store)
            try site.hold()
            try restore(plan, from: data, size: manifest.volume.size, to: site)
            try site.complete()
        } catch {
            site.giveUp()
            throw reason(of: error, site)
        }
        return RestoreOutcome(
            copy: copy.directory, destination: request.destination, volume: manifest.volume.uuid,
            instant: manifest.epoch.institutedAt, bytes: manifest.volume.size, originals: plan.originals,
            seconds: Double(MonotonicClock.now &- started) / 1e9)
    }

    /// What was cut off because the sequence is to stop, or its host goes on, is no failure of its own.
    private func reason(of error: AgentError, _ site: RestoreSite) -> AgentError {
        let isConsequence = error.status == .io || error.status == .unavailable
        var reason = error.namingFullDisk(doing: "restoring to", to: request.destination)
        if isConsequence {
            if cancellation.isCancelled { reason = CancellationToken.interrupted }
            do throws(AgentError) { try site.check() } catch { reason = error }
        }
        if reason.cause == .interrupted, site.isHalfDone {
            reason.advice = "what was there is overwritten in part: restore it again before it is used"
        }
        return reason
    }

    private struct Plan {
        var overlay: OverlayPlan?
        var originals: UInt64 = 0
    }

    /// Reads the original-image portion's index, every header checked.
    private func plan(_ copy: PhysicalCopy, in store: any BlockStore) throws(AgentError) -> Plan {
        guard let portion = copy.manifest.originals else { return Plan() }
        let reader = try onCopy { () throws(CopyError) in try copy.logReader(in: store) }
        let entries = try onLog("reading the original images of", copy.directory) { () throws(LogError) in
            try reader.index().entries
        }
        let overlay = OverlayPlan(
            entries, geometry: reader.geometry, base: portion.offset, block: Self.blockBytes)
        return Plan(overlay: overlay, originals: UInt64(entries.count))
    }

    /// Reads all of the copy and compares it with its checksums: before anything is written, and before a host
    /// is stopped.
    private func check(_ copy: PhysicalCopy, in store: any BlockStore) throws(AgentError) {
        let total = copy.manifest.data.length + (copy.manifest.originals?.length ?? 0)
        var done: UInt64 = 0
        try onCopy { () throws(CopyError) in
            try copy.requireWhole(in: store) { count throws(CopyError) in
                done += count
                observer.progress(SequenceProgress(phase: "checking the copy", done: done, total: total))
                do throws(AgentError) { try cancellation.check() } catch { throw error.copyError }
            }
        }
    }

    /// Bytes of a block of the private bridge's units.
    private static let blockBytes: UInt64 = 512

    private func restore(
        _ plan: Plan, from data: CopyData, size: UInt64, to site: RestoreSite
    ) throws(AgentError) {
        var place = PrivateUnit(1, site.path, isReadOnly: false)
        place.isLocked = !site.isLive
        let local = data.path.map { PrivateUnit(0, $0, isReadOnly: true) }
        let bridge = try world.startPrivateBridge([local, place].compactMap(\.self), cancellation)
        defer { bridge.end() }
        let target = try bridge.copier.unit(1)
        let isStopped: @Sendable () -> Bool = { [cancellation, isLost = site.isLost] in
            cancellation.isCancelled || isLost()
        }
        let (copier, source) = try data.reached(by: bridge.copier, for: target, isCancelled: isStopped)
        guard source.size >= size, target.size >= size, !target.isWriteProtected else {
            throw AgentError(
                target.isWriteProtected ? .notPermitted : .cannotCreate, doing: "restoring to",
                to: request.destination, because: "it cannot be written, or is too small",
                advice: "it must have at least \(size) bytes")
        }
        let block = UInt64(max(source.capacity.blockLength, target.capacity.blockLength))
        func have(_ runs: [CopyRun], _ phase: String) throws(AgentError) {
            let total = runs.reduce(0) { $0 + $1.count }
            try CopyRunner.run(
                runs, from: source, to: target, by: copier, rate: request.maximumRate,
                cancellation: cancellation
            ) { done throws(AgentError) in
                try site.check()
                observer.progress(SequenceProgress(phase: phase, done: done, total: total))
            }
        }
        site.begin()
        try have([CopyRun(source: 0, destination: 0, count: size.roundedUp(to: block))], "restoring")
        let store = try copier.store(of: target, isCancelled: isStopped)
        if let overlay = plan.overlay {
            if !overlay.runs.isEmpty { try have(overlay.runs, "restoring original images") }
            for range in overlay.zeros {
                try cancellation.check()
                try onStore("writing zeros to", request.destination) { () throws(StoreError) in
                    try store.writeZeroes(range, options: [])
                }
            }
        }
        try onStore("flushing", request.destination) { () throws(StoreError) in try store.flush() }
    }
}

/// A copy's data, opened: a file or device of this machine, or a standing bridge's unit.
private final class CopyData {
    let store: any BlockStore
    /// Where they are on this machine, if they are.
    let path: String?
    private let remote: (bridge: any BridgeConnection, unit: UnitDescription)?

    init(
        _ copy: PhysicalCopy, _ world: Collaborators, _ credentials: InitiatorCredentials?,
        _ cancellation: CancellationToken
    ) throws(AgentError) {
        let opened: any BlockStore
        switch copy.dataLocation {
        case .path(let path), .member(let path):
            self.path = path
            remote = nil
            opened = try world.openStore(path, false)
        case .unit(let target, let number):
            path = nil
            let bridge = try world.connectBridge(
                BridgeAddress(parsing: target, credentials: credentials), cancellation)
            do throws(AgentError) {
                let unit = try bridge.copier.unit(number)
                remote = (bridge, unit)
                opened = try bridge.copier.store(of: unit) { cancellation.isCancelled }
            } catch {
                bridge.end()
                throw error
            }
        }
        do throws(CopyError) { store = try copy.openData { _, _ in opened } } catch {
            remote?.bridge.end()
            throw AgentError(error)
        }
    }

    /// What copies them onto the private bridge's unit, and the unit that they are for it.
    func reached(
        by own: any ThirdPartyCopier, for target: UnitDescription,
        isCancelled: @escaping @Sendable () -> Bool
    ) throws(AgentError) -> (any ThirdPartyCopier, UnitDescription) {
        guard let remote else { return (own, try own.unit(0)) }
        let relay = try RelayCopier(
            from: remote.unit, at: remote.bridge.copier, to: target, at: own, isCancelled: isCancelled)
        return (relay, relay.source)
    }

    func close() { remote?.bridge.end() }
}
