import Blocks
import Foundation
import Glibc
import HostControl
import OriginalImage
import PhysicalCopy
import SCSI

/// A standing bridge's unit as a restore's destination.
public struct RestoreUnit: Sendable {
    public var bridge: BridgeAddress
    public var number: Int
    /// The bridge's unit that is the copy's data, so that they need not pass through the agent; nil where the copy says
    /// so itself, or where it has none.
    public var copyNumber: Int?

    public init(bridge: BridgeAddress, number: Int, copyNumber: Int? = nil) {
        self.bridge = bridge
        self.number = number
        self.copyNumber = copyNumber
    }
}

/// What a restore sequence is asked to do.
public struct RestoreRequest: Sendable {
    /// The copy's directory.
    public var copy: String
    /// A file or block device; what it is called in messages, where it is a unit.
    public var destination: String
    /// A standing bridge's unit as destination.
    public var unit: RestoreUnit?
    /// Of the volume: they are restored, each to its own offset, and nothing else is touched; nil: all of it.
    public var extents: [ByteRange]?
    /// Of extents: compare the slices of the data portion that they touch with their checksums before.
    public var checksSlices: Bool
    /// Overwrite what is there.
    public var force: Bool
    /// The control socket of the host that serves the destination as its source.
    public var host: String?
    /// Bytes a second.
    public var maximumRate: UInt64?
    /// For the standing bridge on one of whose units the copy's data lie.
    public var credentials: InitiatorCredentials?

    public init(
        copy: String, destination: String, unit: RestoreUnit? = nil, extents: [ByteRange]? = nil,
        checksSlices: Bool = false, force: Bool = false, host: String? = nil, maximumRate: UInt64? = nil,
        credentials: InitiatorCredentials? = nil
    ) {
        self.copy = copy
        self.destination = destination
        self.unit = unit
        self.extents = extents
        self.checksSlices = checksSlices
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
    /// The instant as of which the destination, or its restored extents, are now, nanoseconds since 1970.
    public var instant: Int64
    /// Bytes restored.
    public var bytes: UInt64
    /// Bytes read of the copy: to check it, its log's headers, and what was restored.
    public var bytesRead: UInt64
    /// Original images that were applied (7A).
    public var originals: UInt64
    public var seconds: Double
}

/// The restore sequences of a volume or of extents of it, by a bridge: FIG. 7A for an append copy (the data, then the
/// original images over them), 7B for one that is consistent as it stands. By a private bridge to a file or device of
/// this machine, by a standing one to one of its units. It returns when all is flushed; a new file gets its name only
/// then.
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
        let plan = try request.plan(of: copy.manifest.volume.size)
        let data = try RestoreSource(copy, world, request.credentials, cancellation)
        defer { data.close() }
        let steps = data.steps(of: plan)
        let site = try RestoreSite(
            request, plan, taking: plan.bytes, volumeSize: copy.manifest.volume.size, from: data.path,
            world: world, observer: observer)
        // The host of a live restore thaws before this process may end.
        if site.isLive { cancellation.beginStandstill() }
        defer { if site.isLive { cancellation.endStandstill() } }
        do throws(AgentError) {
            try check(steps, of: data)
            try site.hold()
            try restore(steps, of: data, to: site)
            try site.complete()
        } catch {
            site.giveUp()
            throw site.reason(of: error, cancellation)
        }
        return RestoreOutcome(
            copy: copy.directory, destination: request.destination, volume: copy.manifest.volume.uuid,
            instant: copy.manifest.epoch.institutedAt, bytes: plan.bytes, bytesRead: data.bytesRead,
            originals: UInt64(steps.originals.entries.count),
            seconds: Double(MonotonicClock.now &- started) / 1e9)
    }

    /// Before anything is written, and before a host is stopped: for a volume reads all of the copy and compares it
    /// with its checksums; for extents what they touch.
    private func check(_ steps: RestoreSteps, of data: RestoreSource) throws(AgentError) {
        guard request.extents == nil else {
            return try data.check(steps, slices: request.checksSlices, cancellation, observer)
        }
        let manifest = data.copy.manifest
        let total = manifest.data.length + (manifest.originals?.length ?? 0)
        var done: UInt64 = 0
        try onCopy { () throws(CopyError) in
            try data.copy.requireWhole(in: data.store) { count throws(CopyError) in
                done += count
                observer.progress(SequenceProgress(phase: "checking the copy", done: done, total: total))
                do throws(AgentError) { try cancellation.check() } catch { throw error.copyError }
            }
        }
    }

    private func restore(
        _ steps: RestoreSteps, of data: RestoreSource, to site: RestoreSite
    ) throws(AgentError) {
        let isStopped: @Sendable () -> Bool = { [cancellation, isLost = site.isLost] in
            cancellation.isCancelled || isLost()
        }
        let route = RestoreRoute(world, cancellation, isStopped: isStopped)
        defer { route.end() }
        if let unit = request.unit {
            try route.find(to: unit, from: data)
        } else {
            try route.find(to: site, from: data)
        }
        guard let target = route.target, let source = route.source, let copier = route.copier else {
            preconditionFailure("a route that leads nowhere")
        }
        let size = steps.plan.pieces.last?.volume.end ?? 0
        guard target.size >= size, !target.isWriteProtected else {
            throw AgentError(
                target.isWriteProtected ? .notPermitted : .cannotCreate, doing: "restoring to",
                to: request.destination, because: "it cannot be written, or is too small",
                advice: "it must have at least \(size) bytes")
        }
        let mover = try BridgeMover(
            copier, from: source, of: data, to: target, rate: request.maximumRate, cancellation,
            isStopped: isStopped)
        site.begin()
        try data.run(steps, by: mover, cancellation) { phase, done, total throws(AgentError) in
            try site.check()
            observer.progress(SequenceProgress(phase: phase, done: done, total: total))
        }
    }
}

extension RestoreRequest {
    /// What of a volume of `size` bytes is asked for.
    func plan(of size: UInt64) throws(AgentError) -> RestorePlan {
        guard let extents = extents else { return RestorePlan(volumeOf: size) }
        for range in extents where range.end > size {
            throw AgentError(
                .usage, doing: "restoring the extent", to: "\(range.offset)+\(range.count)",
                because: "it lies beyond the volume's end at \(size)")
        }
        let plan = RestorePlan(extents: extents)
        guard plan.bytes > 0 else {
            throw AgentError(.usage, doing: "restoring extents", to: "", because: "they are empty")
        }
        return plan
    }
}
