import Blocks
import Foundation
import HostControl
import TestSupport

/// The tier that runs, from `scripts/test --tier`; without it, the quick one.
enum Tier {
    static let current = ProcessInfo.processInfo.environment["OUTBOARD_TIER"] ?? "quick"
    static var isFull: Bool { current != "quick" }
    static var isHost: Bool { current == "host" }
}

/// A directory that goes with the object.
final class ScratchDirectory: Sendable {
    let path: String

    init() {
        var template = Array("/var/tmp/outboard-test.XXXXXX".utf8CString)
        guard let made = mkdtemp(&template) else { fatalError("no temporary directory: errno \(errno)") }
        path = String(cString: made)
    }

    deinit { try? FileManager.default.removeItem(atPath: path) }  // best effort: it is /var/tmp

    func file(_ name: String) -> String { path + "/" + name }

    /// A file of `size` zeros (a hole).
    func makeFile(_ name: String, size: UInt64) throws -> String {
        let place = file(name)
        guard FileManager.default.createFile(atPath: place, contents: nil),
            truncate(place, off_t(size)) == 0
        else { throw TestFailure("cannot make \(place)") }
        return place
    }
}

struct TestFailure: Error, CustomStringConvertible {
    let description: String
    init(_ description: String) { self.description = description }
}

/// How a program ended and what it said.
struct Finished: Sendable {
    let status: Int32
    let output: String
    let errors: String
}

/// A running program whose output is gathered.
final class RunningProgram: @unchecked Sendable {  // Process is used by one thread at a time
    private let process = Process()
    private let output = Pipe()
    private let errors = Pipe()
    private let texts = Monitor((output: Data(), errors: Data(), open: 2))

    init(_ program: String, _ arguments: [String], environment: [String: String] = [:]) throws {
        process.executableURL = URL(fileURLWithPath: program)
        process.arguments = arguments
        process.environment = ProcessInfo.processInfo.environment
            .merging(["SWIFT_BACKTRACE": "enable=no"]) { $1 }.merging(environment) { $1 }
        process.standardInput = FileHandle.nullDevice
        process.standardOutput = output
        process.standardError = errors
        try process.run()
        gather(output) { $0.output.append($1) }
        gather(errors) { $0.errors.append($1) }
    }

    private func gather(
        _ pipe: Pipe,
        into append: @escaping @Sendable (inout (output: Data, errors: Data, open: Int), Data) -> Void
    ) {
        let handle = pipe.fileHandleForReading
        let texts = texts
        BlockingThread.start {
            while true {
                let data = handle.availableData
                texts.withLockAndNotify {
                    if data.isEmpty { $0.open -= 1 } else { append(&$0, data) }
                }
                if data.isEmpty { return }
            }
        }
    }

    var pid: Int32 { process.processIdentifier }
    var isRunning: Bool { process.isRunning }

    /// What it has written to standard error so far.
    var errorText: String { texts.withLock { String(decoding: $0.errors, as: UTF8.self) } }

    func signal(_ number: Int32) { kill(pid, number) }

    /// Waits for a line of standard output that starts with `prefix`; nil when the program ends without.
    func line(startingWith prefix: String) -> String? {
        texts.wait { texts -> String?? in
            let lines = String(decoding: texts.output, as: UTF8.self).split(
                separator: "\n", omittingEmptySubsequences: false
            ).dropLast()
            if let line = lines.first(where: { $0.hasPrefix(prefix) }) { return .some(String(line)) }
            return texts.open == 0 ? .some(nil) : nil
        }
    }

    @discardableResult
    func wait() -> Finished {
        process.waitUntilExit()
        return texts.wait { texts in
            guard texts.open == 0 else { return nil }
            return Finished(
                status: process.terminationReason == .exit
                    ? process.terminationStatus : 128 + process.terminationStatus,
                output: String(decoding: texts.output, as: UTF8.self),
                errors: String(decoding: texts.errors, as: UTF8.self))
        }
    }

    deinit {
        if process.isRunning { kill(process.processIdentifier, SIGKILL) }
    }
}

/// The program under test.
enum Outboard {
    /// Beside the test bundle, or what `OUTBOARD_BINARY` names.
    static let binary: String = {
        if let given = ProcessInfo.processInfo.environment["OUTBOARD_BINARY"] { return given }
        let bundle = try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")
        return URL(fileURLWithPath: bundle ?? "").deletingLastPathComponent().path + "/outboard"
    }()

    static func start(_ arguments: [String], environment: [String: String] = [:]) throws -> RunningProgram {
        try RunningProgram(binary, arguments, environment: environment)
    }

    static func run(_ arguments: [String], environment: [String: String] = [:]) throws -> Finished {
        try start(arguments, environment: environment).wait()
    }
}

/// Runs a program found on PATH.
@discardableResult
func tool(_ name: String, _ arguments: [String], environment: [String: String] = [:]) throws -> Finished {
    try RunningProgram("/usr/bin/env", [name] + arguments, environment: environment).wait()
}

/// An `outboard host` that serves a volume in a scratch directory.
final class HostProcess: Sendable {
    let directory: ScratchDirectory
    let source: String
    let program: RunningProgram
    var socket: String { directory.file("nbd.sock") }
    var control: String { directory.file("ctl.sock") }
    var cache: String { directory.file("cache") }
    var uri: String { "nbd+unix:///?socket=\(socket)" }

    /// - Parameter source: the volume; nil: a file of `size` zeros is made.
    init(
        size: UInt64 = 16 << 20, source: String? = nil, directory: ScratchDirectory = ScratchDirectory(),
        _ more: [String] = [], environment: [String: String] = [:]
    ) throws {
        self.directory = directory
        self.source = try source ?? directory.makeFile("volume", size: size)
        program = try Outboard.start(
            [
                "host", "--source", self.source, "--cache", directory.file("cache"),
                "--socket", directory.file("nbd.sock"), "--control", directory.file("ctl.sock"),
            ] + more, environment: environment)
        guard program.line(startingWith: "ready ") != nil else {
            throw TestFailure("the host did not start: \(program.wait().errors)")
        }
    }

    @discardableResult
    func stop() -> Finished {
        program.signal(SIGTERM)
        return program.wait()
    }
}
