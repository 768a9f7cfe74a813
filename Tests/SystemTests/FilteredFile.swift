import Foundation
import TestSupport

/// A file that nbdkit serves through its filters and nbdfuse makes a file again: slow, or failing when it is told to.
final class FilteredFile: Sendable {
    let path: String
    private let server: ChildProcess
    private let fuse: ChildProcess

    /// - Parameters:
    ///   - backing: what lies below.
    ///   - filters: nbdkit's, with their parameters: `["--filter=delay", "wdelay=10ms"]`.
    init(_ name: String, on backing: String, _ filters: [String], in scratch: ScratchDirectory) throws {
        var size = stat()
        guard stat(backing, &size) == 0 else { throw TestFailure("no \(backing)") }
        let socket = scratch(name + ".nbdkit")
        path = scratch(name)
        try makeSparseFile(path, size: 0)
        let options = filters.filter { $0.hasPrefix("-") }
        let parameters = filters.filter { !$0.hasPrefix("-") }
        server = try ChildProcess("nbdkit", ["-f", "-U", socket] + options + ["file", backing] + parameters)
        try waitUntil("nbdkit serves") { [server] in
            guard server.isRunning else { throw TestFailure("nbdkit ended: \(server.errors)") }
            return FileManager.default.fileExists(atPath: socket)
        }
        // A cache that others may write is refused, and nbdfuse gives everybody everything.
        fuse = try ChildProcess("nbdfuse", ["-o", "umask=0077", path, "--unix", socket])
        try waitUntil("nbdfuse serves") { [path, fuse, bytes = size.st_size] in
            guard fuse.isRunning else { throw TestFailure("nbdfuse ended: \(fuse.errors)") }
            var status = stat()
            return stat(path, &status) == 0 && status.st_size == bytes
        }
    }

    deinit {
        // One that is not mounted any more is as good.
        _ = try? runProgram("fusermount3", ["-u", "-z", path], seconds: 10)
        fuse.stop()
        server.stop()
    }
}
