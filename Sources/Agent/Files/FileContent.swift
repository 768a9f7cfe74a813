import Blocks
import PhysicalCopy
import TableOfContents

/// A file's content from its first byte to its last, for what takes it one after the other: restored into memory part
/// by part, by the same plan and steps as into a file.
public struct FileContent {
    /// Bytes of it that lie one behind the other.
    public enum Part {
        /// Valid during the call.
        case bytes(UnsafeRawBufferPointer)
        /// So many zeros that are not stored.
        case hole(UInt64)
    }

    private let toc: TocDatabase
    private let data: RestoreSource
    private let key: NodeKey
    private let stream: TocStream?
    /// Bytes.
    public let size: UInt64

    /// - Parameters:
    ///   - path: of a file, or of a stream of one.
    ///   - data: of the copy.
    /// - Throws: 66 when it leads to no file, 74 when its extents do not tell its content.
    public init(_ path: String, in toc: TocDatabase, of data: RestoreSource) throws(AgentError) {
        let doing = "reading the file"
        let found = try onToc { () throws(TocError) in try toc.resolve(path) }
        guard let entry = found, let key = entry.key else {
            throw AgentError(
                .inputMissing, doing: doing, to: path, because: "the table of contents lists no such file")
        }
        guard entry.stream != nil || entry.node.kind == .regular else {
            let what =
                switch entry.node.kind {
                case .directory: "it is a directory"
                case .symbolicLink: "it is a symbolic link to \(TocPath.escaped(entry.node.target ?? []))"
                default: "it is no regular file, or could not be read"
                }
            throw AgentError(.inputMissing, doing: doing, to: path, because: what)
        }
        let all = try onToc { () throws(TocError) in try toc.streams(of: key) }
        stream = entry.stream ?? all.first { $0.number == 0 }
        guard stream != nil || entry.node.size == 0 else {
            throw AgentError(
                .io, doing: doing, to: path,
                because: "its content could not be read when the table of contents was made")
        }
        if case .unavailable(let reason) = stream?.storage {
            throw AgentError(
                .io, doing: doing, to: path, because: "it cannot be restored by its extents: \(reason)",
                advice: "serve the copy with `outboard mount` and let the file system's own driver read it")
        }
        self.toc = toc
        self.data = data
        self.key = key
        size = stream?.size ?? 0
    }

    /// Hands on all of it.
    /// - Parameter body: may throw to stop.
    public func read(
        _ cancellation: CancellationToken, _ body: (Part) throws(AgentError) -> Void
    ) throws(AgentError) {
        guard let stream, size > 0 else { return }
        guard stream.storage == .extents else { return try readInline(stream, body) }
        var window = FileWindow(data, cancellation)
        try goingThroughToc {
            try toc.forEachExtent(of: key, stream: stream.number) { extent in
                guard extent.fileOffset < size else { return }
                let count = min(extent.count, size - extent.fileOffset)
                try window.take(
                    ByteRange(offset: extent.volumeOffset, count: count), at: extent.fileOffset, body)
            }
        }
        try window.flush(body)
        if window.end < size { try body(.hole(size - window.end)) }
    }

    private func readInline(
        _ stream: TocStream, _ body: (Part) throws(AgentError) -> Void
    ) throws(AgentError) {
        let content = try onToc { () throws(TocError) in
            try toc.content(of: key, stream: stream.number)
        }
        let bytes = (content ?? []).prefix(Int(clamping: size))
        var failure: AgentError?
        bytes.withUnsafeBytes { buffer in
            do throws(AgentError) { try body(.bytes(buffer)) } catch { failure = error }
        }
        if let failure { throw failure }
        if UInt64(bytes.count) < size { try body(.hole(size - UInt64(bytes.count))) }
    }
}

/// The part of a file that is restored next: what of the volume makes it up is gathered until memory is full of it.
private struct FileWindow {
    typealias Body = (FileContent.Part) throws(AgentError) -> Void

    private let data: RestoreSource
    private let cancellation: CancellationToken
    private let memory = ZeroedMemory(count: AgentLimits.relayBytes)
    private let mover: StoreMover
    private var pieces: [RestorePiece] = []
    /// Bytes of the pieces.
    private var filled: UInt64 = 0
    /// Where in the file what was taken ends.
    private(set) var end: UInt64 = 0

    init(_ data: RestoreSource, _ cancellation: CancellationToken) {
        self.data = data
        self.cancellation = cancellation
        mover = StoreMover(data, to: MemoryTarget(memory.buffer))
    }

    /// - Parameter offset: where in the file the range is; not before ``end``.
    mutating func take(_ range: ByteRange, at offset: UInt64, _ body: Body) throws(AgentError) {
        if offset > end {
            try flush(body)
            try body(.hole(offset - end))
            end = offset
        }
        var rest = range
        while !rest.isEmpty {
            let count = min(rest.count, UInt64(memory.count) - filled)
            pieces.append(
                RestorePiece(volume: ByteRange(offset: rest.offset, count: count), offset: filled))
            filled += count
            end += count
            rest = ByteRange(offset: rest.offset + count, count: rest.count - count)
            if filled == UInt64(memory.count) { try flush(body) }
        }
    }

    /// Hands on what was gathered.
    mutating func flush(_ body: Body) throws(AgentError) {
        guard filled > 0 else { return }
        let steps = data.steps(of: RestorePlan(pieces))
        try data.check(steps, slices: false, cancellation)
        try data.run(steps, by: mover, cancellation) { _, _, _ throws(AgentError) in }
        try body(.bytes(UnsafeRawBufferPointer(rebasing: memory.buffer.prefix(Int(filled)))))
        pieces.removeAll(keepingCapacity: true)
        filled = 0
    }
}
