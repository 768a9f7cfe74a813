/// The bounds of what tells metrics.
public enum MetricsLimits {
    /// Connections at once; whoever comes then is sent away.
    public static let connections = 8
    /// Bytes of a request, all of it.
    public static let requestBytes = 8 << 10
    /// Seconds from a connection's beginning to its end, whatever it does.
    public static let connectionSeconds = 10
    /// Seconds between two writings of a file.
    public static let fileSeconds = 5.0
    /// Seconds that the server waits for its connections when it ends.
    static let endSeconds = 2.0
}
