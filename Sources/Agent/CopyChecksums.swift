import Blocks
import PhysicalCopy
import SCSI

/// What the copy's data must sum to: the bridge sums up what passes, and what it does not know is read back.
extension CopySequence {
    /// Has the bridge keep checksums of what is written to the copy, if it can.
    func beginChecksums(_ member: CopyMember) throws(AgentError) {
        guard request.asksForChecksums else { return }
        guard let copier = member.bridge?.copier, let copy = member.copy else { preconditionFailure() }
        var random = RandomSource()
        let keeping = ChecksumKeeping(
            identifier: random.next(), length: member.status.size,
            chunkSize: SliceChecksums.chunkSize(forLength: member.status.size))
        member.checksums = try copier.keepChecksums(keeping, of: copy) ? keeping : nil
    }

    /// What the bridge knows, after the last flush. A bridge that cannot say any more costs only time.
    func bridgeChecksums(_ member: CopyMember) throws(AgentError) -> ChecksumTable {
        guard let copier = member.bridge?.copier, let copy = member.copy else { preconditionFailure() }
        let nothing = ChecksumTable(length: member.status.size)
        guard let keeping = member.checksums else { return nothing }
        do throws(AgentError) {
            guard let table = try copier.checksums(keeping, of: copy) else { return nothing }
            var none = keeping
            none.length = 0
            _ = try copier.keepChecksums(none, of: copy)
            return table
        } catch {
            try cancellation.check()
            return nothing
        }
    }

    /// The data portion with its checksums, in a file of the draft.
    /// - Parameters:
    ///   - store: what the bridge has written.
    ///   - known: what it knows.
    func dataPortion(
        _ member: CopyMember, _ store: any BlockStore, _ known: ChecksumTable
    ) throws(AgentError) -> Portion {
        var table = known
        let total = request.readsBack ? table.length : table.unknownBytes
        let phase = request.readsBack ? "reading back" : "summing up"
        var done: UInt64 = 0
        func tell(_ count: UInt64) throws(CopyError) {
            done += count
            observer.progress(SequenceProgress(phase: phase, done: done, total: total))
            do throws(AgentError) { try cancellation.check() } catch { throw error.copyError }
        }
        let different = try onCopy { () throws(CopyError) -> Int? in
            if request.readsBack { return try table.readBack(in: store, progress: tell) }
            try table.readUnknown(in: store, progress: tell)
            return nil
        }
        if let different {
            let range = table.range(of: different)
            throw AgentError(
                .corrupt, doing: "reading the copy back at", to: "\(range.offset)",
                because: "the \(range.count) bytes there are not those that were copied",
                advice: "check the device of the copy; the copy was abandoned")
        }
        guard let sums = table.complete else {
            preconditionFailure("a chunk that was neither known nor read")
        }
        member.readBackBytes = done
        let description = try onCopy { () throws(CopyError) in
            try member.draft.write(sums, length: table.length)
        }
        return Portion(offset: 0, length: table.length, checksums: .file(description))
    }
}
