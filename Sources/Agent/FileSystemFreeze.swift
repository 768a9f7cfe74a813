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
