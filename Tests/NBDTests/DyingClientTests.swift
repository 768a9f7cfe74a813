import Blocks
import Foundation
import Glibc
import TestSupport
import Testing

@testable import NBD

/// What this process holds.
private struct Holdings {
    var descriptors = 0
    var threads = 0
    /// Bytes.
    var resident = 0

    init() throws {
        descriptors = try FileManager.default.contentsOfDirectory(atPath: "/proc/self/fd").count
        let status = try String(contentsOfFile: "/proc/self/status", encoding: .utf8)
        func number(_ name: String) -> Int {
            let line = status.split(separator: "\n").first { $0.hasPrefix(name) } ?? ""
            return Int(line.split(whereSeparator: { !$0.isNumber }).first ?? "") ?? 0
        }
        threads = number("Threads:")
        resident = number("VmRSS:") << 10
    }
}

@Suite struct DyingClientTests {
    /// In a process of its own, where descriptors, threads and memory are the server's alone.
    @Test func twoHundredClientsDieWithSixtyFourWritesInFlight() async {
        let result = await #expect(
            processExitsWith: .success, observing: [\.standardOutputContent, \.standardErrorContent]
        ) {
            let store = GateStore(MemoryStore(size: 4 << 20))
            try await withServer(TestProvider(store)) { server, socket in
                try await onThread {
                    let payload = [UInt8](repeating: 7, count: 8192)
                    let writes = (0..<65).flatMap {
                        request(1, cookie: $0, offset: $0 * 8192, length: 8192) + payload
                    }
                    var before: Holdings?
                    for round in 0..<200 {
                        store.setOpen(false)
                        let finished = store.state.withLock { $0.finished }
                        let client = try RawNBDClient(socket)
                        try client.negotiate()
                        // The last one comes in half; every other client dies with a reset.
                        try client.send(writes.dropLast(round % 3 == 0 ? 100 : 0))
                        store.waitUntil { $0.running == 64 }
                        if round % 2 == 0 {
                            var now = linger(l_onoff: 1, l_linger: 0)
                            setsockopt(
                                client.descriptor, SOL_SOCKET, SO_LINGER, &now,
                                socklen_t(MemoryLayout<linger>.size))
                        }
                        client.close()
                        store.setOpen(true)
                        // All that were received whole and begun are done, and the connection is gone.
                        store.waitUntil { $0.finished >= finished + 64 }
                        server.registry.waitUntilEmpty()
                        if round == 49 { before = try Holdings() }
                    }
                    let after = try Holdings()
                    print("after 50 clients: \(before!), after 200: \(after)")
                    // One thing for each client would be 150 of them.
                    if after.descriptors > before!.descriptors + 8 { print("FAILED: descriptors leak") }
                    if after.threads > before!.threads + 16 { print("FAILED: threads leak") }
                    if after.resident > before!.resident + 32 << 20 { print("FAILED: memory leaks") }
                    if server.load.workers > 2 * NBDLimits.requestsInFlight { print("FAILED: workers leak") }
                    let client = try RawNBDClient(socket)
                    try client.negotiate()
                    try client.send(request(0, cookie: 5, offset: 63 * 8192, length: 8192))
                    let reply = try client.reply()
                    if reply?.data.suffix(8192) != payload[...] { print("FAILED: it does not serve on") }
                    print("served on")
                }
            }
        }
        let output = printOutput(of: result)
        #expect(output.contains("served on") && !output.contains("FAILED"))
    }
}
