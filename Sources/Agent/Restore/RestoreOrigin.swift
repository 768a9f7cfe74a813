import Blocks
import PhysicalCopy
import TableOfContents

/// What is restored from: a copy, whose bytes are fetched, or a backup, whose bytes pass by once. All else of a restore
/// is the same for both.
protocol RestoreOrigin: AnyObject {
    /// For people.
    var name: String { get }
    var manifest: Manifest { get }
    /// The file or device of this machine that it is read from, if it is one: nothing is restored over it.
    var path: String? { get }
    /// Bytes of it that were read up to now.
    var bytesRead: UInt64 { get }
    /// Ends what was opened.
    func close()

    // MARK: A volume, or extents of it

    /// Bytes that a new file will take, as far as that is known before.
    func space(for plan: RestorePlan) -> UInt64
    /// Before anything is written, and before a host is stopped: sees that what the plan takes is whole, as far as that
    /// can be seen before.
    func check(_ plan: RestorePlan, _ request: RestoreRequest) throws(AgentError)
    /// At return all is flushed, and known to be whole.
    /// - Returns: original images that were applied.
    func restore(
        _ plan: RestorePlan, _ request: RestoreRequest, to site: RestoreSite
    ) throws(AgentError) -> UInt64

    // MARK: Files

    func tableOfContents() throws(AgentError) -> TocDatabase
    /// As many files can be filled at once; `Int.max`: all must be.
    var batchFiles: Int { get }
    func fill(_ batch: FileBatch, checksSlices: Bool) throws(AgentError)
    /// All files are filled. At return the rest is known to be whole, where that has to be seen.
    func finish() throws(AgentError)
}

/// What restores share, whatever they restore.
struct RestoreContext {
    let world: Collaborators
    let cancellation: CancellationToken
    let observer: any SequenceObserver
    let started = MonotonicClock.now

    var seconds: Double { Double(MonotonicClock.now &- started) / 1e9 }

    /// True makes operations under way fail: it is to stop, or the site's host goes on.
    func isStopped(_ site: RestoreSite) -> @Sendable () -> Bool {
        { [cancellation, isLost = site.isLost] in cancellation.isCancelled || isLost() }
    }

    /// - Parameter credentials: for the standing bridge on one of whose units a copy's data lie.
    func open(
        _ path: String, isBackup: Bool, _ credentials: InitiatorCredentials?
    ) throws(AgentError) -> any RestoreOrigin {
        if isBackup { return try BackupOrigin(path, self) }
        return try CopyOrigin(path, credentials, self)
    }
}

extension RestoreRequest {
    /// - Parameter size: bytes of the destination.
    func requireRoom(for plan: RestorePlan, _ size: UInt64, isWritable: Bool) throws(AgentError) {
        let needed = plan.pieces.last?.volume.end ?? 0
        guard size >= needed, isWritable else {
            throw AgentError(
                isWritable ? .cannotCreate : .notPermitted, doing: "restoring to", to: destination,
                because: "it cannot be written, or is too small",
                advice: "it must have at least \(needed) bytes")
        }
    }
}

/// A copy's table of contents, which must be of this very copy.
/// - Parameter name: of the copy or backup, for messages.
func openToc(at path: String, of manifest: Manifest, in name: String) throws(AgentError) -> TocDatabase {
    let toc = try onToc { () throws(TocError) in try TocDatabase(path) }
    guard toc.info.volumeSize == manifest.volume.size,
        toc.info.epoch.isEmpty || toc.info.epoch == manifest.epoch.uuid.lowercased()
    else {
        throw AgentError(
            .corrupt, doing: "reading the table of contents of", to: name,
            because: "it is of another copy")
    }
    return toc
}
