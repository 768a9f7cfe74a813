import Foundation
import TestSupport

/// A unit of scripts/, as far as a test can do what systemd does with it: the command line, and when it is started again.
struct SystemdUnit {
    private static let directory = URL(filePath: #filePath).deletingLastPathComponent().appending(
        path: "../../scripts")

    let name: String
    private let lines: [String]

    init(_ name: String) throws {
        self.name = name
        lines = try String(contentsOf: Self.directory.appending(path: name), encoding: .utf8)
            .split(separator: "\n", omittingEmptySubsequences: false).map(String.init)
    }

    /// The value of a setting that is there once.
    func value(_ key: String) throws -> String {
        let found = lines.filter { $0.hasPrefix(key + "=") }
        guard found.count == 1 else { throw TestFailure("\(name) has \(found.count) lines \(key)=") }
        return String(found[0].dropFirst(key.count + 1))
    }

    /// Of `RestartSec=` in milliseconds.
    var restartMilliseconds: UInt32 {
        get throws {
            let text = try value("RestartSec")
            guard text.hasSuffix("ms"), let number = UInt32(text.dropLast(2)) else {
                throw TestFailure("RestartSec=\(text)")
            }
            return number
        }
    }

    /// The words behind the program in `ExecStart=`, with what stands for something replaced.
    func arguments(_ values: [(String, String)]) throws -> [String] {
        try value("ExecStart").split(separator: " ").dropFirst().flatMap { word in
            var text = String(word)
            for (name, value) in values { text = text.replacing(name, with: value) }
            return text.split(separator: " ").map(String.init)
        }
    }

    /// The same for the program under test, as `NAME.service` in `directory`.
    func write(to directory: String, as name: String) throws -> String {
        let path = "\(directory)/\(name)"
        let text = lines.joined(separator: "\n").replacing("/usr/local/bin/outboard", with: Outboard.binary)
        try text.write(toFile: path, atomically: false, encoding: .utf8)
        return path
    }
}

/// The socket of sd_notify(3), as a service manager has it.
final class NotifySocket: Sendable {
    /// For the variable `NOTIFY_SOCKET`.
    let name: String
    private let descriptor: Int32

    /// - Parameter name: a path, or an abstract address that begins with `@`.
    init(_ name: String) throws {
        self.name = name
        descriptor = socket(AF_UNIX, Int32(SOCK_DGRAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        var bytes = Array(name.utf8)
        if name.hasPrefix("@") { bytes[0] = 0 }
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: bytes.prefix(107)) }
        let start = MemoryLayout<sockaddr_un>.size - MemoryLayout.size(ofValue: address.sun_path)
        let bound = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(descriptor, $0, socklen_t(start + bytes.count))
            }
        }
        // A hang would be forever; a busy machine may take its time.
        var limit = timeval(tv_sec: 60, tv_usec: 0)
        setsockopt(
            descriptor, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
        guard descriptor >= 0, bound == 0 else { throw TestFailure("cannot bind \(name): errno \(errno)") }
    }

    deinit { close(descriptor) }

    /// The next message, line by line; waits for it.
    func next() throws -> [String] {
        var bytes = [UInt8](repeating: 0, count: 4096)
        let count = recv(descriptor, &bytes, bytes.count, 0)
        guard count > 0 else { throw TestFailure("nobody said anything to the service manager") }
        return String(decoding: bytes[..<count], as: UTF8.self).split(separator: "\n").map(String.init)
    }
}
