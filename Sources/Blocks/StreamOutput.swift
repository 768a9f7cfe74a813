import Glibc

/// A descriptor that is written from front to back, standard output as a rule. Whoever reads a pipe may make its writer
/// wait for as long as it likes: meanwhile it is asked again and again whether to go on. In the system itself the writer
/// never waits, where no signal that another thread takes would wake it.
public final class StreamOutput {
    /// So often, milliseconds, it is asked whether to go on.
    private static let patience: Int32 = 200
    /// `PIPE_BUF`: of a pipe or socket that can be written, so many bytes at once are taken without waiting.
    private static let promptBytes = 4096

    private let descriptor: Int32
    /// Of our own, for the same pipe: what is set on standard output is set for all who have it.
    private let own: Int32?
    /// Whether a reader can make the writer wait.
    private let waits: Bool

    /// - Parameter descriptor: stays open and as it is.
    public init(_ descriptor: Int32) {
        self.descriptor = descriptor
        var information = stat()
        let type = fstat(descriptor, &information) == 0 ? information.st_mode & S_IFMT : 0
        waits = type == S_IFIFO || type == S_IFSOCK || type == S_IFCHR && isatty(descriptor) == 1
        guard type == S_IFIFO else {
            own = nil
            return
        }
        let opened = open("/proc/self/fd/\(descriptor)", O_WRONLY | O_NONBLOCK | O_CLOEXEC)
        // A pipe that another user made cannot be opened again.
        own = opened >= 0 ? opened : nil
    }

    deinit { if let own { close(own) } }

    /// Writes all of it.
    /// - Parameter check: called before each write, and while a reader is waited for; throws to stop.
    /// - Returns: the error's number; 0 for none.
    public func write<Failure: Error>(
        _ bytes: UnsafeRawBufferPointer, check: () throws(Failure) -> Void
    ) throws(Failure) -> Int32 {
        var rest = bytes
        while !rest.isEmpty {
            try check()
            let prompt = waits && own == nil
            if prompt, !isWritable() { continue }
            let count = Glibc.write(
                own ?? descriptor, rest.baseAddress, prompt ? min(rest.count, Self.promptBytes) : rest.count)
            if count > 0 {
                rest = UnsafeRawBufferPointer(rebasing: rest.dropFirst(count))
            } else if count < 0, errno == EAGAIN {
                _ = isWritable()
            } else if count == 0 || errno != EINTR {
                return count == 0 ? ENOSPC : errno
            }
        }
        return 0
    }

    /// Waits a while for it. An error is for the next write to find.
    private func isWritable() -> Bool {
        var wanted = pollfd(fd: own ?? descriptor, events: Int16(POLLOUT), revents: 0)
        return poll(&wanted, 1, Self.patience) > 0
    }
}
