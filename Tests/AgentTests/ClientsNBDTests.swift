import Blocks
import Foundation
import Glibc
import TestSupport
import Testing

@testable import Agent

/// An nbdkit that serves a unix socket until this object goes.
final class NBDKit {
    let socket: String
    private let directory: String
    private let process = Process()

    /// - Parameter arguments: filters, plugin and parameters.
    init(_ arguments: [String]) throws {
        directory = NSTemporaryDirectory() + "outboard-" + UUID().uuidString
        try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: false)
        socket = directory + "/nbd"
        let pidFile = directory + "/pid"
        process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
        process.arguments =
            ["nbdkit", "-f", "--exit-with-parent", "-U", socket, "-P", pidFile] + arguments
        process.standardError = FileHandle.nullDevice
        // The directory's changes are waited for, not the clock.
        let watch = inotify_init()
        defer { close(watch) }
        guard inotify_add_watch(watch, directory, UInt32(IN_CREATE | IN_CLOSE_WRITE)) >= 0 else {
            throw POSIXError(.EIO)
        }
        try process.run()
        var events = [UInt8](repeating: 0, count: 4096)
        // nbdkit writes its process id when it serves.
        while !FileManager.default.fileExists(atPath: pidFile) {
            var entry = pollfd(fd: watch, events: Int16(POLLIN), revents: 0)
            guard poll(&entry, 1, 10_000) == 1, read(watch, &events, events.count) > 0 else {
                throw POSIXError(.ETIMEDOUT)
            }
        }
    }

    func kill() {
        Glibc.kill(process.processIdentifier, SIGKILL)
        process.waitUntilExit()
    }

    deinit {
        if process.isRunning { kill() }
        // Only litter would remain.
        try? FileManager.default.removeItem(atPath: directory)
    }
}

@Suite struct NBDStoreTests {
    private func store(_ server: NBDKit, export: String = "") throws -> NBDStore {
        try NBDStore(.unixSocket(server.socket, export: export))
    }

    @Test(arguments: [
        ["memory", "3000001"],
        // One connection, and none of the optional commands.
        ["--filter=multi-conn", "--filter=nozero", "memory", "1M", "multi-conn-mode=disable"],
        // Whole blocks only, and few at a time.
        [
            "--filter=blocksize-policy", "memory", "2M", "blocksize-minimum=4096",
            "blocksize-preferred=4096", "blocksize-maximum=65536", "blocksize-error-policy=error",
        ],
        ["--filter=fua", "memory", "1M", "fuamode=discard"],
    ])
    func conforms(_ arguments: [String]) throws {
        let server = try NBDKit(arguments)
        try BlockStoreConformance.run(try store(server))
    }

    @Test func readOnly() throws {
        let server = try NBDKit(["-r", "pattern", "1M"])
        let store = try store(server)
        #expect(store.capabilities.isDisjoint(with: .writable))
        #expect(try store.bytes(at: 1 << 19, count: 8) == [0, 0, 0, 0, 0, 8, 0, 0])
        try BlockStoreConformance.run(store)
    }

    @Test func uri() throws {
        let server = try NBDKit(["memory", "1M"])
        let store = try NBDStore(.uri("nbd+unix:///?socket=\(server.socket)"))
        try store.write([1, 2, 3], at: 5)
        #expect(try store.bytes(at: 4, count: 5) == [0, 1, 2, 3, 0])
    }

    @Test func manyPiecesOfOneRequest() throws {
        let server = try NBDKit(["memory", "100M"])
        let store = try store(server)
        let bytes = [UInt8](repeating: 7, count: 70 << 20)
        try store.write(bytes, at: 3)
        #expect(try store.bytes(at: 3, count: bytes.count) == bytes)
    }

    @Test func extents() throws {
        let server = try NBDKit(["memory", "1M"])
        let store = try store(server)
        #expect(store.capabilities.contains(.knowsAllocation))
        try store.write([UInt8](repeating: 1, count: 32768), at: 65536)
        let found = try store.allocation(of: ByteRange(offset: 1, count: 200_000), limit: 10)
        let expected = [
            AllocationExtent(count: 65535, isHole: true, readsAsZeros: true),
            AllocationExtent(count: 32768, isHole: false, readsAsZeros: false),
            AllocationExtent(count: 200_001 - 98304, isHole: true, readsAsZeros: true),
        ]
        #expect(found == expected)
    }

    @Test(arguments: [
        ("EIO", StoreError.Code.io), ("ENOSPC", .noSpace), ("EPERM", .readOnly), ("ESHUTDOWN", .gone),
    ])
    func errors(_ name: String, _ code: StoreError.Code) throws {
        let server = try NBDKit(["--filter=error", "memory", "1M", "error=\(name)", "error-rate=100%"])
        let store = try store(server)
        #expect { try store.bytes(at: 0, count: 10) } throws: { ($0 as? StoreError)?.code == code }
        #expect { try store.write([1], at: 0) } throws: { ($0 as? StoreError)?.code == code }
    }

    @Test func deadServer() throws {
        let server = try NBDKit(["memory", "1M"])
        let store = try store(server)
        try store.write([1], at: 0)
        server.kill()
        for _ in 0..<2 {
            #expect { try store.bytes(at: 0, count: 10) } throws: { ($0 as? StoreError)?.code == .gone }
        }
    }

    @Test func unreachable() throws {
        let absent = NBDStore.Address.unixSocket("/nonexistent/nbd", export: "")
        #expect { try NBDStore(absent) } throws: { ($0 as? AgentError)?.status == .unavailable }
        let server = try NBDKit([
            "--filter=exportname", "memory", "1M", "exportname=here", "exportname-strict=true",
        ])
        _ = try store(server, export: "here")
        #expect { try store(server, export: "there") } throws: {
            ($0 as? AgentError)?.status == .inputMissing
        }
    }
}
