import Agent
import Blocks
import Foundation
import HostControl
import TestSupport
import Testing

/// A mounted ext4 in use, on the host's export.
@Suite(.serialized, .enabled(if: LoopMount.isPossible, "\(LoopMount.reason)")) struct FileSystemTests {
    private static let size: UInt64 = 128 << 20

    /// Copies while files are written; the copy's data as one file that is the volume.
    private func copyWhileWriting(
        mode: String, options: [String], _ judge: (FileWriter, LoopMount, _ data: String) throws -> Void
    ) throws {
        let volume = try LoopMount(size: Self.size)
        let directory = volume.mountPoint + "/files"
        try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: false)
        let writer = FileWriter(in: directory)
        writer.start()
        writer.wait(for: 100)
        let scratch = volume.host.directory
        let copy = scratch("copy")
        let made = try Outboard.run(
            [
                "copy", "--host", volume.host.control, "--to", copy, "--mode", mode, "--max-rate", "128MiB",
            ] + options.map { $0.replacingOccurrences(of: "MNT", with: volume.mountPoint) })
        writer.wait(for: writer.operations.count + 50)
        try writer.stop()
        guard made.status == 0 else { throw TestFailure("\(made)") }
        var data = copy + "/data.img"
        if mode == "append" {
            data = scratch("restored")
            try LoopMount.succeed(Outboard.binary, ["restore", "volume", copy, "--to", data])
        }
        try judge(writer, volume, data)
    }

    /// The files in a file system that is not in use.
    private func files(of data: String, options: String, _ scratch: ScratchDirectory) throws -> [String:
        [UInt8]]
    {
        let place = scratch("look")
        try FileManager.default.createDirectory(atPath: place, withIntermediateDirectories: true)
        try LoopMount.succeed("mount", ["-o", options, data, place])
        defer {
            // Busy for a moment, at times; one that stays makes the removal of the directory fail, visibly.
            try? waitUntil("the look is over") { try runProgram("umount", [place]).isSuccess }
        }
        var files: [String: [UInt8]] = [:]
        for name in try FileManager.default.contentsOfDirectory(atPath: place + "/files") {
            files[name] = [UInt8](try Data(contentsOf: URL(fileURLWithPath: "\(place)/files/\(name)")))
        }
        return files
    }

    @Test(arguments: ["overlay", "append"])
    func aFrozenFileSystemNeedsNoReplay(mode: String) throws {
        let marks = try ScratchDirectory()
        let commands = [
            "--pre-freeze", "date +%s%N >\(marks("before"))", "--post-thaw", "date +%s%N >\(marks("after"))",
        ]
        try copyWhileWriting(mode: mode, options: ["--freeze", "MNT"] + commands) { writer, volume, data in
            let scratch = volume.host.directory
            let features = try LoopMount.succeed("dumpe2fs", ["-h", data]).output
            #expect(!features.contains("needs_recovery"), "\(features)")
            let check = try runProgram("e2fsck", ["-fn", data])
            #expect(check.status == 0, "\(check)")

            let instant = try CopiedEpoch(of: scratch("copy")).institutedAt
            let times = try ["before", "after"].map { name in
                Int64(try String(contentsOfFile: marks(name), encoding: .utf8).dropLast()) ?? 0
            }
            #expect(times[0] < instant && instant < times[1], "\(times) \(instant)")
            var found = try files(of: data, options: "ro,loop,noload", scratch)
            let (expected, open) = writer.contents(at: instant)
            if let open { found[open] = nil }
            #expect(Set(found.keys) == Set(expected.keys))
            #expect(expected.count > 10)
            for (name, content) in expected {
                #expect(found[name] == content, "\(name) differs")
            }
        }
    }

    @Test(arguments: ["overlay", "append"])
    func anUnfrozenFileSystemReplaysItsJournal(mode: String) throws {
        try copyWhileWriting(mode: mode, options: []) { writer, volume, data in
            let scratch = volume.host.directory
            let copy = scratch("checked")
            try LoopMount.succeed("cp", ["--sparse=always", data, copy])
            #expect(try LoopMount.succeed("dumpe2fs", ["-h", copy]).output.contains("needs_recovery"))
            let check = try runProgram("e2fsck", ["-fy", copy])
            #expect(check.status == 0 || check.status == 1, "\(check)")
            #expect((check.output + check.errors).contains("recovering journal"), "\(check)")
            let again = try runProgram("e2fsck", ["-fn", copy])
            #expect(again.status == 0, "\(again)")

            let instant = try CopiedEpoch(of: scratch("copy")).institutedAt
            let found = try files(of: copy, options: "ro,loop", scratch)
            let (expected, open) = writer.contents(at: instant)
            #expect(expected.count > 10)
            for (name, content) in expected { #expect(found[name] == content, "\(name) differs") }
            // A deletion is durable only with the next commit of the journal: it may not have been.
            let strange = Set(found.keys).subtracting(expected.keys)
                .subtracting(writer.deleted(before: instant)).subtracting([open ?? ""])
            #expect(strange == [])
        }
    }

    @Test func aCopyThatFailsAfterTheFreezeThaws() throws {
        let volume = try LoopMount(size: 32 << 20)
        let scratch = volume.host.directory
        let asked = try NamedPipe(scratch("asked"))
        try NamedPipe.makeGate(scratch("go"))
        // Somebody else begins an epoch when this copy has looked already and before it begins its own.
        let copy = try Outboard.start([
            "copy", "--host", volume.host.control, "--to", scratch("copy"), "--freeze", volume.mountPoint,
            "--pre-freeze", ": > \(asked.path); : < \(scratch("go"))",
            "--post-thaw", "touch \(scratch("thawed"))",
        ])
        #expect(asked.awaitWriter(), "\(copy.errors)")
        let other = try HostClient(path: volume.host.control)
        let epoch = try other.call(SnapshotBeginMethod.self, Empty())
        NamedPipe.letGo(scratch("go"))
        #expect(copy.wait() == .exit(75), "\(copy.errors)")
        #expect(try volume.canWrite())
        #expect(FileManager.default.fileExists(atPath: scratch("thawed")))
        #expect(!FileManager.default.fileExists(atPath: scratch("copy")))
        let now = try volume.host.status().epoch
        #expect(now?.uuid == epoch.uuid && now?.state == .open, "the other's epoch was touched")
        other.close()
    }

    @Test func aMountPointThatCannotBeFrozenLeavesNoneFrozen() throws {
        let volume = try LoopMount(size: 32 << 20)
        let scratch = volume.host.directory
        let copy = try Outboard.run([
            "copy", "--host", volume.host.control, "--to", scratch("copy"), "--freeze", volume.mountPoint,
            "--freeze", scratch("nowhere"),
        ])
        #expect(copy.status == 66, "\(copy)")
        #expect(try volume.canWrite())
        #expect(try volume.host.isIdle())
    }

    @Test func aSignalInMidCopyLeavesNothingFrozen() throws {
        let volume = try LoopMount(size: 32 << 20)
        let copy = try CopyInProgress(
            of: volume.host, rate: "4MiB", options: ["--freeze", volume.mountPoint])
        copy.process.signal(SIGTERM)
        #expect(copy.process.wait() == .exit(75), "\(copy.process.errors)")
        #expect(copy.names == [])
        #expect(try volume.canWrite())
        #expect(try volume.host.isIdle())
    }

    /// Sent from the command that runs while everything is about to stop.
    @Test func aSignalAtTheFreezeThaws() throws {
        let volume = try LoopMount(size: 32 << 20)
        let scratch = volume.host.directory
        let copy = try Outboard.run([
            "copy", "--host", volume.host.control, "--to", scratch("copy"), "--freeze", volume.mountPoint,
            "--pre-freeze", "kill -TERM $PPID", "--post-thaw", "touch \(scratch("thawed"))", "--max-rate",
            "2MiB",
        ])
        #expect(copy.status == 75, "\(copy)")
        #expect(FileManager.default.fileExists(atPath: scratch("thawed")))
        #expect(try volume.canWrite())
        #expect(try volume.host.isIdle())
    }
}
