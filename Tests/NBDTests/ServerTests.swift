import Blocks
import Foundation
import Glibc
import Logging
import TestSupport
import Testing

@testable import NBD

/// The server in this process against a client that can be as rude as it likes.
@Suite(.serialized) struct ServerTests {
    private let mebibyte = 1 << 20

    private func connect(_ socket: String, structured: Bool = true) throws -> RawNBDClient {
        let client = try RawNBDClient(socket)
        try client.negotiate(structured: structured)
        return client
    }

    @Test(arguments: [false, true]) func everyCommandAndEveryErrorOfTheStore(structured: Bool) async throws {
        let extents = [
            AllocationExtent(count: 512, isHole: false, readsAsZeros: false),
            AllocationExtent(count: 512, isHole: true, readsAsZeros: true),
        ]
        let memory = MemoryStore(pattern(1 << 20, seed: 5))
        let store = GateStore(memory, extents: extents)
        try await withServer(TestProvider(store)) { [self] _, socket in
            try await onThread {
                let client = try connect(socket, structured: structured)
                let expected = try memory.bytes(at: 100, count: 7)
                try client.send(request(0, cookie: 7, offset: 100, length: 7))
                let read = try client.reply(reading: 7)
                #expect(read?.cookie == 7 && read?.chunk == (structured ? 1 : nil))
                #expect(read?.data == (structured ? bytes { $0.integer(UInt64(100)) } : []) + expected)

                try client.send(request(1, flags: 1, cookie: 8, offset: 3, length: 4) + [9, 8, 7, 6])
                #expect(try client.reply() == RawNBDClient.Reply(cookie: 8))
                #expect(try memory.bytes(at: 3, count: 4) == [9, 8, 7, 6])
                #expect(store.state.withLock { $0.durable } == 1)
                try client.send(request(6, flags: 1 | 2 | 16, cookie: 9, offset: 3, length: 2))
                #expect(try client.reply() == RawNBDClient.Reply(cookie: 9))
                #expect(store.state.withLock { $0.lastZero } == [.durable, .keepAllocated, .onlyIfFast])
                for type in [UInt16(3), 4, 5] {
                    try client.send(request(type, cookie: 10, length: type == 3 ? 0 : 4))
                    #expect(try client.reply() == RawNBDClient.Reply(cookie: 10))
                }
                #expect(store.state.withLock { $0.flushes } == 1)
                try client.send(request(7, cookie: 11, length: 1024))
                let status = try client.reply()
                if structured {
                    #expect(status?.chunk == 5)
                    #expect(status?.data == [0, 0, 0, 1, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 3])
                    try client.send(request(7, flags: 8, cookie: 11, length: 1024))
                    #expect(try client.reply()?.data == [0, 0, 0, 1, 0, 0, 2, 0, 0, 0, 0, 0])
                } else {
                    #expect(status?.error == 22)
                }

                for (code, error) in [
                    (StoreError.Code.io, UInt32(5)), (.noSpace, 28), (.readOnly, 1), (.notSupported, 22),
                    (.gone, 108), (.corrupt, 5),
                ] {
                    store.fail(code)
                    for type in [UInt16(0), 1, 3, 4, 5, 6] + (structured ? [7] : []) {
                        let payload: [UInt8] = type == 1 ? [1, 2, 3, 4] : []
                        try client.send(request(type, cookie: 12, length: type == 3 ? 0 : 4) + payload)
                        let reply = try client.reply()
                        #expect(reply?.error == error && reply?.cookie == 12)
                        #expect(reply?.chunk == (structured && (type == 0 || type == 7) ? 0x8001 : nil))
                    }
                }
                store.fail(.notSupported)
                try client.send(request(6, flags: 16, length: 4))
                #expect(try client.reply()?.error == 95)
                store.fail(nil)
                // The payload of a refused WRITE is no request.
                try client.send(request(1, cookie: 13, offset: 1 << 20, length: 56) + request(0) + request(0))
                #expect(try client.reply() == RawNBDClient.Reply(cookie: 13, error: 28))
                try client.send(request(2))
                #expect(try client.reply() == nil)
            }
        }
    }

