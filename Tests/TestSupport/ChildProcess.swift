import Blocks
import Glibc

/// A real process under test: its output is read as it comes, its end is waited for as an event.
public final class ChildProcess: Sendable {
    public struct LaunchError: Error, CustomStringConvertible {
        public let description: String
    }

    /// How a process ended.
    public enum Ending: Equatable, Sendable {
        case exit(Int32)
        case signal(Int32)
    }

    private struct State {
        var output: [UInt8] = []
        var errors: [UInt8] = []
        var open = 2
        var ending: Ending?
    }

    public let identifier: pid_t
    public let command: String
    private let state = Monitor(State())
    private let input: Int32

    /// Starts `program` (a path, or a name that PATH finds).
    /// - Parameters:
    ///   - environment: added to ours.
    ///   - keepsInputOpen: standard input is a pipe that ``closeInput()`` ends; else it is empty.
    public init(
        _ program: String, _ arguments: [String], environment: [String: String] = [:],
        directory: String? = nil, keepsInputOpen: Bool = false
    ) throws {
        command = ([program] + arguments).joined(separator: " ")
        let output = try Pair()
        let errors = try Pair()
        let input = try Pair()
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_adddup2(&actions, input.theirs, 0)
        posix_spawn_file_actions_adddup2(&actions, output.theirs, 1)
        posix_spawn_file_actions_adddup2(&actions, errors.theirs, 2)
        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        var defaults = sigset_t()
        sigemptyset(&defaults)
        for number in [SIGINT, SIGTERM, SIGPIPE, SIGHUP] { sigaddset(&defaults, number) }
        posix_spawnattr_setsigdefault(&attributes, &defaults)
        // Threads of a pool may block signals, and a child inherits that.
        var none = sigset_t()
        sigemptyset(&none)
        posix_spawnattr_setsigmask(&attributes, &none)
        posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK))

        let prefix = directory.map { ["env", "-C", $0] } ?? []
        let words = prefix + [program] + arguments
        let argv = words.map { strdup($0) } + [nil]
        let envp =
            Self.environment(
                adding: ["SWIFT_BACKTRACE": "enable=no"].merging(environment) { $1 }
            ).map { strdup($0) } + [nil]
        defer { for pointer in argv + envp { free(pointer) } }
        var pid = pid_t()
        let code = posix_spawnp(&pid, words[0], &actions, &attributes, argv, envp)
        for pair in [output, errors, input] { close(pair.theirs) }
        guard code == 0 else {
            for pair in [output, errors, input] { close(pair.ours) }
            throw LaunchError(description: "cannot start \(program): \(String(cString: strerror(code)))")
        }
        identifier = pid
        self.input = input.ours
        if !keepsInputOpen { shutdown(input.ours, Int32(SHUT_WR)) }
        collect(output.ours, \.output)
        collect(errors.ours, \.errors)
        awaitEnd()
    }

    deinit { close(input) }

    /// A socket pair, closed in whatever else is started meanwhile.
    private struct Pair {
        let ours: Int32
        let theirs: Int32

        init() throws {
            var ends: [Int32] = [0, 0]
            let type = Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue)
            guard socketpair(AF_UNIX, type, 0, &ends) == 0 else {
                throw LaunchError(description: "no socket pair: errno \(errno)")
            }
            (ours, theirs) = (ends[0], ends[1])
        }
    }

    private static func environment(adding more: [String: String]) -> [String] {
        var all: [String] = []
        var next = environ
        while let entry = next.pointee {
            let text = String(cString: entry)
            if let name = text.split(separator: "=", maxSplits: 1).first, more[String(name)] == nil {
                all.append(text)
            }
            next += 1
        }
        return all + more.map { "\($0)=\($1)" }
    }

    private func collect(_ descriptor: Int32, _ place: WritableKeyPath<State, [UInt8]> & Sendable) {
        BlockingThread.start { [state] in
            var buffer = [UInt8](repeating: 0, count: 64 << 10)
            while true {
                let count = read(descriptor, &buffer, buffer.count)
                if count > 0 {
                    state.withLockAndNotify { $0[keyPath: place] += buffer[..<count] }
                } else if count == 0 || errno != EINTR {
                    break
                }
            }
            close(descriptor)
            state.withLockAndNotify { $0.open -= 1 }
        }
    }

    private func awaitEnd() {
        let identifier = identifier
        BlockingThread.start { [state] in
            var status: Int32 = 0
            while waitpid(identifier, &status, 0) < 0, errno == EINTR {}
            let signal = status & 0x7F
            let ending: Ending = signal == 0 ? .exit(status >> 8 & 0xFF) : .signal(signal)
            state.withLockAndNotify { $0.ending = ending }
        }
    }

    public func signal(_ number: Int32) {
        // Once it has been waited for, its id may be somebody else's.
        state.withLock { if $0.ending == nil { kill(identifier, number) } }
    }

    /// To its standard input, which must be kept open.
    public func write(_ text: String) {
        // It may have ended; who waits for an answer sees that.
        _ = send(input, text, text.utf8.count, Int32(MSG_NOSIGNAL))
    }

    public func closeInput() { shutdown(input, Int32(SHUT_WR)) }

    /// What it has written so far.
    public var output: String { state.withLock { String(decoding: $0.output, as: UTF8.self) } }
    public var errors: String { state.withLock { String(decoding: $0.errors, as: UTF8.self) } }
    public var isRunning: Bool { state.withLock { $0.ending == nil } }

    /// Waits for the first whole line on standard output that `fits`.
    public func line(seconds: Double = 60, where fits: @Sendable (Substring) -> Bool = { _ in true })
        -> String?
    {
        let found = state.wait(nanoseconds: UInt64(seconds * 1e9)) { state -> String?? in
            let text = String(decoding: state.output, as: UTF8.self)
            let lines = text.split(separator: "\n", omittingEmptySubsequences: false).dropLast()
            if let line = lines.first(where: fits) { return .some(String(line)) }
            return state.open == 0 && state.ending != nil ? .some(nil) : nil
        }
        return found ?? nil
    }

    /// Waits for its end and the end of its output. Nil when that takes longer.
    public func wait(seconds: Double = 120) -> Ending? {
        state.wait(nanoseconds: UInt64(seconds * 1e9)) { $0.open == 0 ? $0.ending : nil }
    }

    /// Waits for its end only: a grandchild may hold its output open.
    public func waitForExit(seconds: Double = 120) -> Ending? {
        state.wait(nanoseconds: UInt64(seconds * 1e9)) { $0.ending }
    }

    /// Asks it to end, insists after a while, and waits.
    @discardableResult
    public func stop(seconds: Double = 30) -> Ending? {
        signal(SIGTERM)
        if let ending = waitForExit(seconds: seconds) { return ending }
        signal(SIGKILL)
        return waitForExit(seconds: 10)
    }
}

