import Blocks
import Glibc
import PhysicalCopy
import TableOfContents

/// What a restore of files did.
public struct FileRestoreReport: Codable, Hashable, Sendable {
    public struct Failure: Codable, Hashable, Sendable {
        /// Where it would be, escaped as in a listing; or the path that was asked for.
        public var path: String
        public var reason: String
        /// The exit status that it stands for.
        public var status: Int32
    }
    public var files: UInt64 = 0
    public var directories: UInt64 = 0
    public var symbolicLinks: UInt64 = 0
    /// Further names of files.
    public var hardLinks: UInt64 = 0
    /// Devices, fifos, sockets.
    public var specials: UInt64 = 0
    /// Bytes of the files' content without holes.
    public var bytes: UInt64 = 0
    /// The first of them, at most ``AgentLimits/listedFailures``.
    public var failures: [Failure] = []
    public var failureCount: UInt64 = 0
    /// Things that the user may not set here, or that the file system does not take, and of how many files.
    public var lost: [String: UInt64] = [:]

    mutating func fail(_ path: String, _ problem: FileProblem) {
        failureCount += 1
        guard failures.count < AgentLimits.listedFailures else { return }
        failures.append(Failure(path: path, reason: problem.reason, status: problem.status.rawValue))
    }

    mutating func lose(_ losses: FileMetadata.Losses) {
        for (loss, name) in [
            (FileMetadata.Losses.owner, "owner"), (.mode, "mode"), (.attributes, "attributes"),
            (.times, "times"), (.setID, "setid"),
        ] where losses.contains(loss) { lost[name, default: 0] += 1 }
    }
}

/// Restores files and whole trees that a table of contents lists into a directory. It makes what has no content on the
/// volume itself; the rest it has moved, batch by batch, by whatever there is: an engine that reads a copy, or a stream
/// that passes by.
public final class FileRestore {
    public internal(set) var report = FileRestoreReport()
    let toc: TocDatabase
    let base: String
    let force: Bool
    let cancellation: CancellationToken
    let directories: RestoreDirectories
    private let batchFiles: Int
    private let move: (FileBatch) throws(AgentError) -> Void
    var batch: FileBatch
    /// All that this restore made: its own things are never replaced by others of it.
    var made: Set<FileIdentity> = []
    /// Files of several names: where the first of them is.
    var firstNames: [NodeKey: (directory: RestoreDirectory, name: [UInt8], identity: FileIdentity)] = [:]
    /// Those of which the batch has the first name.
    var awaited: Set<NodeKey> = []
    var waitingLinks: [(directory: RestoreDirectory, entry: TocEntry)] = []
    /// Directories that get their metadata in the end.
    var finished: [(directory: RestoreDirectory, metadata: FileMetadata)] = []
    /// Directories that were there, on other file systems than the topmost one's, and got names.
    private var namedElsewhere: [FileIdentity: RestoreDirectory] = [:]
    private var waiting: [(directory: RestoreDirectory, entry: TocEntry)] = []
    private var seen: Set<NodeKey> = []
    private var temporaryNames = 0
    /// For want of a record.
    private let token = String(UInt64.random(in: 0...UInt64.max), radix: 16)
    /// While it runs.
    private var record: RestoreRecord?
    private let notice: (String) -> Void

    /// Opens the directory, or makes it.
    /// - Parameters:
    ///   - force: replace files that are there.
    ///   - batchFiles: as many files are filled at once; `Int.max`: all, for what passes by but once.
    ///   - notice: told what people should know though nothing failed.
    ///   - move: applies ``FileBatch/plan`` to the files, or throws. When it has thrown for several files it is called
    ///     again for each alone, unless it was for want of space or because it is to stop.
    public init(
        _ toc: TocDatabase, to directory: String, force: Bool, batchFiles: Int = AgentLimits.batchFiles,
        cancellation: CancellationToken, notice: @escaping (String) -> Void = { _ in },
        move: @escaping (FileBatch) throws(AgentError) -> Void
    ) throws(AgentError) {
        self.toc = toc
        base = directory
        self.force = force
        self.batchFiles = batchFiles
        self.cancellation = cancellation
        self.notice = notice
        self.move = move
        directories = try RestoreDirectories(directory)
        batch = FileBatch(directories)
    }

