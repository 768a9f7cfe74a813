import Blocks
import Glibc
import Synchronization

/// A private bridge: the same program as a child, on an ephemeral loopback port, with credentials that only it and we
/// know. It ends when its standard input closes: with us, however we end.
public final class BridgeProcess: BridgeConnection, Sendable {
    private let initiator: Initiator
    private let child: Child
    private let notice: @Sendable (String) -> Void
    private let isEnded = Atomic(false)
    public var copier: any ThirdPartyCopier { initiator }
    public var isLost: Bool { !isEnded.load(ordering: .acquiring) && !initiator.isConnected }

    /// Starts it and logs in.
    /// - Parameter executable: started as `EXECUTABLE bridge --private --portal 127.0.0.1:0 --chap-file FILE
    ///   --private-unit N:[ro][nolock]:PATH…`. It prints `ready HOST:PORT TARGET` on its standard output when it
    ///   serves.
    /// - Parameter notice: called with its warnings: those of its start before this returns, others when it ends.
    /// - Throws: what the child ended with, with its message; 69 when it does not get ready in time.
    public init(
        executable: String, units: [PrivateUnit], cancellation: CancellationToken,
        notice: @escaping @Sendable (String) -> Void
    ) throws(AgentError) {
        let credentials = (name: "agent-\(Self.random(4))", secret: Self.random(16))
        let child = try Child(executable: executable, units: units, credentials: credentials)
        self.notice = notice
        do throws(AgentError) {
            var address = try child.waitUntilReady(cancellation)
            for warning in child.warnings() { notice(warning) }
            address.credentials = .init(name: credentials.name, secret: credentials.secret)
            initiator = try Initiator(address) { cancellation.isCancelled }
        } catch {
            child.stop()
            throw error
        }
        self.child = child
    }

    deinit { end() }

    public func end() {
        isEnded.store(true, ordering: .releasing)
        initiator.close()
        child.stop()
        for warning in child.warnings() { notice(warning) }
    }

    /// Hexadecimal digits for `count` random bytes.
    private static func random(_ count: Int) -> String {
        var generator = SystemRandomNumberGenerator()
        return (0..<count).map { _ in
            let text = String(UInt8.random(in: 0...255, using: &generator), radix: 16)
            return text.count == 1 ? "0" + text : text
        }.joined()
    }
}

/// The child process.
private final class Child: Sendable {
    private struct State {
        var process: pid_t
        /// Our end of its standard input; closing it ends the child.
        var input: Int32
        /// Bytes of its messages that were told already.
        var told = 0
    }
    private let state: Monitor<State>
    private let output: Int32
    /// What it says on standard error.
    private let messages: Int32
    private static let doing = "starting the private bridge"

    init(executable: String, units: [PrivateUnit], credentials: (name: String, secret: String))
        throws(AgentError)
    {
        messages = try Spawn.memoryFile("messages", doing: Self.doing)
        do throws(AgentError) {
            let secrets = try Self.secretFile("\(credentials.name) \(credentials.secret)\n")
            defer { close(secrets) }
            var arguments = [
                executable, "bridge", "--private", "--portal", "127.0.0.1:0", "--chap-file", Spawn.extraPath,
            ]
            for unit in units { arguments += ["--private-unit", unit.argument] }
            let (process, input, output) = try Self.spawn(executable, arguments, messages, secrets)
            self.output = output
            state = Monitor(State(process: process, input: input))
        } catch {
            close(messages)
            throw error
        }
    }

    deinit {
        stop()
        close(output)
        close(messages)
    }

    /// Neither a command line nor a directory shows what is in it.
    private static func secretFile(_ text: String) throws(AgentError) -> Int32 {
        let file = try Spawn.memoryFile("chap", doing: doing)
        let bytes = Array(text.utf8)
        guard Glibc.write(file, bytes, bytes.count) == bytes.count else {
            let number = errno
            close(file)
            throw AgentError.system(number, doing: doing, to: "chap")
        }
        return file
    }

    private static func spawn(
        _ executable: String, _ arguments: [String], _ messages: Int32, _ secrets: Int32
    ) throws(AgentError) -> (pid_t, input: Int32, output: Int32) {
        let input = try Spawn.pipe(doing: doing)
        defer { close(input.reading) }
        let output: (reading: Int32, writing: Int32)
        do throws(AgentError) { output = try Spawn.pipe(doing: doing) } catch {
            close(input.writing)
            throw error
        }
        defer { close(output.writing) }
        do throws(AgentError) {
            let process = try Spawn.start(
                executable, arguments, input: .descriptor(input.reading), output: output.writing,
                errors: messages, extra: secrets, doing: doing)
            return (process, input.writing, output.reading)
        } catch {
            close(input.writing)
            close(output.reading)
            throw error
        }
    }

