import Foundation
import TestSupport

/// A file system of its own, mounted in a scratch directory.
final class TestMount: Sendable {
    static let isPossible = LoopMount.isPossible
    static let reason = LoopMount.reason

    let path: String
    private let scratch: ScratchDirectory

    /// In memory.
    init(memory size: Int, in scratch: ScratchDirectory) throws {
        self.scratch = scratch
        path = scratch("small")
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: false)
        try LoopMount.succeed("mount", ["-t", "tmpfs", "-o", "size=\(size)", "outboard-test", path])
    }

    /// An ext4 or XFS, which can be frozen, on a loop device.
    init(loop size: UInt64, _ kind: String = "ext4", in scratch: ScratchDirectory) throws {
        self.scratch = scratch
        path = scratch(kind)
        let image = scratch(kind + ".img")
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: false)
        try makeSparseFile(image, size: size)
        try LoopMount.succeed("mkfs." + kind, ["-q"] + (kind == "xfs" ? ["--unsupported"] : []) + [image])
        try LoopMount.succeed("mount", ["-o", "loop", image, path])
    }

    /// One of a kind: `tmpfs`, `ext4`, `xfs`.
    convenience init(_ kind: String, size: UInt64, in scratch: ScratchDirectory) throws {
        if kind == "tmpfs" {
            try self.init(memory: Int(size), in: scratch)
        } else {
            try self.init(loop: size, kind, in: scratch)
        }
    }

    deinit { LoopMount.unmount(path) }

    func callAsFunction(_ name: String) -> String { path + "/" + name }

    var names: [String] {
        get throws {
            try FileManager.default.contentsOfDirectory(atPath: path).filter { $0 != "lost+found" }.sorted()
        }
    }

    /// Takes all the space that is left with a file `filler`.
    func fill() throws {
        let result = try runProgram("dd", ["if=/dev/zero", "of=\(self("filler"))", "bs=64k"])
        guard result.errors.contains("No space left") else { throw TestFailure("\(result)") }
    }

    /// Bytes that are left.
    func space() throws -> UInt64 {
        var information = statvfs()
        guard statvfs(path, &information) == 0 else { throw TestFailure("statvfs \(path): errno \(errno)") }
        return UInt64(information.f_bavail) * UInt64(information.f_frsize)
    }

    /// Takes all the space but so many bytes with a file `filler`. Others may take some of it meanwhile.
    func leave(_ bytes: UInt64) throws {
        for _ in 0..<100 {
            let space = try space()
            if space <= bytes { return }
            let result = try runProgram("fallocate", ["-l", "\(space - bytes)", self("filler")], seconds: 30)
            if result.isSuccess { return }
        }
        throw TestFailure("\(path) cannot be filled")
    }

    func grow(to size: Int) throws { try LoopMount.succeed("mount", ["-o", "remount,size=\(size)", path]) }

    func isFrozen() throws -> Bool { try Self.isFrozen(path) }

    /// FIFREEZE refuses what is frozen already.
    static func isFrozen(_ mountPoint: String) throws -> Bool {
        let result = try runProgram("fsfreeze", ["-f", mountPoint], seconds: 30)
        if result.isSuccess { try LoopMount.succeed("fsfreeze", ["-u", mountPoint]) }
        return !result.isSuccess && result.errors.contains("busy")
    }

    /// Whether a write to the file system comes to its end, as it does not while it is frozen.
    func canWrite() throws -> Bool {
        try runProgram("dd", ["if=/dev/zero", "of=\(self("written"))", "count=1", "conv=fsync"], seconds: 10)
            .isSuccess
    }
}
