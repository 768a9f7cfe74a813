import Blocks
import Foundation
import Glibc
import HostControl
import OriginalImage
import PhysicalCopy
import SCSI

/// One volume on its way through a copy sequence.
final class CopyMember {
    let line: any HostLine
    /// As found at the beginning.
    let status: VolumeStatus
    let draft: CopyDraft
    /// Set while an epoch of ours is to be ended or released.
    var epoch: EpochStatus?
    /// The epoch with which the copy began.
    var begun: EpochStatus?
    /// The epoch as of which the copy is made: that one, or one with which the host has begun anew since.
    var instituted: EpochStatus?
    /// What is known of a copy that goes on; nil: it begins.
    var resumed: ResumeRecord?
    var bridge: (any BridgeConnection)?
    var source: UnitDescription?
    var cache: UnitDescription?
    var copy: UnitDescription?
    /// The bridge's source unit was found to be the very file or device of the host.
    var isSourceProven = false
    var isSourceChecked = false
    var marker: LogPosition?
    /// What the bridge sums up as it passes; nil: nothing.
    var checksums: ChecksumKeeping?
    /// Bytes that were read back to be summed up or compared.
    var readBackBytes: UInt64 = 0
    var copySeconds = 0.0
    /// Bytes that the bridge has copied, originals included.
    var copiedBytes: UInt64 = 0
    /// The original image cache, bytes, as last seen.
    private(set) var cacheUsed: UInt64 = 0
    private(set) var cacheCapacity: UInt64
    /// The host may have told somebody else of changes that are not in the account.
    var changesMayBeLost = false
    /// A pass was made over all that was wanted; and bytes that were copied again behind it.
    var hasPassed = false
    var copiedAgainBytes: UInt64 = 0
    /// Keeps account of the raw pass; nil before it.
    var checkpoints: Checkpoints?
    /// Bytes of an earlier run that were not copied again.
    var resumedBytes: UInt64 = 0
    /// What is to be copied; nil: all.
    var used: RangeList?
    /// Of the record: the file that lists it.
    var usedFile: ResumeRecord.File?
    /// Nobody will build a table of contents any more.
    var isTocLeftOut = false
    var toc: TocTask?
    var tocSummary: TocBuild.Summary?

    init(line: any HostLine, status: VolumeStatus, draft: CopyDraft) {
        self.line = line
        self.status = status
        self.draft = draft
        cacheCapacity = status.cacheCapacity
    }

    /// As manifests name it.
    var volume: VolumeDescription {
        VolumeDescription(
            uuid: status.volumeUUID, size: status.size, chunkSize: status.chunkSize, source: status.source)
    }

    /// Where the log is put in append mode, bytes.
    var logBase: UInt64 { status.size.roundedUp(to: CopyLimits.portionAlignment) }

    /// Bytes that the data file must be able to hold while it is made.
    func workingSize(_ mode: Manifest.Mode) -> UInt64 {
        mode == .append ? logBase + status.cacheCapacity : status.size
    }

    /// Makes what the bridge will open as the unit `data.img`.
    func makeDataFile(_ mode: Manifest.Mode) throws(AgentError) {
        let available = try onCopy { () throws(CopyError) in try draft.availableSpace() }
        guard available >= status.size else {
            throw AgentError(
                .cannotCreate, doing: "making", to: draft.path(of: DataLocation.usualName),
                because: "its file system has \(ByteCount(available).rounded) left and the volume takes "
                    + ByteCount(status.size).rounded,
                advice: "free some space there, or choose another place")
        }
        try onCopy { () throws(CopyError) in try draft.makeData(size: workingSize(mode)) }
    }

    /// What becomes of the original image cache.
    struct Outlook: Hashable, Sendable {
        /// How full it is, 0 to 1.
        var fill: Double
        /// Seconds until it is full, if it goes on so.
        var secondsToFull: Double?
    }

    /// How often the host has begun anew under this copy.
    var restarts: UInt64 { instituted?.restarts ?? 0 }

    /// Takes an epoch that the host has given us.
    func take(_ epoch: EpochStatus) {
        self.epoch = epoch
        begun = begun ?? epoch
        instituted = epoch
    }

