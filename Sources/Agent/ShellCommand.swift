import Blocks
import Glibc

/// Commands that the administrator has given.
enum ShellCommand {
    /// Runs `command` to its end, in a process group of its own: what the terminal sends to ours is not for it. It
    /// has no input, and what it says goes to standard error: standard output is for our result. It does not
    /// inherit that we ignore SIGPIPE.
    /// - Parameter cancellation: ends it when set; nil: it is left to end by itself.
    /// - Throws: unless it ends with status 0; 75 when it was cancelled.
    static func run(_ command: String, _ cancellation: CancellationToken?) throws(AgentError) {
        let doing = "running"
        try cancellation?.check()
        let process = try start(command, doing)
        var status: Int32 = 0
        while true {
            let found = waitpid(process, &status, cancellation == nil ? 0 : WNOHANG)
            if found == process { break }
            guard found >= 0 || errno == EINTR else {
                throw AgentError.system(errno, doing: doing, to: command)
            }
            do throws(AgentError) { try cancellation?.pause(nanoseconds: 10_000_000) } catch {
                end(process)
                throw error
            }
        }
        guard status == 0 else {
            let how =
                status & 0x7F == 0
                ? "it ended with status \(status >> 8 & 0xFF)" : "signal \(status & 0x7F) ended it"
            throw AgentError(.io, doing: doing, to: command, because: how)
        }
    }

    private static func start(_ command: String, _ doing: String) throws(AgentError) -> pid_t {
        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        var defaults = sigset_t()
        sigemptyset(&defaults)
        sigaddset(&defaults, SIGPIPE)
        posix_spawnattr_setsigdefault(&attributes, &defaults)
        posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGDEF))
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0)
        posix_spawn_file_actions_adddup2(&actions, STDERR_FILENO, STDOUT_FILENO)
        let arguments: [UnsafeMutablePointer<CChar>?] = [
            strdup("/bin/sh"), strdup("-c"), strdup(command), nil,
        ]
        defer { for argument in arguments { free(argument) } }
        var process = pid_t()
        let code = posix_spawn(&process, "/bin/sh", &actions, &attributes, arguments, environ)
        guard code == 0 else { throw AgentError.system(code, doing: doing, to: command) }
        return process
    }

    /// SIGTERM for the whole group, and SIGKILL for what does not heed it in time.
    private static func end(_ process: pid_t) {
        let deadline = MonotonicClock.now &+ UInt64(AgentLimits.hookStopSeconds * 1e9)
        kill(-process, SIGTERM)
        var status: Int32 = 0
        while waitpid(process, &status, WNOHANG) == 0 {
            if MonotonicClock.now > deadline { kill(-process, SIGKILL) }
            usleep(5_000)
        }
    }

    static func realTime() -> Int64 {
        var time = timespec()
        clock_gettime(CLOCK_REALTIME, &time)
        return Int64(time.tv_sec) * 1_000_000_000 + Int64(time.tv_nsec)
    }
}
