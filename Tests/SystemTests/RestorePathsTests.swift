import Foundation
import Glibc
import TableOfContents
import TestSupport
import Testing

/// Every way from a copy or a backup to what is restored: from a standing bridge's unit, to one, to a live volume,
/// out of many original images, into directories where two names are one.
@Suite struct RestorePathsTests {
    private func addFiles(_ crafted: CraftedCopy, count: Int) throws -> [String: [UInt8]] {
        var random = SeededGenerator(seed: 91)
        var expected: [String: [UInt8]] = [:]
        for number in 0..<count {
            let (size, extents) = crafted.randomExtents(&random)
            expected["\(number)"] = crafted.file("\(number)", size: size, extents).content
        }
        try crafted.finish()
        try Data(crafted.volume).write(to: URL(fileURLWithPath: crafted.scratch("expected")))
        return expected
    }

    private func expect(_ expected: [String: [UInt8]], in directory: String) throws {
        for (name, content) in expected {
            #expect(try contents(directory + "/" + name) == content, "\(name)")
        }
    }

    @Test(
        "From a standing bridge's unit come files, extents, streams and backups",
        arguments: ["overlay", "append"])
    func fromUnit(mode: String) throws {
        let crafted = try CraftedCopy(mode: mode, isOnUnit: true)
        let expected = try addFiles(crafted, count: 60)
        let scratch = crafted.scratch
        let files = try crafted.restore(to: "files")
        #expect(files.isSuccess, "\(files)")
        try expect(expected, in: scratch("files"))
        let verified = try crafted.restore(["/7"], to: "verified", ["--verify"])
        #expect(verified.isSuccess, "\(verified)")
        let cat = try runProgram(
            "/bin/sh", ["-c", #""$0" cat "$1" /7 > "$2""#, Outboard.binary, crafted.copy, scratch("cat")])
        #expect(cat.isSuccess, "\(cat)")
        #expect(try contents(scratch("cat")) == expected["7"])
        let extents = try Outboard.run([
            "restore", "extents", crafted.copy, "--range", "700+300001", "--to", scratch("extents"),
        ])
        #expect(extents.isSuccess, "\(extents)")
        #expect(
            try Array(contents(scratch("extents"))[700..<300_701]) == Array(crafted.volume[700..<300_701]))
        for options in [[], ["--integrated"]] {
            let backup = scratch("backup\(options.count)")
            let made = try Outboard.run(["backup", crafted.copy, "--to", backup] + options)
            #expect(made.isSuccess, "\(made)")
            #expect(try Outboard.run(["verify", "--backup", backup]).isSuccess)
            let volume = scratch("volume\(options.count)")
            let restored = try Outboard.run(["restore", "volume", "--from-backup", backup, "--to", volume])
            #expect(restored.isSuccess, "\(restored)")
            #expect(try haveSameContents(volume, scratch("expected")))
        }
        // Gone while it is wanted.
        crafted.bridge?.process.stop()
        #expect(try crafted.restore(["/7"], to: "gone").status == 69)
        #expect(try Outboard.run(["backup", crafted.copy, "--to", scratch("gone.tar")]).status == 69)
    }

    @Test("A backup is restored to a standing bridge's unit", arguments: ["overlay", "append"])
    func backupToUnit(mode: String) throws {
        let crafted = try CraftedCopy(mode: mode)
        let scratch = crafted.scratch
        let size = crafted.volume.count
        let backup = scratch("backup.tar")
        #expect(try Outboard.run(["backup", crafted.copy, "--to", backup]).isSuccess)
        try makePatternFile(scratch("unit"), count: size, seed: 8)
        try makePatternFile(scratch("small"), count: size - 512, seed: 8)
        let kept = try contents(scratch("unit"))
        let bridge = try BridgeProcess(
            units: ["1=\(scratch("unit"))", "2=\(scratch("unit")),ro", "3=\(scratch("small"))"])
        func restore(_ what: [String], _ unit: Int, from: String = backup) throws -> ProgramResult {
            try Outboard.run(
                ["restore"] + what + ["--from-backup", from, "--bridge", bridge.uri, "--unit", "\(unit)"])
        }
        #expect(try restore(["volume"], 1).status == 73)
        #expect(try restore(["volume", "--force"], 2).status == 77)
        #expect(try restore(["volume", "--force"], 3).status == 73)
        #expect(try restore(["volume", "--force"], 9).status == 66)
        #expect(try contents(scratch("unit")) == kept)
        let extents = try restore(["extents", "--range", "1000+300000", "--force"], 1)
        #expect(extents.isSuccess, "\(extents)")
        var expected = kept
        expected.replaceSubrange(1_000..<301_000, with: crafted.volume[1_000..<301_000])
        #expect(try contents(scratch("unit")) == expected)
        let volume = try restore(["volume", "--force"], 1)
        #expect(volume.isSuccess, "\(volume)")
        #expect(try contents(scratch("unit")) == crafted.volume)
    }

    @Test("A backup is restored to a live volume, which stands still meanwhile")
    func backupToHost() throws {
        let crafted = try CraftedCopy(mode: "append")
        let scratch = crafted.scratch
        let backup = scratch("backup.tar")
        #expect(try Outboard.run(["backup", crafted.copy, "--to", backup]).isSuccess)
        try makePatternFile(scratch("live.img"), count: crafted.volume.count, seed: 8)
        let host = try HostProcess(scratch, name: "live")
        func restore(_ backup: String, _ options: [String]) throws -> ProgramResult {
            try Outboard.run(
                ["restore", "volume", "--from-backup", backup, "--to", host.source, "--force"] + options)
        }
        #expect(try restore(backup, []).status == 75)
        let control = ["--host", host.control]
        // Damage is found at the end: it goes on nevertheless, and says what it is.
        #expect(try runProgram("cp", [backup, scratch("damaged")]).isSuccess)
        try flipByte(scratch("damaged"), at: 6 << 20)
        let damaged = try restore(scratch("damaged"), control)
        #expect(damaged.status == 65 && damaged.errors.contains("restored in part only"), "\(damaged)")
        #expect(try host.ask("volume.status").contains("\"isFrozen\":false"))
        let restored = try restore(backup, control)
        #expect(restored.isSuccess, "\(restored)")
        #expect(try host.ask("volume.status").contains("\"isFrozen\":false"))
        #expect(try runProgram("nbdcopy", [host.uri, scratch("read")]).isSuccess)
        #expect(try contents(scratch("read")) == crafted.volume)
        let extents = try Outboard.run(
            [
                "restore", "extents", "--from-backup", backup, "--range", "512+70000", "--to", host.source,
                "--force",
            ] + control)
        #expect(extents.isSuccess, "\(extents)")
    }

    @Test("Out of many original images, in no order, comes the volume as it was")
    func manyOriginals() throws {
        let crafted = try CraftedCopy(mode: "append", size: 24 << 20, originals: 5_000)
        let expected = try addFiles(crafted, count: 400)
        let scratch = crafted.scratch
        let files = try crafted.restore(to: "files", ["--json"])
        #expect(files.isSuccess, "\(files)")
        try expect(expected, in: scratch("files"))
        let volume = try Outboard.run([
            "restore", "volume", crafted.copy, "--to", scratch("volume"), "--json",
        ])
        #expect(volume.isSuccess, "\(volume)")
        let outcome = try JSONSerialization.jsonObject(with: Data(volume.output.utf8)) as? [String: Any]
        #expect(outcome?["originals"] as? Int ?? 0 > 4_000, "\(volume)")
        #expect(try haveSameContents(scratch("volume"), scratch("expected")))
        #expect(
            try Outboard.run(["backup", crafted.copy, "--to", scratch("backup"), "--integrated"]).isSuccess)
        let back = try Outboard.run(
            ["restore", "volume", "--from-backup", scratch("backup"), "--to", scratch("back")])
        #expect(back.isSuccess, "\(back)")
        #expect(try haveSameContents(scratch("back"), scratch("expected")))
    }

