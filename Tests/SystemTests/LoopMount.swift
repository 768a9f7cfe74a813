import Blocks
import Foundation
import TestSupport

/// A file system on a host's export: nbdfuse makes a file of the export, the kernel mounts that by a loop device.
final class LoopMount: Sendable {
    static let isPossible = Tier.isHost && Machine.canMount
    static let reason: String =
        "host tier only: mounts by FUSE and loop devices as root (OUTBOARD_TIER=host, /dev/fuse, /dev/loop-control)"

    private struct State {
        var host: HostProcess
        var fuse: ChildProcess
    }
    private let state: Monitor<State>
    private let options: [String]
    private let size: UInt64
    private let file: String
    let mountPoint: String
    var host: HostProcess { state.withLock { $0.host } }

    /// - Parameter kind: `ext4` or `xfs`.
    init(size: UInt64, _ kind: String = "ext4", options: [String] = []) throws {
        let scratch = try ScratchDirectory()
        let volume = scratch("volume.img")
        try makeSparseFile(volume, size: size)
        let whole = ["-E", "lazy_itable_init=0,lazy_journal_init=0"]
        try LoopMount.succeed("mkfs." + kind, ["-q"] + (kind == "ext4" ? whole : []) + [volume])
        self.size = size
        self.options = options
        file = scratch("fuse")
        mountPoint = scratch("mnt")
        try FileManager.default.createDirectory(atPath: mountPoint, withIntermediateDirectories: false)
        let host = try HostProcess(scratch, options: options)
        state = Monitor(State(host: host, fuse: try Self.serve(host, file, size)))
        try Self.succeed("mount", ["-o", "loop", file, mountPoint])
    }

    /// Makes a file of a host's export.
    private static func serve(_ host: HostProcess, _ file: String, _ size: UInt64) throws -> ChildProcess {
        try makeSparseFile(file, size: 0)
        let fuse = try ChildProcess("nbdfuse", [file, "--unix", host.socket])
        try waitUntil("nbdfuse serves") {
            guard fuse.isRunning else { throw TestFailure("nbdfuse ended: \(fuse.errors)") }
            var status = stat()
            return stat(file, &status) == 0 && status.st_size == off_t(size)
        }
        return fuse
    }

    /// After the host's death, as after a disk was pulled out: unmounts, starts the host anew, mounts again.
    func reconnect() throws {
        Self.unmount(mountPoint)
        disconnect()
        let host = try HostProcess(host.directory, options: options)
        let fuse = try Self.serve(host, file, size)
        state.withLock { $0 = State(host: host, fuse: fuse) }
        try Self.succeed("mount", ["-o", "loop", file, mountPoint])
    }

    private func disconnect() {
        _ = try? runProgram("fusermount3", ["-u", "-z", file], seconds: 10)
        state.withLock { $0.fuse }.stop()
    }

    deinit {
        Self.unmount(mountPoint)
        disconnect()
    }

    /// Thaws and unmounts, whatever a test has left.
    static func unmount(_ mountPoint: String) {
        // Each of these is needed only where something failed before: their failures say nothing new.
        _ = try? runProgram("fsfreeze", ["-u", mountPoint], seconds: 10)
        do {
            // Who was blocked by a freeze holds the mount until it has ended.
            try waitUntil("the mount is no longer busy") {
                try runProgram("umount", [mountPoint], seconds: 30).isSuccess
            }
        } catch {
            // It goes when its last user does.
            _ = try? runProgram("umount", ["-l", mountPoint], seconds: 30)
        }
    }

    @discardableResult
    static func succeed(_ program: String, _ arguments: [String]) throws -> ProgramResult {
        let result = try runProgram(program, arguments)
        guard result.isSuccess else { throw TestFailure("\(result)") }
        return result
    }

    /// Whether a write to the file system comes to its end, as it does not while it is frozen.
    func canWrite() throws -> Bool {
        try runProgram(
            "dd", ["if=/dev/zero", "of=\(mountPoint)/thawed", "bs=4k", "count=1", "conv=fsync"], seconds: 10
        )
        .isSuccess
    }
}

