import Blocks
import Foundation
import Glibc
import PhysicalCopy
import TableOfContents
import TestSupport
import Testing

/// Backups of real copies, by real processes, read again by us and by other people's tar.
@Suite struct BackupMediaTests {
    private func shell(_ command: String) throws -> ProgramResult {
        try runProgram("bash", ["-o", "pipefail", "-c", command])
    }

    private func size(_ path: String) throws -> (bytes: UInt64, stored: UInt64) {
        var status = stat()
        guard stat(path, &status) == 0 else { throw TestFailure("\(path): \(errno)") }
        return (UInt64(status.st_size), UInt64(status.st_blocks) * 512)
    }

    /// Files at known places, and what is in them.
    private func addFiles(_ crafted: CraftedCopy, count: Int) throws -> [String: [UInt8]] {
        var random = SeededGenerator(seed: 77)
        var expected: [String: [UInt8]] = [:]
        let directory = crafted.add(.directory, CraftedCopy.bytes("many"))
        for number in 0..<count {
            let (size, extents) = crafted.randomExtents(&random)
            expected["many/\(number)"] = crafted.file("\(number)", in: directory, size: size, extents).content
        }
        let inline = crafted.add(.regular, CraftedCopy.bytes("inline")) { $0.size = 5 }
        crafted.put(
            .stream(FileStream(.init(node: inline), size: 5, storage: .inline(CraftedCopy.bytes("hello")))))
        expected["inline"] = CraftedCopy.bytes("hello")
        try crafted.finish()
        return expected
    }

    @Test("A backup brings back volume, extents and files, also by a pipe", arguments: ["overlay", "append"])
    func roundTrip(mode: String) throws {
        let crafted = try CraftedCopy(mode: mode)
        let expected = try addFiles(crafted, count: 150)
        let scratch = crafted.scratch
        try Data(crafted.volume).write(to: URL(fileURLWithPath: scratch("expected")))
        let backup = scratch("backup.tar")
        let made = try Outboard.run(["backup", crafted.copy, "--to", backup, "--json"])
        #expect(made.isSuccess && made.output.contains("\"streamBytes\":"), "\(made)")
        let verified = try Outboard.run(["verify", "--backup", backup])
        #expect(verified.isSuccess, "\(verified)")

        let volume = try Outboard.run([
            "restore", "volume", "--from-backup", backup, "--to", scratch("volume"),
        ])
        #expect(volume.isSuccess, "\(volume)")
        #expect(try haveSameContents(scratch("volume"), scratch("expected")))
        let files = try Outboard.run([
            "restore", "file", "--from-backup", backup, "/", "--to", scratch("files"),
        ])
        #expect(files.isSuccess, "\(files)")
        for (name, content) in expected {
            #expect(try contents(scratch("files/" + name)) == content, "\(name)")
        }
        #expect(try crafted.names("files") == ["many", "inline"])
        #expect(try crafted.names("files/many").count == 150)

        let extents = try Outboard.run([
            "restore", "extents", "--from-backup", backup, "--range", "1000+300000", "--range", "5MiB+7",
            "--to", scratch("extents"),
        ])
        #expect(extents.isSuccess, "\(extents)")
        var parts = [UInt8](repeating: 0, count: crafted.volume.count)
        for range in [1_000..<301_000, 5 << 20..<(5 << 20) + 7] {
            parts.replaceSubrange(range, with: crafted.volume[range])
        }
        #expect(try contents(scratch("extents")) == parts)

        // What was there is overwritten, zeros and all.
        try makePatternFile(scratch("there"), count: crafted.volume.count, seed: 5)
        let kept = try contents(scratch("there"))
        let pipe = "| '\(Outboard.binary)' restore volume --from-backup - --to '\(scratch("there"))'"
        for options in ["", "--integrated", "--dense"] {
            let write = "'\(Outboard.binary)' backup '\(crafted.copy)' --to - \(options)"
            let refused = try shell("\(write) \(pipe)")
            #expect(!refused.isSuccess)
            let piped = try shell("\(write) \(pipe) --force")
            #expect(piped.isSuccess, "\(piped)")
            #expect(try haveSameContents(scratch("there"), scratch("expected")), "\(options)")
            try Data(kept).write(to: URL(fileURLWithPath: scratch("there")))
        }
        let fromPipe = try shell(
            "cat '\(backup)' | '\(Outboard.binary)' restore file --from-backup - /many/7 /inline --to "
                + "'\(scratch("two"))'")
        #expect(fromPipe.isSuccess, "\(fromPipe)")
        #expect(try contents(scratch("two/7")) == expected["many/7"])
        #expect(try crafted.names("two") == ["7", "inline"])
        let none = try Outboard.run([
            "restore", "file", "--from-backup", backup, "/no", "--to", scratch("none"),
        ])
        #expect(none.status == 66, "\(none)")
    }

