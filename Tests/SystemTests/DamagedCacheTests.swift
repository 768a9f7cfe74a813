import Agent
import Blocks
import Foundation
import HostControl
import TestSupport
import Testing

/// What befalls a cache while no host serves its volume costs a copy, and never the volume.
@Suite(.serialized) struct DamagedCacheTests {
    private static let chunk: UInt64 = 64 << 10

    /// A host that was killed in an epoch in which four chunks had been overwritten, one by one.
    private func killedHost() throws -> HostProcess {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("volume.img"), count: 8 << 20)
        let host = try HostProcess(scratch)
        let copy = try CopyInProgress(of: host)
        let store = try NBDStore(.unixSocket(host.socket, export: ""))
        for chunk: UInt64 in 0..<4 {
            try store.write([UInt8](repeating: 9, count: 512), at: chunk * Self.chunk)
        }
        host.process.signal(SIGKILL)
        #expect(host.process.waitForExit() == .signal(SIGKILL))
        #expect(copy.process.wait(seconds: 30) == .exit(69), "\(copy.process.errors)")
        return host
    }

    private func expectVoid(_ host: HostProcess, saying text: String) throws {
        let epoch = try #require(try host.status().epoch)
        #expect(epoch.state == .void && epoch.voidReason?.contains(text) == true, "\(epoch)")
        #expect(host.process.errors.contains("void") && host.process.errors.contains(text))
        #expect(throws: AgentError.self) { try NBDStore(.unixSocket(host.socket, export: "snapshot")) }
        let store = try NBDStore(.unixSocket(host.socket, export: ""))
        try store.write([UInt8](repeating: 7, count: 512), at: 5 * Self.chunk)
        let copied = try Outboard.run(["copy", "--host", host.control, "--to", host.directory("after")])
        #expect(copied.isSuccess && copied.errors.contains("void, was left by a copy that died"), "\(copied)")
        #expect(try haveSameContents(host.directory("after/data.img"), host.source))
    }

    @Test func aDamagedLogCostsItsEpoch() throws {
        let host = try killedHost()
        let file = try #require(FileHandle(forUpdatingAtPath: host.cache))
        try file.seek(toOffset: 8192 + 50)  // in the first batch's header
        try file.write(contentsOf: Data([0xFF]))
        try file.close()
        try expectVoid(try HostProcess(host.directory), saying: "damaged")
    }

    @Test func anotherChunkSizeCostsTheEpoch() throws {
        let host = try killedHost()
        try expectVoid(
            try HostProcess(host.directory, options: ["--chunk-size", "16KiB"]), saying: "chunks of")
    }

    /// However a file is named, its cache is known; under a name that cannot be followed it is refused.
    @Test func theNamesOfASource() throws {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("volume.img"), count: 1 << 20)
        let host = try HostProcess(scratch)
        #expect(try Outboard.run(["copy", "--host", host.control, "--to", scratch("copy")]).isSuccess)
        let identity = try host.status().volumeUUID
        #expect(host.stop() == .exit(0))
        try FileManager.default.createDirectory(atPath: scratch("a"), withIntermediateDirectories: false)
        #expect(symlink(scratch("volume.img"), scratch("link")) == 0)
        for name in ["a/../volume.img", "link"] {
            let other = try HostProcess(scratch, source: scratch(name))
            #expect(try other.status().volumeUUID == identity)
            #expect(other.stop() == .exit(0))
        }
        #expect(link(scratch("volume.img"), scratch("hard")) == 0)
        let arguments = [
            "host", "--source", scratch("hard"), "--cache", scratch("volume.cache"), "--socket",
            scratch("x.sock"), "--control", scratch("x.ctl"),
        ]
        let refused = try Outboard.run(arguments)
        #expect(refused.status == 65 && refused.errors.contains("give --volume \(identity)"), "\(refused)")
        let known = try HostProcess(scratch, source: scratch("hard"), options: ["--volume", identity])
        #expect(try known.status().volumeUUID == identity)
        #expect(known.stop() == .exit(0))
    }

    /// A link to a device is its name, whichever device it leads to at the moment.
    @Test(.enabled(if: LoopMount.isPossible, Comment(rawValue: LoopMount.reason)))
    func aDeviceHasTheNameThatWasGiven() throws {
        let scratch = try ScratchDirectory()
        var identities: Set<String> = []
        var devices: [String] = []
        // Needed in any case; a failure leaves a loop device and says nothing of the host.
        defer { for device in devices { _ = try? LoopMount.succeed("losetup", ["--detach", device]) } }
        for name in ["one", "two"] {
            try makePatternFile(scratch(name), count: 1 << 20)
            devices.append(
                try LoopMount.succeed("losetup", ["--find", "--show", scratch(name)]).output
                    .trimmingCharacters(in: .whitespacesAndNewlines))
        }
        for device in devices {
            unlink(scratch("disk"))
            #expect(symlink(device, scratch("disk")) == 0)
            let host = try HostProcess(scratch, source: scratch("disk"))
            identities.insert(try host.status().volumeUUID)
            #expect(host.stop() == .exit(0))
        }
        #expect(identities.count == 1)
    }
}
