import Blocks
import Foundation
import Logging
import NBD
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

struct ToolResult {
    var status: Int32
    var output: String
    var errors: String
}

/// Runs a program to its end and gives what it printed.
func run(_ program: String, _ arguments: [String]) async throws -> ToolResult {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
    process.arguments = ["timeout", "120", program] + arguments
    let output = Pipe()
    let errors = Pipe()
    process.standardOutput = output
    process.standardError = errors
    process.standardInput = FileHandle.nullDevice
    return try await withCheckedThrowingContinuation { continuation in
        BlockingThread.start {
            // Children inherit the mask, and those of the runtime's threads keep SIGTERM from ever arriving.
            var none = sigset_t()
            sigemptyset(&none)
            pthread_sigmask(SIG_SETMASK, &none, nil)
            do { try process.run() } catch { return continuation.resume(throwing: error) }
            let texts = Monitor<[Int: String]>([:])
            for (index, pipe) in [output, errors].enumerated() {
                BlockingThread.start {
                    let data = pipe.fileHandleForReading.readDataToEndOfFile()
                    texts.withLockAndNotify { $0[index] = String(decoding: data, as: UTF8.self) }
                }
            }
            let all = texts.wait { $0.count == 2 ? $0 : nil }
            process.waitUntilExit()
            continuation.resume(
                returning: ToolResult(status: process.terminationStatus, output: all[0]!, errors: all[1]!))
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