    @Test func slowStoreGetsSixtyFourAtOnceAndNoMore() async throws {
        let store = GateStore(MemoryStore(size: mebibyte))
        store.setOpen(false)
        try await withServer(TestProvider(store)) { [self] server, socket in
            try await onThread {
                let client = try connect(socket)
                let limit = NBDLimits.requestsInFlight
                let count = limit + 36
                for i in 0..<count {
                    try client.send(request(1, cookie: UInt64(i), offset: UInt64(i) * 512, length: 512))
                    try client.send([UInt8](repeating: UInt8(i + 1), count: 512))
                }
                store.waitUntil { $0.running == limit }
                // Another client is served as if nothing were.
                let other = try connect(socket)
                try other.send(request(0, cookie: 1, offset: 1 << 20, length: 1))
                #expect(try other.reply()?.error == 22)
                store.setOpen(true)
                var cookies: Set<UInt64> = []
                for _ in 0..<count { if let reply = try client.reply() { cookies.insert(reply.cookie) } }
                #expect(cookies.count == count)
                #expect(store.state.withLock { $0.mostRunning } == limit)
                // A thread that has given its reply away, and is not back yet, comes on top.
                #expect(server.load.workers <= 2 * limit)
            }
        }
        for i in 0..<UInt64(100) {
            let written = try store.bytes(at: i * 512, count: 1)
            #expect(written == [UInt8(i + 1)])
        }
    }

