import Blocks
import PhysicalCopy
import TableOfContents

/// What a restore of files is asked to do.
public struct FileRestoreRequest: Sendable {
    /// The copy's directory.
    public var copy: String
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
        copy: String, paths: [String], directory: String, force: Bool = false, checksSlices: Bool = false,
        credentials: InitiatorCredentials? = nil
    ) {
        self.copy = copy
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

/// Restores files out of a copy by its table of contents: only their extents are read, of the data and of the original
/// images over them.
public final class FileRestoreSequence {
    private let request: FileRestoreRequest
    private let world: Collaborators
    private let cancellation: CancellationToken
    private let observer: any SequenceObserver
    private let started = MonotonicClock.now

    public init(
        _ request: FileRestoreRequest, _ world: Collaborators, cancellation: CancellationToken,
        observer: any SequenceObserver
    ) {
        self.request = request
        self.world = world
        self.cancellation = cancellation
        self.observer = observer
    }

    /// Runs it to its end. Called once. Files that failed alone are in the outcome.
    public func run() throws(AgentError) -> FileRestoreOutcome {
        let copy = try onCopy { () throws(CopyError) in try PhysicalCopy(request.copy) }
        let toc = try Self.tableOfContents(of: copy)
        let data = try RestoreSource(copy, world, request.credentials, cancellation)
        defer { data.close() }
        let mover = try world.fileMover(data, cancellation)
        var before: UInt64 = 0
        let restore = try FileRestore(
            toc, to: request.directory, force: request.force, cancellation: cancellation
        ) { [request, cancellation, observer] batch throws(AgentError) in
            try mover.begin(batch)
            let steps = data.steps(of: batch.plan)
            try data.check(steps, slices: request.checksSlices, cancellation, observer)
            try data.run(steps, by: mover, cancellation) { phase, done, _ throws(AgentError) in
                observer.progress(SequenceProgress(phase: phase, done: before + done, total: 0))
            }
            before += batch.plan.bytes
        }
        try restore.run(request.paths)
        return FileRestoreOutcome(
            copy: copy.directory, directory: request.directory, volume: copy.manifest.volume.uuid,
            instant: copy.manifest.epoch.institutedAt, bytesRead: data.bytesRead,
            seconds: Double(MonotonicClock.now &- started) / 1e9, restored: restore.report)
    }

    /// A copy's table of contents, which must be of this very copy.
    public static func tableOfContents(of copy: PhysicalCopy) throws(AgentError) -> TocDatabase {
        let doing = "reading the table of contents of"
        guard let path = copy.tocPath else {
            throw AgentError(
                .inputMissing, doing: doing, to: copy.directory, because: "it has none",
                advice: "have it made with `outboard toc`")
        }
        return try tableOfContents(at: path, of: copy.manifest, in: copy.directory)
    }

    /// - Parameter name: of the copy or backup, for messages.
    static func tableOfContents(
        at path: String, of manifest: Manifest, in name: String
    ) throws(AgentError) -> TocDatabase {
        let toc: TocDatabase
        do throws(TocError) { toc = try TocDatabase(path) } catch { throw AgentError(error) }
        guard toc.info.volumeSize == manifest.volume.size,
            toc.info.epoch.isEmpty || toc.info.epoch == manifest.epoch.uuid.lowercased()
        else {
            throw AgentError(
                .corrupt, doing: "reading the table of contents of", to: name,
                because: "it is of another copy", advice: "have it made anew with `outboard toc`")
        }
        return toc
    }
}
