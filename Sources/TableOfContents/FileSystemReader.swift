import Blocks

/// What of a file system is to be read.
public struct ReadScope: OptionSet, Sendable {
    public let rawValue: UInt8
    public init(rawValue: UInt8) { self.rawValue = rawValue }

    /// Names, nodes, streams, extents and attributes.
    public static let files = ReadScope(rawValue: 1)
    /// Which blocks are in use.
    public static let use = ReadScope(rawValue: 2)
}

/// Reads one file system of a volume. Its bytes are hostile: whatever they are, it ends, within bounded memory, and
/// neither traps nor names a range beyond its own.
public protocol FileSystemReader {
    /// What it reads; ``FileSystemDescription/knowsUse`` is decided.
    var description: FileSystemDescription { get }

    /// Hands on what there is, from ``VolumeRecord/fileSystem(_:)`` to ``VolumeRecord/end``. What cannot be read
    /// is told as ``VolumeRecord/problem(_:)``.
    /// - Throws: what `sink` throws; ``TocError`` `store` when the volume fails.
    func read(_ scope: ReadScope, into sink: any RecordSink) throws(TocError)
}
