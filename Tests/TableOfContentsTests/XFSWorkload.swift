import Foundation
import Glibc
import TestSupport

/// Changes a mounted file system in all the ways that a log has items for, by a seed. Calls that fail (a name that is
/// there already, a disk that was shut down) are part of it.
struct XFSWorkload {
    private var random: SeededGenerator
    private let root: String
    private var directories: [String]
    private var files: [String] = []
    private var made = 0

    init(_ root: String, seed: UInt64) {
        self.root = root
        random = SeededGenerator(seed: seed)
        directories = [root]
    }

    private static let setAttribute = unsafeBitCast(
        dlsym(nil, "lsetxattr"),
        to: (@convention(c) (
            UnsafePointer<CChar>, UnsafePointer<CChar>, UnsafeRawPointer, Int, Int32
        ) -> Int32).self)
    private static let removeAttribute = unsafeBitCast(
        dlsym(nil, "lremovexattr"),
        to: (@convention(c) (UnsafePointer<CChar>, UnsafePointer<CChar>) -> Int32).self)
    private static let allocate = unsafeBitCast(
        dlsym(nil, "fallocate"), to: (@convention(c) (Int32, Int32, off_t, off_t) -> Int32).self)
    private static let control = unsafeBitCast(
        dlsym(nil, "ioctl"), to: (@convention(c) (Int32, UInt, Int) -> Int32).self)
    /// syncfs(2): sync(2) would wait for all other file systems of the machine.
    static let synchronize = unsafeBitCast(
        dlsym(nil, "syncfs"), to: (@convention(c) (Int32) -> Int32).self)
    /// FICLONE.
    private static let clone: UInt = 0x4004_9409

    private mutating func below(_ count: Int) -> Int { Int(random.next() % UInt64(max(count, 1))) }

    private mutating func newName(_ longest: Int = 40) -> String {
        made += 1
        return (directories.isEmpty ? root : directories[below(directories.count)]) + "/n\(made)-"
            + String(repeating: "x", count: below(longest))
    }

    private mutating func anyFile() -> String { files.isEmpty ? root + "/none" : files[below(files.count)] }

    /// - Returns: how many steps were done until `isOver` said so.
    @discardableResult
    mutating func run(_ steps: Int, isOver: () -> Bool = { false }) -> Int {
        for step in 0..<steps {
            if step % 64 == 0, isOver() { return step }
            self.step()
        }
        return steps
    }

    private mutating func step() {
        switch below(100) {
        case 0..<30: create()
        case 30..<40: write(anyFile())
        case 40..<46: fragment(anyFile())
        case 46..<56: remove()
        case 56..<62: rename()
        case 62..<67: link()
        case 67..<72: makeDirectory()
        case 72..<84: attribute()
        case 84..<88: shape(anyFile())
        case 88..<91: share()
        case 91..<93: burst()
        case 93..<95: removeTree()
        case 95..<97: _ = chmod(anyFile(), mode_t(below(0o7777)))
        case 97: _ = mknod(newName(), S_IFCHR | 0o600, dev_t(0x0501))
        default: synchronize()
        }
    }

    private mutating func create() {
        let name = newName(below(10) == 0 ? 200 : 40)
        let file = open(name, O_CREAT | O_WRONLY | O_CLOEXEC, 0o644)
        guard file >= 0 else { return }
        files.append(name)
        let bytes = seededBytes(below(30_000), seed: random.next())
        _ = Glibc.write(file, bytes, bytes.count)
        if below(4) == 0 { fsync(file) }
        close(file)
    }

    private mutating func write(_ name: String) {
        let file = open(name, O_WRONLY | O_CLOEXEC)
        guard file >= 0 else { return }
        let bytes = seededBytes(1 + below(100_000), seed: random.next())
        _ = pwrite(file, bytes, bytes.count, off_t(below(1 << 20)))
        if below(3) == 0 { fsync(file) }
        close(file)
    }

    /// Every other block, so that the list of extents becomes a tree.
    private mutating func fragment(_ name: String) {
        let file = open(name, O_WRONLY | O_CLOEXEC)
        guard file >= 0 else { return }
        let block = seededBytes(4096, seed: random.next())
        let start = below(1000)
        for index in 0..<below(60) { _ = pwrite(file, block, 4096, off_t((start + index * 2) * 4096)) }
        fsync(file)
        close(file)
    }