    /// Mounts something where upper and lower case are one.
    private func withoutCase(_ kind: String, _ scratch: ScratchDirectory, _ body: (String) throws -> Void)
        throws
    {
        let (image, mount) = (scratch("image"), scratch("mount"))
        try makeSparseFile(image, size: 64 << 20)
        try FileManager.default.createDirectory(atPath: mount, withIntermediateDirectories: false)
        switch kind {
        case "exfat":
            try LoopMount.succeed("mkfs.exfat", [image])
            let device = try LoopMount.succeed("losetup", ["--find", "--show", image]).output
                .trimmingCharacters(in: .whitespacesAndNewlines)
            // A loop device that stays is no failure of what is tested.
            defer { _ = try? runProgram("losetup", ["--detach", device]) }
            try LoopMount.succeed("mount.exfat-fuse", [device, mount])
        default:
            try LoopMount.succeed("mkfs.ntfs", ["-q", "-F", image])
            try LoopMount.succeed("lowntfs-3g", ["-o", "ignore_case", image, mount])
        }
        defer { LoopMount.unmount(mount) }
        try body(mount)
    }

    @Test(
        "Where upper and lower case are one, of two names the first is kept and the second told",
        .enabled(if: Machine.canMount, "needs root and FUSE"), arguments: ["exfat", "ntfs"])
    func caseFolding(kind: String) throws {
        let crafted = try CraftedCopy(mode: "overlay")
        func extents(_ place: UInt64) -> [FileExtent] {
            [FileExtent(fileOffset: 0, volumeOffset: place, count: 64 << 10)]
        }
        let first = crafted.file("Report", size: 60_000, extents(0)).content
        crafted.file("rePORT", size: 60_001, extents(1 << 20))
        crafted.file("other", size: 60_000, extents(2 << 20))
        let upper = crafted.add(.directory, CraftedCopy.bytes("DIR"))
        let lower = crafted.add(.directory, CraftedCopy.bytes("dir"))
        let inUpper = crafted.file("x", in: upper, size: 60_000, extents(3 << 20)).content
        crafted.file("y", in: lower, size: 60_000, extents(4 << 20))
        try crafted.finish()
        try withoutCase(kind, crafted.scratch) { mount in
            for options in [[], ["--force"]] {
                let out = mount + "/out\(options.count)"
                let result = try Outboard.run(["restore", "file", crafted.copy, "/", "--to", out] + options)
                #expect(result.status == 73, "\(result)")
                let complaints = result.errors.split(separator: "\n").filter { $0.contains("are one here") }
                #expect(complaints.count == 2, "\(result)")
                let names = try FileManager.default.contentsOfDirectory(atPath: out)
                #expect(names.count == 3, "\(names)")
                // By their order in the table of contents: upper case first.
                #expect(try contents(out + "/Report") == first)
                #expect(try contents(out + "/DIR/x") == inUpper)
                #expect(try FileManager.default.contentsOfDirectory(atPath: out + "/DIR") == ["x"])
            }
            // What was there before is not ours, whatever its case is.
            let there = mount + "/there"
            try FileManager.default.createDirectory(atPath: there, withIntermediateDirectories: false)
            try Data("kept".utf8).write(to: URL(fileURLWithPath: there + "/OTHER"))
            let refused = try Outboard.run(["restore", "file", crafted.copy, "/other", "--to", there])
            #expect(refused.status == 73 && refused.errors.contains("--force"), "\(refused)")
            #expect(try contents(there + "/OTHER") == Array("kept".utf8))
        }
    }
}