/// What a program that ran to its end left.
public struct ProgramResult: Sendable, CustomStringConvertible {
    public let command: String
    public let ending: ChildProcess.Ending?
    public let output: String
    public let errors: String
    public var isSuccess: Bool { ending == .exit(0) }

    /// As a shell tells it; −1 when it had to be killed for taking too long.
    public var status: Int32 {
        switch ending {
        case .exit(let status): status
        case .signal(let number): 128 + number
        case nil: -1
        }
    }

    public var description: String {
        "\(command): \(ending.map { "\($0)" } ?? "still running")\n\(output)\n\(errors)"
    }
}

/// Runs a program to its end; kills it when that takes longer than `seconds`.
public func runProgram(
    _ program: String, _ arguments: [String], environment: [String: String] = [:], directory: String? = nil,
    seconds: Double = 120
) throws -> ProgramResult {
    let child = try ChildProcess(program, arguments, environment: environment, directory: directory)
    var ending = child.wait(seconds: seconds)
    if ending == nil {
        child.signal(SIGKILL)
        _ = child.wait(seconds: 10)
        ending = nil
    }
    return ProgramResult(
        command: child.command, ending: ending, output: child.output, errors: child.errors)
}

/// The same for tests whose server lives in the test's own process: no thread of the runtime's pool waits.
public func runAlongside(
    _ program: String, _ arguments: [String], seconds: Double = 120
) async throws -> ProgramResult {
    try await withCheckedThrowingContinuation { continuation in
        BlockingThread.start {
            continuation.resume(with: Result { try runProgram(program, arguments, seconds: seconds) })
        }
    }
}

/// A directory for one test, removed with all that is in it when the object goes.
public final class ScratchDirectory: Sendable {
    public let path: String

    public init() throws {
        var template = Array("/var/tmp/outboard-test.XXXXXX".utf8CString)
        guard mkdtemp(&template) != nil else {
            throw ChildProcess.LaunchError(description: "no scratch directory: errno \(errno)")
        }
        path = template.withUnsafeBufferPointer { String(cString: $0.baseAddress!) }
    }

    deinit {
        // What is left over is /var/tmp's.
        _ = try? runProgram("rm", ["-rf", "--one-file-system", path])
    }

    /// The path of a member.
    public func callAsFunction(_ name: String) -> String { path + "/" + name }
}
