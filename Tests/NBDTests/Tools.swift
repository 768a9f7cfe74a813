import Blocks
import Foundation
import Logging
import NBD
import TestSupport
import Testing

/// Exports that come and go.
final class TestProvider: NBDExportProvider {
    private let list: Monitor<[NBDExport]>

    init(_ exports: [NBDExport]) { list = Monitor(exports) }

    convenience init(_ store: any BlockStore) {
        self.init([NBDExport(name: "", description: "the volume", store: store)])
    }

    func set(_ exports: [NBDExport]) { list.withLock { $0 = exports } }
    func exports() -> [NBDExport] { list.withLock { $0 } }
    func export(named name: String) -> NBDExport? { exports().first { $0.name == name } }
}

/// A directory that is gone after `body`.
func withTemporaryDirectory<Result>(_ body: (String) async throws -> Result) async throws -> Result {
    var template = Array((NSTemporaryDirectory() + "/nbd-XXXXXX").utf8CString)
    guard mkdtemp(&template) != nil else { throw CocoaError(.fileWriteUnknown) }
    let path = template.withUnsafeBufferPointer { String(cString: $0.baseAddress!) }
    defer { try? FileManager.default.removeItem(atPath: path) }
    return try await body(path)
}

/// A running server on `socket` in a temporary directory, shut down afterwards.
func withServer<Result>(
    _ provider: TestProvider, tcp: Bool = false, tls: NBDTLSConfiguration? = nil,
    _ body: (NBDServer, _ socket: String) async throws -> Result
) async throws -> Result {
    try await withTemporaryDirectory { directory in
        let socket = directory + "/s"
        let server = try await NBDServer.start(
            provider: provider, unixSocket: socket, tcp: tcp ? (host: "127.0.0.1", port: 0) : nil, tls: tls,
            logger: Logger(label: "nbd", factory: { _ in SwiftLogNoOpLogHandler() }))
        do {
            let result = try await body(server, socket)
            await server.shutdown()
            return result
        } catch {
            await server.shutdown()
            throw error
        }
    }
}

/// Bytes that do not repeat and depend on `seed` alone.
func pattern(_ count: Int, seed: UInt64) -> [UInt8] {
    var state = seed &* 0x9E37_79B9_7F4A_7C15 | 1
    var words = [UInt64](repeating: 0, count: (count + 7) / 8)
    for i in words.indices {
        state ^= state << 13
        state ^= state >> 7
        state ^= state << 17
        words[i] = state &* 0x2545_F491_4F6C_DD1D
    }
    return words.withUnsafeBytes { Array($0.prefix(count)) }
}

/// What a test in a process of its own has said; printed here, too.
@discardableResult func printOutput(of result: ExitTest.Result?) -> String {
    let output = String(decoding: result?.standardOutputContent ?? [], as: UTF8.self)
    print(output)
    return output
}
