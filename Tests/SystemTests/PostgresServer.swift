import Foundation
import TestSupport

/// Debian's PostgreSQL, run in the foreground as its own user, on a unix socket alone.
final class PostgresServer: Sendable {
    /// Where its programs are; nil: not installed.
    static let programs: String? = {
        let base = "/usr/lib/postgresql"
        let versions = (try? FileManager.default.contentsOfDirectory(atPath: base)) ?? []
        return versions.sorted { Int($0) ?? 0 > Int($1) ?? 0 }.map { "\(base)/\($0)/bin" }
            .first { FileManager.default.isExecutableFile(atPath: $0 + "/postgres") }
    }()
    private static let user = "postgres"
    /// The server refuses to run as root.
    private static let asUser = [
        "--reuid", user, "--regid", user, "--clear-groups", "--inh-caps=-all", "--",
    ]

    let data: String
    private let socket: String
    private let process: ChildProcess

    /// Makes a cluster in `data`, with checksums and small segments of its log.
    static func make(_ data: String, in scratch: ScratchDirectory) throws {
        guard chmod(scratch.path, 0o711) == 0 else { throw TestFailure("chmod \(scratch.path)") }
        try FileManager.default.createDirectory(atPath: data, withIntermediateDirectories: false)
        try LoopMount.succeed("chown", ["\(user):\(user)", data])
        try run(
            "initdb",
            ["--pgdata", data, "--data-checksums", "--wal-segsize=1", "--auth=trust", "--no-instructions"])
    }

    /// Runs one of its programs as its user, to its end.
    @discardableResult
    static func run(_ program: String, _ arguments: [String]) throws -> ProgramResult {
        guard let programs else { throw TestFailure("PostgreSQL is not installed") }
        return try LoopMount.succeed("setpriv", asUser + ["\(programs)/\(program)"] + arguments)
    }

    /// Starts it on a cluster, which it brings back to order first, and waits until it serves.
    init(_ data: String, in scratch: ScratchDirectory) throws {
        guard let programs = Self.programs else { throw TestFailure("PostgreSQL is not installed") }
        self.data = data
        socket = scratch("pg-\(UInt32.random(in: 0 ... .max))")
        try FileManager.default.createDirectory(atPath: socket, withIntermediateDirectories: false)
        try LoopMount.succeed("chown", ["\(Self.user):\(Self.user)", socket])
        let settings = [
            "listen_addresses=", "max_wal_size=32MB", "min_wal_size=4MB", "shared_buffers=16MB",
            "checkpoint_timeout=30s", "fsync=on", "max_connections=20",
        ]
        process = try ChildProcess(
            "setpriv",
            Self.asUser + ["\(programs)/postgres", "-D", data, "-k", socket]
                + settings.flatMap { ["-c", $0] })
        do {
            try waitUntil("PostgreSQL serves", seconds: 120) { [process] in
                guard process.isRunning else { throw TestFailure("PostgreSQL ended: \(process.errors)") }
                return try ask("SELECT 1", database: "postgres").isSuccess
            }
        } catch {
            process.signal(SIGQUIT)
            throw error
        }
    }

    deinit { if process.isRunning { process.signal(SIGQUIT) } }

    /// What it has said.
    var log: String { process.errors }

    private func client(_ database: String) -> [String] {
        ["--host", socket, "--username", Self.user, "--dbname", database]
    }

    private func ask(_ query: String, database: String) throws -> ProgramResult {
        try runProgram(
            Self.programs! + "/psql",
            client(database) + [
                "--no-psqlrc", "--tuples-only", "--no-align", "--set", "ON_ERROR_STOP=1", "--command", query,
            ])
    }

    /// The answer's lines.
    @discardableResult
    func query(_ text: String) throws -> [String] {
        let result = try ask(text, database: "postgres")
        guard result.isSuccess else { throw TestFailure("\(result)") }
        return result.output.split(separator: "\n").map(String.init)
    }

    /// Starts `pgbench` with these arguments.
    func bench(_ arguments: [String], logging prefix: String? = nil) throws -> ChildProcess {
        let log = prefix.map { ["--log", "--log-prefix", $0] } ?? []
        return try ChildProcess(
            Self.programs! + "/pgbench",
            ["--host", socket, "--username", Self.user] + log + arguments + ["postgres"])
    }

    /// Every index and table is what it should be.
    func check() throws {
        try LoopMount.succeed(
            Self.programs! + "/pg_amcheck",
            ["--host", socket, "--username", Self.user, "--install-missing", "--heapallindexed", "postgres"])
    }

    /// Ends it in order, its clients too.
    func stop() throws {
        process.signal(SIGINT)
        guard process.waitForExit() == .exit(0) else { throw TestFailure("PostgreSQL: \(process.errors)") }
    }

    /// It dies, or has died already.
    func crash() {
        process.signal(SIGQUIT)
        _ = process.waitForExit()
    }
}

/// A client that commits one numbered row after another, and notes when each was begun and answered.
final class LedgerClient: Sendable {
    private let process: ChildProcess
    private let prefix: String

    static let table = "CREATE TABLE ledger (number bigint PRIMARY KEY, text text)"

    init(_ server: PostgresServer, in scratch: ScratchDirectory, from first: Int = 1) throws {
        prefix = scratch("ledger-\(first)")
        let script = prefix + ".sql"
        try """
        \\set number :number + 1
        INSERT INTO ledger VALUES (:number, repeat('outboard ', 20));
        """.write(toFile: script, atomically: true, encoding: .utf8)
        process = try server.bench(
            ["--no-vacuum", "--file", script, "--define", "number=\(first - 1)", "--time", "86400"],
            logging: prefix)
    }

    /// Waits for the end of its server's connection.
    /// - Returns: of each row that was answered, when it was begun and answered, nanoseconds since 1970.
    func rows() throws -> [(begun: Int64, answered: Int64)] {
        guard process.wait() != nil else { throw TestFailure("pgbench does not end") }
        return try String(contentsOfFile: "\(prefix).\(process.identifier)", encoding: .utf8)
            .split(separator: "\n").map { line in
                // Client, transaction, microseconds that it took, script, seconds and microseconds of its end.
                let fields = line.split(separator: " ").compactMap { Int64($0) }
                guard fields.count == 6 else { throw TestFailure("pgbench's log: \(line)") }
                let end = (fields[4] * 1_000_000 + fields[5]) * 1000
                return (end - fields[2] * 1000, end)
            }
    }
}