    @Test func bytesInFlightAreBounded() async throws {
        let store = GateStore(ZeroStore(size: 1 << 40))
        store.setOpen(false)
        let large = NBDLimits.maximumPayload
        try await withServer(TestProvider(store)) { [self] _, socket in
            try await onThread {
                let client = try connect(socket)
                for i in 0..<UInt64(5) {
                    try client.send(request(0, cookie: i, offset: i << 30, length: large))
                }
                store.waitUntil { $0.running == 2 }
                store.setOpen(true)
                for _ in 0..<5 { #expect(try client.reply()?.data.count == Int(large) + 8) }
                #expect(store.state.withLock { $0.mostRunning } == 2)
            }
        }
    }

    @Test func clientThatDoesNotReadIsHeldBack() async throws {
        let store = GateStore(ZeroStore(size: 1 << 40))
        try await withServer(TestProvider(store)) { [self] _, socket in
            try await onThread {
                let client = try connect(socket)
                let length: UInt32 = 64 << 10
                let block = (0..<1000).flatMap { request(0, cookie: $0, length: length) }
                var sent = 0
                // As much as is taken within a time in which a server that took all would take gigabytes.
                var ready = pollfd(fd: client.descriptor, events: Int16(POLLOUT), revents: 0)
                while sent < 200 * block.count, poll(&ready, 1, 500) == 1 {
                    let count = block.withUnsafeBytes {
                        let rest = UnsafeRawBufferPointer(rebasing: $0[(sent % $0.count)...])
                        return Glibc.send(
                            client.descriptor, rest.baseAddress!, rest.count, Int32(MSG_DONTWAIT))
                    }
                    if count > 0 { sent += count }
                }
                #expect(sent < 200 * block.count, "everything was taken")
                let executed = store.state.withLock { $0.finished }
                #expect(executed * Int(length) < NBDLimits.bytesInFlight + 32 << 20)
                let other = try connect(socket)
                try other.send(request(0, cookie: 5, length: 1))
                #expect(try other.reply()?.cookie == 5)
                // When it reads again all goes on.
                for i in 0..<sent / 28 {
                    let reply = try client.reply()
                    guard reply?.data.count == Int(length) + 8 else {
                        Issue.record("reply \(i) is missing")
                        break
                    }
                }
            }
        }
    }

    @Test func halfAWriteIsNotDoneAndAWholeOneIs() async throws {
        let store = MemoryStore(size: mebibyte)
        try await withServer(TestProvider(store)) { [self] server, socket in
            for length in [4096, 300_000] {
                try await onThread {
                    let client = try connect(socket)
                    let payload = [UInt8](repeating: 1, count: length)
                    try client.send(request(1, offset: 0, length: UInt32(length)) + payload)
                    try client.send(request(1, offset: 400_000, length: UInt32(length)) + payload.dropLast())
                    client.close()
                    server.registry.waitUntilEmpty()
                }
                let whole = try store.bytes(at: 0, count: length)
                let half = try store.bytes(at: 400_000, count: length)
                #expect(whole.allSatisfy { $0 == 1 } && half.allSatisfy { $0 == 0 })
            }
        }
    }

    @Test func repliesComeBeforeTheGoodbye() async throws {
        let store = GateStore(MemoryStore(size: mebibyte))
        store.setOpen(false)
        try await withServer(TestProvider(store)) { [self] _, socket in
            try await onThread {
                let client = try connect(socket)
                for i in 0..<UInt64(10) { try client.send(request(0, cookie: i, length: 100_000)) }
                try client.send(request(2) + request(0, cookie: 99, length: 1))
                store.waitUntil { $0.running == 10 }
                store.setOpen(true)
                for _ in 0..<10 { #expect(try client.reply()?.data.count == 100_008) }
                #expect(try client.reply() == nil)
            }
        }
    }

    @Test func garbageEndsItsConnectionOnly() async throws {
        try await withServer(TestProvider(MemoryStore(size: mebibyte))) { [self] _, socket in
            try await onThread {
                let good = try connect(socket)
                for seed in 1..<UInt64(20) {
                    let client = seed % 2 == 0 ? try connect(socket) : try RawNBDClient(socket)
                    try? client.send(pattern(5000, seed: seed))
                    // A reset is as good as an end.
                    while let more = try? client.receive(1), !more.isEmpty {}
                }
                try good.send(request(0, length: 4))
                #expect(try good.reply()?.chunk == 1)
            }
        }
    }

    @Test func connectionsAreBounded() async throws {
        try await withServer(TestProvider(MemoryStore(size: mebibyte))) { server, socket in
            try await onThread {
                let clients = try (0..<NBDLimits.maximumConnections).map { _ in
                    let client = try RawNBDClient(socket)
                    try client.negotiate()
                    return client
                }
                let more = try RawNBDClient(socket)
                #expect((try? more.receive(1)).flatMap { $0 } == nil)
                for client in clients { client.close() }
                server.registry.waitUntilEmpty()
                try RawNBDClient(socket).negotiate()
            }
        }
    }

    @Test func shutdownLetsRunningRequestsFinish() async throws {
        let memory = MemoryStore(size: mebibyte)
        let store = GateStore(memory)
        store.setOpen(false)
        try await withServer(TestProvider(store)) { [self] server, socket in
            let client = try await onThread { [self] in
                let client = try connect(socket)
                try client.send(request(1, cookie: 1, length: 4) + [1, 2, 3, 4])
                store.waitUntil { $0.running == 1 }
                return client
            }
            async let end: Void = server.shutdown()
            try await onThread {
                while let late = try? RawNBDClient(socket) {
                    // What was accepted on the way is closed, not served.
                    _ = try? late.negotiate()
                }
                #expect(access(socket, F_OK) != 0)
                store.setOpen(true)
                let reply = try client.reply()
                #expect(reply == RawNBDClient.Reply(cookie: 1))
                #expect(try client.reply() == nil)
            }
            await end
            #expect(server.load.connections == 0 && server.load.workers == 0)
            let written = try memory.bytes(at: 0, count: 4)
            #expect(written == [1, 2, 3, 4])
        }
    }

    private func start(_ socket: String?, tcp: (String, Int)? = nil) async throws -> NBDServer {
        try await NBDServer.start(
            provider: TestProvider(MemoryStore(size: 4096)), unixSocket: socket, tcp: tcp, tls: nil,
            logger: Logger(label: "nbd", factory: { _ in SwiftLogNoOpLogHandler() }))
    }

    @Test func socketFiles() async throws {
        try await withTemporaryDirectory { directory in
            let path = directory + "/s"
            let first = try await start(path)
            var status = stat()
            #expect(lstat(path, &status) == 0 && status.st_mode == S_IFSOCK | 0o600)
            await #expect(throws: NBDServerError.socketInUse(path)) { try await start(path) }
            try RawNBDClient(path).negotiate()
            await first.shutdown()
            #expect(access(path, F_OK) != 0)

            // What a killed server leaves: a file that nobody listens at.
            let (_, descriptor) = try UnixSocket.listen(at: path)
            close(descriptor)
            #expect(access(path, F_OK) == 0)
            let second = try await start(path)
            try RawNBDClient(path).negotiate()
            // A file that has taken its place in the meantime is somebody else's.
            unlink(path)
            try Data("mine".utf8).write(to: URL(fileURLWithPath: path))
            await second.shutdown()
            #expect(access(path, F_OK) == 0)

            await #expect(throws: NBDServerError.notASocket(path)) { try await start(path) }
            let content = try String(contentsOfFile: path, encoding: .utf8)
            #expect(content == "mine")
            let long = directory + "/" + String(repeating: "x", count: 108 - directory.utf8.count)
            await #expect(throws: NBDServerError.pathTooLong(long)) { try await start(long) }
            await #expect(throws: NBDServerError.nothingToListenOn) { try await start(nil) }
            await #expect(throws: NBDServerError.tlsRequired) { try await start(nil, tcp: ("127.0.0.1", 0)) }
        }
    }

    @Test func aDirectoryThatStaysLockedIsAnError() async throws {
        try await withTemporaryDirectory { directory in
            let lock = open(directory, O_RDONLY | O_CLOEXEC)
            defer { close(lock) }
            #expect(flock(lock, LOCK_EX) == 0)
            #expect(throws: NBDServerError.directoryLocked(directory + "/")) {
                try UnixSocket.listen(at: directory + "/s", patience: 20_000_000)
            }
            #expect(flock(lock, LOCK_UN) == 0)
            close(try UnixSocket.listen(at: directory + "/s", patience: 0).descriptor)
        }
    }
}