    /// Restores what the paths lead to: each under its last name in the directory, the root's contents themselves. At
    /// return all is flushed. What fails alone is in ``report``.
    /// - Throws: what ends it all; then what was not complete is not there.
    public func run(_ paths: [String]) throws(AgentError) {
        try beginRecord()
        do throws(AgentError) {
            for path in paths { try begin(path) }
            try fillBatch()
        } catch {
            for target in batch.files.indices { batch.removeTemporary(target) }
            record?.end()
            throw error
        }
        // Before the directories get their times.
        record?.end()
        finishDirectories()
    }

    private func beginRecord() throws(AgentError) {
        let cleared = RestoreRecord.clear(in: directories.topDescriptor)
        if cleared > 0 {
            notice(
                "cleared \(cleared) temporary \(cleared == 1 ? "file" : "files") that a restore which was killed had "
                    + "left in \(base)")
        }
        do throws(FileProblem) { record = try RestoreRecord(in: directories.topDescriptor) } catch {
            throw AgentError(
                error.status, doing: "restoring to", to: base, because: error.reason,
                cause: error.isNoSpace ? .noSpace : nil)
        }
    }

    private func begin(_ path: String) throws(AgentError) {
        let found = try onToc { () throws(TocError) in try toc.resolve(path) }
        guard let entry = found else {
            return report.fail(
                path, FileProblem("the table of contents lists no such path", status: .inputMissing))
        }
        if entry.name.isEmpty, entry.isDirectory {
            if let key = entry.key { seen.insert(key) }
            enter(entry, directories.top)
        } else {
            try place(entry, in: directories.top)
        }
        // Directory by directory, with none but the names of one's entries in memory.
        while let (directory, entry) = waiting.popLast() {
            try goingThroughToc {
                try toc.children(of: entry) { child in try place(child, in: directory) }
            }
        }
    }

    // MARK: One thing

    func path(_ name: [UInt8], in directory: RestoreDirectory) -> String {
        let above = directory.path(base)
        return above + (above.hasSuffix("/") ? "" : "/") + TocPath.escaped(name)
    }

    private func place(_ entry: TocEntry, in directory: RestoreDirectory) throws(AgentError) {
        try cancellation.check()
        do throws(FileProblem) {
            if let refusal = RestoreDirectories.refusal(of: entry.name) { throw FileProblem(refusal) }
            guard entry.isKnown || entry.isDirectory else {
                throw FileProblem("it could not be read when the table of contents was made", status: .io)
            }
            if entry.isDirectory, entry.stream == nil { return try makeDirectory(entry, in: directory) }
            if try isFurtherName(entry, in: directory) { return }
            switch entry.node.kind {
            case _ where entry.stream != nil: try addFile(entry, in: directory)
            case .regular: try addFile(entry, in: directory)
            case .symbolicLink, .blockDevice, .characterDevice, .fifo, .socket:
                try makeSpecial(entry, in: directory)
            case .directory, .other:
                throw FileProblem("it is no kind of file that is known here", status: .io)
            }
        } catch {
            if error.isNoSpace { throw noSpace(error, path(entry.name, in: directory)) }
            report.fail(path(entry.name, in: directory), error)
        }
        let isFull = batch.files.count >= batchFiles || batch.pieces.count >= AgentLimits.batchPieces
        if batchFiles < Int.max, isFull { try fillBatch() }
    }

    private func noSpace(_ problem: FileProblem, _ path: String) -> AgentError {
        AgentError(
            .cannotCreate, doing: "restoring", to: path, because: problem.reason,
            advice: "free some space there and try again", cause: .noSpace)
    }

    private func makeDirectory(_ entry: TocEntry, in parent: RestoreDirectory) throws(FileProblem) {
        if let key = entry.key, !seen.insert(key).inserted {
            throw FileProblem("the directory is in two places, or in itself", status: .corrupt)
        }
        guard parent.depth < TocLimits.depth else {
            throw FileProblem("it lies too deep", status: .corrupt)
        }
        let directory = try directories.make(entry.name, in: parent, made: made)
        if directory.isNew { noteName(in: parent) }
        enter(entry, directory)
        report.directories += 1
    }

