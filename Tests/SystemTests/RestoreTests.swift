import Foundation
import TestSupport
import Testing

/// What a restore refuses, and that it leaves alone what is there then.
@Suite(.serialized) struct RestoreTests {
    private func names(_ scratch: ScratchDirectory) throws -> Set<String> {
        Set(try FileManager.default.contentsOfDirectory(atPath: scratch.path))
    }

    private func flip(_ path: String, at place: Int) throws {
        let file = try #require(FileHandle(forUpdatingAtPath: path))
        defer { file.closeFile() }
        try file.seek(toOffset: UInt64(place))
        let byte = try #require(try file.read(upToCount: 1)?.first)
        try file.seek(toOffset: UInt64(place))
        try file.write(contentsOf: Data([byte ^ 0x10]))
    }

    @Test("A damaged copy is not restored: nothing is written", arguments: ["overlay", "append"])
    func damage(mode: String) throws {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("volume.img"), count: 4 << 20)
        let host = try HostProcess(scratch)
        let made = try Outboard.run(
            ["copy", "--host", host.control, "--to", scratch("copy"), "--mode", mode])
        #expect(made.isSuccess, "\(made)")
        try makePatternFile(scratch("kept"), count: 4 << 20, seed: 9)
        let kept = try contents(scratch("kept"))
        let before = try names(scratch)
        let places = mode == "append" ? [12_345, (4 << 20) + 9] : [12_345, (4 << 20) - 1]
        for place in places {
            try flip(scratch("copy/data.img"), at: place)
            for destination in ["kept", "new"] {
                let result = try Outboard.run(
                    ["restore", "volume", scratch("copy"), "--to", scratch(destination), "--force"])
                #expect(result.status == 65, "\(place): \(result)")
                #expect(result.errors.contains("data at 0") || place > 4 << 20, "\(result)")
            }
            #expect(try contents(scratch("kept")) == kept)
            #expect(try names(scratch) == before)
            try flip(scratch("copy/data.img"), at: place)
        }
        let restored = try Outboard.run(["restore", "volume", scratch("copy"), "--to", scratch("new")])
        #expect(restored.isSuccess, "\(restored)")
        #expect(try haveSameContents(scratch("new"), scratch("volume.img")))
    }
}
