import Agent
import AsyncIO
import Blocks
import Glibc
import PhysicalCopy

/// Fills restored files by the copy engine: reads of the copy past the page cache, many in flight, in the order in which
/// they lie there. Large files are written past the page cache, too; small ones through it, so that the flush of many
/// can put them together.
final class EngineFileMover: FileMover {
    /// Files of fewer bytes are small.
    private static let large: UInt64 = 1 << 20

    private let data: RestoreSource
    private let source: StorageFile
    private let engine: CopyEngine
    private let cancellation: CancellationToken
    private var batch: FileBatch?
    private var targets: [Int: StorageFile] = [:]

    /// - Parameter path: the copy's data.
    init(_ data: RestoreSource, at path: String, _ cancellation: CancellationToken) throws(AgentError) {
        self.data = data
        self.cancellation = cancellation
        do throws(StorageError) {
            source = try StorageFile.open(
                path, access: .readOnly, mode: .direct, lock: .none, links: .toDevices)
            engine = try CopyEngine()
        } catch { throw Sequences.agentError(error, path) }
    }

    func begin(_ batch: FileBatch) {
        targets = [:]
        self.batch = batch
    }

    private func file(_ target: Int) throws(AgentError) -> StorageFile {
        if let known = targets[target] { return known }
        guard let batch else { preconditionFailure("no files to fill") }
        let descriptor = try batch.descriptor(of: target)
        defer { close(descriptor) }
        // By the descriptor, so that it is this very file.
        let path = "/proc/self/fd/\(descriptor)"
        do throws(StorageError) {
            let file = try StorageFile.open(
                path, access: .readWrite,
                mode: batch.room(of: target) < Self.large ? .pageCache : .direct, lock: .none,
                minimumSize: batch.room(of: target))
            targets[target] = file
            return file
        } catch { throw Sequences.agentError(error, path) }
    }

    func move(
        _ runs: [RestoreRun], progress told: (UInt64) throws(AgentError) -> Void
    ) throws(AgentError) {
        var segments: [CopySegment] = []
        segments.reserveCapacity(runs.count)
        for run in runs {
            segments.append(
                CopySegment(
                    source: source, sourceOffset: run.source, target: try file(run.target),
                    targetOffset: run.offset, length: run.count))
        }
        let progress = CopyProgress()
        var stop: AgentError?
        defer { data.addRead(progress.bytesWritten) }
        do throws(CopyFailure) {
            try engine.run(segments, flush: false, progress: progress) {
                do throws(AgentError) { try told(progress.bytesWritten) } catch { stop = error }
                return stop != nil
            }
        } catch {
            if let stop { throw stop }
            throw failure(error)
        }
    }

    private func failure(_ error: CopyFailure) -> AgentError {
        let isFull = error.errno == ENOSPC || error.errno == EDQUOT
        let reason =
            error.reason == .read
            ? "\(error)" : String(cString: strerror(error.errno))
        return AgentError(
            isFull ? .cannotCreate : .io, doing: error.reason == .read ? "reading" : "writing",
            to: error.reason == .read ? "the copy's data" : "it",
            because: isFull ? "no space left" : reason, cause: isFull ? .noSpace : nil)
    }

    func writeZeroes(_ range: ByteRange, of target: Int) throws(AgentError) {
        let file = try file(target)
        do throws(StoreError) { try file.writeZeroes(range, options: []) } catch {
            throw AgentError(error, doing: "writing zeros to", to: "a restored file")
        }
    }

    /// Nothing: the restore flushes its files itself, with their metadata and many at once.
    func flush() {}
}
