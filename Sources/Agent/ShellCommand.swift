import Blocks
import Glibc

/// Commands that the administrator has given.
enum ShellCommand {
    /// Runs `command` to its end. It has no input, and what it says goes to standard error.
    /// - Parameter cancellation: ends it when set; nil: it is left to end by itself.
    /// - Throws: unless it ends with status 0; 75 when it was cancelled.
    static func run(_ command: String, _ cancellation: CancellationToken?) throws(AgentError) {
        let doing = "running"
        try cancellation?.check()
        let process = try Spawn.start("/bin/sh", ["/bin/sh", "-c", command], input: .nothing, doing: doing)
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
