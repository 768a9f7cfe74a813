import Blocks
import Glibc

/// What sees to it that all that was stopped goes on when this process is killed.
public protocol ThawGuard: AnyObject, Sendable {
    /// The next of the mount points is about to be frozen. Those before which this was not called are left as they are:
    /// another may have frozen them.
    func freezesNext()
    /// All goes on: it is not needed any more.
    func dismiss()
}

/// The guard as a child, the program's command `thaw-guard`: its standard input is a pipe from us. When that ends
/// without the word of dismissal, we are dead.
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

    func freezesNext() {
        // A guard that is gone cannot be told; the pipe has room for more mount points than an argument list.
        var word = ThawGuardService.Word.freezing.rawValue
        _ = state.withLock { write($0.input, &word, 1) }
    }

    func dismiss() {
        let (process, input) = state.withLock { state in
            defer { state = State(process: -1, input: -1) }
            return (state.process, state.input)
        }
        guard process > 0 else { return }
        var word = ThawGuardService.Word.dismissed.rawValue
        // A guard that is gone needs no word; SIGPIPE is ignored by the program.
        _ = write(input, &word, 1)
        close(input)
        while waitpid(process, nil, 0) < 0, errno == EINTR {}
    }
}

/// The guard's side of it.
public enum ThawGuardService {
    /// What comes on its standard input.
    enum Word: UInt8 {
        /// All goes on.
        case dismissed = 1
        /// The next of the mount points is about to be frozen.
        case freezing = 2
    }

    /// Waits for the end of standard input, then, unless it was dismissed before, thaws and runs the command.
    /// - Parameters:
    ///   - mountPoints: in the order in which they are frozen; those that nobody was about to freeze are passed over.
    ///   - postThaw: run by the shell.
    ///   - notice: called with what was done or failed.
    public static func run(mountPoints: [String], postThaw: String?, notice: (String) -> Void) {
        // Handled, not ignored: the command does not inherit it.
        for number in [SIGINT, SIGTERM, SIGHUP] { signal(number) { _ in } }
        var byte: UInt8 = 0
        var freezing = 0
        while true {
            let count = read(STDIN_FILENO, &byte, 1)
            if count > 0, Word(rawValue: byte) != .freezing { return }
            if count > 0 { freezing += 1 }
            if count == 0 || count < 0 && errno != EINTR { break }
        }
        notice("the copy's process was killed; what it stopped goes on")
        for mountPoint in mountPoints.prefix(freezing).reversed() {
            // EINVAL: it had not been frozen yet, or was thawed already.
            do throws(AgentError) { try FileSystemFreeze.thaw(mountPoint) } catch { notice("\(error)") }
        }
        guard let postThaw else { return }
        do throws(AgentError) { try ShellCommand.run(postThaw, nil) } catch { notice("\(error)") }
    }
}
