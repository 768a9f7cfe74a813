/// Every bound of the server, by name.
public enum NBDLimits {
    /// Bytes that one READ or WRITE may carry; reported as the maximum block size.
    public static let maximumPayload: UInt32 = 32 << 20
    /// Bytes; reported as the minimum and the preferred block size.
    public static let minimumBlockSize: UInt32 = 1
    public static let preferredBlockSize: UInt32 = 4096
    /// Bytes of an export's name (the protocol's "maximum string length").
    public static let maximumString = 4096
    /// Bytes of one option's data; more is skipped and answered with NBD_REP_ERR_TOO_BIG.
    public static let maximumOptionData = 64 << 10
    /// Options that one client may send before it must have chosen an export.
    public static let maximumOptions = 256
    /// Seconds from the connection to the start of transmission, TLS included.
    public static let negotiationSeconds = 30
    /// Connections at once; one more is closed as soon as it is accepted.
    public static let maximumConnections = 128
    /// Requests of one connection that workers hold at once.
    public static let requestsInFlight = 64
    /// Bytes of payload that those requests may hold together (one request may always be held).
    public static let bytesInFlight = 72 << 20
    /// Bytes of READ or WRITE up to which a request may be executed on the event loop.
    public static let inlinePayload: UInt32 = 64 << 10
    /// Nanoseconds: a store whose small operations take longer on average is kept off the event loop.
    static let promptOperation: UInt64 = 40_000
    /// Extents of one BLOCK_STATUS reply.
    static let extentsPerReply = 8192
    /// Bytes that one read from the socket may bring.
    static let receiveBuffer = 256 << 10
    /// Bytes of gathered replies at which they are sent before more requests are taken.
    static let gatheredReplies = 256 << 10
    /// Bytes: larger replies of workers are sent from where they are and not gathered.
    static let gatheredReply = 16 << 10
    /// Bytes that a request's buffer may keep for the next request.
    static let retainedBuffer = 128 << 10
    /// Bytes that wait in the socket's queue: above the second no request is taken until below the first.
    static let outputLowWatermark = 1 << 20
    static let outputHighWatermark = 4 << 20
    /// Threads of all connections together: one for each request that may be in flight.
    static let workers = maximumConnections * requestsInFlight
    /// Nanoseconds after which a worker without work ends.
    static let workerIdle: UInt64 = 5_000_000_000
    /// Seconds that a client has to take its last replies when the server shuts down.
    static let lingerSeconds = 5
    static let eventLoops = 4
    /// Nanoseconds that another process may keep a unix socket's directory locked: servers that start do it for a
    /// moment each.
    static let directoryLock: UInt64 = 5_000_000_000
}
