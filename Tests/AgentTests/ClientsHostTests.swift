import Blocks
import Foundation
import Glibc
import HostControl
import TestSupport
import Testing

@testable import Agent

/// A unix socket whose connections are served by a closure, one thread each.
final class UnixServer: Sendable {
    let path: String
    private let directory: String

    init(_ serve: @escaping @Sendable (Int32) -> Void) throws {
        directory = NSTemporaryDirectory() + "outboard-" + UUID().uuidString
        try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: false)
        let path = directory + "/control"
        self.path = path
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: Array(path.utf8)) }
        let listener = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        let bound = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(listener, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        guard bound == 0, listen(listener, 16) == 0 else { throw POSIXError(.EIO) }
        BlockingThread.start {
            while true {
                let connection = acceptConnection(listener)
                guard connection >= 0 else { return }
                BlockingThread.start {
                    serve(connection)
                    close(connection)
                }
            }
        }
    }

    deinit {
        // The socket and its thread stay until the process ends: the connection need not be accepted yet; and a
        // descriptor closed under the thread may be another test's next. Of the directory only litter would remain.
        try? FileManager.default.removeItem(atPath: directory)
    }

    /// Connected while the path leads here, also where this is the last that is asked of the server.
    func client() throws -> HostClient { try withExtendedLifetime(self) { try HostClient(path: path) } }

    static func readLine(_ descriptor: Int32) -> String? {
        var line: [UInt8] = []
        var byte: UInt8 = 0
        while recv(descriptor, &byte, 1, 0) == 1 {
            if byte == UInt8(ascii: "\n") { return String(decoding: line, as: UTF8.self) }
            line.append(byte)
        }
        return nil
    }

    static func send(_ descriptor: Int32, _ text: String) {
        let bytes = Array(text.utf8)
        var sent = 0
        while sent < bytes.count {
            let count = bytes.withUnsafeBytes {
                Glibc.send(descriptor, $0.baseAddress! + sent, bytes.count - sent, Int32(MSG_NOSIGNAL))
            }
            guard count > 0 else { return }
            sent += count
        }
    }

    /// Answers each request with what the closure makes of its head.
    static func answering(
        _ answer: @escaping @Sendable (ControlRequestHead) -> String
    ) -> @Sendable (Int32) -> Void {
        { connection in
            while let line = readLine(connection),
                let head = try? JSONDecoder().decode(ControlRequestHead.self, from: Data(line.utf8))
            {
                send(connection, answer(head) + "\n")
            }
        }
    }
}

/// The request's id, which is a number with our client.
private func number(_ head: ControlRequestHead) -> Int64 {
    guard case .integer(let number)? = head.id else { return -1 }
    return number
}

@Suite struct HostClientTests {
    private func failure(_ body: () throws(AgentError) -> Void) -> AgentError? {
        do throws(AgentError) {
            try body()
            return nil
        } catch { return error }
    }

    @Test func callsAreAnswered() throws {
        let server = try UnixServer(
            UnixServer.answering { head in
                switch head.method {
                case "volume.thaw": #"{"jsonrpc":"2.0","id":\#(number(head)),"result":{"wasFrozen":true}}"#
                default: #"{"jsonrpc":"2.0","id":\#(number(head)),"result":{}}"#
                }
            })
        let client = try server.client()
        #expect(try client.call(VolumeThawMethod.self, Empty()).wasFrozen)
        _ = try client.call(VolumeFreezeMethod.self, .init(timeout: 3))
        #expect(try client.call(VolumeThawMethod.self, Empty()).wasFrozen)
    }

    @Test func threadsTakeTurns() throws {
        // The server answers with the request's number in a marker: a mixed-up answer would show.
        let server = try UnixServer(
            UnixServer.answering { head in
                #"{"jsonrpc":"2.0","id":\#(number(head)),"result":"#
                    + #"{"position":\#(number(head) * 4096),"sequence":1,"entries":2}}"#
            })
        let client = try server.client()
        let results = Monitor<[UInt64]>([])
        for _ in 0..<4 {
            BlockingThread.start {
                for _ in 0..<25 {
                    let marker = try? client.call(SnapshotMarkMethod.self, .init(epoch: "e"))
                    results.withLockAndNotify { $0.append(marker?.position ?? 0) }
                }
            }
        }
        let positions = results.wait { $0.count == 100 ? $0 : nil }
        #expect(Set(positions) == Set((1...100).map { UInt64($0) * 4096 }))
    }