    private mutating func remove() {
        guard !files.isEmpty else { return }
        let index = below(files.count)
        _ = unlink(files[index])
        files.swapAt(index, files.count - 1)
        files.removeLast()
    }

    private mutating func rename() {
        guard !files.isEmpty else { return }
        let index = below(files.count)
        let target = below(4) == 0 ? anyFile() : newName()
        if Glibc.rename(files[index], target) == 0 { files[index] = target }
    }

    private mutating func link() {
        let name = newName()
        if below(2) == 0 {
            if Glibc.link(anyFile(), name) == 0 { files.append(name) }
        } else {
            let target = String(repeating: "target/", count: 1 + below(140))
            if symlink(target, name) == 0 { files.append(name) }
        }
    }

    private mutating func makeDirectory() {
        let name = newName()
        if mkdir(name, 0o755) == 0 { directories.append(name) }
    }

    private mutating func attribute() {
        let name = below(4) == 0 ? directories[below(directories.count)] : anyFile()
        let key = (below(5) == 0 ? "trusted." : "user.") + "key-\(below(30))"
        if below(4) == 0 {
            _ = Self.removeAttribute(name, key)
        } else {
            let sizes = [10, 10, 60, 300, 2500, 20_000]
            let value = seededBytes(sizes[below(sizes.count)], seed: random.next())
            _ = Self.setAttribute(name, key, value, value.count, 0)
        }
    }

    private mutating func shape(_ name: String) {
        switch below(4) {
        case 0: _ = truncate(name, off_t(below(1 << 20)))
        case 1: _ = truncate(name, 0)
        default:
            let file = open(name, O_RDWR | O_CLOEXEC)
            guard file >= 0 else { return }
            // Allocate, keep the size, punch a hole, collapse, zero, insert.
            let modes: [Int32] = [0, 1, 3, 8, 16, 32]
            _ = Self.allocate(
                file, modes[below(modes.count)], off_t(below(100) * 4096), off_t((1 + below(100)) * 4096))
            close(file)
        }
    }

    private mutating func share() {
        let from = open(anyFile(), O_RDONLY | O_CLOEXEC)
        let name = newName()
        let to = open(name, O_CREAT | O_RDWR | O_CLOEXEC, 0o644)
        if to >= 0 { files.append(name) }
        if from >= 0, to >= 0, Self.control(to, Self.clone, Int(from)) == 0 {
            let bytes = seededBytes(5000, seed: random.next())
            _ = pwrite(to, bytes, bytes.count, off_t(below(20_000)))
            fsync(to)
        }
        if from >= 0 { close(from) }
        if to >= 0 { close(to) }
    }

    /// A directory that grows through its forms, and may shrink again.
    private mutating func burst() {
        let name = newName(5)
        guard mkdir(name, 0o755) == 0 else { return }
        directories.append(name)
        let count = 20 + below(400)
        let kept = below(3) == 0 ? count / 5 : count
        for index in 0..<count {
            let file = name + "/burst-with-some-name-\(index)"
            let descriptor = open(file, O_CREAT | O_WRONLY | O_CLOEXEC, 0o600)
            if descriptor >= 0 { close(descriptor) }
            if index < kept { files.append(file) }
        }
        for index in kept..<count { _ = unlink(name + "/burst-with-some-name-\(index)") }
    }

    private mutating func removeTree() {
        guard directories.count > 1 else { return }
        let victim = directories[1 + below(directories.count - 1)]
        let prefix = victim + "/"
        for file in files where file.hasPrefix(prefix) { _ = unlink(file) }
        files.removeAll { $0.hasPrefix(prefix) }
        for directory in directories.sorted(by: { $0.utf8.count > $1.utf8.count })
        where directory == victim || directory.hasPrefix(prefix) { _ = rmdir(directory) }
        directories.removeAll { $0 == victim || $0.hasPrefix(prefix) }
        if access(victim, F_OK) == 0 { directories.append(victim) }
    }

    private mutating func synchronize() {
        let file = open(directories[below(directories.count)], O_RDONLY | O_CLOEXEC)
        guard file >= 0 else { return }
        if below(20) == 0 { _ = Self.synchronize(file) } else { fsync(file) }
        close(file)
    }
}
