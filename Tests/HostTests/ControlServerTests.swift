import Blocks
import Foundation
import Glibc
import HostControl
import Logging
import Synchronization
import TestSupport
import Testing

@testable import Host

/// A client that speaks bytes.
private final class RawClient: @unchecked Sendable {  // one thread sends and one receives, at most
    private let descriptor: Int32
    private var lines = ControlLines()
    private var ready: [[UInt8]] = []

    init(_ path: String) throws {
        descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: Array(path.utf8)) }
        let code = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        try #require(code == 0)
    }

    deinit { close(descriptor) }

    func endSending() { shutdown(descriptor, Int32(SHUT_WR)) }

    func send(_ bytes: [UInt8]) throws {
        var rest = bytes[...]
        while !rest.isEmpty {
            let sent = rest.withUnsafeBytes {
                Glibc.send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
            }
            try #require(sent > 0)
            rest = rest.dropFirst(sent)
        }
    }

    /// The next line; nil at the end of the stream.
    func receive() throws -> [String: Any]? {
        try receiveLine().flatMap { try JSONSerialization.jsonObject(with: Data($0)) as? [String: Any] }
    }

    func receiveLine() throws -> [UInt8]? {
        while ready.isEmpty {
            var buffer = [UInt8](repeating: 0, count: 4096)
            let count = recv(descriptor, &buffer, buffer.count, 0)
            if count <= 0 { return nil }
            ready += try lines.feed(buffer[..<count])
        }
        return ready.removeFirst()
    }

    /// What comes back for a line, as it stands there.
    func text(_ line: String) throws -> String {
        try send(Array((line + "\n").utf8))
        return String(decoding: try #require(try receiveLine()), as: UTF8.self)
    }

    func ask(_ line: String) throws -> [String: Any] {
        try send(Array((line + "\n").utf8))
        return try #require(try receive())
    }

    func code(_ line: String) throws -> Int? { (try ask(line)["error"] as? [String: Any])?["code"] as? Int }
}

@Suite struct ControlServerTests {
    private func serve(
        onShutdown: @escaping @Sendable () -> Void = {},
        _ body: (String, CopyOnWriteVolume) throws -> Void
    ) async throws {
        try await serve(onShutdown: onShutdown) { path, volume, _ in try body(path, volume) }
    }