    /// Asks whether the epoch is still whole.
    /// - Throws: with the cause ``AgentError/Cause/restarted`` when the host has begun anew meanwhile.
    @discardableResult
    func checkEpoch() throws(AgentError) -> Outlook {
        let now = try line.status()
        note(now)
        guard let epoch = instituted else { return Outlook(fill: 0) }
        let current = try current(in: now)
        guard current.uuid == epoch.uuid else {
            throw AgentError(
                .tryAgain, doing: "copying", to: status.source,
                because: "its original image cache was full, and the host has begun anew", cause: .restarted)
        }
        let fill = now.cacheCapacity == 0 ? 0 : Double(now.cacheUsed) / Double(now.cacheCapacity)
        return Outlook(fill: fill, secondsToFull: now.secondsToFull)
    }

    /// The same, once the host has decided: while it begins anew its status tells the epoch as open, though the log is another
    /// one's already. For whoever has found, or rests on, what the log and the logical snapshot hold.
    func settleEpoch() throws(AgentError) {
        guard let epoch = instituted else { return }
        do throws(AgentError) {
            // Nothing is passed by it: like any operation on an epoch it is answered when the next one is there.
            _ = try line.call(
                SnapshotPassedMethod.self, .init(epoch: epoch.uuid, extents: []),
                timeout: AgentLimits.hostFlushSeconds)
        } catch {
            // One that has ended or is another by now, or a host that does not know this: the status says what matters.
            guard case .control = error.cause else { throw error }
        }
        try checkEpoch()
    }

    /// The epoch that the copy can be made as of now: its own, or one with which the host has begun anew.
    func current(in now: VolumeStatus) throws(AgentError) -> EpochStatus {
        guard let epoch = instituted, let begun else { preconditionFailure("no epoch to look for") }
        guard let current = now.epoch, current.uuid == epoch.uuid || current.restartedFrom == begun.uuid
        else {
            throw AgentError(
                .tryAgain, doing: "copying", to: status.source,
                because: "the host does not know the copy's epoch any more; was it started anew?",
                advice: "the copy was abandoned; run it again")
        }
        guard current.state != .void else {
            throw AgentError(
                .tryAgain, doing: "copying", to: status.source,
                because: "the epoch is void: \(current.voidReason ?? "its originals are not complete")",
                advice: "the copy was abandoned; run it again, with a larger cache if it was full",
                cause: .control(.epochVoid))
        }
        guard current.state != .open || current.isHeld else {
            throw AgentError(
                .tryAgain, doing: "copying", to: status.source,
                because: "the host was started anew during the copy",
                advice: "the copy was abandoned; run it again")
        }
        return current
    }

    private func note(_ now: VolumeStatus) {
        guard now.epoch?.uuid == instituted?.uuid else { return }
        cacheUsed = now.cacheUsed
        cacheCapacity = now.cacheCapacity
    }

    /// Looks at the cache once more; what cannot be seen any more stays as it was last seen.
    func lookAtCache() {
        do throws(AgentError) { note(try line.status()) } catch {}
    }

    /// Ends and releases the epoch as well as it can be done; for cleaning up. When the line is lost, by another one:
    /// an epoch that stays open fills the cache, and writers may have to wait for it.
    /// - Returns: what people should know when it could not be done.
    func giveUpEpoch(
        reconnect: (String) throws(AgentError) -> any HostLine
    ) -> String? {
        guard let epoch else { return nil }
        self.epoch = nil
        do throws(AgentError) {
            do throws(AgentError) { try release(epoch, by: line) } catch {
                guard error.cause == .disconnected || error.cause == .timedOut else { throw error }
                line.close()
                let another = try reconnect(line.path)
                defer { another.close() }
                try release(epoch, by: another)
            }
            return nil
        } catch {
            // The host has it no more: there is nothing to release.
            if error.cause == .control(.noSuchEpoch) { return nil }
            return "epoch \(epoch.number) of \(status.source) could not be released: \(error); "
                + "the next copy of this volume releases it"
        }
    }

    /// Releases the epoch, or the one with which the host has begun anew meanwhile.
    func release(_ epoch: EpochStatus, by line: any HostLine) throws(AgentError) {
        var epoch = epoch
        while true {
            do throws(AgentError) {
                _ = try line.call(
                    CacheReleaseMethod.self, EpochParameters(epoch: epoch.uuid),
                    timeout: AgentLimits.hostFlushSeconds)
                return
            } catch {
                guard error.cause == .control(.noSuchEpoch), let next = try line.status().epoch,
                    next.uuid != epoch.uuid, next.restartedFrom == begun?.uuid, next.state != .released
                else { throw error }
                epoch = next
            }
        }
    }
}
