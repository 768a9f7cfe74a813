import Blocks
import Foundation
import TestSupport

/// A file system on a host's export, filled with what is hard to read, and in use.
final class MountedVolume: Sendable {
    let kind: FileSystemCase
    let host: HostProcess
    let mountPoint: String
    private let file: String
    private let fuse: ChildProcess
    private let writer: Monitor<ChildProcess?>

    init(_ kind: FileSystemCase) throws {
        self.kind = kind
        let scratch = try ScratchDirectory()
        try kind.make(at: scratch("volume.img"))
        host = try HostProcess(scratch)
        file = scratch("fuse")
        mountPoint = scratch("mnt")
        try makeSparseFile(file, size: 0)
        fuse = try ChildProcess("nbdfuse", [file, "--unix", host.socket])
        writer = Monitor(nil)
        try waitUntil("nbdfuse serves") { [file] in
            var status = stat()
            return stat(file, &status) == 0 && status.st_size == off_t(kind.size)
        }
        try kind.mount(file, at: mountPoint)
        try Witness.run(["fill", mountPoint, kind.abilities])
    }

    deinit {
        writer.withLock { $0 }?.stop()
        LoopMount.unmount(mountPoint)
        _ = try? runProgram("fusermount3", ["-u", "-z", file], seconds: 10)
        fuse.stop()
    }

    /// From now on the volume is written to without pause.
    func use() throws {
        let arguments = ["busy", mountPoint] + (kind.isGentle ? ["10000000", "gentle"] : [])
        let process = try ChildProcess(Witness.program, arguments)
        writer.withLock { $0 = process }
        guard process.line(where: { $0 == "BUSY" }) != nil else { throw TestFailure(process.errors) }
    }

    /// Ends the use; it must have gone on until now.
    func stopUse() throws {
        guard let process = writer.withLock({ $0 }), process.isRunning else {
            throw TestFailure("the writer ended: \(writer.withLock { $0 }?.errors ?? "")")
        }
        process.stop()
    }

    /// Copies the volume while it is in use.
    @discardableResult
    func copy(_ mode: String, to name: String, _ options: [String] = []) throws -> ProgramResult {
        let before = try host.status().counters.writes
        let freeze = kind.freezes ? ["--freeze", mountPoint] : []
        let made = try Outboard.run(
            ["copy", "--host", host.control, "--to", host.directory(name), "--mode", mode] + freeze + options,
            seconds: 600)
        guard made.status == 0 else { throw TestFailure("\(made)") }
        guard try host.status().counters.writes > before else {
            throw TestFailure("nothing was written meanwhile")
        }
        return made
    }

    /// What its own driver shows of the volume in a file, which is left as it is.
    func reference(of volume: String) throws -> TreeListing {
        let scratch = host.directory
        let (copy, place) = (scratch("reference.img"), scratch("reference"))
        try LoopMount.succeed("cp", ["--sparse=always", volume, copy])
        defer { unlink(copy) }
        // Writable, so that a journal is replayed.
        try kind.mount(copy, at: place)
        defer { LoopMount.unmount(place) }
        return try TreeListing(of: place)
    }
}

/// The program that fills, uses and lists file systems by system calls alone.
enum Witness {
    static let program = Outboard.built("FileSystemWitness")

    @discardableResult
    static func run(_ arguments: [String]) throws -> ProgramResult {
        let result = try runProgram(program, arguments, seconds: 600)
        guard result.isSuccess else { throw TestFailure("\(result)") }
        return result
    }
}
