/// The bounds of the sequences; those of the clients are ``ClientLimits``.
public enum AgentLimits {
    /// How full the original image cache may become, 0 to 1, before a table of contents that takes long is given up.
    public static let tocCacheFill = 0.75
    /// Seconds that a host may take to drain, flush, or make its cache durable.
    public static let hostFlushSeconds = 200.0
    /// Seconds after which a freeze of several hosts thaws by itself; longer than all their flushes should take.
    public static let groupFreezeSeconds = 60.0
    /// Seconds of a freeze for a restore; renewed at each quarter of it.
    public static let restoreFreezeSeconds = 120.0
    /// Hosts of one group.
    public static let hosts = 64
    /// Seconds that a private bridge may take to say that it is ready, and to end.
    public static let bridgeStartSeconds = 30.0
    public static let bridgeStopSeconds = 10.0
    /// Seconds that a command of the administrator has to end in when the copy is cancelled.
    public static let hookStopSeconds = 5.0
    /// Bytes of what a private bridge says that are kept for messages.
    public static let bridgeMessageBytes = 4_096
    /// Bytes of the pipe by which a process tells what it read of file systems.
    static let recordPipeBytes = 1 << 20
    /// Bytes of one EXTENDED COPY: so often progress is seen, and so much is done in vain when stopped.
    public static let commandBytes: UInt64 = 64 << 20
    /// The least that a command is cut down to for a low rate, bytes.
    public static let smallestCommandBytes: UInt64 = 1 << 20
    /// EXTENDED COPY commands in flight.
    public static let commandsInFlight = 2
    /// Of a copy that passes through the agent: commands at a time, segments of each, bytes read at once.
    public static let relayCommands = 4
    public static let relaySegments = 1_024
    public static let relayBytes = 4 << 20
    /// Places at which the logical snapshot is compared with the bridge's source unit and with the copy, where the
    /// bridge names the source's storage, and where it does not; and bytes at each.
    public static let samples = 64
    public static let samplesUnproven = 1_024
    public static let sampleBytes: UInt64 = 64 << 10
    /// Seconds between two checkpoints of a raw pass: so much of it is copied again at most when a bridge or an agent has died.
    public static let checkpointSeconds = 5.0
    /// Seconds that a copy that goes on waits for the bridge of the one that died to let go of its files.
    public static let oldBridgeSeconds = 15.0
    /// Bytes that are read at once of a copy and of the logical snapshot to compare them; a power of two.
    public static let comparedBytes = 4 << 20
    /// Files of a damaged chunk that are named, and that are counted: no chunk of blocks has more.
    public static let listedUsers = 16
    public static let countedUsers = 4_096
    /// Nanoseconds between two looks at the host while data are copied.
    public static let watchNanoseconds: UInt64 = 500_000_000
    /// Of a restore of files: files that are filled together (each takes up to three descriptors meanwhile), and pieces
    /// of their extents.
    public static let batchFiles = 256
    public static let batchPieces = 65_536
    /// Batches of no more files flush each of them; others their file system.
    public static let flushedAlone = 4
    /// Directories that are kept open.
    public static let openDirectories = 64
    /// Failures of single files that are listed; all are counted.
    public static let listedFailures = 1_000
    /// A stream's last extent is followed no further beyond the stream's end, bytes; a power of two. What is cut off
    /// is not needed.
    public static let greatestBlock: UInt64 = 64 << 10
    /// Bytes that are zeroed at once on a restore's destination.
    public static let zeroBytes: UInt64 = 1 << 30
    /// Files of a restore from a backup that are open at once.
    public static let openTargets = 64
    /// Bytes of a dead restore's record that are believed; temporary files of which it tells further on stay.
    static let restoreRecordBytes = 64 << 20
    /// Bytes of one directory's path in it, which leads at most ``TocLimits/depth`` directories down.
    static let recordedPathBytes = 1 << 20
}
