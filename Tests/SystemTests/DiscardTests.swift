import Agent
import Blocks
import Foundation
import HostControl
import TestSupport
import Testing

/// A whole mounted file system is trimmed while a copy runs: that costs next to no cache, and the copy has every file.
@Suite(.serialized, .enabled(if: LoopMount.isPossible, "\(LoopMount.reason)")) struct DiscardTests {
    private static let size: UInt64 = 192 << 20
    private static let allowance: UInt64 = 1 << 20

    private func fill(_ directory: String, _ count: Int, seed: UInt64) throws -> [String: [UInt8]] {
        var files: [String: [UInt8]] = [:]
        for number in 0..<count {
            let name = "file\(number)"
            let content = seededBytes(256 << 10 + number, seed: seed &+ UInt64(number))
            files[name] = content
            try Data(content).write(to: URL(fileURLWithPath: "\(directory)/\(name)"))
        }
        return files
    }

    @Test(arguments: ["overlay", "append"]) func aTrimOfTheWholeVolumeCostsNoCache(mode: String) throws {
        let volume = try LoopMount(size: Self.size, options: ["--cache-size", "64MiB"])
        let (kept, gone) = (volume.mountPoint + "/kept", volume.mountPoint + "/gone")
        for directory in [kept, gone] {
            try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: false)
        }
        let expected = [
            "kept": try fill(kept, 100, seed: 1), "gone": try fill(gone, 100, seed: 1000),
        ]
        let copy = try CopyInProgress(
            of: volume.host, rate: "24MiB", options: ["--mode", mode, "--freeze", volume.mountPoint])
        // What goes now was there at the instant; what its removal itself writes is preserved before we look.
        try FileManager.default.removeItem(atPath: gone)
        try LoopMount.succeed("sync", ["--file-system", volume.mountPoint])
        let before = try volume.host.status()
        let trim = try LoopMount.succeed("fstrim", ["--verbose", volume.mountPoint])
        let after = try volume.host.status()
        #expect(copy.process.isRunning, "the copy was over before the trim was")
        #expect(after.counters.trims > before.counters.trims, "no trim reached the host: \(trim)")
        let growth = after.cacheUsed - before.cacheUsed
        print("DiscardTests(\(mode)): \(trim.output.dropLast()); the cache grew by \(growth) bytes")
        #expect(growth < Self.allowance, "\(before.cacheUsed) → \(after.cacheUsed)")
        #expect(copy.process.wait() == .exit(0), "\(copy.process.errors)")
        try expectFiles(expected, of: copy.destination, volume.host.directory)
        // The volume itself is as its own file system has it.
        for (name, content) in expected["kept"]! {
            #expect(try haveSameBytes(contents("\(kept)/\(name)"), content))
        }
    }

    private func expectFiles(
        _ expected: [String: [String: [UInt8]]], of copy: String, _ scratch: ScratchDirectory
    ) throws {
        let (image, place) = (scratch("restored"), scratch("look"))
        try LoopMount.succeed(Outboard.binary, ["verify", copy])
        try LoopMount.succeed(Outboard.binary, ["restore", "volume", copy, "--to", image])
        #expect(try runProgram("e2fsck", ["-fn", image]).isSuccess)
        try FileManager.default.createDirectory(atPath: place, withIntermediateDirectories: false)
        try LoopMount.succeed("mount", ["-o", "ro,loop,noload", image, place])
        defer { LoopMount.unmount(place) }
        for (directory, files) in expected {
            let names = try FileManager.default.contentsOfDirectory(atPath: "\(place)/\(directory)")
            #expect(Set(names) == Set(files.keys))
            for (name, content) in files {
                #expect(
                    try haveSameBytes(contents("\(place)/\(directory)/\(name)"), content),
                    "\(directory)/\(name)")
            }
        }
    }
}
