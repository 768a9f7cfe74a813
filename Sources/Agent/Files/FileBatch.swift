import Blocks
import Glibc
import PhysicalCopy
import TableOfContents

/// Files of a restore that are filled together: they are there under temporary names, and get their own when they are
/// filled and flushed. Their numbers are the targets of ``plan``; whoever applies that opens them by
/// ``descriptor(of:)``.
public final class FileBatch {
    /// What an alternate stream belongs to.
    enum Owner {
        /// Another file of the batch.
        case file(Int)
        /// Of the restore's directories the one of that number.
        case directory(Int)
    }
    struct File {
        var directory: RestoreDirectory
        var name: [UInt8]
        var temporary: [CChar]
        var identity: FileIdentity
        var key: NodeKey
        /// Bytes that it shall have in the end.
        var size: UInt64
        /// Bytes that it has while it is filled: whole blocks.
        var room: UInt64
        /// Bytes that were written when it was made.
        var inlineBytes: UInt64 = 0
        var metadata: FileMetadata
        /// Of what it is the alternate stream of its name; nil: it is a file.
        var owner: Owner?
        var problem: FileProblem?

        init(_ name: [UInt8], _ directory: RestoreDirectory, _ key: NodeKey, _ metadata: FileMetadata) {
            self.directory = directory
            self.name = name
            temporary = []
            identity = FileIdentity(stat())
            self.key = key
            size = 0
            room = 0
            self.metadata = metadata
        }
    }
    var files: [File] = []
    private(set) var pieces: [RestorePiece] = []
    private var made: RestorePlan?
    private let directories: RestoreDirectories

    init(_ directories: RestoreDirectories) { self.directories = directories }

    /// What of the volume goes where in which of the files.
    public var plan: RestorePlan {
        if let made { return made }
        let plan = RestorePlan(pieces.filter { files[$0.target].problem == nil })
        made = plan
        return plan
    }

    func add(_ piece: RestorePiece) {
        pieces.append(piece)
        made = nil
    }

    /// What concerns one file alone.
    func plan(of target: Int) -> RestorePlan { RestorePlan(pieces.filter { $0.target == target }) }

    /// The files that the plan fills.
    public var targets: [Int] { Set(plan.pieces.map(\.target)).sorted() }

    /// Bytes of a target, as it must be while it is filled: the plan reaches up to there.
    public func room(of target: Int) -> UInt64 { files[target].room }

    /// Opens a file for reading and writing; whoever asks closes it.
    public func descriptor(of target: Int) throws(AgentError) -> Int32 {
        do throws(FileProblem) { return try open(target) } catch {
            throw AgentError(error.status, doing: "restoring", to: shown(target), because: error.reason)
        }
    }

    func open(_ target: Int) throws(FileProblem) -> Int32 {
        let file = files[target]
        let directory = try directories.descriptor(of: file.directory)
        let descriptor = openat(directory, file.temporary, O_RDWR | O_NOFOLLOW | O_CLOEXEC)
        guard descriptor >= 0 else { throw .system(errno, "opening it") }
        var status = stat()
        guard fstat(descriptor, &status) == 0, FileIdentity(status) == file.identity else {
            close(descriptor)
            throw FileProblem("it was replaced meanwhile")
        }
        return descriptor
    }

    func shown(_ target: Int) -> String { TocPath.escaped(files[target].name) }

    /// Of each file: bytes without holes, and without what is cut off in the end.
    var contentBytes: [UInt64] {
        var result = files.map(\.inlineBytes)
        for piece in pieces {
            let size = files[piece.target].size
            result[piece.target] += min(piece.volume.count, size - min(size, piece.offset))
        }
        return result
    }

    /// Forgets the files from that number on, and what they would get.
    func drop(from target: Int) {
        files.removeSubrange(target...)
        pieces.removeAll { $0.target >= target }
        made = nil
    }

    /// Takes a file's temporary name away, and the file with it unless it has its own by now.
    func removeTemporary(_ target: Int) {
        // A directory that is not there any more has nothing to be removed.
        guard let directory = try? directories.descriptor(of: files[target].directory) else { return }
        unlinkat(directory, files[target].temporary, 0)
    }
}
