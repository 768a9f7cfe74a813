import Glibc

/// Calls of the C library that its module for Swift does not show. Each answers as it does: −1 and `errno`; `ENOSYS`
/// where the library has none.
enum FileCalls {
    static let emptyPath: Int32 = 0x1000
    static let pathOnly: Int32 = 0o10_000_000
    static let noReplace: UInt32 = 1
    static let omitTime = (1 << 30) - 2
    private static let keepSize: Int32 = 1
    private static let punchHole: Int32 = 2

    private typealias Rename =
        @convention(c) (Int32, UnsafePointer<CChar>, Int32, UnsafePointer<CChar>, UInt32) -> Int32
    private typealias Synchronize = @convention(c) (Int32) -> Int32
    private typealias SetByDescriptor =
        @convention(c) (Int32, UnsafePointer<CChar>, UnsafeRawPointer?, Int, Int32) -> Int32
    private typealias SetByPath =
        @convention(c) (UnsafePointer<CChar>, UnsafePointer<CChar>, UnsafeRawPointer?, Int, Int32) -> Int32
    private typealias RemoveByDescriptor = @convention(c) (Int32, UnsafePointer<CChar>) -> Int32

    private typealias Allocate = @convention(c) (Int32, Int32, off_t, off_t) -> Int32

    // Looked up once.
    private static let allocate = find("fallocate", Allocate.self)
    private static let rename = find("renameat2", Rename.self)
    private static let synchronize = find("syncfs", Synchronize.self)
    private static let setByDescriptor = find("fsetxattr", SetByDescriptor.self)
    private static let setByPath = find("lsetxattr", SetByPath.self)
    private static let removeByDescriptor = find("fremovexattr", RemoveByDescriptor.self)

    private static func find<Function>(_ name: String, _ type: Function.Type) -> Function? {
        dlsym(nil, name).map { unsafeBitCast($0, to: type) }
    }

    private static func missing() -> Int32 {
        errno = ENOSYS
        return -1
    }

    /// renameat2(2) within a directory.
    static func rename(in directory: Int32, _ old: [CChar], _ new: [CChar], flags: UInt32) -> Int32 {
        guard let rename else { return missing() }
        return rename(directory, old, directory, new, flags)
    }

    /// syncfs(2): all that was written to the descriptor's file system is on stable storage.
    static func synchronizeFileSystem(of descriptor: Int32) -> Int32 {
        guard let synchronize else { return missing() }
        return synchronize(descriptor)
    }

    static func setAttribute(_ descriptor: Int32, _ name: [CChar], _ value: [UInt8]) -> Int32 {
        guard let setByDescriptor else { return missing() }
        return setByDescriptor(descriptor, name, value, value.count, 0)
    }

    /// Does not follow a symbolic link at the path's end.
    static func setAttribute(path: String, _ name: [CChar], _ value: [UInt8]) -> Int32 {
        guard let setByPath else { return missing() }
        return setByPath(path, name, value, value.count, 0)
    }

    static func removeAttribute(_ descriptor: Int32, _ name: String) -> Int32 {
        guard let removeByDescriptor else { return missing() }
        return removeByDescriptor(descriptor, name)
    }

    /// fallocate(2): a range of a file reads as zeros and takes no space.
    static func makeHole(_ descriptor: Int32, _ offset: UInt64, _ count: UInt64) -> Int32 {
        guard let allocate else { return missing() }
        return allocate(descriptor, keepSize | punchHole, off_t(offset), off_t(count))
    }

    /// The names in a directory, `.` and `..` among them, as far as they can be read.
    static func forEachName(in directory: Int32, _ body: (UnsafeRawBufferPointer.SubSequence) -> Void) {
        // A position of its own.
        let own = openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard own >= 0 else { return }
        guard let stream = fdopendir(own) else {
            close(own)
            return
        }
        defer { closedir(stream) }
        while let entry = readdir(stream) {
            withUnsafeBytes(of: &entry.pointee.d_name) { bytes in
                body(bytes.prefix { $0 != 0 })
            }
        }
    }

    /// Writes all of it.
    static func write(
        _ buffer: UnsafeRawBufferPointer, to descriptor: Int32, at offset: UInt64
    ) throws(AgentError) {
        var done = 0
        while done < buffer.count {
            let count = pwrite(
                descriptor, buffer.baseAddress.map { $0 + done }, buffer.count - done, Int(offset) + done)
            if count < 0, errno == EINTR { continue }
            guard count > 0 else {
                var error = AgentError.system(errno, doing: "writing", to: "a restored file")
                if errno == ENOSPC || errno == EDQUOT { error.cause = .noSpace }
                throw error
            }
            done += count
        }
    }

    /// dev_t as the C library encodes it.
    static func device(_ major: UInt32, _ minor: UInt32) -> dev_t {
        let (major, minor) = (UInt64(major), UInt64(minor))
        let low: UInt64 = (major & 0xFFF) << 8 | (minor & 0xFF)
        let high: UInt64 = (major & 0xFFFF_F000) << 32 | (minor & 0xFFFF_FF00) << 12
        return dev_t(high | low)
    }
}

extension [UInt8] {
    /// A name as the system takes it.
    var cString: [CChar] { map { CChar(bitPattern: $0) } + [0] }
}
