import CWitnessCalls
import Glibc

/// What the file system's own driver shows of a mounted tree: a line for everything in it.
///
/// `PATH kind=… size=… mode=… owner=… group=… links=… modified=S.N accessed=S.N blocks=…`, and as it applies
/// `device=`, `target=`, `hash=`, `same=` (the first path of the same inode), `xattr:NAME=` (the value after an `x`, or
/// its length and sum). The hash is of the 4096-byte blocks that are not all zeros, each behind its number, and
/// so is the same whether zeros are holes or not, and takes no time for holes.
struct Listing {
    /// Names in the root that are left out.
    var skipped: Set<String>
    private var first: [UInt64: String] = [:]

    init(skipping: Set<String>) { skipped = skipping }

    mutating func list(_ path: String) throws {
        try list(Directory(path: path), [])
    }

    private mutating func list(_ directory: Directory, _ prefix: [UInt8]) throws {
        for name in try directory.names() {
            if prefix.isEmpty, skipped.contains(String(decoding: name, as: UTF8.self)) { continue }
            let path = prefix + name
            let status = try directory.status(name)
            var line = describe(path, status)
            switch status.st_mode & S_IFMT {
            case S_IFREG: line += " hash=" + hash(directory, name, status)
            case S_IFLNK: line += try " target=" + target(directory, name)
            case S_IFBLK, S_IFCHR:
                line += " device=\(witness_major(status.st_rdev)):\(witness_minor(status.st_rdev))"
            default: break
            }
            line += attributes(directory.path(name))
            put(line + "\n")
            if status.st_mode & S_IFMT == S_IFDIR { try list(Directory(name, in: directory), path + [0x2F]) }
        }
    }

    private mutating func describe(_ path: [UInt8], _ status: stat) -> String {
        let kinds: [mode_t: String] = [
            S_IFREG: "file", S_IFDIR: "directory", S_IFLNK: "link", S_IFBLK: "block", S_IFCHR: "character",
            S_IFIFO: "fifo", S_IFSOCK: "socket",
        ]
        let kind = kinds[status.st_mode & S_IFMT] ?? "other"
        var line = encoded(path) + " kind=\(kind) size=\(status.st_size)"
        line +=
            " mode=\(String(status.st_mode & 0o7777, radix: 8)) owner=\(status.st_uid) group=\(status.st_gid)"
        line += " links=\(status.st_nlink) modified=\(status.st_mtim.tv_sec).\(status.st_mtim.tv_nsec)"
        line += " accessed=\(status.st_atim.tv_sec).\(status.st_atim.tv_nsec) blocks=\(status.st_blocks)"
        if status.st_nlink > 1, kind != "directory" {
            let same = first[UInt64(status.st_ino), default: encoded(path)]
            first[UInt64(status.st_ino)] = same
            line += " same=" + same
        }
        return line
    }

    private func target(_ directory: Directory, _ name: [UInt8]) throws -> String {
        var buffer = [CChar](repeating: 0, count: 8192)
        let count = named(name) { readlinkat(directory.descriptor, $0, &buffer, buffer.count) }
        guard count >= 0 else { throw Failure("readlink", name) }
        return encoded(buffer[..<count].map { UInt8(bitPattern: $0) })
    }

    private func hash(_ directory: Directory, _ name: [UInt8], _ status: stat) -> String {
        let noAccessTime: Int32 = geteuid() == 0 ? 0o1_000_000 : 0
        let file = named(name) {
            openat(directory.descriptor, $0, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | noAccessTime)
        }
        guard file >= 0 else { return "unreadable-\(errno)" }
        defer { close(file) }
        var sum = ContentHash()
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 256 << 10, alignment: 4096)
        defer { buffer.deallocate() }
        var place: off_t = 0
        while place < status.st_size {
            // SEEK_DATA; ENXIO: nothing but a hole until the end.
            let data = lseek(file, place, 3)
            if data < 0, errno == ENXIO { break }
            if data > place { place = data & ~4095 }
            let count = pread(file, buffer.baseAddress!, buffer.count, place)
            if count < 0 { return "unreadable-\(errno)-at-\(place)" }
            if count == 0 { return "ends-at-\(place)" }
            // Whole blocks, except at the end.
            let used = place + off_t(count) < status.st_size ? count & ~4095 : count
            if used == 0 { return "short-read-at-\(place)" }
            for offset in stride(from: 0, to: used, by: 4096) {
                let block = UnsafeRawBufferPointer(rebasing: buffer[offset..<min(offset + 4096, used)])
                if block.allSatisfy({ $0 == 0 }) { continue }
                let number = UInt64((place + off_t(offset)) / 4096).bigEndian
                withUnsafeBytes(of: number) { sum.update($0) }
                sum.update(block)
            }
            place += off_t(used)
        }
        return sum.finish()
    }

    private func attributes(_ path: [UInt8]) -> String {
        var buffer = [CChar](repeating: 0, count: 128 << 10)
        let length = named(path) { llistxattr($0, &buffer, buffer.count) }
        guard length > 0 else {
            return length < 0 && errno != ENOTSUP && errno != ENODATA ? " xattr-error=\(errno)" : ""
        }
        let names = buffer[..<length].split(separator: 0).map { $0.map { UInt8(bitPattern: $0) } }
        return names.sorted { $0.lexicographicallyPrecedes($1) }.map { name in
            var value = [UInt8](repeating: 0, count: 128 << 10)
            let count = named(path) { path in named(name) { lgetxattr(path, $0, &value, value.count) } }
            guard count >= 0 else { return " xattr:\(encoded(name))=error-\(errno)" }
            guard count > 64 else { return " xattr:\(encoded(name))=x\(hexadecimal(Array(value[..<count])))" }
            var sum = ContentHash()
            sum.update(Array(value[..<count]))
            return " xattr:\(encoded(name))=\(count)-\(sum.finish())"
        }.joined()
    }
}

/// To standard output, which is a disk in the virtual machine.
func put(_ text: String) { print(text, terminator: "") }
