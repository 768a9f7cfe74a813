import Blocks
import PhysicalCopy
import TableOfContents

/// A copy that is restored from. FIG. 7A for an append copy (the data, then the original images over them), 7B for one
/// that is consistent as it stands. A bridge copies volumes and extents of it: a private one to a file or device of
/// this machine, a standing one to one of its units. Files are filled by what the command line has for that.
final class CopyOrigin: RestoreOrigin {
    private let context: RestoreContext
    private let data: RestoreSource
    /// Made for the first batch.
    private var mover: (any FileMover)?
    /// What was checked.
    private var steps: RestoreSteps?
    /// Bytes of the batches that are done.
    private var filled: UInt64 = 0

    init(
        _ path: String, _ credentials: InitiatorCredentials?, _ context: RestoreContext
    ) throws(AgentError) {
        self.context = context
        let copy = try onCopy { () throws(CopyError) in try PhysicalCopy(path, files: context.world.files) }
        data = try RestoreSource(copy, context.world, credentials, context.cancellation)
    }

    var name: String { data.copy.directory }
    var manifest: Manifest { data.copy.manifest }
    var path: String? { data.path }
    var bytesRead: UInt64 { data.bytesRead }
    func close() { data.close() }

    // MARK: A volume, or extents of it

    func space(for plan: RestorePlan) -> UInt64 { plan.bytes }

    /// For a volume reads all of the copy and compares it with its checksums; for extents what they touch.
    func check(_ plan: RestorePlan, _ request: RestoreRequest) throws(AgentError) {
        let steps = data.steps(of: plan)
        self.steps = steps
        let (cancellation, observer) = (context.cancellation, context.observer)
        guard request.extents == nil else {
            return try data.check(steps, slices: request.checksSlices, cancellation, observer)
        }
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

    func restore(
        _ plan: RestorePlan, _ request: RestoreRequest, to site: RestoreSite
    ) throws(AgentError) -> UInt64 {
        guard let steps else { preconditionFailure("not checked") }
        let isStopped = context.isStopped(site)
        let route = RestoreRoute(context.world, context.cancellation, isStopped: isStopped)
        defer { route.end() }
        if let unit = request.unit {
            try route.find(to: unit, from: data)
        } else {
            try route.find(to: site, from: data)
        }
        guard let target = route.target, let source = route.source, let copier = route.copier else {
            preconditionFailure("a route that leads nowhere")
        }
        try request.requireRoom(for: plan, target.size, isWritable: !target.isWriteProtected)
        let mover = try BridgeMover(
            copier, from: source, of: data, to: target, rate: request.maximumRate, context.cancellation,
            isStopped: isStopped)
        site.begin()
        try data.run(steps, by: mover, context.cancellation) { phase, done, total throws(AgentError) in
            try site.check()
            context.observer.progress(SequenceProgress(phase: phase, done: done, total: total))
        }
        return UInt64(steps.originals.entries.count)
    }

    // MARK: Files

    func tableOfContents() throws(AgentError) -> TocDatabase {
        try FileRestoreSequence.tableOfContents(of: data.copy)
    }

    var batchFiles: Int { AgentLimits.batchFiles }

    func fill(_ batch: FileBatch, checksSlices: Bool) throws(AgentError) {
        let mover = try fileMover()
        try mover.begin(batch)
        let steps = data.steps(of: batch.plan)
        try data.check(steps, slices: checksSlices, context.cancellation, context.observer)
        try data.run(steps, by: mover, context.cancellation) { phase, done, _ throws(AgentError) in
            context.observer.progress(SequenceProgress(phase: phase, done: filled + done, total: 0))
        }
        filled += batch.plan.bytes
    }

    private func fileMover() throws(AgentError) -> any FileMover {
        if let mover { return mover }
        let made = try context.world.fileMover(data, context.cancellation)
        mover = made
        return made
    }

    func finish() {}
}
