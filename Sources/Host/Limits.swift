/// The host's bounds.
public enum HostLimits {
    /// Bytes of originals that one write reads, commits and lets go at a time; at least the largest chunk.
    public static let originalBytes = 1 << 20
    /// Chunks of such a step: they go into one batch.
    public static let originalChunks = 250
    /// Buffers for originals that are kept for the next writes; more are made when needed, and freed.
    public static let idleBuffers = 16
    /// Nanoseconds after which a blocked write tries again to use a cache that failed.
    public static let retryNanoseconds: UInt64 = 200_000_000
    /// Seconds that a write waits for a full cache before the epoch is abandoned, unless set otherwise.
    public static let blockSeconds = 30.0
    /// Seconds that an institution or a freeze waits for the writes in flight, while all others wait at the gate,
    /// before it is given up.
    public static let drainSeconds = 10.0
    /// Bytes of answers that a control client may leave unread; beyond it nothing more is read of that client. One
    /// answer may come on top.
    public static let unsentAnswerBytes = 256 << 10
    /// Nanoseconds that another process may keep the control socket's directory locked: hosts that start do it for a
    /// moment each.
    public static let directoryLockNanoseconds: UInt64 = 5_000_000_000
    /// How often in a row the host begins anew because the cache is full, before it abandons the copy.
    public static let restarts = 8
    /// Samples of the cache's fill from which its future is told, and nanoseconds between two.
    public static let fillSamples = 10
    public static let fillInterval: UInt64 = 1_000_000_000
    /// Buckets of a latency histogram; the last one counts all from about 17 s.
    public static let latencyBuckets = 26
}