/// Makes, overwrites and deletes numbered files, one after another, each durably, and remembers when.
final class FileWriter: Sendable {
    struct Operation: Sendable {
        enum Kind: Sendable { case write, delete }
        let kind: Kind
        let name: String
        let content: [UInt8]
        let issuedAt: Int64
        var finishedAt: Int64?
    }

    private let directory: String
    private let state = Monitor(
        (operations: [Operation](), stopping: false, done: false, failure: String?.none))

    init(in directory: String) { self.directory = directory }

    func start() {
        BlockingThread.start(stackSize: 1 << 20) { [self] in
            var generator = SeededGenerator(seed: 99)
            var present: [String] = []
            var failure: String?
            var number = 0
            do {
                while !state.withLock({ $0.stopping }) {
                    number += 1
                    let dice = Int.random(in: 0..<10, using: &generator)
                    if dice < 3, let index = present.indices.randomElement(using: &generator) {
                        if dice == 0 {
                            try delete(present.remove(at: index))
                        } else {
                            try write(present[index], number, &generator)
                        }
                    } else {
                        let name = "f\(number)"
                        present.append(name)
                        try write(name, number, &generator)
                        // Bounded, so that the volume does not fill up.
                        if present.count > 200 { try delete(present.removeFirst()) }
                    }
                }
            } catch { failure = "\(error)" }
            state.withLockAndNotify { [failure] in
                $0.done = true
                $0.failure = failure
            }
        }
    }

    private func write(_ name: String, _ number: Int, _ generator: inout SeededGenerator) throws {
        let line = Array("\(name) \(number)\n".utf8)
        let count = Int.random(in: 1...64 << 10, using: &generator)
        var content: [UInt8] = []
        content.reserveCapacity(count + line.count)
        while content.count < count { content += line }
        let index = begin(.write, name, content)
        let descriptor = open("\(directory)/\(name)", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o644)
        guard descriptor >= 0 else { throw TestFailure("open \(name): errno \(errno)") }
        defer { close(descriptor) }
        guard Glibc.write(descriptor, content, content.count) == content.count, fsync(descriptor) == 0 else {
            throw TestFailure("write \(name): errno \(errno)")
        }
        finish(index)
    }

    private func delete(_ name: String) throws {
        let index = begin(.delete, name, [])
        guard unlink("\(directory)/\(name)") == 0 else { throw TestFailure("unlink \(name): errno \(errno)") }
        finish(index)
    }

    private func begin(_ kind: Operation.Kind, _ name: String, _ content: [UInt8]) -> Int {
        state.withLock {
            $0.operations.append(
                Operation(kind: kind, name: name, content: content, issuedAt: PrefixOracle.realTime))
            return $0.operations.count - 1
        }
    }

    private func finish(_ index: Int) {
        state.withLockAndNotify { $0.operations[index].finishedAt = PrefixOracle.realTime }
    }

    var operations: [Operation] { state.withLock { $0.operations } }

    func wait(for count: Int) { state.wait { $0.done || $0.operations.count >= count ? () : nil } }

    func stop() throws {
        state.withLockAndNotify { $0.stopping = true }
        if let failure = state.wait(until: { $0.done ? .some($0.failure) : nil }) {
            throw TestFailure(failure)
        }
    }

    /// What the directory holds at an instant: whole files by name, and the name of the one that was being
    /// worked on, of which nothing can be said.
    func contents(at instant: Int64) -> (files: [String: [UInt8]], open: String?) {
        var files: [String: [UInt8]] = [:]
        for operation in operations where operation.issuedAt <= instant {
            guard let finished = operation.finishedAt, finished < instant else {
                files[operation.name] = nil
                return (files, operation.name)
            }
            files[operation.name] = operation.kind == .write ? operation.content : nil
        }
        return (files, nil)
    }

    /// Names that were deleted before an instant, and not made durably gone by anything.
    func deleted(before instant: Int64) -> Set<String> {
        Set(operations.filter { $0.kind == .delete && $0.issuedAt <= instant }.map(\.name))
    }
}
