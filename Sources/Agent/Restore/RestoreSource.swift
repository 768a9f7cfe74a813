import Blocks
import OriginalImage
import PhysicalCopy

/// Moves what a restore plan says from a copy's data location to the restore's targets: by a bridge's EXTENDED COPY to
/// a volume or a part of it, by the engine of this process to files.
public protocol RestoreMover: AnyObject {
    /// Copies runs, none of which overlaps another on its target. All that was asked for earlier is done before. What
    /// it reads of the copy is counted: by ``RestoreSource/store``, or told to ``RestoreSource/addRead(_:)``.
    /// - Parameter progress: told the bytes done of these now and then; may throw to stop.
    func move(
        _ runs: [RestoreRun], progress: (UInt64) throws(AgentError) -> Void
    ) throws(AgentError)

    /// Makes a range of a target read as zeros.
    func writeZeroes(_ range: ByteRange, of target: Int) throws(AgentError)

    /// At return all that was moved is on stable storage.
    func flush() throws(AgentError)
}

/// What a plan comes to for one copy: its data, and the original images over them where it has any.
struct RestoreSteps {
    var plan: RestorePlan
    var data: [RestoreRun]
    var originals: RestorePlan.Originals
}

/// A copy's data, opened to restore from: a file or device of this machine, or a standing bridge's unit. The one way
/// from a copy to volumes, extents and files.
public final class RestoreSource {
    public let copy: PhysicalCopy
    /// The data location. What is read through it is counted.
    public var store: any BlockStore { counted }
    /// Where the data are on this machine, if they are.
    public let path: String?
    let remote: (bridge: any BridgeConnection, unit: UnitDescription, address: BridgeAddress)?
    /// The same as ``store``, uncounted: for what tells its reads by ``addRead(_:)``.
    let raw: any BlockStore
    private let counted: CountingStore
    /// Where the slices begin that were found to be as they should.
    private var known: Set<UInt64> = []
    /// Of the original images, if there are any.
    private let reader: LogReader?
    private let map: VolumeMap

    /// Opens the data and reads the original-image portion's headers, every one checked.
    /// - Throws: 65 when they are not as the manifest says; 66, 69, 77 when they cannot be had.
    public init(
        _ copy: PhysicalCopy, _ world: Collaborators, _ credentials: InitiatorCredentials?,
        _ cancellation: CancellationToken
    ) throws(AgentError) {
        self.copy = copy
        try onCopy { () throws(CopyError) in try copy.requireBelievedLocation() }
        let opened: any BlockStore
        switch copy.dataLocation {
        case .path(let path), .member(let path):
            self.path = path
            remote = nil
            opened = try world.openStore(path, false)
        case .unit(let target, let number):
            path = nil
            let address = try BridgeAddress(parsing: target, credentials: credentials)
            let bridge = try world.connectBridge(address, cancellation)
            do throws(AgentError) {
                let unit = try bridge.copier.unit(number)
                remote = (bridge, unit, address)
                opened = try bridge.copier.store(of: unit) { cancellation.isCancelled }
            } catch {
                bridge.end()
                throw error
            }
        }
        raw = opened
        let counted = CountingStore(opened)
        self.counted = counted
        do throws(AgentError) {
            (reader, map) = try onCopy { () throws(CopyError) in
                let store = try copy.openData { _, _ in counted }
                let reader = copy.manifest.originals == nil ? nil : try copy.logReader(in: store)
                return (reader, try copy.map(reader))
            }
        } catch {
            remote?.bridge.end()
            throw error
        }
    }

    /// Bytes that were read of the copy up to now.
    public var bytesRead: UInt64 { counted.count }

    /// Tells of bytes of the copy that were read in another way than by ``store``.
    public func addRead(_ bytes: UInt64) { counted.add(bytes) }

    /// The volume as of the instant, read-only: merged where there are original images.
    public var volume: any BlockStore {
        if let reader { return MergedReader(data: counted, reader: reader, map: map) }
        return PortionView(counted, copy.manifest.data.range)
    }

    public func close() { remote?.bridge.end() }

    func steps(of plan: RestorePlan) -> RestoreSteps {
        RestoreSteps(plan: plan, data: plan.dataRuns(in: map), originals: plan.originals(in: map))
    }

    /// Looks at what the steps take before anything is written: each original image by its own CRC; with `slices`
    /// also the data portion's slices that they touch, whole.
    func check(
        _ steps: RestoreSteps, slices: Bool, _ cancellation: CancellationToken,
        _ observer: (any SequenceObserver)? = nil
    ) throws(AgentError) {
        var done: UInt64 = 0
        do throws(CopyError) {
            try copy.requireWhole(
                in: counted, touching: steps.plan, steps.originals.entries, slices: slices,
                isKnown: { !known.insert($0.offset).inserted },
                progress: { count throws(CopyError) in
                    done += count
                    observer?.progress(SequenceProgress(phase: "checking the copy", done: done, total: 0))
                    do throws(AgentError) { try cancellation.check() } catch { throw error.copyError }
                })
        } catch {
            // The last one was not.
            known = []
            throw AgentError(error)
        }
    }

    /// FIG. 7B: the data; FIG. 7A: then the original images over them. Everything is flushed at return.
    func run(
        _ steps: RestoreSteps, by mover: any RestoreMover, _ cancellation: CancellationToken,
        progress: (_ phase: String, _ done: UInt64, _ total: UInt64) throws(AgentError) -> Void
    ) throws(AgentError) {
        for (runs, phase) in [
            (steps.data, "restoring"), (steps.originals.runs, "restoring original images"),
        ] where !runs.isEmpty {
            let total = runs.reduce(0) { $0 + $1.count }
            try mover.move(runs) { done throws(AgentError) in
                try cancellation.check()
                try progress(phase, done, total)
            }
        }
        for piece in steps.originals.zeros {
            try cancellation.check()
            try mover.writeZeroes(
                ByteRange(offset: piece.offset, count: piece.volume.count), of: piece.target)
        }
        try mover.flush()
    }
}
