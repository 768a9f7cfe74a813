import Foundation
import TestSupport

/// A named pipe by which a command that some process runs, a hook, tells us that it is there, or waits for our word.
final class NamedPipe: Sendable {
    let path: String
    private let descriptor: Int32

    init(_ path: String) throws {
        self.path = path
        // Open for reading from now on: who opens it for writing does not wait for us.
        guard mkfifo(path, 0o600) == 0 else { throw TestFailure("mkfifo \(path): errno \(errno)") }
        descriptor = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC)
        guard descriptor >= 0 else { throw TestFailure("open \(path): errno \(errno)") }
    }

    deinit { close(descriptor) }

    /// Waits until somebody has written to it, or opened it for writing and closed it again.
    func awaitWriter(seconds: Double = 60) -> Bool {
        var events = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
        return poll(&events, 1, Int32(seconds * 1000)) == 1
    }

    /// Makes a pipe for which ``letGo(_:)`` ends the wait of a reader.
    static func makeGate(_ path: String) throws {
        guard mkfifo(path, 0o600) == 0 else { throw TestFailure("mkfifo \(path): errno \(errno)") }
    }

    /// Returns when somebody waits, and lets it go on.
    static func letGo(_ path: String) { close(open(path, O_WRONLY | O_CLOEXEC)) }
}
