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

    public init(
        copy: String, destination: String, force: Bool = false, host: String? = nil,
        maximumRate: UInt64? = nil
    ) {
        self.copy = copy
        self.destination = destination
        self.force = force
        self.host = host
        self.maximumRate = maximumRate
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
/// original images over them), 7B for one that is consistent as it stands. It returns when all is flushed; a new
/// file gets its name only then.
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
        guard case .path(let data) = copy.dataLocation else {
            throw AgentError(
                .inputMissing, doing: "restoring", to: copy.directory,
                because: "its data lie on a standing bridge's unit, which a private bridge cannot reach",
                advice: "copy that unit's file or device with the bridge that has it")
        }
        let manifest = copy.manifest
        let (store, plan) = try plan(copy)
        let site = try RestoreSite(
            request, size: manifest.volume.size, isOf: copy, world: world, observer: observer)
        // The host of a live restore thaws before this process may end.
        if site.isLive { cancellation.beginStandstill() }
        defer { if site.isLive { cancellation.endStandstill() } }
        do throws(AgentError) {
            try check(copy, in: store)
            try site.hold()
            try restore(plan, from: data, size: manifest.volume.size, to: site)
            try site.complete()
        } catch {
            site.giveUp()
            throw error
        }
        return RestoreOutcome(
            copy: copy.directory, destination: request.destination, volume: manifest.volume.uuid,
            instant: manifest.epoch.institutedAt, bytes: manifest.volume.size, originals: plan.originals,
            seconds: Double(MonotonicClock.now &- started) / 1e9)
    }

    private struct Plan {
        var overlay: OverlayPlan?
        var originals: UInt64 = 0
    }

    /// Reads the original-image portion's index, every header checked.
    private func plan(_ copy: PhysicalCopy) throws(AgentError) -> (any BlockStore, Plan) {
        let opener: DataOpener = { [world] location, writable throws(CopyError) in
            guard case .path(let path) = location else { preconditionFailure("checked before") }
            do throws(AgentError) { return try world.openStore(path, writable) } catch {
                throw CopyError(
                    error.status == .inputMissing ? .missing : .io, "open \(path)", error.reason)
            }
        }
        let store = try onCopy { () throws(CopyError) in try copy.openData(opener) }
        guard let portion = copy.manifest.originals else { return (store, Plan()) }
        let reader = try onCopy { () throws(CopyError) in try copy.logReader(in: store) }
        let entries = try onLog("reading the original images of", copy.directory) { () throws(LogError) in
            try reader.index().entries
        }
        let overlay = OverlayPlan(
            entries, geometry: reader.geometry, base: portion.offset, block: Self.blockBytes)
        return (store, Plan(overlay: overlay, originals: UInt64(entries.count)))
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
        _ plan: Plan, from data: String, size: UInt64, to site: RestoreSite
    ) throws(AgentError) {
        var place = PrivateUnit(1, site.path, isReadOnly: false)
        place.isLocked = !site.isLive
        let bridge = try world.startPrivateBridge(
            [PrivateUnit(0, data, isReadOnly: true), place], cancellation)
        defer { bridge.end() }
        let source = try bridge.copier.unit(0)
        let target = try bridge.copier.unit(1)
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
                runs, from: source, to: target, by: bridge.copier, rate: request.maximumRate,
                cancellation: cancellation
            ) { done throws(AgentError) in
                try site.keep()
                observer.progress(SequenceProgress(phase: phase, done: done, total: total))
            }
        }
        try have([CopyRun(source: 0, destination: 0, count: size.roundedUp(to: block))], "restoring")
        let store = try bridge.copier.store(of: target)
        if let overlay = plan.overlay {
            if !overlay.runs.isEmpty { try have(overlay.runs, "restoring original images") }
            for range in overlay.zeros {
                try cancellation.check()
                try site.keep()
                try onStore("writing zeros to", request.destination) { () throws(StoreError) in
                    try store.writeZeroes(range, options: [])
                }
            }
        }
        try onStore("flushing", request.destination) { () throws(StoreError) in try store.flush() }
    }
}
