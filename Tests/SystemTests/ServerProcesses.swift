import Blocks
import Foundation
import TestSupport

/// A running `outboard host`.
final class HostProcess: Sendable {
    let process: ChildProcess
    let source: String
    let cache: String
    let socket: String
    let control: String
    /// Of the default export; append `snapshot` by ``uri(export:)``.
    var uri: String { uri(export: "") }

    func uri(export: String) -> String { "nbd+unix:///\(export)?socket=\(socket)" }

    let directory: ScratchDirectory

    /// Starts it on a new file of `size` zeros in a directory of its own.
    convenience init(size: UInt64, _ options: [String] = [], environment: [String: String] = [:]) throws {
        let scratch = try ScratchDirectory()
        try makeSparseFile(scratch("volume.img"), size: size)
        try self.init(scratch, options: options, environment: environment)
    }

    /// Starts it on `scratch/NAME.img` (or `source`; the others likewise) and waits until it serves.
    init(
        _ scratch: ScratchDirectory, name: String = "volume", source: String? = nil, cache: String? = nil,
        control: String? = nil, options: [String] = [], environment: [String: String] = [:]
    ) throws {
        directory = scratch
        self.source = source ?? scratch(name + ".img")
        self.cache = cache ?? scratch(name + ".cache")
        socket = scratch(name + ".sock")
        self.control = control ?? scratch(name + ".ctl")
        process = try Outboard.start(
            [
                "host", "--source", self.source, "--cache", self.cache, "--socket", socket, "--control",
                self.control,
            ] + options, environment: environment)
        guard process.line(where: { $0.hasPrefix("ready ") }) != nil else {
            process.stop()
            throw TestFailure("the host did not start: \(process.errors)")
        }
    }

    deinit { process.stop() }

    /// Stops it gracefully.
    @discardableResult
    func stop() -> ChildProcess.Ending? { process.stop() }

    /// Sends one request to the control socket and returns the response's line.
    func ask(_ method: String, _ parameters: String = "{}") throws -> String {
        let request = #"{"jsonrpc":"2.0","id":1,"method":"\#(method)","params":\#(parameters)}"# + "\n"
        return try UnixLine.ask(control, request)
    }
}

/// A running `outboard bridge`.
final class BridgeProcess: Sendable {
    let process: ChildProcess
    /// ADDRESS:PORT, one at least.
    let portals: [String]
    let target: String
    var portal: String { portals[0] }

    /// - Parameter units: as `--unit` takes them.
    convenience init(
        units: [String], portal: String = "127.0.0.1:0", options: [String] = [],
        environment: [String: String] = [:]
    ) throws {
        try self.init(
            arguments: ["--portal", portal] + units.flatMap { ["--unit", $0] } + options,
            environment: environment)
    }

    init(arguments: [String], environment: [String: String] = [:]) throws {
        process = try Outboard.start(["bridge"] + arguments, environment: environment)
        guard let line = process.line(where: { $0.hasPrefix("ready ") }) else {
            process.stop()
            throw TestFailure("the bridge did not start: \(process.errors)")
        }
        let words = line.split(separator: " ")
        guard words.count == 3 else { throw TestFailure("the bridge's ready line is '\(line)'") }
        portals = words[1].split(separator: ",").map(String.init)
        target = String(words[2])
    }

    deinit { process.stop() }

    func uri(unit: Int) -> String { "iscsi://\(portal)/\(target)/\(unit)" }
    var uri: String { "iscsi://\(portal)/\(target)" }
}

/// A connection to a unix socket: one line there, one line back.
final class UnixLine {
    private let descriptor: Int32
    private let path: String

    init(_ path: String) throws {
        self.path = path
        descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        guard descriptor >= 0 else { throw TestFailure("no socket") }
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8.prefix(107)) }
        let connected = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        guard connected == 0 else { throw TestFailure("cannot connect to \(path): errno \(errno)") }
    }

    deinit { close(descriptor) }

    func ask(_ line: String) throws -> String {
        guard write(descriptor, line, line.utf8.count) == line.utf8.count else {
            throw TestFailure("cannot write to \(path)")
        }
        var answer: [UInt8] = []
        var byte: UInt8 = 0
        while read(descriptor, &byte, 1) == 1, byte != UInt8(ascii: "\n") { answer.append(byte) }
        return String(decoding: answer, as: UTF8.self)
    }

    static func ask(_ path: String, _ line: String) throws -> String { try UnixLine(path).ask(line) }
}

/// Makes a file of `count` bytes that tell their place, so that wrong ones are seen.
func makePatternFile(_ path: String, count: Int, seed: UInt64 = 1) throws {
    var generator = SeededGenerator(seed: seed)
    var bytes = [UInt8](repeating: 0, count: count)
    bytes.withUnsafeMutableBytes { buffer in
        for offset in stride(from: 0, to: count - 7, by: 8) {
            buffer.storeBytes(of: generator.next(), toByteOffset: offset, as: UInt64.self)
        }
    }
    try Data(bytes).write(to: URL(fileURLWithPath: path))
}

/// Makes a sparse file.
func makeSparseFile(_ path: String, size: UInt64) throws {
    guard FileManager.default.createFile(atPath: path, contents: nil), truncate(path, off_t(size)) == 0 else {
        throw TestFailure("cannot make \(path)")
    }
}

func contents(_ path: String) throws -> [UInt8] {
    [UInt8](try Data(contentsOf: URL(fileURLWithPath: path), options: .alwaysMapped))
}

func haveSameContents(_ first: String, _ second: String) throws -> Bool {
    haveSameBytes(try contents(first), try contents(second))
}

/// Damages one byte of a file.
func flipByte(_ path: String, at place: Int) throws {
    guard let file = FileHandle(forUpdatingAtPath: path) else { throw TestFailure("cannot open \(path)") }
    defer { file.closeFile() }
    try file.seek(toOffset: UInt64(place))
    guard let byte = try file.read(upToCount: 1)?.first else {
        throw TestFailure("\(path) has no byte \(place)")
    }
    try file.seek(toOffset: UInt64(place))
    try file.write(contentsOf: Data([byte ^ 0x10]))
}
