import Blocks
import Foundation
import TestSupport
import Testing

/// Every file of every file system comes back from append, from overlay and from backup media as its own driver
/// shows it in the same snapshot, while the volume is in use.
@Suite(.serialized, .enabled(if: LoopMount.isPossible, "\(LoopMount.reason)")) struct FileSystemRestoreTests {
    @Test(
        arguments: FileSystemCase.local.filter { kind in
            ProcessInfo.processInfo.environment["ONLY"].map { kind.name == $0 } ?? true
        })
    func everyFileIsWhatItsOwnDriverShows(kind: FileSystemCase) throws {
        let volume = try MountedVolume(kind)
        let scratch = volume.host.directory
        let site = try RestoreSite(in: scratch)
        try volume.use()
        try volume.copy("append", to: "append")
        try volume.copy("overlay", to: "overlay")
        try volume.stopUse()

        try LoopMount.succeed(
            Outboard.binary, ["restore", "volume", scratch("append"), "--to", scratch("whole")])
        let appended = try volume.reference(of: scratch("whole"))
        #expect(appended.count > 700)
        let overlaid = try volume.reference(of: scratch("overlay") + "/data.img")
        try LoopMount.succeed(Outboard.binary, ["backup", scratch("append"), "--to", scratch("media")])

        for (source, expected) in [
            ([scratch("append")], appended), ([scratch("overlay")], overlaid),
            (["--from-backup", scratch("media")], appended),
        ] {
            let found = try site.restore(source, kind)
            let differences = found.differences(from: expected, in: kind.fields) {
                kind.unrestorable[$0] != nil
            }
            #expect(differences.isEmpty, "\(source): \(brief(differences))")
        }
    }
}

/// Where files are restored to: an XFS, which keeps whatever the file systems here have.
final class RestoreSite: Sendable {
    private let mountPoint: String
    private let count = Monitor(0)

    init(in scratch: ScratchDirectory) throws {
        mountPoint = scratch("site")
        try FileManager.default.createDirectory(atPath: mountPoint, withIntermediateDirectories: false)
        try makeSparseFile(scratch("site.img"), size: 2 << 30)
        try LoopMount.succeed("mkfs.xfs", ["-q", scratch("site.img")])
        try LoopMount.succeed("mount", ["-o", "loop,noatime", scratch("site.img"), mountPoint])
    }

    deinit { LoopMount.unmount(mountPoint) }

    /// A new directory.
    func directory() throws -> String {
        let number = count.withLock { count in
            count += 1
            return count
        }
        let path = "\(mountPoint)/\(number)"
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: false)
        return path
    }

    /// Restores a whole tree and lists it. What cannot be restored must be told, and nothing else.
    func restore(_ source: [String], path: String = "/", _ kind: FileSystemCase) throws -> TreeListing {
        let place = try directory()
        let result = try Outboard.run(["restore", "file"] + source + [path, "--to", place], seconds: 600)
        // A file system's number is a name there.
        let top = place + (path == "/" ? "" : path)
        let told = Set(
            result.errors.split(separator: "\n").map(String.init).filter { $0.contains(top + "/") })
        let expected = kind.unrestorable.map { name, reason in
            "outboard restore: \(top)/\(name): it cannot be restored by its extents: \(reason)"
        }
        guard result.status == (expected.isEmpty ? 0 : 74), told == Set(expected) else {
            throw TestFailure("\(result)")
        }
        if !expected.isEmpty {
            #expect(
                result.errors.contains("\(expected.count) of what was to be restored could not be (above)"))
        }
        return try TreeListing(of: top)
    }
}
