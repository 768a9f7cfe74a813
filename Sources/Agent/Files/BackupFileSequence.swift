import Blocks
import Foundation
import Glibc
import PhysicalCopy
import TableOfContents

/// Restores files from a backup that passes by once: its table of contents comes first, so that it is known whose the
/// data are that pass. The files have temporary names until all has passed and was as it should be.
public final class BackupFileSequence {
    private let request: FileRestoreRequest
    private let cancellation: CancellationToken
    private let observer: any SequenceObserver
    private let started = MonotonicClock.now

    /// - Parameter request: `copy` is the backup: a file, a device, or `-` for standard input.
    public init(
        _ request: FileRestoreRequest, cancellation: CancellationToken, observer: any SequenceObserver
    ) {
        self.request = request
        self.cancellation = cancellation
        self.observer = observer
    }

    /// Runs it to its end. Called once.
    public func run() throws(AgentError) -> FileRestoreOutcome {
        let reader = try BackupReader.open(request.copy, cancellation)
        let directory = try Self.makeDirectory()
        defer {
            unlink(directory + "/" + TocDescription.fileName)
            rmdir(directory)
        }
        let toc = try tableOfContents(of: reader, in: directory)
        var streamBytes: UInt64?
        let restore = try FileRestore(
            toc, to: request.directory, force: request.force, batchFiles: .max, cancellation: cancellation
        ) { [cancellation, observer] batch throws(AgentError) in
            try reader.restore(batch.plan, to: PassingFiles(batch), cancellation, observer)
            streamBytes = try onCopy { () throws(CopyError) in try reader.finish() }
        }
        try restore.run(request.paths)
        // Nothing of the data was wanted; whoever writes into the pipe goes on to the end nevertheless.
        if streamBytes == nil {
            streamBytes = try onCopy { () throws(CopyError) in
                try reader.readData { _, _ throws(CopyError) in }
                return try reader.finish()
            }
        }
        return FileRestoreOutcome(
            copy: request.copy, directory: request.directory, volume: reader.manifest.volume.uuid,
            instant: reader.manifest.epoch.institutedAt, bytesRead: streamBytes ?? 0,
            seconds: Double(MonotonicClock.now &- started) / 1e9, restored: restore.report)
    }

    /// For the table of contents, which has to be a file to be asked; nobody else's to look into.
    private static func makeDirectory() throws(AgentError) -> String {
        let parent = ProcessInfo.processInfo.environment["TMPDIR"] ?? "/var/tmp"
        var template = Array("\(parent)/outboard-toc-XXXXXX".utf8CString)
        guard let made = mkdtemp(&template) else {
            throw AgentError.system(
                errno, doing: "making a directory in", to: parent, otherwise: .cannotCreate)
        }
        return String(cString: made)
    }

    private func tableOfContents(
        of reader: BackupReader, in directory: String
    ) throws(AgentError) -> TocDatabase {
        guard reader.manifest.toc != nil else {
            throw AgentError(
                .inputMissing, doing: "reading the table of contents of", to: request.copy,
                because: "it has none", advice: "restore the volume, and have it made with `outboard toc`")
        }
        let path = directory + "/" + TocDescription.fileName
        let descriptor = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else {
            throw AgentError.system(errno, doing: "making", to: path, otherwise: .cannotCreate)
        }
        defer { close(descriptor) }
        var position: UInt64 = 0
        var failure: AgentError?
        do throws(CopyError) {
            _ = try reader.readToc { [cancellation] bytes throws(CopyError) in
                do throws(AgentError) {
                    try cancellation.check()
                    try StoreFileMover.write(bytes, to: descriptor, at: position)
                } catch {
                    failure = error
                    throw error.copyError
                }
                position += UInt64(bytes.count)
            }
        } catch { throw failure ?? AgentError(error) }
        return try FileRestoreSequence.tableOfContents(at: path, of: reader.manifest, in: request.copy)
    }
}