    /// - Returns: where it serves, from its ready line.
    func waitUntilReady(_ cancellation: CancellationToken) throws(AgentError) -> BridgeAddress {
        let deadline = MonotonicClock.now &+ UInt64(AgentLimits.bridgeStartSeconds * 1e9)
        var line: [UInt8] = []
        while !line.contains(UInt8(ascii: "\n")) {
            try cancellation.check()
            guard MonotonicClock.now < deadline, line.count < AgentLimits.bridgeMessageBytes else {
                throw AgentError(
                    .unavailable, doing: Self.doing, to: "", because: "it did not get ready. \(said())")
            }
            var poll = pollfd(fd: output, events: Int16(POLLIN), revents: 0)
            guard Glibc.poll(&poll, 1, 100) > 0 else { continue }
            var buffer = [UInt8](repeating: 0, count: 512)
            let count = read(output, &buffer, buffer.count)
            if count < 0, errno == EINTR { continue }
            guard count > 0 else { throw ended() }
            line += buffer[..<count]
        }
        let words = String(decoding: line.prefix { $0 != UInt8(ascii: "\n") }, as: UTF8.self)
            .split(separator: " ")
        guard words.count >= 3, words[0] == "ready", let colon = words[1].lastIndex(of: ":"),
            let port = Int(words[1][words[1].index(after: colon)...]), (1...65_535).contains(port)
        else {
            throw AgentError(
                .software, doing: Self.doing, to: "", because: "it said something else than `ready`")
        }
        return BridgeAddress(
            host: String(words[1][..<colon]), port: port, targetName: String(words[2]))
    }

    /// It ended before it was ready: its exit status is ours, and what it said is the reason.
    private func ended() -> AgentError {
        let status = reap(seconds: AgentLimits.bridgeStopSeconds)
        if let signal = status.map({ $0 & 0x7F }), signal != 0 {
            return AgentError(
                .unavailable, doing: Self.doing, to: "",
                because: "it was ended by signal \(signal). \(said())")
        }
        let code = status.flatMap { AgentError.ExitStatus(rawValue: $0 >> 8 & 0xFF) }
        return AgentError(code ?? .software, doing: Self.doing, to: "", because: said())
    }

    /// The end of what it has said on standard error.
    private func said() -> String {
        let size = lseek(messages, 0, SEEK_END)
        let count = min(Int(size), AgentLimits.bridgeMessageBytes)
        guard count > 0 else { return "it said nothing" }
        var bytes = [UInt8](repeating: 0, count: count)
        let got = pread(messages, &bytes, count, Int(size) - count)
        return String(decoding: bytes.prefix(max(0, got)), as: UTF8.self)
            .split(separator: "\n").joined(separator: "; ")
    }

    /// The lines that it has said on standard error since the last call: it logs warnings and errors only.
    func warnings() -> [String] {
        let bytes = state.withLock { state -> [UInt8] in
            var bytes = [UInt8](repeating: 0, count: AgentLimits.bridgeMessageBytes)
            let count = max(0, pread(messages, &bytes, bytes.count, state.told))
            // A line that is not whole yet is for the next call.
            var whole = bytes[..<count].lastIndex(of: UInt8(ascii: "\n")).map { $0 + 1 } ?? 0
            // One that is longer than all that is read at once is told in parts.
            if whole == 0, count == bytes.count { whole = count }
            state.told += whole
            return Array(bytes[..<whole])
        }
        let prefix = "outboard bridge: "
        return String(decoding: bytes, as: UTF8.self).split(separator: "\n").map {
            "the private bridge: " + ($0.hasPrefix(prefix) ? $0.dropFirst(prefix.count) : $0)
        }
    }

    /// Closes its standard input and waits for its end; kills it when it does not come.
    func stop() {
        let process = state.withLock { state -> pid_t in
            if state.input >= 0 { close(state.input) }
            state.input = -1
            return state.process
        }
        guard process > 0 else { return }
        if reap(seconds: AgentLimits.bridgeStopSeconds) == nil {
            kill(process, SIGKILL)
            _ = reap(seconds: AgentLimits.bridgeStopSeconds)
        }
    }

    /// - Returns: its wait status; nil while it runs.
    private func reap(seconds: Double) -> Int32? {
        let deadline = MonotonicClock.now &+ UInt64(seconds * 1e9)
        let process = state.withLock { $0.process }
        guard process > 0 else { return 0 }
        while true {
            var status: Int32 = 0
            let found = waitpid(process, &status, WNOHANG)
            if found == process || found < 0 && errno == ECHILD {
                state.withLock { $0.process = -1 }
                return status
            }
            guard MonotonicClock.now < deadline else { return nil }
            usleep(5_000)
        }
    }
}
