import Blocks
import Foundation
import HostControl
import PhysicalCopy
import TableOfContents

/// What a copy sequence has of a volume's contents: what is in use, and the table of contents (step 603), which is
/// built beside the raw pass while the logical snapshot is there.
extension CopySequence {
    private func address(_ member: CopyMember) -> VolumeAddress {
        VolumeAddress(socket: member.status.socket, export: "snapshot")
    }

    /// Finds out what of the volume must be copied, if not all of it shall be.
    func readUse(_ member: CopyMember) throws(AgentError) {
        guard request.usedOnly, member.used == nil, let source = member.source, let copy = member.copy
        else { return }
        let block = UInt64(max(source.capacity.blockLength, copy.capacity.blockLength, 4096))
        let map = UsedMap(size: member.status.size)
        observer.progress(SequenceProgress(phase: "reading what is in use", done: 0, total: 0))
        do throws(AgentError) {
            _ = try world.readVolume(address(member), member.status.size, .use, map, cancellation)
        } catch {
            // The snapshot goes away when its epoch does: then that is the reason.
            try member.settleEpoch()
            throw error
        }
        // What was read is of the epoch that is there now, or of none.
        try member.checkEpoch()
        let used = RangeList(map.ranges(alignment: block))
        member.used = used
        member.usedFile = try onCopy { () throws(CopyError) in try member.draft.noteUsed(used) }
        member.checkpoints?.want(used.intersection(.whole(member.status.size)), member.usedFile)
        // The record that is there may name the list that was replaced.
        member.checkpoints?.note()
        for doubt in map.doubts { observer.notice("\(member.status.source): all of \(doubt)") }
    }

    /// Begins the table of contents, unless none is wanted, or there is one.
    func beginToc(_ member: CopyMember) {
        guard request.wantsToc, !member.isTocLeftOut, member.toc == nil, member.tocSummary == nil,
            let epoch = member.instituted
        else { return }
        let path = member.draft.path(of: TocDescription.fileName)
        let info = TocInfo(
            tool: request.tool, volume: member.status.volumeUUID.lowercased(),
            volumeSize: member.status.size, epoch: epoch.uuid.lowercased(), instant: epoch.institutedAt)
        let task = TocTask { [world, address = address(member)] token, progress throws(AgentError) in
            try TocBuild.run(into: path, info: info, progress: progress) { sink throws(AgentError) in
                try world.readVolume(address, info.volumeSize, .files, sink, token)
            }
        }
        member.toc = task
        member.checkpoints?.follow(task)
    }

    /// None will be built any more. It must not cost the copy.
    func leaveOutToc(_ member: CopyMember, because reason: String) {
        if request.wantsToc, !member.isTocLeftOut {
            observer.notice(
                "no table of contents of \(member.status.source): \(reason); "
                    + "`outboard toc` builds one from the finished copy")
        }
        member.toc = nil
        member.isTocLeftOut = true
        member.checkpoints?.follow(nil)
    }

    /// Waits for the table of contents. It must not cost the copy: one that cannot be made, or that takes so long that
    /// the cache may become full, is left out, and people are told.
    func finishToc(_ member: CopyMember) throws(AgentError) {
        guard let toc = member.toc else { return }
        member.toc = nil
        do throws(AgentError) {
            let summary = try toc.wait(cancellation) { counts throws(AgentError) in
                let outlook = try member.checkEpoch()
                observer.progress(
                    SequenceProgress(
                        phase: "listing files (\(counts.names))", done: 0, total: 0, cacheFill: outlook.fill,
                        secondsToFull: outlook.secondsToFull))
                return outlook.fill < AgentLimits.tocCacheFill
            }
            member.tocSummary = summary
            // It is of the copy's instant only if that is in force still.
            try member.checkEpoch()
            for failure in member.tocSummary?.failures ?? [] {
                observer.notice("\(member.status.source): \(failure)")
            }
        } catch {
            try cancellation.check()
            if error.cause == .restarted { throw error }
            try member.settleEpoch()
            leaveOutToc(member, because: "\(error)")
        }
    }

    /// The finished table of contents, for the manifest.
    func tocDescription(_ member: CopyMember) throws(AgentError) -> TocDescription? {
        guard member.tocSummary != nil else { return nil }
        return try onCopy { () throws(CopyError) in
            try TableOfContentsFile.describe(
                member.draft.path(of: TocDescription.fileName), files: world.files)
        }
    }
}

/// A table of contents in the making, on a thread of its own.
final class TocTask: Sendable {
    private struct State {
        var progress = TocCounts()
        var result: Result<TocBuild.Summary, AgentError>?
    }
    private let state = Monitor(State())
    private let token = CancellationToken()

    init(
        _ body:
            @escaping @Sendable (
                CancellationToken, @escaping @Sendable (TocCounts) -> Void
            ) throws(AgentError) -> TocBuild.Summary
    ) {
        let started = BlockingThread.start { [state, token] in
            let result: Result<TocBuild.Summary, AgentError>
            do throws(AgentError) {
                result = .success(
                    try body(token) { progress in state.withLock { $0.progress = progress } })
            } catch { result = .failure(error) }
            state.withLockAndNotify { $0.result = result }
        }
        if !started {
            let failure = AgentError(
                .tryAgain, doing: "starting", to: "a thread", because: "the system has none to give")
            state.withLock { $0.result = .failure(failure) }
        }
    }

    static let tooLong = AgentError(
        .io, doing: "listing", to: "the files",
        because: "it took so long that the original image cache was about to be full")

    var isBuilt: Bool {
        if case .success = result { true } else { false }
    }

    /// Nil: it is not over.
    var result: Result<TocBuild.Summary, AgentError>? { state.withLock { $0.result } }

    /// Waits for its end.
    /// - Parameter watch: called every ``AgentLimits/watchNanoseconds``; false gives it up, and throwing does.
    func wait(
        _ cancellation: CancellationToken, watch: (TocCounts) throws(AgentError) -> Bool
    ) throws(AgentError) -> TocBuild.Summary {
        while true {
            if let result = state.wait(nanoseconds: AgentLimits.watchNanoseconds, until: { $0.result }) {
                return try result.get()
            }
            let progress = state.withLock { $0.progress }
            do throws(AgentError) {
                try cancellation.check()
                guard try watch(progress) else { throw Self.tooLong }
            } catch {
                giveUp()
                throw error
            }
        }
    }

    /// Ends it, and returns when nothing of it is left.
    func giveUp() {
        token.cancel()
        state.wait { $0.result.map { _ in () } }
    }
}
