/// Bounds of the agent's clients.
public enum ClientLimits {
    /// The largest volume or cache that is believed of a host, bytes.
    public static let hostBytes: UInt64 = 1 << 60
    /// How long a host may take to answer a call that has no time of its own, seconds.
    public static let hostAnswerSeconds = 60.0
    /// Bytes of one NBD request with data; the protocol asks servers to take as much.
    public static let nbdRequestBytes = 32 << 20
    /// Bytes of one NBD request without data (lengths are 32-bit), a multiple of any block size.
    public static let nbdRangeBytes: UInt64 = 1 << 30
    /// Connections of one ``NBDStore``, where the server allows several.
    public static let nbdConnections = 16

    /// How long connecting and logging in to a bridge may take, seconds.
    public static let loginSeconds = 15.0
    /// How long a SCSI command may take that has no time of its own, seconds.
    public static let commandSeconds = 60.0
    /// How long a bridge may take to abort a command, seconds; then the connection is dropped, which aborts it as well:
    /// who has cancelled needs the session no more.
    public static let abortSeconds = 1.0
    /// A NOP-Out goes out so often, seconds, and a bridge that has left so many unanswered is dead.
    public static let nopSeconds = 5.0
    public static let unansweredNOPs: Int32 = 4
    /// How often a caller that waits looks whether it should stop, nanoseconds.
    public static let cancellationPollNanoseconds: UInt64 = 50_000_000
    /// How often a command is sent again after UNIT ATTENTION, BUSY or TASK SET FULL.
    public static let commandRetries = 20
    /// Bytes of data of one READ or WRITE.
    public static let scsiTransferBytes = 4 << 20
    /// Chunks whose checksums one READ BUFFER asks for.
    public static let checksumsAtOnce = 1 << 16
    /// Bytes zeroed by one WRITE SAME where the unit names no limit.
    public static let writeSameBytes: UInt64 = 1 << 30
    /// The greatest logical block that is believed, bytes.
    public static let scsiBlockBytes: UInt32 = 1 << 20
}
