import CWitnessCalls
import Glibc

/// What failed, on what, and why.
struct Failure: Error, CustomStringConvertible {
    let description: String

    init(_ what: String, _ name: [UInt8], _ code: Int32 = errno) {
        description = "\(what) \(encoded(name)): \(String(cString: strerror(code)))"
    }
}

/// An open directory. Everything is done relative to one, because paths may be longer than PATH_MAX.
final class Directory {
    let descriptor: Int32

    init(path: String) throws {
        descriptor = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard descriptor >= 0 else { throw Failure("open", Array(path.utf8)) }
    }

    init(_ name: [UInt8], in parent: Directory) throws {
        // Without O_NOATIME, which only root may ask for, looking would change what is looked at.
        let flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW | (geteuid() == 0 ? 0o1_000_000 : 0)
        descriptor = named(name) { openat(parent.descriptor, $0, flags) }
        guard descriptor >= 0 else { throw Failure("open the directory", name) }
    }

    deinit { close(descriptor) }

    /// For calls that take paths only.
    func path(_ name: [UInt8]) -> [UInt8] { Array("/proc/self/fd/\(descriptor)/".utf8) + name }

    func make(_ name: [UInt8], mode: mode_t = 0o755) throws -> Directory {
        guard named(name, { mkdirat(descriptor, $0, mode) }) == 0 else { throw Failure("mkdir", name) }
        return try Directory(name, in: self)
    }

    func make(_ name: String, mode: mode_t = 0o755) throws -> Directory {
        try make(Array(name.utf8), mode: mode)
    }

    /// All that was written to its file system, and to no other.
    func flush() throws {
        guard witness_syncfs(descriptor) == 0 else { throw Failure("syncfs", []) }
    }

    func create(_ name: [UInt8], flags: Int32 = 0) throws -> Int32 {
        let file = named(name) { openat(descriptor, $0, O_RDWR | O_CREAT | O_CLOEXEC | flags, 0o644) }
        guard file >= 0 else { throw Failure("create", name) }
        return file
    }

    func remove(_ name: String) throws {
        guard unlinkat(descriptor, name, 0) == 0 else { throw Failure("unlink", Array(name.utf8)) }
    }

    func status(_ name: [UInt8]) throws -> stat {
        var status = stat()
        guard named(name, { fstatat(descriptor, $0, &status, AT_SYMLINK_NOFOLLOW) }) == 0 else {
            throw Failure("stat", name)
        }
        return status
    }

    /// Without `.` and `..`, in the order of their bytes.
    func names() throws -> [[UInt8]] {
        guard let stream = fdopendir(dup(descriptor)) else { throw Failure("fdopendir", []) }
        defer { closedir(stream) }
        rewinddir(stream)
        var names: [[UInt8]] = []
        errno = 0
        while let entry = readdir(stream) {
            let offset = MemoryLayout<dirent>.offset(of: \.d_name)!
            let name = UnsafeRawPointer(entry).advanced(by: offset).assumingMemoryBound(to: CChar.self)
            names.append([UInt8](UnsafeRawBufferPointer(start: name, count: strlen(name))))
        }
        guard errno == 0 else { throw Failure("readdir", []) }
        return names.filter { $0 != [46] && $0 != [46, 46] }.sorted { $0.lexicographicallyPrecedes($1) }
    }
}

/// `name` as C has it.
func named<Result>(_ name: [UInt8], _ call: (UnsafePointer<CChar>) -> Result) -> Result {
    (name + [0]).withUnsafeBytes { call($0.baseAddress!.assumingMemoryBound(to: CChar.self)) }
}

/// Bytes in a form without spaces, line ends and whatever else troubles: as in a URL.
func encoded(_ bytes: some Sequence<UInt8>) -> String {
    var text = String.UnicodeScalarView()
    for byte in bytes {
        switch byte {
        case 0x30...0x39, 0x41...0x5A, 0x61...0x7A, 0x2D, 0x2E, 0x2F, 0x5F: text.append(Unicode.Scalar(byte))
        default: text += ("%" + hexadecimal([byte])).unicodeScalars
        }
    }
    return String(text)
}

/// Numbers without pattern, the same for the same seed.
struct Generator: RandomNumberGenerator {
    private var state: UInt64

    init(_ seed: some StringProtocol) {
        state = seed.utf8.reduce(0xcbf2_9ce4_8422_2325) { ($0 ^ UInt64($1)) &* 0x100_0000_01b3 }
    }

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var word = state
        word = (word ^ word >> 30) &* 0xBF58_476D_1CE4_E5B9
        word = (word ^ word >> 27) &* 0x94D0_49BB_1331_11EB
        return word ^ word >> 31
    }

    mutating func bytes(_ count: Int) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: count)
        for offset in stride(from: 0, to: count, by: 8) {
            let word = next()
            for index in 0..<min(8, count - offset) {
                bytes[offset + index] = UInt8(truncatingIfNeeded: word >> (8 * index))
            }
        }
        return bytes
    }
}
