import Blocks
import Foundation
import TestSupport

/// Stands between an agent and a host's control socket, and holds the first request of one method: the agent has then
/// done all that comes before it, and nothing of what comes after.
final class ControlProxy: Sendable {
    let path: String
    private let listener: Int32
    private let host: String
    private let method: String
    private let isHeld = Monitor(false)

    init(_ path: String, to host: String, holding method: String) throws {
        self.path = path
        self.host = host
        self.method = #""\#(method)""#
        listener = socket(AF_UNIX, Self.type, 0)
        let bound = Self.withAddress(path) { bind(listener, $0, $1) }
        guard bound == 0, listen(listener, 8) == 0 else { throw TestFailure("\(path): errno \(errno)") }
        BlockingThread.start { [self] in serve() }
    }

    /// Lets the serving thread, and with it this object, go.
    func stop() { shutdown(listener, Int32(SHUT_RDWR)) }

    deinit { close(listener) }

    /// Waits until the request has come; it is never answered.
    func awaitHeld(seconds: Double = 60) -> Bool {
        isHeld.wait(nanoseconds: UInt64(seconds * 1e9)) { $0 ? true : nil } ?? false
    }

    private static let type = Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue)

    private static func withAddress(
        _ path: String, _ body: (UnsafePointer<sockaddr>, socklen_t) -> Int32
    ) -> Int32 {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8.prefix(107)) }
        return withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                body($0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
    }

    private func serve() {
        while true {
            let agent = acceptConnection(listener)
            guard agent >= 0 else { return }
            let line = socket(AF_UNIX, Self.type, 0)
            guard Self.withAddress(host, { connect(line, $0, $1) }) == 0 else {
                close(agent)
                close(line)
                continue
            }
            let ended = Monitor(0)
            BlockingThread.start { [self] in
                relay(agent, line) { request in
                    guard request.contains(method) else { return true }
                    isHeld.withLockAndNotify { $0 = true }
                    return false
                }
                end(line, agent, ended)
            }
            BlockingThread.start { [self] in
                relay(line, agent) { _ in true }
                end(line, agent, ended)
            }
        }
    }

    /// The other direction ends, too; both are closed by the one that ends last, and none under the other.
    private func end(_ line: Int32, _ agent: Int32, _ ended: Monitor<Int>) {
        ended.withLock { count in
            count += 1
            for descriptor in [line, agent] {
                if count == 1 { shutdown(descriptor, Int32(SHUT_RDWR)) } else { close(descriptor) }
            }
        }
    }

    /// A request is one line and comes alone, as the agent waits for its answer.
    private func relay(_ from: Int32, _ to: Int32, _ passes: (String) -> Bool) {
        var buffer = [UInt8](repeating: 0, count: 64 << 10)
        while true {
            let count = read(from, &buffer, buffer.count)
            guard count > 0 else { return }
            guard passes(String(decoding: buffer[..<count], as: UTF8.self)) else { continue }
            guard send(to, buffer, count, Int32(MSG_NOSIGNAL)) == count else { return }
        }
    }
}
