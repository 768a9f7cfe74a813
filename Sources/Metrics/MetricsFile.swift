import Blocks
import Glibc
import Logging

/// A file that holds the metrics as they were a few seconds ago, for node_exporter's textfile collector: written under
/// a temporary name beside it and renamed, so that a reader always finds a whole page.
public final class MetricsFile: Sendable {
    private struct State {
        var isStopped = false
        var isOver = false
        /// The last writing failed.
        var isFailing = false
    }

    /// Why there can be no file there.
    public struct Unusable: Error, CustomStringConvertible, Sendable {
        public var errno: Int32
        public var description: String
    }

    private let path: String
    private let logger: Logger
    private let page: @Sendable () -> MetricsPage
    private let state = Monitor(State())

    /// Writes it now, then every ``MetricsLimits/fileSeconds``, then once more at ``stop()``. A later failure is logged, and
    /// does no harm.
    /// - Throws: when it cannot be written now.
    public init(
        _ path: String, seconds: Double = MetricsLimits.fileSeconds, logger: Logger,
        page: @escaping @Sendable () -> MetricsPage
    ) throws(Unusable) {
        self.path = path
        self.logger = logger
        self.page = page
        var status = stat()
        if lstat(path, &status) == 0, status.st_mode & S_IFMT != S_IFREG {
            throw Unusable(errno: EEXIST, description: "something that is no regular file is there")
        }
        let number = write()
        guard number == 0 else {
            throw Unusable(errno: number, description: String(cString: strerror(number)))
        }
        let isStarted = BlockingThread.start { [self] in
            while true {
                let stopped: Bool? = state.wait(nanoseconds: UInt64(seconds * 1e9)) {
                    $0.isStopped ? true : nil
                }
                report(write())
                if stopped == true { break }
            }
            state.withLockAndNotify { $0.isOver = true }
        }
        guard isStarted else {
            throw Unusable(errno: EAGAIN, description: "the system has no thread to give")
        }
    }

    /// Writes it for the last time. The file stays. May be called again.
    public func stop() {
        state.withLockAndNotify { $0.isStopped = true }
        state.wait { $0.isOver ? () : nil }
    }

    private func report(_ number: Int32) {
        let isNews = state.withLock { state in
            defer { state.isFailing = number != 0 }
            return number != 0 && !state.isFailing
        }
        if isNews {
            logger.warning(
                "the metrics cannot be written",
                metadata: ["path": "\(path)", "error": "\(String(cString: strerror(number)))"])
        }
    }

    /// - Returns: the error's number; 0 for none.
    private func write() -> Int32 {
        let start = path.lastIndex(of: "/").map { path.index(after: $0) } ?? path.startIndex
        let temporary = "\(path[..<start]).\(path[start...]).\(getpid())"
        unlink(temporary)
        // Whoever collects it is somebody else.
        let descriptor = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0o644)
        guard descriptor >= 0 else { return errno }
        defer { close(descriptor) }
        var rest = Array(page().text.utf8)[...]
        while !rest.isEmpty {
            let count = rest.withUnsafeBytes { Glibc.write(descriptor, $0.baseAddress, $0.count) }
            if count < 0, errno == EINTR { continue }
            guard count > 0 else {
                let number = count < 0 ? errno : EIO
                unlink(temporary)
                return number
            }
            rest = rest.dropFirst(count)
        }
        guard rename(temporary, path) == 0 else {
            let number = errno
            unlink(temporary)
            return number
        }
        return 0
    }
}
