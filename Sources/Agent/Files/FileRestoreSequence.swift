import Blocks
import PhysicalCopy
import TableOfContents

/// What a restore of files is asked to do.
public struct FileRestoreRequest: Sendable {
    /// The copy's directory; or a backup: a file, a device, or `-` for standard input.
    public var copy: String
    public var isBackup: Bool
    /// As ``TocDatabase/resolve(_:)-(String)`` takes them.
    public var paths: [String]
    /// Where they go; made where there is none.
    public var directory: String
    /// Replace files that are there.
    public var force: Bool
    /// Compare the slices of the data portion that the files touch with their checksums before.
    public var checksSlices: Bool
    /// For the standing bridge on one of whose units the copy's data lie.
    public var credentials: InitiatorCredentials?

    public init(
        copy: String, isBackup: Bool = false, paths: [String], directory: String, force: Bool = false,
        checksSlices: Bool = false,
        credentials: InitiatorCredentials? = nil
    ) {
        self.copy = copy
        self.isBackup = isBackup
        self.paths = paths
        self.directory = directory
        self.force = force
        self.checksSlices = checksSlices
        self.credentials = credentials
    }
}

/// What a restore of files did.
public struct FileRestoreOutcome: Codable, Hashable, Sendable {
    public var copy: String
    public var directory: String
    public var volume: String
    /// The instant as of which the files are, nanoseconds since 1970.
    public var instant: Int64
    /// Bytes read of the copy: what was restored, and what was checked.
    public var bytesRead: UInt64
    public var seconds: Double
    public var restored: FileRestoreReport

    public init(
        copy: String, directory: String, volume: String, instant: Int64, bytesRead: UInt64, seconds: Double,
        restored: FileRestoreReport
    ) {
        self.copy = copy
        self.directory = directory
        self.volume = volume
        self.instant = instant
        self.bytesRead = bytesRead
        self.seconds = seconds
        self.restored = restored
    }
}

/// Restores files out of a copy or a backup by its table of contents. Of a copy only their extents are read, of the data
/// and of the original images over them. From a backup they have temporary names until all of it has passed and was as
/// it should be.
public final class FileRestoreSequence {
    private let request: FileRestoreRequest
    private let context: RestoreContext

    public init(
        _ request: FileRestoreRequest, _ world: Collaborators, cancellation: CancellationToken,
        observer: any SequenceObserver
    ) {
        self.request = request
        context = RestoreContext(world: world, cancellation: cancellation, observer: observer)
    }

    /// Runs it to its end. Called once. Files that failed alone are in the outcome.
    public func run() throws(AgentError) -> FileRestoreOutcome {
        let origin = try context.open(request.copy, isBackup: request.isBackup, request.credentials)
        defer { origin.close() }
        let toc = try origin.tableOfContents()
        let restore = try FileRestore(
            toc, to: request.directory, force: request.force, batchFiles: origin.batchFiles,
            cancellation: context.cancellation, notice: context.observer.notice
        ) { [request] batch throws(AgentError) in
            try origin.fill(batch, checksSlices: request.checksSlices)
        }
        try restore.run(request.paths)
        try origin.finish()
        let manifest = origin.manifest
        return FileRestoreOutcome(
            copy: origin.name, directory: request.directory, volume: manifest.volume.uuid,
            instant: manifest.epoch.institutedAt, bytesRead: origin.bytesRead, seconds: context.seconds,
            restored: restore.report)
    }

    /// A copy's table of contents, which must be of this very copy.
    public static func tableOfContents(of copy: PhysicalCopy) throws(AgentError) -> TocDatabase {
        guard let path = copy.tocPath else {
            throw AgentError(
                .inputMissing, doing: "reading the table of contents of", to: copy.directory,
                because: "it has none", advice: "outboard toc \(copy.directory) builds one")
        }
        do throws(AgentError) { return try openToc(at: path, of: copy.manifest, in: copy.directory) } catch {
            var error = error
            if error.status == .corrupt { error.advice = "outboard toc \(copy.directory) builds it anew" }
            throw error
        }
    }
}