    private func enter(_ entry: TocEntry, _ directory: RestoreDirectory) {
        made.insert(directory.identity)
        if directory.isNew, let key = entry.key {
            finished.append(
                (
                    directory,
                    FileMetadata(node: entry.node, attributes: attributes(of: key, directory.path(base)))
                ))
            addAlternates(of: key, toDirectory: finished.count - 1)
        }
        waiting.append((directory, entry))
    }

    /// As far as they can be had.
    func attributes(of key: NodeKey, _ path: @autoclosure () -> String) -> [ExtendedAttribute] {
        do throws(TocError) { return try toc.attributes(of: key) } catch {
            report.fail(path(), FileProblem("its attributes: \(error)", status: .corrupt))
            return []
        }
    }

    private func isFurtherName(_ entry: TocEntry, in directory: RestoreDirectory) throws(FileProblem) -> Bool
    {
        guard entry.stream == nil, entry.node.links > 1, let key = entry.key else { return false }
        guard firstNames[key] != nil || awaited.contains(key) else { return false }
        waitingLinks.append((directory, entry))
        return true
    }

    /// A name that nothing has, for something that is made there now.
    func temporaryName(in directory: RestoreDirectory) throws(FileProblem) -> [CChar] {
        try record?.note(directory)
        temporaryNames += 1
        return Array(".outboard-\(record?.token ?? token)-\(temporaryNames).partial".utf8CString)
    }

    // MARK: Batches

    private func fillBatch() throws(AgentError) {
        if !batch.files.isEmpty || !waitingLinks.isEmpty {
            try moveBatch()
            try completeBatch()
            for link in waitingLinks { try completeLink(link.entry, in: link.directory) }
            waitingLinks = []
            awaited = []
        }
        batch = FileBatch(directories)
    }

    private func moveBatch() throws(AgentError) {
        // What passes by but once is moved, or at least seen to its end, before anything gets its name.
        let passesBy = batchFiles == Int.max && !batch.files.isEmpty
        guard passesBy || !batch.plan.pieces.isEmpty else { return }
        do throws(AgentError) { try move(batch) } catch {
            try requireOfOneFile(error)
            // Whose is it?
            for target in batch.targets {
                let alone = FileBatch(directories)
                alone.files = [batch.files[target]]
                for piece in batch.plan(of: target).pieces {
                    alone.add(RestorePiece(volume: piece.volume, offset: piece.offset))
                }
                do throws(AgentError) { try move(alone) } catch {
                    try requireOfOneFile(error)
                    batch.files[target].problem = FileProblem("\(error)", status: error.status)
                }
            }
        }
    }

    private func requireOfOneFile(_ error: AgentError) throws(AgentError) {
        if cancellation.isCancelled { throw CancellationToken.interrupted }
        let endsAll = error.isNoSpace || error.status == .unavailable || error.status == .tryAgain
        guard !endsAll, batchFiles < Int.max else { throw error }
    }

    private func finishDirectories() {
        for (directory, metadata) in finished.reversed() {
            do throws(FileProblem) {
                let descriptor = try directories.descriptor(of: directory)
                report.lose(metadata.apply(to: descriptor))
                if !isFlushedWithAll(directory.identity), fsync(descriptor) != 0 {
                    throw .system(errno, "flushing it")
                }
            } catch { report.fail(directory.path(base), error) }
        }
        for directory in namedElsewhere.values {
            do throws(FileProblem) {
                guard fsync(try directories.descriptor(of: directory)) == 0 else {
                    throw .system(errno, "flushing it")
                }
            } catch { report.fail(directory.path(base), error) }
        }
        do throws(FileProblem) { try flush() } catch { report.fail(base, error) }
    }

    /// Something got a name there, which has to be flushed: directories that are new are in the end, all of them.
    func noteName(in directory: RestoreDirectory) {
        guard !directory.isNew, !isFlushedWithAll(directory.identity) else { return }
        namedElsewhere[directory.identity] = directory
    }

    /// Whether ``flush()`` reaches it: nothing else may be mounted between.
    func isFlushedWithAll(_ identity: FileIdentity) -> Bool {
        identity.device == directories.top.identity.device
    }

    /// All that was written below the directory, on its own file system.
    func flush() throws(FileProblem) {
        let descriptor = try directories.descriptor(of: directories.top)
        if FileCalls.synchronizeFileSystem(of: descriptor) == 0 { return }
        guard errno == ENOSYS else { throw .system(errno, "flushing") }
        sync()
    }
}
