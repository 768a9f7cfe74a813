import SCSI

/// What a peer can make this target hold or do.
public enum ISCSILimits {
    /// The target's MaxRecvDataSegmentLength, bytes (RFC 7143 §13.12).
    public static let receiveDataSegment = 256 << 10
    /// The same before it is declared, and during all of login.
    public static let loginDataSegment = 8192
    /// The longest data segment this target sends, whatever the initiator would take, bytes.
    public static let sendDataSegment = 256 << 10
    /// MaxBurstLength, bytes (RFC 7143 §13.13).
    public static let maxBurst = 1 << 20
    /// FirstBurstLength, bytes (RFC 7143 §13.14): what may come unasked with each command of the window.
    public static let firstBurst = 64 << 10
    /// Commands of one session between arrival and status: the width of the CmdSN window.
    public static let commandsPerSession = 128
    /// Immediate commands on top of those.
    public static let immediateCommands = 16
    /// Data-in and data-out that the commands in execution of one session may hold, bytes. One command is
    /// always let through, however large.
    public static let sessionDataBytes = 64 << 20
    /// The same for all sessions of a target together; beyond, each session has one command at a time let through.
    public static let targetDataBytes = 512 << 20
    /// Answers not yet taken by the peer above which nothing more is read from it, bytes.
    public static let outboundHighWater = 4 << 20
    /// Data of pings and text that arrive ahead of their turn, of one session, bytes. (Those of commands are bounded
    /// by the window and FirstBurstLength.)
    public static let earlyBytes = 1 << 20
    /// Key=value text of one negotiation step, over all its PDUs, bytes.
    public static let textBytes = 16 << 10
    /// Keys of one negotiation step.
    public static let textKeys = 64
    /// The longest key name (RFC 7143 §6.1), characters.
    public static let keyName = 63
    /// The longest value, bytes; RFC 7143 §6.1 allows 255 unless the key says otherwise; a CHAP value can be
    /// 1024 bytes in hexadecimal.
    public static let value = 2200
    /// Login requests before the target gives up.
    public static let loginRequests = 64
    /// Seconds from the connection to the end of login.
    public static let loginSeconds: Int64 = 15
    /// Connections at once; more are closed as they come.
    public static let connections = 256
    /// Those of them that are in login; one more ends the oldest of them, so that strangers who say nothing keep
    /// nobody out.
    public static let loginConnections = 64
    /// Seconds of silence in full feature phase after which a peer is pinged; as many more, and it is dead.
    public static let pingSeconds: Int64 = 30
    /// Seconds without a request after which a discovery session ends.
    public static let discoverySeconds: Int64 = 60
    /// Seconds that an old session may take to end before the login that reinstates it is refused.
    public static let reinstatementSeconds: Int64 = 10
    /// Threads that execute the commands of one session.
    public static let workersPerSession = SCSITargetLimits.nexusThreads
    /// Seconds after which a connection without acknowledgements, or whose peer takes nothing, is dead.
    public static let deadPeerSeconds = 120
    /// Seconds that sessions get to log out at shutdown.
    public static let shutdownSeconds: Int64 = 2
    /// Seconds on top of those for commands that are being executed then, copies among them.
    public static let drainSeconds: Int64 = 30
    /// The shortest CHAP secret (RFC 7143 §9.2.1: 96 bits), bytes.
    public static let chapSecret = 12
    /// Bytes of a CHAP challenge that the target makes.
    public static let chapChallenge = 32
    /// The longest CHAP challenge taken from an initiator (RFC 7143 §12.1.3), bytes.
    public static let chapForeignChallenge = 1024
    /// The longest iSCSI name (RFC 7143 §4.2.7.1), bytes.
    public static let name = 223
}
