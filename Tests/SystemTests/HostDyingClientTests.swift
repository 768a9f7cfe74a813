import Agent
import Blocks
import Foundation
import TestSupport
import Testing

/// Clients that are killed with 64 writes in flight, on a slow source: the host serves on.
@Suite(
    .serialized,
    .enabled(if: LoopMount.isPossible, "host tier only: the slow source needs root and /dev/fuse"))
struct HostDyingClientTests {
    private static let size: UInt64 = 32 << 20
    private static let deaths = 200

    /// A file whose every write takes 10 ms, one after another as FUSE has it: nbdkit's delay filter, made a file by nbdfuse.
    private final class SlowFile: Sendable {
        let path: String
        private let server: ChildProcess
        private let fuse: ChildProcess

        init(_ scratch: ScratchDirectory) throws {
            let backing = scratch("backing")
            let socket = scratch("slow.sock")
            path = scratch("slow")
            try makeSparseFile(backing, size: HostDyingClientTests.size)
            try makeSparseFile(path, size: 0)
            server = try ChildProcess(
                "nbdkit",
                ["-f", "-U", socket, "--filter=delay", "file", backing, "wdelay=10ms", "rdelay=5ms"])
            try waitUntil("nbdkit serves") { FileManager.default.fileExists(atPath: socket) }
            fuse = try ChildProcess("nbdfuse", [path, "--unix", socket])
            try waitUntil("nbdfuse serves") { [path] in
                var status = stat()
                return stat(path, &status) == 0 && UInt64(status.st_size) == HostDyingClientTests.size
            }
        }

        deinit {
            // One that is not mounted any more is as good.
            _ = try? runProgram("fusermount3", ["-u", "-z", path], seconds: 10)
            fuse.stop()
            server.stop()
        }
    }

    @Test func twoHundredClientsDieInMidWrite() throws {
        let scratch = try ScratchDirectory()
        let slow = try SlowFile(scratch)
        let host = try HostProcess(scratch, source: slow.path, options: ["--cache-size", "16MiB"])
        let process = host.process.identifier
        let store = try NBDStore(.unixSocket(host.socket, export: ""), connections: 1)
        let writes = (0..<64).flatMap { ["-c", "aio_write -q -P 0x5a \($0 * 64)k 4k"] }
        // Its connection is there; the control connections come and go.
        _ = try store.bytes(at: 0, count: 512)
        let descriptors = RunningProcesses.count("fd", of: process)
        var threads = 0
        var inFlight: [UInt64] = []
        for death in 1...Self.deaths {
            let before = try host.status().counters
            let client = try ChildProcess(
                "qemu-io", ["-f", "raw", "-t", "none"] + writes + ["-c", "sleep 600000", host.uri])
            // One has come through, so the others are in flight.
            try waitUntil("client \(death) writes", seconds: 30) {
                guard client.isRunning else { throw TestFailure("the client ended: \(client.errors)") }
                return try host.status().counters.writes > before.writes
            }
            client.signal(SIGKILL)
            inFlight.append(64 - min(64, try host.status().counters.writes - before.writes))
            _ = client.waitForExit()
            // What it had sent whole is done, and nothing of it stays.
            try waitUntil("the host has let go of client \(death)", seconds: 30) {
                RunningProcesses.count("fd", of: process) <= descriptors
            }
            guard death % 10 == 0 else { continue }
            // Behind the region of those that die.
            let content = [UInt8](repeating: UInt8(truncatingIfNeeded: death), count: 4096)
            try store.write(content, at: 16 << 20)
            #expect(try store.bytes(at: 16 << 20, count: 4096) == content)
            // Pools have grown to what they need by now.
            if death == 20 { threads = RunningProcesses.count("task", of: process) }
        }
        #expect(inFlight.count { $0 >= 32 } > Self.deaths * 9 / 10, "\(inFlight)")
        try waitUntil("the host has given back the threads", seconds: 30) {
            RunningProcesses.count("task", of: process) <= threads
        }
        #expect(host.stop() == .exit(0), "\(host.process.errors)")
        withExtendedLifetime(slow) {}
    }
}
