import Blocks
import HostControl
import PhysicalCopy

/// What a copy does when its cache was full and the host has begun anew (the policy `restart-from`): it becomes a copy as of the
/// later instant. What was overwritten since the earlier one is copied again; the rest is what it was.
extension CopySequence {
    /// Goes over to the epoch that is in force now.
    /// - Throws: 75 where that cannot be done, or the epoch is void.
    func follow(_ member: CopyMember) throws(AgentError) {
        guard members.count == 1 else {
            throw AgentError(
                .tryAgain, doing: "copying", to: member.status.source,
                because:
                    "its original image cache was full and its host has begun anew, so that the volumes have no "
                    + "instant in common any more",
                advice: "the copies were abandoned; run it again, with a larger cache")
        }
        let hadToc = member.tocSummary != nil || member.toc?.isBuilt == true
        member.toc?.giveUp()
        (member.toc, member.tocSummary) = (nil, nil)
        // What was built is of the earlier instant.
        try onCopy { () throws(CopyError) in try member.draft.removeToc() }
        let (epoch, changes) = try changes(member)
        member.take(epoch)
        member.changesMayBeLost = false
        if request.usedOnly { member.used = nil }
        member.checkpoints?.restart(epoch, changes: changes, isUseKnown: !request.usedOnly)
        observer.notice(
            "the original image cache of \(member.status.source) was full, and its host has begun anew: the copy will "
                + "be as of a later instant (epoch \(epoch.number)); "
                + (changes.map { "\(ByteCount($0.total).rounded) were overwritten meanwhile" }
                    ?? "all of it is copied again"))
        if hadToc {
            beginToc(member)
        } else {
            leaveOutToc(member, because: "it takes longer than the original image cache lasts")
        }
    }

    /// What was changed between the instant as of which the account is and that of the epoch in force.
    /// - Returns: changes: nil when they are not known.
    private func changes(_ member: CopyMember) throws(AgentError) -> (EpochStatus, RangeList?) {
        while true {
            try cancellation.check()
            let epoch = try member.current(in: member.line.status())
            do throws(AgentError) {
                // Nothing is copied yet.
                guard member.checkpoints != nil else { return (epoch, .empty) }
                let changes = try changes(until: epoch, member)
                // Who died may have asked for those of an epoch between, and they are told once.
                let areAll = !member.changesMayBeLost || (epoch.restarts ?? 0) <= member.restarts + 1
                return (epoch, areAll ? changes : nil)
            } catch {
                // Yet another one may have begun meanwhile, which counts these, too.
                guard error.cause == .control(.noSuchEpoch),
                    try member.current(in: member.line.status()).uuid != epoch.uuid
                else { throw error }
            }
        }
    }

    private func changes(until epoch: EpochStatus, _ member: CopyMember) throws(AgentError) -> RangeList {
        var ranges: [ByteRange] = []
        var from: UInt64? = 0
        while let start = from {
            try cancellation.check()
            let part = try member.line.call(
                SnapshotChangesMethod.self, .init(epoch: epoch.uuid, from: start))
            for extent in part.extents {
                guard extent.offset >= ranges.last?.end ?? 0, extent.count > 0,
                    let range = ByteRange(checking: extent.offset, extent.count, within: member.status.size)
                else { throw oddChanges(member) }
                ranges.append(range)
            }
            if let next = part.next, next <= start { throw oddChanges(member) }
            from = part.next
        }
        return RangeList(merging: ranges)
    }

    private func oddChanges(_ member: CopyMember) -> AgentError {
        AgentError(
            .unavailable, doing: "asking the host at", to: member.line.path,
            because: "the changes that it tells are not in order, or not of its volume",
            advice: "check that the socket is that of an `outboard host` of this version")
    }
}
