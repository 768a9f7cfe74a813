import Blocks
import Glibc

/// FIFREEZE and FITHAW (linux/fs.h): a mounted file system is flushed and stands still.
enum FileSystemFreeze {
    // _IOWR('X', 119, int) and _IOWR('X', 120, int): macros that Swift does not import.
    private static let freezeRequest: UInt = 0xC004_5877
    private static let thawRequest: UInt = 0xC004_5878

    static func freeze(_ mountPoint: String) throws(AgentError) {
        try control(mountPoint, freezeRequest, "freezing the file system at")
    }

    static func thaw(_ mountPoint: String) throws(AgentError) {
        try control(mountPoint, thawRequest, "thawing the file system at")
    }

    private static func control(
        _ mountPoint: String, _ request: UInt, _ doing: String
    ) throws(AgentError) {
        let descriptor = open(mountPoint, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard descriptor >= 0 else {
            throw AgentError.system(errno, doing: doing, to: mountPoint, otherwise: .inputMissing)
        }
        defer { close(descriptor) }
        guard ioctl(descriptor, request, 0) == 0 else {
            let number = errno
            var error = AgentError.system(number, doing: doing, to: mountPoint)
            switch number {
            case EOPNOTSUPP, ENOTTY: error.reason = "this file system cannot be frozen"
            case EBUSY: error.reason = "it is frozen already"
            case EPERM: error.advice = "run it as root"
            default: break
            }
            throw error
        }
    }
}

/// Commands that the administrator has given.
enum ShellCommand {
    static func run(_ command: String) throws(AgentError) {
        let doing = "running"
        var process = pid_t()
        let arguments: [UnsafeMutablePointer<CChar>?] = [
            strdup("/bin/sh"), strdup("-c"), strdup(command), nil,
        ]
        defer { for argument in arguments { free(argument) } }
        let code = posix_spawn(&process, "/bin/sh", nil, nil, arguments, environ)
        guard code == 0 else { throw AgentError.system(code, doing: doing, to: command) }
        var status: Int32 = 0
        while waitpid(process, &status, 0) < 0 {
            guard errno == EINTR else { throw AgentError.system(errno, doing: doing, to: command) }
        }
        guard status == 0 else {
            let how =
                status & 0x7F == 0
                ? "it ended with status \(status >> 8 & 0xFF)" : "signal \(status & 0x7F) ended it"
            throw AgentError(.io, doing: doing, to: command, because: how)
        }
    }

    static func realTime() -> Int64 {
        var time = timespec()
        clock_gettime(CLOCK_REALTIME, &time)
        return Int64(time.tv_sec) * 1_000_000_000 + Int64(time.tv_nsec)
    }
}
