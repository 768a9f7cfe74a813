import Agent
import ArgumentParser
import Blocks
import Bridge
import Foundation
import HostControl

struct StatusCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "status",
        abstract: "Show what runs: hosts, bridges, and copies under way.",
        discussion: """
            Without arguments it shows all hosts, standing bridges and copies of this user on this machine; with \
            arguments the hosts with these control sockets. A process that does not answer within --timeout is shown \
            as such, and keeps nobody waiting.

            Of a host: its volume, the last epoch and its state (`held`: the agent that began it is there), how full \
            the cache is and when it will be full if it goes on as in the last seconds, clients of the volume, and \
            what is wrong. Of a bridge: sessions, copies it makes, commands that did not end well. Of a copy: what it \
            does, how far it is, how fast, and how long that will still take.

            Hosts, bridges and copies enter themselves in /run/outboard (root) or $XDG_RUNTIME_DIR/outboard, a \
            directory that only its owner can write; $OUTBOARD_RUN_DIRECTORY names another one. Those of other users \
            are not shown.

            EXAMPLES:
                outboard status
                outboard status /run/outboard/data.ctl --json

            EXIT STATUS: 0 all that was asked has answered, also if nothing runs; 64 usage; 69 something that was \
            named, or that runs, does not answer; 74 all has answered, but a host says that a flush of its source \
            failed; 77 the directory is another user's, or others may write it.
            """)

    @Argument(help: ArgumentHelp("Control sockets of hosts.", valueName: "ctl.sock"))
    var controls: [String] = []

    @Flag(help: "All that runs, which is the default without arguments.")
    var all = false

    @Option(help: ArgumentHelp("For how long each may take to answer.", valueName: "seconds"))
    var timeout = 3.0

    @Flag(help: "Print one JSON object.")
    var json = false

    func validate() throws {
        if all, !controls.isEmpty { throw ValidationError("name control sockets, or give --all") }
        guard timeout > 0, timeout <= 3600 else {
            throw ValidationError("--timeout is more than 0 and at most 3600 seconds")
        }
    }

    func run() async throws {
        let asked = controls.isEmpty ? try Self.living() : controls.map { .init(control: absolutePath($0)) }
        let report = await onBlockingThread { [timeout] in StatusReport.ask(asked, seconds: timeout) }
        if json {
            try Console.print(json: report)
        } else {
            for line in report.lines { Console.print(line) }
        }
        if report.hasUnanswered { throw ExitCode(outboard.ExitStatus.unavailable.rawValue) }
        if report.hosts.contains(where: { $0.status?.flushFailure != nil }) {
            throw ExitCode(outboard.ExitStatus.io.rawValue)
        }
    }

    private static func living() throws -> [RunDirectory.Entry] {
        guard let path = RunDirectory.usualPath else { return [] }
        do throws(RunDirectory.Unusable) { return try RunDirectory(path, makes: false).living() } catch {
            // Nothing has ever run here.
            if error.isMissing { return [] }
            throw Failure(.notPermitted, "cannot look for what runs: \(error)")
        }
    }
}

extension RunDirectory.Entry {
    /// A host that was named.
    init(control: String) {
        self.init(
            kind: .host, process: 0, startedAt: 0, version: "", control: control, status: nil,
            subject: control)
    }
}

/// What was asked and answered.
struct StatusReport: Encodable, Sendable {
    struct Host: Encodable, Sendable {
        /// Nil of one that was named by its socket.
        var process: Int32?
        var control: String
        var status: VolumeStatus?
        /// Why there is no status.
        var failure: String?
    }
    struct Bridge: Encodable, Sendable {
        var process: Int32
        var target: String
        var status: BridgeStatus?
        var failure: String?
    }
    struct Copy: Encodable, Sendable {
        var process: Int32
        var to: String
        var status: CopyStatus?
        var failure: String?
    }

    var hosts: [Host] = []
    var bridges: [Bridge] = []
    var copies: [Copy] = []

    var hasUnanswered: Bool {
        hosts.contains { $0.failure != nil } || bridges.contains { $0.failure != nil }
            || copies.contains { $0.failure != nil }
    }

    private enum Answer: Sendable {
        case host(VolumeStatus)
        case bridge(BridgeStatus)
        case copy(CopyStatus)
        case failure(String)
    }

    /// Asks all at once, each on a thread of its own: one that is stuck keeps nobody waiting longer than `seconds`.
    static func ask(_ entries: [RunDirectory.Entry], seconds: Double) -> StatusReport {
        let answers = Monitor<[Int: Answer]>([:])
        let deadline = MonotonicClock.now &+ UInt64(seconds * 1e9)
        for (index, entry) in entries.enumerated() {
            let isStarted = BlockingThread.start {
                let answer = ask(entry, seconds: seconds, deadline: deadline)
                answers.withLockAndNotify { $0[index] = answer }
            }
            if !isStarted { answers.withLock { $0[index] = .failure("the system has no thread to ask it") } }
        }
        // A little more than each has by itself, so that its own words are heard.
        _ = answers.wait(nanoseconds: UInt64((seconds + 0.5) * 1e9)) { $0.count == entries.count ? () : nil }
        let known = answers.withLock { $0 }
        var report = StatusReport()
        for (index, entry) in entries.enumerated() {
            report.add(entry, known[index] ?? .failure("it does not answer"))
        }
        return report
    }

    private static func ask(_ entry: RunDirectory.Entry, seconds: Double, deadline: UInt64) -> Answer {
        do {
            switch entry.kind {
            case .host:
                let client = try HostClient(path: entry.control ?? "")
                defer { client.close() }
                return .host(try client.call(VolumeStatusMethod.self, Empty(), timeout: seconds))
            case .bridge: return .bridge(try read(entry, deadline))
            case .copy: return .copy(try read(entry, deadline))
            }
        } catch let error as AgentError {
            return .failure(error.cause == .timedOut ? "it does not answer" : error.reason)
        } catch LineSocket.Failure.timedOut {
            return .failure("it does not answer")
        } catch {
            return .failure("it tells nothing that can be understood")
        }
    }

    private static func read<Status: Decodable>(
        _ entry: RunDirectory.Entry, _ deadline: UInt64
    ) throws -> Status {
        let socket = try LineSocket(path: entry.status ?? "", lineLimit: 4 << 20)
        let line = try socket.receiveLine(deadline: deadline)
        return try JSONDecoder().decode(Status.self, from: Data(line))
    }

    private mutating func add(_ entry: RunDirectory.Entry, _ answer: Answer) {
        let failure: String? = if case .failure(let reason) = answer { reason } else { nil }
        switch entry.kind {
        case .host:
            var host = Host(
                process: entry.process == 0 ? nil : entry.process, control: entry.control ?? "",
                failure: failure)
            if case .host(let status) = answer { host.status = status }
            hosts.append(host)
        case .bridge:
            var bridge = Bridge(process: entry.process, target: entry.subject, failure: failure)
            if case .bridge(let status) = answer { bridge.status = status }
            bridges.append(bridge)
        case .copy:
            var copy = Copy(process: entry.process, to: entry.subject, failure: failure)
            if case .copy(let status) = answer { copy.status = status }
            copies.append(copy)
        }
    }
}
