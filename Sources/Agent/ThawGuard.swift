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
        let ends = try Spawn.pipe(doing: Self.doing)
        defer { close(ends.reading) }
        do throws(AgentError) {
            let process = try Spawn.start(
                executable, arguments, input: .descriptor(ends.reading), doing: Self.doing)
            state = Monitor(State(process: process, input: ends.writing))
        } catch {
            close(ends.writing)
            throw error
        }
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