    @Test("Any tar lists it, and extracted it is a copy", arguments: ["tar", "bsdtar"])
    func otherTars(program: String) throws {
        let crafted = try CraftedCopy(mode: "append")
        let expected = try addFiles(crafted, count: 5)
        let scratch = crafted.scratch
        #expect(try Outboard.run(["backup", crafted.copy, "--to", scratch("backup.tar")]).isSuccess)
        let listed = try runProgram(program, ["-tf", scratch("backup.tar")])
        #expect(
            listed.output.split(separator: "\n") == [
                "backup.json", "manifest.json", "checksums", "toc.sqlite", "data.img", "backup.end",
            ], "\(listed)")
        try FileManager.default.createDirectory(
            atPath: scratch("extracted"), withIntermediateDirectories: false)
        let extracted = try runProgram(program, ["-C", scratch("extracted"), "-xf", scratch("backup.tar")])
        #expect(extracted.isSuccess && extracted.errors.isEmpty, "\(extracted)")
        #expect(try haveSameContents(scratch("extracted/data.img"), crafted.copy + "/data.img"))
        let verified = try Outboard.run(["verify", scratch("extracted")])
        #expect(verified.isSuccess, "\(verified)")
        let restored = try Outboard.run([
            "restore", "file", scratch("extracted"), "/many", "--to", scratch("out"),
        ])
        #expect(restored.isSuccess, "\(restored)")
        #expect(try contents(scratch("out/many/3")) == expected["many/3"])
    }

    @Test func damageAndEarlyEndsAreFound() throws {
        let crafted = try CraftedCopy(mode: "append", size: 2 << 20)
        _ = try addFiles(crafted, count: 5)
        let scratch = crafted.scratch
        let backup = scratch("backup.tar")
        let made = try Outboard.run(["backup", crafted.copy, "--to", backup, "--blocking", "10KiB"])
        #expect(made.isSuccess, "\(made)")
        let whole = try Data(contentsOf: URL(fileURLWithPath: backup))
        var random = SeededGenerator(seed: 9)
        func expectFound(_ data: Data, _ what: String) throws {
            try data.write(to: URL(fileURLWithPath: backup))
            let before = Set(try FileManager.default.contentsOfDirectory(atPath: scratch.path))
            let verified = try Outboard.run(["verify", "--backup", backup])
            #expect(verified.status == 65, "\(what): \(verified)")
            #expect(verified.errors.contains("of the stream"), "\(what): \(verified)")
            let volume = try Outboard.run(
                ["restore", "volume", "--from-backup", backup, "--to", scratch("volume")])
            #expect(volume.status == 65, "\(what): \(volume)")
            #expect(Set(try FileManager.default.contentsOfDirectory(atPath: scratch.path)) == before)
            let files = try Outboard.run(
                ["restore", "file", "--from-backup", backup, "/many", "--to", scratch("files")])
            #expect(files.status == 65, "\(what): \(files)")
            if access(scratch("files"), F_OK) == 0 {
                #expect(try crafted.names("files").subtracting(["many"]).isEmpty)
                if access(scratch("files/many"), F_OK) == 0 { #expect(try crafted.names("files/many") == []) }
            }
        }
        for place in [0, 600, whole.count - 1]
            + (0..<12).map({ _ in Int.random(in: 0..<whole.count, using: &random) })
        {
            var damaged = whole
            damaged[place] ^= 1 << UInt8.random(in: 0..<8, using: &random)
            try expectFound(damaged, "byte \(place) of \(whole.count)")
        }
        for length in [0, 511, whole.count - 1]
            + (0..<8).map({ _ in Int.random(in: 0..<whole.count, using: &random) })
        {
            try expectFound(whole.prefix(length), "cut to \(length) of \(whole.count)")
        }
    }

    @Test("Also what the table of contents holds gets no name before all has passed")
    func nothingIsNamedTooEarly() throws {
        let crafted = try CraftedCopy(mode: "append", size: 2 << 20)
        crafted.inline("inline", CraftedCopy.bytes("hello"))
        crafted.inline("empty", [])
        crafted.add(.regular, CraftedCopy.bytes("none"))
        try crafted.finish()
        let backup = crafted.scratch("backup.tar")
        #expect(try Outboard.run(["backup", crafted.copy, "--to", backup]).isSuccess)
        func restore() throws -> ProgramResult {
            try Outboard.run([
                "restore", "file", "--from-backup", backup, "/inline", "/empty", "/none", "--to",
                crafted.scratch("out"),
            ])
        }
        let whole = try Data(contentsOf: URL(fileURLWithPath: backup))
        try whole.prefix(whole.count - (1 << 20)).write(to: URL(fileURLWithPath: backup))
        let cut = try restore()
        #expect(cut.status == 65, "\(cut)")
        #expect(try crafted.names("out") == [])
        try whole.write(to: URL(fileURLWithPath: backup))
        let restored = try restore()
        #expect(restored.isSuccess, "\(restored)")
        #expect(try crafted.names("out") == ["inline", "empty", "none"])
        #expect(try contents(crafted.scratch("out/inline")) == CraftedCopy.bytes("hello"))
    }

    @Test("Originals without content are holes in a file", arguments: [false, true])
    func zeroOriginalsAreHoles(isFromUnit: Bool) throws {
        let crafted = try CraftedCopy(mode: "append", isOnUnit: isFromUnit)
        // Zeros from 1 MiB to 1.25 MiB, all of it overwritten after the instant.
        let content = crafted.file(
            "file", size: 512 << 10,
            [FileExtent(fileOffset: 0, volumeOffset: 896 << 10, count: 512 << 10)]
        ).content
        try crafted.finish()
        let backup = crafted.scratch("backup.tar")
        if isFromUnit {
            #expect(try crafted.restore(["/file"], to: "out").isSuccess)
        } else {
            #expect(try Outboard.run(["backup", crafted.copy, "--to", backup]).isSuccess)
            let restored = try Outboard.run([
                "restore", "file", "--from-backup", backup, "/file", "--to", crafted.scratch("out"),
            ])
            #expect(restored.isSuccess, "\(restored)")
        }
        let file = crafted.scratch("out/file")
        #expect(try contents(file) == content)
        var status = stat()
        #expect(stat(file, &status) == 0 && status.st_blocks * 512 <= 288 << 10, "\(status.st_blocks)")
    }

    @Test func aDamagedCopyIsNotBackedUp() throws {
        let crafted = try CraftedCopy(mode: "append", size: 2 << 20)
        let scratch = crafted.scratch
        let before = Set(try FileManager.default.contentsOfDirectory(atPath: scratch.path))
        for place in [5, (2 << 20) + 8_192 + 5_000] {
            try flipByte(crafted.copy + "/data.img", at: place)
            let result = try Outboard.run(["backup", crafted.copy, "--to", scratch("backup.tar")])
            #expect(result.status == 65, "\(place): \(result)")
            #expect(Set(try FileManager.default.contentsOfDirectory(atPath: scratch.path)) == before)
            let piped = try shell(
                "'\(Outboard.binary)' backup '\(crafted.copy)' --to - | '\(Outboard.binary)' verify --backup -"
            )
            #expect(piped.status == 65, "\(piped)")
            try flipByte(crafted.copy + "/data.img", at: place)
        }
        #expect(try Outboard.run(["backup", crafted.copy, "--to", scratch("no/such/b.tar")]).status == 73)
        #expect(try Outboard.run(["backup", scratch("none"), "--to", scratch("b.tar")]).status == 66)
        #expect(try Outboard.run(["backup", crafted.copy, "--to", scratch("b.tar")]).isSuccess)
        #expect(try Outboard.run(["backup", crafted.copy, "--to", scratch("b.tar")]).status == 73)
        #expect(try Outboard.run(["backup", crafted.copy, "--to", scratch("b.tar"), "--force"]).isSuccess)
        #expect(try Outboard.run(["verify", "--backup", scratch("b.tar")]).isSuccess)
        #expect(try Outboard.run(["verify", "--backup", crafted.copy + "/data.img"]).status == 65)
    }

    /// A copy of a terabyte with some data here and there.
    private func makeHugeCopy(_ path: String, extents: Int) throws -> UInt64 {
        let size: UInt64 = 1 << 40
        let draft = try CopyDraft(destination: path, force: false)
        try makeSparseFile(draft.path(of: "data.img"), size: size)
        let handle = try FileHandle(forUpdating: URL(fileURLWithPath: draft.path(of: "data.img")))
        let block = [UInt8](repeating: 0x5A, count: 4_096)
        let slice = SliceChecksums.sliceSize(forLength: size)
        let stride = size / UInt64(extents)
        var sums = [CRC32C](repeating: CRC32C(), count: Int(size / slice))
        var ends = [UInt64](repeating: 0, count: sums.count)
        for number in 0..<UInt64(extents) {
            let place = (number * stride).roundedDown(to: 4_096)
            try handle.seek(toOffset: place)
            try handle.write(contentsOf: block)
            let index = Int(place / slice)
            sums[index].update(zeros: place % slice - ends[index])
            sums[index].update(block)
            ends[index] = place % slice + 4_096
        }
        for index in sums.indices { sums[index].update(zeros: slice - ends[index]) }
        try handle.close()
        let manifest = Manifest(
            tool: "test", uuid: UUID().uuidString, completedAt: 2,
            volume: VolumeDescription(uuid: UUID().uuidString, size: size, chunkSize: 65_536, source: "/s"),
            mode: .overlay,
            epoch: EpochDescription(
                number: 1, uuid: UUID().uuidString, institutedAt: 1, ending: .endedBeforeCacheCopy,
                logBytes: 8_192, batches: 0, entries: 0),
            group: nil, frozen: [], location: .usual,
            data: Portion(
                offset: 0, length: size,
                checksums: SliceChecksums(sliceSize: slice, values: sums.map(\.value))), originals: nil)
        try draft.commit(manifest)
        return size
    }

    /// Runs it to its end.
    /// - Returns: how it ended, and the most memory that it had at a time, KiB.
    private func measure(_ arguments: [String]) throws -> (result: ProgramResult, kibibytes: Int) {
        // What a process of ours starts inherits our own peak; what busybox starts has its own.
        let report = try ScratchDirectory()
        let result = try runProgram(
            "busybox", ["time", "-o", report("time"), "-f", "%M", Outboard.binary] + arguments)
        let text = try String(contentsOfFile: report("time"), encoding: .utf8)
        let number = text.split(separator: "\n").last.flatMap { Int($0) }
        // It takes the system's KiB for pages.
        return (result, try #require(number, "\(text)") * 1_024 / Int(getpagesize()))
    }

    @Test("A terabyte of holes takes neither time, nor space, nor memory")
    func holes() throws {
        let scratch = try ScratchDirectory()
        let size = try makeHugeCopy(scratch("copy"), extents: 10_000)
        let made = try measure(["backup", scratch("copy"), "--to", scratch("backup.tar"), "--json"])
        #expect(made.result.isSuccess, "\(made)")
        #expect(made.kibibytes < 100 << 10)
        #expect(try self.size(scratch("backup.tar")).bytes < 60 << 20)
        let restored = try measure(
            ["restore", "volume", "--from-backup", scratch("backup.tar"), "--to", scratch("volume")])
        #expect(restored.result.isSuccess, "\(restored)")
        #expect(restored.kibibytes < 100 << 10)
        let volume = try self.size(scratch("volume"))
        #expect(volume.bytes == size && volume.stored < 60 << 20)
        let again = try Outboard.run(["verify", "--backup", scratch("backup.tar"), "--json"])
        #expect(again.isSuccess, "\(again)")
    }

    @Test func whoWaitsForAPipeCanBeStopped() throws {
        let scratch = try ScratchDirectory()
        let process = try Outboard.start(
            ["restore", "volume", "--from-backup", "-", "--to", scratch("volume")], keepsInputOpen: true)
        try waitUntil("it handles signals") {
            let text = try String(contentsOfFile: "/proc/\(process.identifier)/status", encoding: .utf8)
            let caught = text.split(separator: "\n").first { $0.hasPrefix("SigCgt:") }
            guard let caught, let mask = UInt64(caught.split(separator: "\t")[1], radix: 16) else {
                return false
            }
            return mask & 1 << UInt64(SIGINT - 1) != 0
        }
        process.signal(SIGINT)
        #expect(process.waitForExit() == .exit(75), "\(process.errors)")
        #expect(try FileManager.default.contentsOfDirectory(atPath: scratch.path) == [])
    }

    @Test(.enabled(if: Machine.canMount, "needs root and loop devices"))
    func blockDevices() throws {
        let crafted = try CraftedCopy(mode: "append")
        let scratch = crafted.scratch
        try makePatternFile(scratch("behind"), count: 24 << 20, seed: 3)
        let loop = try runProgram("losetup", ["--find", "--show", scratch("behind")])
        try #require(loop.isSuccess, "\(loop)")
        let device = loop.output.trimmingCharacters(in: .whitespacesAndNewlines)
        // A loop device that stays is no failure of what is tested.
        defer { _ = try? runProgram("losetup", ["--detach", device]) }
        #expect(try Outboard.run(["backup", crafted.copy, "--to", device]).status == 73)
        let made = try Outboard.run(["backup", crafted.copy, "--to", device, "--force"])
        #expect(made.isSuccess, "\(made)")
        let verified = try Outboard.run(["verify", "--backup", device])
        #expect(verified.isSuccess, "\(verified)")
        let restored = try Outboard.run(
            ["restore", "volume", "--from-backup", device, "--to", scratch("volume")])
        #expect(restored.isSuccess, "\(restored)")
        #expect(try contents(scratch("volume")) == crafted.volume)
        // And back onto a device: half done, it says so.
        let damaged = try Outboard.run(["backup", crafted.copy, "--to", scratch("b.tar")])
        #expect(damaged.isSuccess)
        try flipByte(scratch("b.tar"), at: 2 << 20)
        let broken = try Outboard.run(
            ["restore", "volume", "--from-backup", scratch("b.tar"), "--to", device, "--force"])
        #expect(broken.status == 65 && broken.errors.contains("in part"), "\(broken)")
        try flipByte(scratch("b.tar"), at: 2 << 20)
        let whole = try Outboard.run(
            ["restore", "volume", "--from-backup", scratch("b.tar"), "--to", device, "--force"])
        #expect(whole.isSuccess, "\(whole)")
        #expect(Array(try contents(scratch("behind"))[..<crafted.volume.count]) == crafted.volume)
        // Too small for the backup.
        try makeSparseFile(scratch("small"), size: 1 << 20)
        let small = try runProgram("losetup", ["--find", "--show", scratch("small")])
        let smallDevice = small.output.trimmingCharacters(in: .whitespacesAndNewlines)
        defer { _ = try? runProgram("losetup", ["--detach", smallDevice]) }
        let full = try Outboard.run(["backup", crafted.copy, "--to", smallDevice, "--force"])
        #expect(full.status == 73 && full.errors.contains("not complete"), "\(full)")
        #expect(try Outboard.run(["verify", "--backup", smallDevice]).status == 65)
    }
}
