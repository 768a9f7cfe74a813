/// The bounds of this module (style 8).
public enum AsyncIOLimits {
    /// Requests in flight of one copy engine.
    public static let depth = 1...256
    /// Bytes of one request of a copy engine; a power of two.
    public static let chunkSize = 4096...(16 << 20)
    /// Bytes of the buffers of one copy engine: depth times chunk size.
    public static let engineBuffers = 1 << 30
    /// What was measured, and what was not, is in the article.
    public static let defaultDepth = 32
    public static let defaultChunkSize = 1 << 20

    /// Bytes of a bounce buffer: greater unaligned requests are done in pieces.
    static let bounceBuffer = 1 << 20
    /// The greatest alignment for direct I/O that is looked for; with a greater one the page cache is used.
    static let greatestAlignment = 64 << 10
    /// The unit in which the page cache holds what it has; greater pages are multiples of it.
    static let page: UInt64 = 4096
    /// Buffers in one system call (the system's IOV_MAX).
    static let vectors = 1024
    /// Bytes that one read or write call moves at most; the system's own bound is a little above.
    static let transfer = 1 << 30
    /// Milliseconds after which a waiting engine looks whether it was cancelled.
    static let cancellationPoll = 50
    /// Tries, 1 ms apart, to submit while the system refuses for want of memory and nothing is in flight.
    static let submissionTries = 2000
}