    @Test(arguments: [
        (ControlError.Code.epochVoid, AgentError.ExitStatus.tryAgain), (.epochOpen, .tryAgain),
        (.cacheRetained, .tryAgain), (.noSuchEpoch, .tryAgain), (.io, .io), (.notPermitted, .notPermitted),
        (.timedOut, .tryAgain), (.ending, .unavailable), (.methodNotFound, .software),
    ])
    func refusalsKeepTheirMeaning(_ code: ControlError.Code, _ status: AgentError.ExitStatus) throws {
        let server = try UnixServer(
            UnixServer.answering { head in
                #"{"jsonrpc":"2.0","id":\#(number(head)),"error":{"code":\#(code.rawValue),"message":"so it is"}}"#
            })
        let client = try server.client()
        for _ in 0..<2 {
            let error = try #require(
                failure { () throws(AgentError) in
                    _ = try client.call(SnapshotBeginMethod.self, Empty())
                })
            #expect(error.status == status)
            #expect(error.cause == .control(code))
            #expect(error.description.contains("so it is") && error.description.contains(server.path))
        }
    }

    /// What `volume.status` says, some members changed.
    private static func status(_ changed: [String: String]) -> String {
        var members = [
            "volumeUUID": "\"\(UUID().uuidString)\"", "source": "\"/s\"", "cache": "\"/c\"",
            "size": "1048576", "chunkSize": "65536", "durability": "\"process\"",
            "onCacheFull": "\"abandon\"", "isFrozen": "false", "uris": "[]", "socket": "\"/n\"",
            "cacheCapacity": "1048576", "cacheUsed": "8192", "latencies": "{}",
            "counters": #"""
            {"reads":0,"readBytes":0,"writes":0,"writtenBytes":0,"zeroes":0,"trims":0,"trimsIgnored":0,"flushes":0,
            "chunksPreserved":0,"zeroChunks":0,"batches":0}
            """#.replacing("\n", with: ""),
        ]
        members.merge(changed) { $1 }
        return "{" + members.map { "\"\($0)\":\($1)" }.joined(separator: ",") + "}"
    }

    @Test(
        "Numbers of a host that cannot be are refused before anybody reckons with them",
        arguments: [
            [:], ["size": "0"], ["size": "18446744073709551615"], ["chunkSize": "1000"], ["chunkSize": "0"],
            ["cacheCapacity": "18446744073709551615"], ["cacheUsed": "1048577"], ["volumeUUID": "\"x\""],
            ["source": "\"relative\""],
            [
                "epoch": #"""
                {"number":1,"uuid":"no","state":"open","institutedAt":0,"gateNanoseconds":0,"isHeld":true}
                """#
            ],
        ] as [[String: String]])
    func impossibleStatus(_ changed: [String: String]) throws {
        let server = try UnixServer(
            UnixServer.answering {
                #"{"jsonrpc":"2.0","id":\#(number($0)),"result":\#(Self.status(changed))}"#
            })
        let client = try server.client()
        let error = failure { () throws(AgentError) in
            _ = try client.call(VolumeStatusMethod.self, Empty())
        }
        #expect(error?.status == (changed.isEmpty ? nil : .unavailable))
        if !changed.isEmpty { #expect(error?.reason.hasPrefix("its ") == true) }
    }

    @Test(arguments: [0, 4095, 18_446_744_073_709_547_520] as [UInt64])
    func impossibleMarker(_ position: UInt64) throws {
        let server = try UnixServer(
            UnixServer.answering {
                #"{"id":\#(number($0)),"result":{"position":\#(position),"sequence":1,"entries":2}}"#
            })
        let client = try server.client()
        let error = failure { () throws(AgentError) in
            _ = try client.call(SnapshotEndMethod.self, .init(epoch: "e"))
        }
        #expect(error?.status == .unavailable)
    }

    @Test func unknownRefusalIsTold() throws {
        let server = try UnixServer(
            UnixServer.answering { #"{"id":\#(number($0)),"error":{"code":-31000,"message":"of tomorrow"}}"# }
        )
        let client = try server.client()
        let error = failure { () throws(AgentError) in _ = try client.call(VolumeThawMethod.self, Empty()) }
        #expect(error?.status == .software && error?.reason == "of tomorrow")
    }

    @Test func absentAndForeignSockets() throws {
        let missing = failure { () throws(AgentError) in _ = try HostClient(path: "/nonexistent/control") }
        #expect(missing?.status == .unavailable && missing?.advice != nil)
        let long = failure { () throws(AgentError) in
            _ = try HostClient(path: String(repeating: "x", count: 108))
        }
        #expect(long?.status == .usage)
        // A socket that nobody serves any more.
        let server = try UnixServer { _ in }
        let stale = server.path + ".stale"
        let descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: Array(stale.utf8)) }
        let bound = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        close(descriptor)
        #expect(bound == 0)
        let refused = failure { () throws(AgentError) in _ = try HostClient(path: stale) }
        #expect(refused?.status == .unavailable && refused?.reason == "nobody serves the socket")
        withExtendedLifetime(server) {}
    }

    /// Closed twice, its descriptor would the second time be another thread's.
    @Test func aFailedConnectionIsClosedOnce() async {
        await #expect(processExitsWith: .success) {
            precondition(
                !closesOthersDescriptors(times: 20_000) {
                    _ = try? LineSocket(path: "/nonexistent/control", lineLimit: 100)
                })
        }
    }

    @Test(arguments: ["nonsense\n", "{}\n", #"{"id":77,"result":{"wasFrozen":true}}"# + "\n", ""])
    func foreignAnswersEndTheConnection(_ answer: String) throws {
        let server = try UnixServer { connection in
            _ = UnixServer.readLine(connection)
            UnixServer.send(connection, answer)
        }
        let client = try server.client()
        for _ in 0..<2 {
            let error = failure { () throws(AgentError) in
                _ = try client.call(VolumeThawMethod.self, Empty())
            }
            #expect(error?.status == .unavailable, "\(answer)")
        }
    }

    @Test func oversizedLine() throws {
        let server = try UnixServer { connection in
            _ = UnixServer.readLine(connection)
            UnixServer.send(connection, String(repeating: "x", count: HostControl.Limits.lineBytes))
            _ = UnixServer.readLine(connection)
        }
        let client = try server.client()
        let error = failure { () throws(AgentError) in _ = try client.call(VolumeThawMethod.self, Empty()) }
        #expect(error?.status == .unavailable && error?.reason.contains("longer") == true)
    }

    @Test func silence() throws {
        // Answers the first call when the second comes, which must not become the second's answer: the
        // connection is over by then.
        let server = try UnixServer { connection in
            _ = UnixServer.readLine(connection)
            if UnixServer.readLine(connection) != nil {
                UnixServer.send(connection, #"{"id":1,"result":{"wasFrozen":true}}"# + "\n")
            }
        }
        let client = try server.client()
        let error = failure { () throws(AgentError) in
            _ = try client.call(VolumeThawMethod.self, Empty(), timeout: 0.05)
        }
        #expect(error?.status == .unavailable && error?.cause == .timedOut)
        let next = failure { () throws(AgentError) in _ = try client.call(VolumeThawMethod.self, Empty()) }
        #expect(next?.cause == .timedOut)
    }

    @Test func closingIsSeenByTheHost() throws {
        let ended = Monitor(false)
        let server = try UnixServer { connection in
            while UnixServer.readLine(connection) != nil {}
            ended.withLockAndNotify { $0 = true }
        }
        let client = try server.client()
        client.close()
        #expect(ended.wait { $0 ? true : nil })
        let error = failure { () throws(AgentError) in _ = try client.call(VolumeThawMethod.self, Empty()) }
        #expect(error?.cause == .disconnected)
    }
}
