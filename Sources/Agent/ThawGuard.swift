import Blocks
import Glibc

/// What sees to it that all that was stopped goes on when this process is killed.
public protocol ThawGuard: AnyObject, Sendable {
    /// All goes on: it is not needed any more.
    func dismiss()
}

/// The guard as a child, the program's command `thaw-guard`: its standard input is a pipe from us. When that ends
/// without a word, we are dead.
final class ThawGuardProcess: ThawGuard {
    private struct State {
        var process: pid_t
        /// Our end of its standard input.
        var input: Int32
    }
    private let state: Monitor<State>
    private static let doing = "starting the guard of the freeze"

    init(executable: String, _ mountPoints: [String], _ postThaw: String?) throws(AgentError) {
        var arguments = [executable, "thaw-guard"]
        for mountPoint in mountPoints { arguments.append("--thaw=\(mountPoint)") }
        if let postThaw { arguments.append("--post-thaw=\(postThaw)") }
        var ends: [Int32] = [-1, -1]
        guard pipe(&ends) == 0 else { throw AgentError.system(errno, doing: Self.doing, to: executable) }
        for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_adddup2(&actions, ends[0], STDIN_FILENO)
        // Results are ours to print.
        posix_spawn_file_actions_adddup2(&actions, STDERR_FILENO, STDOUT_FILENO)
        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        // What ends us by our group must not end it.
        posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETPGROUP))
        let strings: [UnsafeMutablePointer<CChar>?] = arguments.map { strdup($0) } + [nil]
        defer { for string in strings { free(string) } }
        var process = pid_t()
        let code = posix_spawn(&process, executable, &actions, &attributes, strings, environ)
        close(ends[0])
        guard code == 0 else {
            close(ends[1])
            throw AgentError.system(code, doing: Self.doing, to: executable)
        }
        state = Monitor(State(process: process, input: ends[1]))
    }

    deinit { dismiss() }

    func dismiss() {
        let (process, input) = state.withLock { state in
            defer { state = State(process: -1, input: -1) }
            return (state.process, state.input)
        }
        guard process > 0 else { return }
        var word: UInt8 = 1
        // A guard that is gone needs no word; SIGPIPE is ignored by the program.
        _ = write(input, &word, 1)
        close(input)
        while waitpid(process, nil, 0) < 0, errno == EINTR {}
    }
}

/// The guard's side of it.
public enum ThawGuardService {
    /// Waits for the end of standard input, then, unless a word came before it, thaws and runs the command.
    /// - Parameters:
    ///   - mountPoints: in the order in which they are frozen; those that are not frozen are passed over.
    ///   - postThaw: run by the shell.
    ///   - notice: called with what was done or failed.
    public static func run(mountPoints: [String], postThaw: String?, notice: (String) -> Void) {
        // Handled, not ignored: the command does not inherit it.
        for number in [SIGINT, SIGTERM, SIGHUP] { signal(number) { _ in } }
        var byte: UInt8 = 0
        while true {
            let count = read(STDIN_FILENO, &byte, 1)
            if count > 0 { return }
            if count == 0 || errno != EINTR { break }
        }
        notice("the copy's process was killed; what it stopped goes on")
        for mountPoint in mountPoints.reversed() {
            // Most often EINVAL: it had not been frozen yet, or was thawed already.
            do throws(AgentError) { try FileSystemFreeze.thaw(mountPoint) } catch { notice("\(error)") }
        }
        guard let postThaw else { return }
        do throws(AgentError) { try ShellCommand.run(postThaw, nil) } catch { notice("\(error)") }
    }
}
