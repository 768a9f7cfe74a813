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
    /// The copy's directory; or a backup: a file, a device, or `-` for standard input.
    public var copy: String
    public var isBackup: Bool
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
        copy: String, isBackup: Bool = false, destination: String, unit: RestoreUnit? = nil,
        extents: [ByteRange]? = nil,
        checksSlices: Bool = false, force: Bool = false, host: String? = nil, maximumRate: UInt64? = nil,
        credentials: InitiatorCredentials? = nil
    ) {
        self.copy = copy
        self.isBackup = isBackup
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

/// Restores a volume, or extents of it, from a copy or a backup. It returns when all is flushed; a new file gets its
/// name only then.
public final class RestoreSequence {
    private let request: RestoreRequest
    private let context: RestoreContext

    public init(
        _ request: RestoreRequest, _ world: Collaborators, cancellation: CancellationToken,
        observer: any SequenceObserver
    ) {
        self.request = request
        context = RestoreContext(world: world, cancellation: cancellation, observer: observer)
    }

    /// Runs it to its end. Called once.
    public func run() throws(AgentError) -> RestoreOutcome {
        let origin = try context.open(request.copy, isBackup: request.isBackup, request.credentials)
        defer { origin.close() }
        let manifest = origin.manifest
        let plan = try request.plan(of: manifest.volume.size)
        let site = try RestoreSite(
            request, plan, taking: origin.space(for: plan), volumeSize: manifest.volume.size,
            from: origin.path, world: context.world, observer: context.observer)
        // The host of a live restore thaws before this process may end.
        if site.isLive { context.cancellation.beginStandstill() }
        defer { if site.isLive { context.cancellation.endStandstill() } }
        let originals: UInt64
        do throws(AgentError) {
            try origin.check(plan, request)
            try site.hold()
            originals = try origin.restore(plan, request, to: site)
            try site.complete()
        } catch {
            site.giveUp()
            throw site.reason(of: error, context.cancellation)
        }
        return RestoreOutcome(
            copy: origin.name, destination: request.destination, volume: manifest.volume.uuid,
            instant: manifest.epoch.institutedAt, bytes: plan.bytes, bytesRead: origin.bytesRead,
            originals: originals, seconds: context.seconds)
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
