import Blocks
import PhysicalCopy
import TableOfContents

/// A file's content from its first byte to its last, for what takes it one after the other.
public struct FileContent {
    /// Bytes of it that lie one behind the other.
    public enum Part {
        /// Valid during the call.
        case bytes(UnsafeRawBufferPointer)
        /// So many zeros that are not stored.
        case hole(UInt64)
    }

    private let toc: TocDatabase
    private let volume: any BlockStore
    private let key: NodeKey
    private let stream: TocStream?
    /// Bytes.
    public let size: UInt64

    /// - Parameters:
    ///   - path: of a file, or of a stream of one.
    ///   - volume: as of the instant: ``RestoreSource/volume``.
    /// - Throws: 66 when it leads to no file, 74 when its extents do not tell its content.
    public init(_ path: String, in toc: TocDatabase, of volume: any BlockStore) throws(AgentError) {
        let doing = "reading the file"
        let found: TocEntry?
        do throws(TocError) { found = try toc.resolve(path) } catch { throw AgentError(error) }
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
        do throws(TocError) {
            let all = try toc.streams(of: key)
            stream = entry.stream ?? all.first { $0.number == 0 }
        } catch { throw AgentError(error) }
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
        self.volume = volume
        self.key = key
        size = stream?.size ?? 0
    }

    /// Hands on all of it.
    /// - Parameter body: may throw to stop.
    public func read(_ body: (Part) throws(AgentError) -> Void) throws(AgentError) {
        guard let stream, size > 0 else { return }
        guard stream.storage == .extents else {
            var content: [UInt8]?
            do throws(TocError) { content = try toc.content(of: key, stream: stream.number) } catch {
                throw AgentError(error)
            }
            let bytes = (content ?? []).prefix(Int(clamping: size))
            var failure: AgentError?
            bytes.withUnsafeBytes { buffer in
                do throws(AgentError) { try body(.bytes(buffer)) } catch { failure = error }
            }
            if let failure { throw failure }
            if UInt64(bytes.count) < size { try body(.hole(size - UInt64(bytes.count))) }
            return
        }
        let memory = ZeroedMemory(count: AgentLimits.relayBytes)
        var position: UInt64 = 0
        var failure: AgentError?
        do {
            try toc.forEachExtent(of: key, stream: stream.number) { extent in
                do throws(AgentError) {
                    try read(extent, &position, memory.buffer, body)
                } catch {
                    failure = error
                    throw error
                }
            }
        } catch {
            if let failure { throw failure }
            if let error = error as? TocError { throw AgentError(error) }
            throw AgentError(.io, doing: "reading the table of contents", to: "", because: "\(error)")
        }
        if position < size { try body(.hole(size - position)) }
    }

    private func read(
        _ extent: FileExtent, _ position: inout UInt64, _ buffer: UnsafeMutableRawBufferPointer,
        _ body: (Part) throws(AgentError) -> Void
    ) throws(AgentError) {
        guard extent.fileOffset < size else { return }
        if extent.fileOffset > position { try body(.hole(extent.fileOffset - position)) }
        var place = extent.volumeOffset
        position = extent.fileOffset
        let end = min(size, extent.fileOffset + extent.count)
        while position < end {
            let part = UnsafeMutableRawBufferPointer(
                rebasing: buffer.prefix(Int(min(end - position, UInt64(buffer.count)))))
            try onStore("reading the copy at", "\(place)") { () throws(StoreError) in
                try volume.read(at: place, into: part)
            }
            try body(.bytes(UnsafeRawBufferPointer(part)))
            place += UInt64(part.count)
            position += UInt64(part.count)
        }
    }
}
