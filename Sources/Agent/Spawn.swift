import Blocks
import Glibc

/// Child processes, each in a process group of its own: what the terminal sends to ours (Ctrl-C) is not for them.
enum Spawn {
    /// A child's standard input.
    enum Input {
        case nothing
        case descriptor(Int32)
    }

    /// Starts a program. It does not inherit that we ignore SIGPIPE.
    /// - Parameters:
    ///   - arguments: the program's own name among them, as the first.
    ///   - output: its standard output; by default our standard error, because our standard output is for results.
    ///   - errors: its standard error.
    ///   - extra: its descriptor 3 (``extraPath``).
    ///   - doing: what fails when this fails.
    /// - Throws: what posix_spawn(3) says.
    static func start(
        _ executable: String, _ arguments: [String], input: Input, output: Int32 = STDERR_FILENO,
        errors: Int32 = STDERR_FILENO, extra: Int32? = nil, doing: String
    ) throws(AgentError) -> pid_t {
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
        switch input {
        case .nothing: posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0)
        case .descriptor(let number): posix_spawn_file_actions_adddup2(&actions, number, STDIN_FILENO)
        }
        posix_spawn_file_actions_adddup2(&actions, output, STDOUT_FILENO)
        posix_spawn_file_actions_adddup2(&actions, errors, STDERR_FILENO)
        if let extra { posix_spawn_file_actions_adddup2(&actions, extra, 3) }
        let strings: [UnsafeMutablePointer<CChar>?] = arguments.map { strdup($0) } + [nil]
        defer { for string in strings { free(string) } }
        var process = pid_t()
        let code = inheritance.withLock { children in
            children += 1
            return posix_spawn(&process, executable, &actions, &attributes, strings, environ)
        }
        guard code == 0 else { throw AgentError.system(code, doing: doing, to: executable) }
        return process
    }

    /// What a child is told as the path of its descriptor 3.
    static let extraPath = "/proc/self/fd/3"

    private typealias CreateMemoryFile = @convention(c) (UnsafePointer<CChar>, UInt32) -> Int32

    /// A file in memory: without a name, it is gone with the last process that has it open, however that ends. For its
    /// owner alone; no child inherits it, unless it is given it.
    static func memoryFile(_ name: String, doing: String) throws(AgentError) -> Int32 {
        // The C library has it, but its module for Swift does not show it. 1: MFD_CLOEXEC.
        guard let symbol = dlsym(nil, "memfd_create") else {
            throw AgentError.system(ENOSYS, doing: doing, to: name)
        }
        let file = unsafeBitCast(symbol, to: CreateMemoryFile.self)(name, 1)
        guard file >= 0 else { throw AgentError.system(errno, doing: doing, to: name) }
        guard fchmod(file, 0o600) == 0 else {
            let number = errno
            close(file)
            throw AgentError.system(number, doing: doing, to: name)
        }
        return file
    }

    /// A pipe whose ends no child inherits, unless it is given one.
    static func pipe(doing: String) throws(AgentError) -> (reading: Int32, writing: Int32) {
        var ends: [Int32] = [-1, -1]
        let code = inheritance.withLock { _ -> Int32 in
            guard Glibc.pipe(&ends) == 0 else { return errno }
            for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
            return 0
        }
        guard code == 0 else { throw AgentError.system(code, doing: doing, to: "a pipe") }
        return (ends[0], ends[1])
    }

    /// Held while a pipe is not marked yet and while a child begins (counted): one that began in between would hold
    /// the end whose closing is to be noticed.
    private static let inheritance = Monitor(0)
}
