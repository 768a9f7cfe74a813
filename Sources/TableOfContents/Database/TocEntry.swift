/// Something that a path leads to.
public struct TocEntry: Hashable, Sendable {
    /// Nil: the volume itself, where it has several file systems; its entries are their numbers.
    public var key: NodeKey?
    /// The last component's bytes; empty for the root.
    public var name: [UInt8]
    /// What is known of it. A name whose node could not be read has the kind ``FileNode/Kind/other``, no size and no
    /// times.
    public var node: FileNode
    /// False when the node could not be read, or lies in a file system whose files are not listed.
    public var isKnown: Bool
    /// The stream that `path:stream` named; nil: the file itself.
    public var stream: TocStream?

    public var isDirectory: Bool { node.kind == .directory }

    init(key: NodeKey?, name: [UInt8], node: FileNode, isKnown: Bool = true, stream: TocStream? = nil) {
        self.key = key
        self.name = name
        self.node = node
        self.isKnown = isKnown
        self.stream = stream
    }

    /// The root of all where there are several file systems.
    static var volume: TocEntry {
        var node = FileNode(address: 0, kind: .directory)
        node.permissions = 0o555
        return TocEntry(key: nil, name: [], node: node)
    }
}

/// A stream as the database has it; its extents and inline bytes are asked for one by one.
public struct TocStream: Hashable, Sendable {
    public enum Storage: Hashable, Sendable {
        /// ``TocDatabase/forEachExtent(of:stream:_:)``; what they do not cover reads as zeros.
        case extents
        /// ``TocDatabase/content(of:stream:)``.
        case inline
        /// Why it cannot be restored.
        case unavailable(String)
    }

    /// 0: the file's content.
    public var number: UInt32
    /// Empty: the unnamed one.
    public var name: [UInt8]
    public var size: UInt64
    public var storage: Storage
}