    private func serve(
        onShutdown: @escaping @Sendable () -> Void = {},
        _ body: (String, CopyOnWriteVolume, ControlServer) throws -> Void
    ) async throws {
        let directory = FileManager.default.temporaryDirectory.appendingPathComponent(
            "c-\(UUID().uuidString.prefix(8))")
        try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: false)
        defer { try? FileManager.default.removeItem(at: directory) }  // a temporary directory's loss is none
        let path = directory.appendingPathComponent("s").path
        let volume = try CopyOnWriteVolume(
            source: FaultyStore(size: 40_960), cache: FaultyStore(size: 1 << 20), settings: Fixture.settings()
        )
        let server = try await ControlServer.start(
            volume: volume,
            place: HostDescriptor(source: "/s", cache: "/c", uris: ["nbd+unix:///?socket=/n"], socket: "/n"),
            socket: path, logger: Logger(label: "test"), onShutdown: onShutdown)
        do { try body(path, volume, server) } catch {
            try await server.shutdown()
            throw error
        }
        try await server.shutdown()
        #expect(access(path, F_OK) != 0)
    }

    @Test func aWholeEpoch() async throws {
        try await serve { path, volume in
            var status = stat()
            #expect(lstat(path, &status) == 0 && status.st_mode & 0o777 == 0o600)
            let client = try RawClient(path)
            let begun = try client.ask(#"{"jsonrpc":"2.0","id":1,"method":"snapshot.begin","params":{}}"#)
            let epoch = try #require((begun["result"] as? [String: Any])?["uuid"] as? String)
            try volume.write([1], at: 0)
            let other = try RawClient(path)
            #expect(try other.code(#"{"jsonrpc":"2.0","id":1,"method":"snapshot.begin"}"#) == -32001)
            #expect(
                try other.code(#"{"jsonrpc":"2.0","id":1,"method":"host.shutdown","params":{"force":false}}"#)
                    == -32001)
            let ended = try other.ask(
                #"{"jsonrpc":"2.0","id":7,"method":"snapshot.end","params":{"epoch":"\#(epoch)"}}"#)
            #expect(ended["id"] as? Int == 7)
            #expect((ended["result"] as? [String: Any])?["entries"] as? Int == 1)
            let state = try client.ask(#"{"jsonrpc":"2.0","id":2,"method":"volume.status"}"#)
            let found = (state["result"] as? [String: Any])?["epoch"] as? [String: Any]
            #expect(found?["state"] as? String == "ended" && found?["isHeld"] as? Bool == true)
            #expect(
                try client.ask(
                    #"{"jsonrpc":"2.0","id":3,"method":"cache.release","params":{"epoch":"\#(epoch)"}}"#)[
                        "error"] == nil)
        }
    }

    @Test func aGoneConnectionHoldsNothing() async throws {
        try await serve { path, volume in
            do {
                let client = try RawClient(path)
                _ = try client.ask(#"{"jsonrpc":"2.0","id":1,"method":"snapshot.begin"}"#)
                #expect(volume.epochStatus?.isHeld == true)
            }
            while volume.epochStatus?.isHeld == true { sched_yield() }
        }
    }

    @Test func anotherConnectionAdoptsWhatNobodyHolds() async throws {
        try await serve { path, volume in
            let other = try RawClient(path)
            var epoch = ""
            func adopt() -> String {
                #"{"jsonrpc":"2.0","id":1,"method":"snapshot.adopt","params":{"epoch":"\#(epoch)"}}"#
            }
            #expect(try other.code(adopt()) == -32602)
            do {
                let client = try RawClient(path)
                let begun = try client.ask(#"{"jsonrpc":"2.0","id":1,"method":"snapshot.begin"}"#)
                epoch = try #require((begun["result"] as? [String: Any])?["uuid"] as? String)
                #expect(try other.code(adopt()) == -32010)
            }
            while volume.epochStatus?.isHeld == true { sched_yield() }
            let adopted = try other.ask(adopt())["result"] as? [String: Any]
            #expect(adopted?["uuid"] as? String == epoch && adopted?["isHeld"] as? Bool == true)
            #expect(try RawClient(path).code(adopt()) == -32010)
        }
    }

    @Test func whatIsUnderWay() async throws {
        try await serve { path, volume in
            let client = try RawClient(path)
            func line(_ method: String, _ parameters: String) -> String {
                #"{"jsonrpc":"2.0","id":1,"method":"\#(method)","params":{\#(parameters)}}"#
            }
            let begun = try client.ask(#"{"jsonrpc":"2.0","id":1,"method":"snapshot.begin"}"#)
            let epoch = try #require((begun["result"] as? [String: Any])?["uuid"] as? String)
            func passed(_ extents: [String]) -> String {
                line(
                    "snapshot.passed", #""epoch":"\#(epoch)","extents":[\#(extents.joined(separator: ","))]"#)
            }
            let chunk = #"{"offset":4096,"count":4096}"#
            let most = [String](repeating: chunk, count: Limits.extents)
            #expect(try client.code(passed(most)) == nil)
            #expect(try client.code(passed(most + [chunk])) == -32602)
            #expect(try client.code(passed([#"{"offset":40961,"count":0}"#])) == -32602)
            #expect(try client.code(passed([#"{"offset":-1,"count":1}"#])) == -32602)
            #expect(try client.code(passed([#"{"offset":1}"#])) == -32602)
            try volume.write([1], at: 4096)
            #expect(volume.log.head.entries == 0)
            let changes = try client.ask(line("snapshot.changes", #""epoch":"\#(epoch)","from":0"#))
            #expect(((changes["result"] as? [String: Any])?["extents"] as? [Any])?.isEmpty == true)
            #expect(try client.code(line("snapshot.changes", #""epoch":"\#(epoch)","from":40961"#)) == -32602)
            #expect(try client.code(line("snapshot.changes", #""epoch":"\#(UUID())","from":0"#)) == -32003)
            #expect(try client.code(line("cache.grow", #""capacity":4096"#)) == -32602)
            #expect(try client.code(line("cache.grow", #""capacity":1048577"#)) == nil)
            #expect(try client.code(line("cache.grow", #""capacity":1052672"#)) == -32005)
        }
    }

    @Test func aFreezeBelongsToItsConnection() async throws {
        try await serve { path, volume in
            let (owner, other) = (try RawClient(path), try RawClient(path))
            func freeze(_ more: String = "") -> String {
                #"{"jsonrpc":"2.0","id":1,"method":"volume.freeze","params":{"timeout":100\#(more)}}"#
            }
            let begin = #"{"jsonrpc":"2.0","id":2,"method":"snapshot.begin"}"#
            let thaw = #"{"jsonrpc":"2.0","id":3,"method":"volume.thaw"}"#
            #expect(try owner.code(freeze()) == nil)
            for line in [begin, thaw, freeze(), freeze(#","renew":true"#)] {
                #expect(try other.code(line) == -32006)
            }
            #expect(volume.isFrozen && volume.epochStatus == nil)
            #expect(try owner.code(freeze(#","renew":true"#)) == nil)
            #expect(try owner.code(begin) == nil)
            #expect((try owner.ask(thaw)["result"] as? [String: Any])?["wasFrozen"] as? Bool == true)
            #expect((try other.ask(thaw)["result"] as? [String: Any])?["wasFrozen"] as? Bool == false)
        }
    }

    @Test func aFreezeEndsWithItsConnection() async throws {
        try await serve { path, volume in
            let begun = ContinuousClock.now
            do {
                let client = try RawClient(path)
                #expect(
                    try client.code(
                        #"{"jsonrpc":"2.0","id":1,"method":"volume.freeze","params":{"timeout":300}}"#) == nil
                )
                #expect(volume.isFrozen)
            }
            try volume.write([1], at: 0)
            #expect(!volume.isFrozen)
            #expect(begun.duration(to: .now) < .seconds(200), "it may have thawed by itself")
        }
    }

    @Test func wrongLinesGetErrorsAndTheConnectionLives() async throws {
        try await serve { path, _ in
            let client = try RawClient(path)
            #expect(try client.code("nonsense") == -32700)
            #expect(try client.code("\u{1}\u{2}") == -32700)
            #expect(try client.code("[1]") == -32600)
            #expect(try client.code(#"{"id":1}"#) == -32600)
            #expect(try client.code(#"{"jsonrpc":"1.0","id":1,"method":"volume.status"}"#) == -32600)
            #expect(try client.code(#"{"jsonrpc":"2.0","id":1,"method":"no.such"}"#) == -32601)
            #expect(
                try client.code(#"{"jsonrpc":"2.0","id":1,"method":"volume.freeze","params":{}}"#) == -32602)
            #expect(
                try client.code(
                    #"{"jsonrpc":"2.0","id":1,"method":"volume.freeze","params":{"timeout":"x"}}"#) == -32602)
            #expect(
                try client.code(#"{"jsonrpc":"2.0","id":1,"method":"volume.freeze","params":{"timeout":-1}}"#)
                    == -32602)
            #expect(
                try client.code(#"{"jsonrpc":"2.0","id":1,"method":"snapshot.end","params":{"epoch":"x"}}"#)
                    == -32602)
            #expect(
                try client.code(
                    #"{"jsonrpc":"2.0","id":1,"method":"snapshot.end","params":{"epoch":"\#(UUID())"}}"#)
                    == -32003)
            for byte in Array(#"{"jsonrpc":"2.0","id":5,"method":"volume.status"}"#.utf8) + [10] {
                try client.send([byte])
            }
            #expect(try client.receive()?["id"] as? Int == 5)
        }
    }

    @Test func idsAreGivenBackAsTheyCame() async throws {
        try await serve { path, _ in
            let client = try RawClient(path)
            func thaw(_ id: String) -> String { #"{"jsonrpc":"2.0"\#(id),"method":"volume.thaw"}"# }
            func thawed(_ id: String) -> String {
                #"{"id":\#(id),"jsonrpc":"2.0","result":{"wasFrozen":false}}"#
            }
            for id in ["1", "-1", "1.5", "18446744073709551615", #""a-\"1\"""#, #""1""#, "null"] {
                #expect(try client.text(thaw(#","id":\#(id)"#)) == thawed(id))
                #expect(
                    try client.text(#"{"jsonrpc":"2.0","id":\#(id),"method":"x"}"#)
                        == #"{"error":{"code":-32601,"message":"no method x"},"id":\#(id),"jsonrpc":"2.0"}"#)
            }
            // A notification gets no answer: the next one is the next request's.
            try client.send(Array((thaw("") + "\n").utf8))
            #expect(try client.text(thaw(#","id":"after""#)) == thawed(#""after""#))
            let unknown = #","id":null,"jsonrpc":"2.0"}"#
            for (line, code) in [
                ("nonsense", -32700), (#"{"jsonrpc":"2.0","id":1,"#, -32700), ("[]", -32600), ("7", -32600),
                (#"{"jsonrpc":"2.0","method":1}"#, -32600), (thaw(#","id":true"#), -32600),
                (thaw(#","id":{}"#), -32600), (#"{"jsonrpc":"1.0","method":"x"}"#, -32600),
                (thaw(#","id":"\#(String(repeating: "x", count: Limits.idBytes + 1))""#), -32600),
            ] {
                let answer = try client.text(line)
                #expect(
                    answer.hasPrefix(#"{"error":{"code":\#(code),"#) && answer.hasSuffix(unknown), "\(answer)"
                )
            }
            // Wrong, and yet somebody's.
            #expect(try client.text(#"{"jsonrpc":"1.0","id":"a","method":"x"}"#).contains(#""id":"a","#))
            #expect(try client.text(#"{"id":8}"#).contains(#""id":8,"#))
        }
    }

    /// client: sends on and on and reads nothing │ host: stops reading it │ client: reads: gets every answer.
    @Test func aClientThatDoesNotReadIsNotReadEither() async throws {
        try await serve { path, _, server in
            let client = try RawClient(path)
            // Far more bytes, both ways, than all the buffers in between.
            let count = 1500
            let status = #"{"jsonrpc":"2.0","id":1,"method":"volume.status","#
            let line = Array((status + String(repeating: " ", count: 1000) + #""params":{}}"# + "\n").utf8)
            let sender = Worker { for _ in 0..<count { try client.send(line) } }
            while server.connections.atRest == 0, !sender.isDone { sched_yield() }
            #expect(server.connections.atRest == 1 && !sender.isDone)
            // Another is served meanwhile.
            #expect(try RawClient(path).code(#"{"jsonrpc":"2.0","id":1,"method":"volume.thaw"}"#) == nil)
            for _ in 0..<count { try #require(try client.receiveLine() != nil) }
            sender.join()
            #expect(server.connections.atRest == 0)
        }
    }

    @Test func allIsAnsweredBeforeTheConnectionEnds() async throws {
        try await serve { path, _, server in
            let client = try RawClient(path)
            let line = Array((#"{"jsonrpc":"2.0","id":1,"method":"volume.status"}"# + "\n").utf8)
            let count = 1000
            let sender = Worker {
                for _ in 0..<count { try client.send(line) }
                client.endSending()
            }
            while server.connections.atRest == 0, !sender.isDone { sched_yield() }
            for _ in 0..<count { try #require(try client.receiveLine() != nil) }
            #expect(try client.receiveLine() == nil)
            sender.join()
        }
    }

    @Test func anOversizedLineEndsItsConnectionOnly() async throws {
        try await serve { path, _ in
            let client = try RawClient(path)
            try client.send([UInt8](repeating: 32, count: Limits.lineBytes))
            #expect((try client.receive()?["error"] as? [String: Any])?["code"] as? Int == -32000)
            #expect(try client.receive() == nil)
            #expect(
                try RawClient(path).ask(#"{"jsonrpc":"2.0","id":1,"method":"volume.status"}"#)["error"] == nil
            )
        }
    }

    @Test func aDirectoryThatStaysLockedIsAnError() throws {
        let directory = FileManager.default.temporaryDirectory.appendingPathComponent(
            "c-\(UUID().uuidString.prefix(8))")
        try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: false)
        defer { try? FileManager.default.removeItem(at: directory) }  // a temporary directory's loss is none
        let lock = open(directory.path, O_RDONLY | O_CLOEXEC)
        defer { close(lock) }
        #expect(flock(lock, LOCK_EX) == 0)
        #expect(throws: SocketPathError.directoryLocked(directory.path + "/")) {
            try SocketPath.bind(directory.path + "/s", patience: 20_000_000)
        }
        // A server that starts at the same time holds it for a moment only.
        let releasing = Worker { flock(lock, LOCK_UN) }
        close(try SocketPath.bind(directory.path + "/s", patience: 60_000_000_000))
        releasing.join()
    }

    @Test func pathsThatAreTaken() async throws {
        try await serve { path, _ in
            #expect(throws: SocketPathError.inUse(path)) { try SocketPath.bind(path) }
            let file = path + ".file"
            _ = FileManager.default.createFile(atPath: file, contents: Data())
            #expect(throws: SocketPathError.notASocket(file)) { try SocketPath.bind(file) }
            let dead = path + ".dead"
            close(try SocketPath.bind(dead))
            close(try SocketPath.bind(dead))
        }
    }

    @Test func aShutdownEndsTheFreezeOfAnother() async throws {
        try await serve { path, volume in
            let begun = ContinuousClock.now
            let (owner, other) = (try RawClient(path), try RawClient(path))
            let freeze = #"{"jsonrpc":"2.0","id":1,"method":"volume.freeze","params":{"timeout":300}}"#
            let begin = #"{"jsonrpc":"2.0","id":2,"method":"snapshot.begin"}"#
            #expect(try owner.code(freeze) == nil && volume.isFrozen)
            #expect(
                try other.code(#"{"jsonrpc":"2.0","id":1,"method":"host.shutdown","params":{"force":false}}"#)
                    == nil)
            #expect(!volume.isFrozen)
            #expect(begun.duration(to: .now) < .seconds(200), "it may have thawed by itself")
            try volume.write([1], at: 0)
            for client in [owner, other] {
                #expect(try client.code(freeze) == -32009)
                #expect(try client.code(begin) == -32009)
            }
        }
    }

    @Test func shutdownIsAnsweredFirst() async throws {
        let asked = Monitor(false)
        let note: @Sendable () -> Void = { asked.withLockAndNotify { $0 = true } }
        try await serve(onShutdown: note) { path, _ in
            let client = try RawClient(path)
            #expect(
                try client.ask(
                    #"{"jsonrpc":"2.0","id":1,"method":"host.shutdown","params":{"force":false}}"#)["error"]
                    == nil)
            asked.wait { $0 ? () : nil }
        }
    }
}
