import Blocks
import Foundation
import Logging
import TestSupport
import Testing

@testable import Metrics

/// The server against clients that are wrong, slow and many.
@Suite(.serialized) struct MetricsServerTests {
    private static func serve(
        seconds: Int = MetricsLimits.connectionSeconds, _ body: @Sendable (Int) throws -> Void
    ) async throws {
        let server = try await MetricsServer.start(
            host: "127.0.0.1", port: 0, connectionSeconds: seconds,
            logger: Logger(label: "test") { _ in SwiftLogNoOpLogHandler() }
        ) {
            var page = MetricsPage()
            page.gauge("outboard_a", "x", 1)
            return page
        }
        do { try body(server.port) } catch {
            await server.shutdown()
            throw error
        }
        await server.shutdown()
    }

    /// A connection that a test drives byte by byte.
    private final class Client {
        let descriptor: Int32

        init(_ port: Int) throws {
            descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
            var address = sockaddr_in()
            address.sin_family = sa_family_t(AF_INET)
            address.sin_port = in_port_t(port).bigEndian
            address.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
            let code = withUnsafePointer(to: &address) {
                $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
                }
            }
            try #require(code == 0, "cannot connect: \(errno)")
        }

        deinit { close(descriptor) }

        func send(_ text: String) { _ = Glibc.send(descriptor, text, text.utf8.count, Int32(MSG_NOSIGNAL)) }

        /// All up to the end.
        func answer() -> String {
            var bytes: [UInt8] = []
            var buffer = [UInt8](repeating: 0, count: 4096)
            while true {
                let count = read(descriptor, &buffer, buffer.count)
                guard count > 0 else { return String(decoding: bytes, as: UTF8.self) }
                bytes += buffer[..<count]
            }
        }

        static func ask(_ port: Int, _ text: String) throws -> String {
            let client = try Client(port)
            client.send(text)
            return client.answer()
        }
    }

    @Test func onlyMetricsAreAnswered() async throws {
        try await Self.serve { port in
            let good = try Client.ask(port, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            #expect(good.hasPrefix("HTTP/1.1 200 OK\r\n"), "\(good)")
            #expect(good.lowercased().contains("content-type: \(MetricsPage.mediaType)\r\n"), "\(good)")
            let body = good.components(separatedBy: "\r\n\r\n").last ?? ""
            #expect(try Exposition(body).value("outboard_a") == 1)
            for (request, status) in [
                ("GET /metrics?x=y HTTP/1.0\r\n\r\n", "200"), ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", "404"),
                ("GET /metrics/../x HTTP/1.1\r\nHost: x\r\n\r\n", "404"),
                ("POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", "405"),
                ("GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", "400"),
                ("DELETE /metrics HTTP/1.1\r\nHost: x\r\n\r\n", "405"), ("rubbish\r\n\r\n", "400"),
                ("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\nGET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", "200"),
            ] {
                let answer = try Client.ask(port, request)
                #expect(
                    answer.hasPrefix("HTTP/1.") && answer.dropFirst(9).hasPrefix(status),
                    "\(request): \(answer)")
                #expect(answer.components(separatedBy: "HTTP/1.").count == 2, "two answers: \(answer)")
            }
        }
    }

    @Test func aRequestHasALimit() async throws {
        try await Self.serve { port in
            let start = "GET /metrics HTTP/1.1\r\nHost: x\r\nX: "
            let end = "\r\n\r\n"
            for (count, isAnswered) in [
                (MetricsLimits.requestBytes, true), (MetricsLimits.requestBytes + 1, false),
            ] {
                let filler = String(repeating: "a", count: count - start.utf8.count - end.utf8.count)
                let answer = try Client.ask(port, start + filler + end)
                #expect(answer.hasPrefix("HTTP/1.1 200") == isAnswered, "\(count): \(answer)")
            }
        }
    }

    @Test func whoeverIsSlowIsCut() async throws {
        try await Self.serve(seconds: 1) { port in
            let silent = try Client(port)
            let half = try Client(port)
            half.send("GET /metrics HTTP/1.1\r\nHo")
            #expect(silent.answer().isEmpty)
            #expect(half.answer().isEmpty)
            #expect(
                try Client.ask(port, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").hasPrefix("HTTP/1.1 200"))
        }
    }

    @Test func connectionsAreBounded() async throws {
        try await Self.serve { port in
            var held = try (0..<MetricsLimits.connections).map { _ in try Client(port) }
            // The last of them is surely counted when it has been answered.
            for client in held.dropLast() { client.send("GET /metrics HTTP/1.1\r\nHo") }
            let request = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
            #expect(try Client.ask(port, request).isEmpty, "one more is answered")
            held[MetricsLimits.connections - 1].send(request)
            #expect(held[MetricsLimits.connections - 1].answer().hasPrefix("HTTP/1.1 200"))
            held.removeAll()
            // They are gone as soon as the server has seen it.
            var answer = ""
            let deadline = MonotonicClock.now + 30_000_000_000
            while answer.isEmpty, MonotonicClock.now < deadline { answer = try Client.ask(port, request) }
            #expect(answer.hasPrefix("HTTP/1.1 200"))
        }
    }
}
