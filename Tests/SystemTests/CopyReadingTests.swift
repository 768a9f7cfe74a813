import Blocks
import Foundation
import Glibc
import TableOfContents
import TestSupport
import Testing

/// What reads of a copy without restoring it whole: `restore extents`, `cat`, `mount`; and restores that are cut off.
@Suite struct CopyReadingTests {
    @Test("Extents come back to their places, and nothing else is touched", arguments: ["overlay", "append"])
    func extents(mode: String) throws {
        let crafted = try CraftedCopy(mode: mode, size: (4 << 20) + 512)
        let ranges = [(100, 37), ((1 << 20) - 5, 300_007), (4_194_304, 512), (2 << 20, 65_536), (110, 5)]
        let restore =
            ["restore", "extents", crafted.copy] + ranges.flatMap { ["--range", "\($0.0)+\($0.1)"] }
        func model(_ base: [UInt8]) -> [UInt8] {
            var result = base
            for (offset, count) in ranges {
                result.replaceSubrange(offset..<offset + count, with: crafted.volume[offset..<offset + count])
            }
            return result
        }
        let size = crafted.volume.count
        let new = try Outboard.run(restore + ["--to", crafted.scratch("new"), "--json"])
        #expect(new.isSuccess, "\(new)")
        #expect(try contents(crafted.scratch("new")) == model([UInt8](repeating: 0, count: size)))
        let json = try #require(
            try JSONSerialization.jsonObject(with: Data(new.output.utf8)) as? [String: Any])
        #expect(json["bytes"] as? Int == 37 + 300_007 + 512 + 65_536)
        #expect(try #require(json["bytesRead"] as? Int) < 2 << 20)
        // Something larger that is there.
        try makePatternFile(crafted.scratch("there"), count: size + 5000, seed: 9)
        let before = try contents(crafted.scratch("there")).map { $0 }
        #expect(try Outboard.run(restore + ["--to", crafted.scratch("there")]).status == 73)
        let forced = try Outboard.run(restore + ["--to", crafted.scratch("there"), "--force", "--verify"])
        #expect(forced.isSuccess, "\(forced)")
        #expect(try contents(crafted.scratch("there")) == model(before))
        // One that does not reach far enough.
        try makePatternFile(crafted.scratch("short"), count: 4_194_304, seed: 9)
        #expect(try Outboard.run(restore + ["--to", crafted.scratch("short"), "--force"]).status == 73)
        let beyond = [
            "restore", "extents", crafted.copy, "--range", "\(size - 1)+2", "--to", crafted.scratch("x"),
        ]
        #expect(try Outboard.run(beyond).status == 64)
        #expect(!FileManager.default.fileExists(atPath: crafted.scratch("x")))
    }

    @Test("Extents by a standing bridge", arguments: ["overlay", "append"], [false, true])
    func standingBridge(mode: String, namesCopy: Bool) throws {
        let crafted = try CraftedCopy(mode: mode, size: 4 << 20)
        try makePatternFile(crafted.scratch("unit"), count: 6 << 20, seed: 9)
        try makePatternFile(crafted.scratch("wrong"), count: 8 << 20, seed: 10)
        let before = try contents(crafted.scratch("unit")).map { $0 }
        // As if the bridge had opened the copy's data before another copy took their place: next to nothing differs.
        var replaced = try contents(crafted.copy + "/data.img").map { $0 }
        replaced[5000] ^= 1
        try Data(replaced).write(to: URL(fileURLWithPath: crafted.scratch("replaced")))
        let bridge = try BridgeProcess(units: [
            "3=\(crafted.copy)/data.img,ro", "4=\(crafted.scratch("unit"))",
            "5=\(crafted.scratch("wrong")),ro", "6=\(crafted.scratch("replaced")),ro",
        ])
        let restore = [
            "restore", "extents", crafted.copy, "--range", "1000+3000", "--range", "1MiB+1MiB", "--bridge",
            bridge.uri, "--unit",
        ]
        #expect(try Outboard.run(restore + ["4"]).status == 73)
        for wrong in ["5", "6"] {
            #expect(try Outboard.run(restore + ["4", "--force", "--copy-unit", wrong]).status == 64)
        }
        #expect(try Outboard.run(restore + ["3", "--force"]).status == 64)
        #expect(try Outboard.run(restore + ["5", "--force"]).status == 77)
        #expect(try contents(crafted.scratch("unit")) == before)
        let result = try Outboard.run(restore + ["4", "--force"] + (namesCopy ? ["--copy-unit", "3"] : []))
        #expect(result.isSuccess, "\(result)")
        var expected = before
        for range in [1000..<4000, 1 << 20..<2 << 20] {
            expected.replaceSubrange(range, with: crafted.volume[range])
        }
        #expect(try contents(crafted.scratch("unit")) == expected)
        // The whole volume, too.
        let whole = try Outboard.run([
            "restore", "volume", crafted.copy, "--bridge", bridge.uri, "--unit", "4", "--force",
        ])
        #expect(whole.isSuccess, "\(whole)")
        expected.replaceSubrange(0..<4 << 20, with: crafted.volume)
        #expect(try contents(crafted.scratch("unit")) == expected)
    }

    @Test("cat writes a file's bytes, with its holes", arguments: ["overlay", "append"])
    func cat(mode: String) throws {
        let crafted = try CraftedCopy(mode: mode)
        var random = SeededGenerator(seed: 5)
        var expected: [String: [UInt8]] = [:]
        for number in 0..<12 {
            let (size, extents) = crafted.randomExtents(&random)
            expected["\(number)"] = crafted.file("\(number)", size: size, extents).content
        }
        let hole = crafted.add(.regular, CraftedCopy.bytes("hole")) { $0.size = 1 << 40 }
        crafted.put(.stream(FileStream(.init(node: hole), size: 1 << 40, storage: .extents)))
        crafted.add(.symbolicLink, CraftedCopy.bytes("link")) { $0.target = CraftedCopy.bytes("hole") }
        try crafted.finish()
        func shell(_ command: String) throws -> ProgramResult {
            try runProgram("sh", ["-c", command, "sh", Outboard.binary, crafted.copy, crafted.scratch("")])
        }
        for (name, content) in expected {
            let piped = try shell(#""$1" cat "$2" /\#(name) | cat > "$3/piped""#)
            #expect(piped.isSuccess && piped.errors.isEmpty, "\(piped)")
            #expect(try contents(crafted.scratch("piped")) == content, "\(name)")
            let whole = try shell(#""$1" cat "$2" \#(name) > "$3/whole""#)
            #expect(whole.isSuccess, "\(whole)")
            #expect(try contents(crafted.scratch("whole")) == content, "\(name)")
        }
        // A terabyte of nothing takes no time and no space.
        #expect(try shell(#""$1" cat "$2" hole > "$3/hole""#).isSuccess)
        var status = stat()
        #expect(
            stat(crafted.scratch("hole"), &status) == 0 && status.st_size == 1 << 40 && status.st_blocks < 100
        )
        // Who reads no further has no complaint.
        let head = try shell(#"{ "$1" cat "$2" hole; echo "$?" >&2; } | head -c 100000 | wc -c"#)
        #expect(head.output.contains("100000") && head.errors == "0\n", "\(head)")
        #expect(try Outboard.run(["cat", crafted.copy, "/link"]).status == 66)
        #expect(try Outboard.run(["cat", crafted.copy, "/"]).status == 66)
        #expect(try Outboard.run(["cat", crafted.copy, "/none"]).status == 66)
    }

    @Test("A damaged original that a file touches is found; other files come back")
    func damage() throws {
        let crafted = try CraftedCopy(mode: "append")
        let bad = crafted.file(
            "bad", size: 4096, [FileExtent(fileOffset: 0, volumeOffset: 4096, count: 4096)])
        let good = crafted.file(
            "good", size: 4096, [FileExtent(fileOffset: 0, volumeOffset: 7 << 20, count: 4096)])
        try crafted.finish()
        // Wherever the first chunk's original lies: its bytes are the volume's.
        let image = try contents(crafted.copy + "/data.img")
        let original = try #require(
            stride(from: 8 << 20, to: image.count - 4096, by: 4096).first { place in
                image[place + 4096..<place + 8192].elementsEqual(crafted.volume[4096..<8192])
            })
        try flipByte(crafted.copy + "/data.img", at: original + 5000)
        let result = try crafted.restore(to: "out")
        #expect(result.status == 65 && result.errors.contains("out/bad"), "\(result)")
        #expect(try crafted.names("out") == ["good"])
        #expect(try contents(crafted.scratch("out/good")) == good.content)
        #expect(try Outboard.run(["cat", crafted.copy, "/bad"]).status == 65)
        try flipByte(crafted.copy + "/data.img", at: original + 5000)
        #expect(try crafted.restore(["/bad"], to: "out").isSuccess)
        #expect(try contents(crafted.scratch("out/bad")) == bad.content)
        // Damage beside the file, in the slice of 64 KiB that it lies in: only --verify looks.
        try flipByte(crafted.copy + "/data.img", at: 7 << 20 | 48 << 10)
        #expect(try crafted.restore(["/good"], to: "unseen").isSuccess)
        let verified = try crafted.restore(["/good"], to: "seen", ["--verify"])
        #expect(verified.status == 65, "\(verified)")
        #expect(try crafted.names("seen").isEmpty)
    }

    @Test("A mounted copy is the volume, for others' programs", arguments: ["overlay", "append"])
    func mount(mode: String) throws {
        let crafted = try CraftedCopy(mode: mode)
        let socket = crafted.scratch("nbd")
        #expect(try runProgram("fallocate", ["--dig-holes", crafted.copy + "/data.img"]).isSuccess)
        let process = try Outboard.start(["mount", crafted.copy, socket])
        defer { process.stop() }
        let ready = process.line { $0.hasPrefix("ready ") }
        let line = try #require(ready, "\(process.errors)")
        let uri = String(line.dropFirst("ready ".count))
        let read = try runProgram("nbdcopy", [uri, crafted.scratch("read")])
        #expect(read.isSuccess, "\(read)")
        #expect(try contents(crafted.scratch("read")) == crafted.volume)
        // Holes of the data, and zero originals, are holes.
        let map = try runProgram("nbdinfo", ["--map", uri])
        let rows = map.output.split(separator: "\n").map { $0.split(separator: " ").map(String.init) }
        #expect(rows.contains(["1048576", "262144", "3", "hole,zero"]), "\(map)")
        let info = try runProgram("nbdinfo", ["--json", uri])
        #expect(info.isSuccess && info.output.contains("\"is_read_only\": true"), "\(info)")
        let image = try runProgram("qemu-img", ["convert", "-O", "raw", uri, crafted.scratch("converted")])
        #expect(image.isSuccess, "\(image)")
        #expect(try contents(crafted.scratch("converted")) == crafted.volume)
        #expect(try !runProgram("nbdcopy", [crafted.scratch("read"), uri]).isSuccess)
        #expect(try Outboard.run(["mount", crafted.copy, socket]).status == 75)
        #expect(try Outboard.run(["integrate", crafted.copy]).status == 73)
        process.signal(SIGINT)
        #expect(process.wait() == .exit(0))
        #expect(!FileManager.default.fileExists(atPath: socket))
        if mode == "append" {
            #expect(try Outboard.run(["integrate", crafted.copy]).isSuccess)
            let again = try Outboard.start(["mount", crafted.copy, socket])
            defer { again.stop() }
            let isReady = again.line { $0.hasPrefix("ready ") } != nil
            #expect(isReady)
            #expect(try runProgram("nbdcopy", [uri, crafted.scratch("again")]).isSuccess)
            #expect(try contents(crafted.scratch("again")) == crafted.volume)
        }
    }

    @Test("A table of contents is built beside readers, and put in its place when there are none")
    func tocBesideReaders() throws {
        let crafted = try CraftedCopy(mode: "append")
        try crafted.finish()
        let before = try crafted.names("copy")
        let reader = try Outboard.start(["mount", crafted.copy, crafted.scratch("nbd")])
        defer { reader.stop() }
        #expect(reader.line { $0.hasPrefix("ready ") } != nil)
        func build() throws -> ChildProcess {
            let process = try Outboard.start(["toc", crafted.copy])
            try waitUntil("it waits") { process.errors.contains("until nobody else uses the copy") }
            return process
        }
        let stopped = try build()
        stopped.signal(SIGINT)
        #expect(stopped.wait() == .exit(75))
        #expect(try crafted.names("copy") == before)
        let process = try build()
        #expect(try Outboard.run(["verify", crafted.copy]).isSuccess)
        #expect(try Outboard.run(["find", crafted.copy, "x"]).isSuccess)
        reader.signal(SIGINT)
        #expect(process.wait() == .exit(0), "\(process.errors)")
        #expect(try crafted.names("copy") == before)
        #expect(try Outboard.run(["verify", crafted.copy]).isSuccess)
    }

    /// Many files, so that there is time to interrupt.
    private func manyFiles() throws -> (CraftedCopy, [String: [UInt8]]) {
        let crafted = try CraftedCopy(mode: "append")
        var random = SeededGenerator(seed: 77)
        var expected: [String: [UInt8]] = [:]
        for number in 0..<4000 {
            let name = "\(number)"
            let place = 512 * UInt64.random(in: 0..<16_000, using: &random)
            let extent = FileExtent(fileOffset: 0, volumeOffset: place, count: 8192)
            expected[name] = crafted.file(name, size: 8000, [extent]).content
        }
        try crafted.finish()
        return (crafted, expected)
    }

    @Test("Cut off anywhere, no file is half there", arguments: [SIGINT, SIGKILL])
    func interruption(signal: Int32) throws {
        let (crafted, expected) = try manyFiles()
        let out = crafted.scratch("out")
        let process = try Outboard.start(["restore", "file", crafted.copy, "/", "--to", out])
        // As soon as the first batch has its names.
        while !((try? crafted.names("out").contains("0")) ?? false) {
            guard process.waitForExit(seconds: 0.001) == nil else { break }
        }
        process.signal(signal)
        let ending = process.wait()
        let names = try crafted.names("out")
        for name in names where !name.contains("partial") {
            #expect(try contents(out + "/" + name) == expected[name], "\(name)")
        }
        #expect(names.count < expected.count, "it was over before it was interrupted")
        if signal == SIGINT {
            #expect(ending == .exit(75))
            #expect(!names.contains { $0.contains("partial") })
        }
        // All of it, into what is there.
        let again = try crafted.restore(to: "out", ["--force"])
        #expect(again.isSuccess, "\(again)")
        for (name, content) in expected { #expect(try contents(out + "/" + name) == content) }
        // The killed one's temporary files are gone, too.
        #expect(try crafted.names("out").count == expected.count)
    }

    @Test("A directory that becomes a symbolic link while files are restored is not followed")
    func symbolicLinkAttack() throws {
        let crafted = try CraftedCopy(mode: "overlay")
        let extents = [FileExtent(fileOffset: 0, volumeOffset: 4096, count: 512)]
        for number in 0..<40 {
            let directory = crafted.add(.directory, CraftedCopy.bytes("d\(number)"))
            for file in 0..<60 { crafted.file("f\(file)", in: directory, size: 100, extents) }
        }
        try crafted.finish()
        let out = crafted.scratch("out")
        let outside = crafted.scratch("outside")
        try FileManager.default.createDirectory(atPath: outside, withIntermediateDirectories: false)
        let process = try Outboard.start(["restore", "file", crafted.copy, "/", "--to", out])
        // Moves each directory aside as soon as it is seen, and puts a symbolic link in its place.
        var swapped = 0
        while process.waitForExit(seconds: 0.0005) == nil {
            for name in (try? crafted.names("out")) ?? [] where name.hasPrefix("d") && !name.hasSuffix("-") {
                let path = out + "/" + name
                guard rename(path, path + "-") == 0 else { continue }
                if symlink(outside, path) == 0 { swapped += 1 }
            }
        }
        #expect(swapped > 0)
        #expect(try FileManager.default.contentsOfDirectory(atPath: outside).isEmpty)
    }
}
