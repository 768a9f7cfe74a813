/// What a table of contents says of itself.
public struct TocInfo: Hashable, Sendable, Codable {
    /// The program and version that wrote it.
    public var tool: String
    /// The volume's UUID, lower case; empty: not known.
    public var volume: String
    /// Bytes of the volume.
    public var volumeSize: UInt64
    /// The copy-on-write relation's UUID, lower case; empty: not known.
    public var epoch: String
    /// As of when the files are, nanoseconds since 1970; 0: not known.
    public var instant: Int64

    public init(
        tool: String, volume: String = "", volumeSize: UInt64, epoch: String = "", instant: Int64 = 0
    ) {
        self.tool = tool
        self.volume = volume
        self.volumeSize = volumeSize
        self.epoch = epoch
        self.instant = instant
    }

    static let formatName = "outboard-toc"

    /// The rows of the table `info`.
    var rows: [(key: String, value: String)] {
        [
            ("format", Self.formatName), ("format_version", "\(Schema.version)"), ("tool", tool),
            ("volume", volume), ("volume_size", "\(volumeSize)"), ("epoch", epoch), ("instant", "\(instant)"),
        ]
    }

    /// Nil where they are not such rows.
    init?(rows: [String: String]) {
        guard rows["format"] == Self.formatName, rows["format_version"] == "\(Schema.version)",
            let tool = rows["tool"], let volume = rows["volume"], let epoch = rows["epoch"],
            let size = rows["volume_size"].flatMap({ UInt64($0) }), size <= UInt64(Int64.max),
            let instant = rows["instant"].flatMap({ Int64($0) })
        else { return nil }
        self.init(tool: tool, volume: volume, volumeSize: size, epoch: epoch, instant: instant)
    }
}

/// How much a table of contents lists.
public struct TocCounts: Hashable, Sendable, Codable {
    public var fileSystems = 0
    public var nodes: UInt64 = 0
    public var names: UInt64 = 0
    public var extents: UInt64 = 0
    public var problems: UInt64 = 0

    public init() {}
}
