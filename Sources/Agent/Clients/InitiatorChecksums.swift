import Blocks
import PhysicalCopy
import SCSI

/// Checksums that a bridge of ours keeps of what is written to a unit (module Bridge, Checksums). Other targets do with these
/// commands what they like: they are sent only to a unit whose INQUIRY data say that it is one of ours.
extension Initiator {
    /// WRITE BUFFER: has the unit keep checksums from now on; with a length of 0 none any more.
    /// - Returns: false where the unit cannot, or has no room.
    public func keepChecksums(
        _ keeping: ChecksumKeeping, lun: Int, patience: Patience = Patience()
    ) throws(AgentError) -> Bool {
        do throws(AgentError) {
            try dataOut(
                ChecksumBuffer.write(), lun: lun, keeping.encoded(), patience,
                doing: "asking for checksums of what is written to")
            return true
        } catch {
            guard case .sense(let sense) = error.cause,
                sense.key == .illegalRequest || sense.key == .dataProtect
            else { throw error }
            return false
        }
    }

    /// READ BUFFER, as often as it takes.
    /// - Returns: nil where the unit does not keep these.
    public func checksums(
        _ keeping: ChecksumKeeping, lun: Int, patience: Patience = Patience()
    ) throws(AgentError) -> ChecksumTable? {
        var table = ChecksumTable(length: keeping.length, chunkSize: keeping.chunkSize)
        let doing = "reading the checksums of"
        let length = KeptChecksums.length(chunks: ClientLimits.checksumsAtOnce)
        var next = 0
        while next < table.count {
            let bytes = try dataIn(
                ChecksumBuffer.read(from: UInt32(next), allocationLength: length), lun: lun, length, patience,
                doing: doing)
            let kept = try decoding(doing, lun: lun) { () throws(MalformedParameterData) in
                try KeptChecksums(decoding: bytes)
            }
            guard kept.keeping == keeping else { return nil }
            guard Int(kept.first) == next, !kept.entries.isEmpty, kept.entries.count <= table.count - next
            else { throw malformed("its checksums are not those that were asked for", doing, lun: lun) }
            for entry in kept.entries {
                table[next] = entry
                next += 1
            }
        }
        return table
    }
}
