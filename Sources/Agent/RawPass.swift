import Blocks
import Foundation
import HostControl
import PhysicalCopy
import TableOfContents

/// The raw pass (step 604): again and again, until all that is wanted is on the copy as of the epoch in force. Most often that
/// is one pass; where the host has begun anew, what was overwritten is copied in a pass of its own, strictly behind the one
/// before.
extension CopySequence {
    func copyRaw(_ member: CopyMember) throws(AgentError) {
        let begun = MonotonicClock.now
        defer { member.copySeconds += Double(MonotonicClock.now &- begun) / 1e9 }
        guard let checkpoints = member.checkpoints else { preconditionFailure("no account") }
        try checkpoints.start()
        do throws(AgentError) {
            while try copyRemaining(member, checkpoints) {}
        } catch {
            // Behind a restart the pass goes on.
            checkpoints.stop(isInVain: error.cause != .restarted)
            throw error
        }
        checkpoints.stop(isInVain: false)
        try checkpoints.check()
        // Waiting for it may take longer than the pass did.
        if member.toc != nil { try checkpoints.checkpoint() }
        try clearUnused(member, checkpoints)
    }

    /// - Returns: false when nothing remains.
    private func copyRemaining(_ member: CopyMember, _ checkpoints: Checkpoints) throws(AgentError) -> Bool {
        guard let source = member.source, let copy = member.copy else { preconditionFailure() }
        let remaining = checkpoints.remaining
        guard !remaining.isEmpty else { return false }
        let block = UInt64(max(source.capacity.blockLength, copy.capacity.blockLength))
        let runs = remaining.ranges.map {
            CopyRun(source: $0.offset, destination: $0.offset, count: $0.count.roundedUp(to: block))
        }
        if member.hasPassed { member.copiedAgainBytes += remaining.total }
        try have(
            member, copied: runs, from: source, account: checkpoints,
            phase: member.hasPassed ? "copying what was overwritten" : "copying"
        ) { () throws(AgentError) in
            try checkpoints.check()
            return try lookAtEpoch(member)
        }
        member.hasPassed = true
        return true
    }

    /// Looks at the epoch while the raw pass runs: another one is followed at once, so that the host learns early what of it
    /// is passed.
    private func lookAtEpoch(_ member: CopyMember) throws(AgentError) -> CopyMember.Outlook {
        let outlook: CopyMember.Outlook
        do throws(AgentError) { outlook = try member.checkEpoch() } catch {
            // What is in use must be read anew, which takes too long for here.
            guard error.cause == .restarted, !request.usedOnly else { throw error }
            try follow(member)
            return CopyMember.Outlook(fill: 0)
        }
        if outlook.fill >= AgentLimits.tocCacheFill, let toc = member.toc, toc.result == nil {
            toc.giveUp()
            leaveOutToc(member, because: TocTask.tooLong.description)
        }
        return outlook
    }

    /// What is not copied reads as zeros: a new file does so by itself, a standing bridge's unit has what was there.
    private func clearUnused(_ member: CopyMember, _ checkpoints: Checkpoints) throws(AgentError) {
        let list = checkpoints.toClear
        guard !list.isEmpty, let copy = member.copy, let copier = member.bridge?.copier else { return }
        let store = try copier.store(of: copy, isCancelled: isCancelled)
        for range in list.ranges {
            try member.checkEpoch()
            try cancellation.check()
            try onStore("clearing what is not in use at", copier.name) { () throws(StoreError) in
                try store.writeZeroes(range, options: [])
            }
            checkpoints.cleared(range)
        }
    }

    // MARK: Its account

    /// Opens a member's account, and notes that it begins: from here on the copy can go on when its bridge or agent dies.
    func openAccount(_ member: CopyMember) throws(AgentError) {
        guard member.checkpoints == nil else { return }
        let checkpoints = try account(of: member)
        checkpoints.follow(member.toc)
        checkpoints.note()
        member.checkpoints = checkpoints
    }

    func account(of member: CopyMember) throws(AgentError) -> Checkpoints {
        guard let source = member.source, let cache = member.cache, let copy = member.copy,
            let epoch = member.instituted, let copier = member.bridge?.copier
        else { preconditionFailure("a raw pass without an epoch or a bridge") }
        let (size, record) = (member.status.size, member.resumed)
        // What a standing bridge's unit holds is not known, nor what was copied as of an earlier instant.
        let isBlank = request.bridge == .privateOne && (record?.epoch.restarts ?? 0) == 0
        let ledger = CopyLedger(
            size: size, chunkSize: member.status.chunkSize,
            block: UInt64(
                max(source.capacity.blockLength, copy.capacity.blockLength, cache.capacity.blockLength)),
            wanted: member.used?.intersection(.whole(size)) ?? .whole(size),
            durable: record?.durable.list ?? .empty, dirty: isBlank ? .empty : .whole(size))
        let wanted = ledger.wanted
        member.resumedBytes = record.map { $0.durable.list.intersection(wanted).total } ?? 0
        let base = self.record(of: member)
        let (draft, line, files) = (member.draft, member.line, world.files)
        let inVain = CancellationToken()
        let target = try copier.store(of: copy) { [isCancelled] in isCancelled() || inVain.isCancelled }
        return Checkpoints(
            ledger,
            as: Checkpoints.CopyState(
                epoch: epoch, contents: contents(of: member), used: member.usedFile, durable: .empty),
            every: world.checkpointNanoseconds, passes: !request.keepsEpoch, inVain: inVain,
            Checkpoints.Steps(
                flush: { () throws(StoreError) in try target.flush() },
                note: { state throws(CopyError) in try draft.note(base.with(state)) },
                pass: { epoch, extents throws(AgentError) in
                    _ = try line.call(SnapshotPassedMethod.self, .init(epoch: epoch, extents: extents))
                },
                describe: { summary throws(CopyError) in
                    .built(
                        try TableOfContentsFile.describe(
                            draft.path(of: TocDescription.fileName), files: files),
                        summary: TocBuild.encode(summary))
                }, notice: observer.notice))
    }
}
