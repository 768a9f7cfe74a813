import Agent
import Blocks
import Foundation
import PhysicalCopy
import TestSupport
import Testing

/// What a copy that failed after its instant leaves: the reason, which everybody is told who takes it for a copy.
@Suite(.serialized) struct AbandonedCopyTests {
    /// A host whose small cache has become full, and what its copy has left.
    private func abandoned() throws -> (host: HostProcess, copy: CopyInProgress) {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("volume.img"), count: 12 << 20)
        let host = try HostProcess(scratch, options: ["--cache-size", "2MiB", "--chunk-size", "64KiB"])
        let copy = try CopyInProgress(of: host)
        let store = try NBDStore(.unixSocket(host.socket, export: ""))
        try store.write([UInt8](repeating: 7, count: 4 << 20), at: 0)
        guard copy.process.wait(seconds: 60) == .exit(75) else {
            throw TestFailure("the copy was not abandoned: \(copy.process.errors)")
        }
        return (host, copy)
    }

    @Test func everyCommandRefusesItWithTheReason() throws {
        let (host, copy) = try abandoned()
        let path = copy.destination
        let reason = "copying \(host.source): the epoch is void: "
        #expect(copy.process.errors.contains(reason), "\(copy.process.errors)")
        #expect(copy.process.errors.contains("cache is full"), "\(copy.process.errors)")
        #expect(try FileManager.default.contentsOfDirectory(atPath: path) == ["manifest.json"])
        let before = try contents(path + "/manifest.json")
        let made = copy.directory + "/made"
        let commands: [[String]] = [
            ["show", path], ["show", path, "--json"], ["verify", path], ["verify", path, "--json"],
            ["integrate", path], ["restore", "volume", path, "--to", made],
            ["restore", "volume", path, "--to", host.source, "--force", "--host", host.control],
            ["restore", "file", path, "/", "--to", made],
            ["restore", "extents", path, "--range", "0+4096", "--to", made], ["toc", path], ["ls", path],
            ["find", path, "*"], ["cat", path, "/x"], ["mount", path, made], ["backup", path, "--to", made],
        ]
        for command in commands {
            let result = try Outboard.run(command)
            #expect(result.status == 75, "\(result)")
            if command[0] == "show" {
                #expect(result.output.contains(reason) && result.errors.isEmpty, "\(result)")
            } else {
                #expect(result.errors.contains(reason) && result.errors.contains(path), "\(result)")
                #expect(result.output.isEmpty, "\(result)")
            }
            #expect(copy.names == ["copy"], "\(command) left something")
        }
        #expect(try contents(path + "/manifest.json") == before)

        let next = try Outboard.run(["copy", "--host", host.control, "--to", path])
        #expect(next.isSuccess, "\(next)")
        #expect(try Outboard.run(["verify", path]).isSuccess)
        #expect(copy.names == ["copy"])
    }

    @Test func itSaysHowFarItHadCome() throws {
        let (host, copy) = try abandoned()
        let left = try #require(try AbandonedCopy.find(copy.destination))
        let end = left.postMortem
        let status = try host.status()
        #expect(end.phase == "copying" && end.exitStatus == 75)
        #expect(end.epoch == status.epoch?.number && end.epochUUID == status.epoch?.uuid)
        #expect(end.cacheCapacity == status.cacheCapacity)
        // The log of the void epoch was as full as the next batch allowed.
        #expect(end.cacheUsed > end.cacheCapacity / 2 && end.cacheUsed <= end.cacheCapacity)
        #expect(end.bytesCopied > 0 && end.bytesCopied < 12 << 20)
        #expect(end.institutedAt < end.abandonedAt && end.secondsSinceInstitution > 0)
        #expect(left.volume.source == host.source && left.volume.size == 12 << 20)

        let shown = try Outboard.run(["show", copy.destination, "--json"])
        let found = try JSONDecoder().decode(AbandonedCopy.self, from: Data(shown.output.utf8))
        #expect(found == left)
        let text = try Outboard.run(["show", copy.destination]).output
        for line in ["state         abandoned", "phase         copying", "exit status   75"] {
            #expect(text.contains("\n" + line + "\n"), "\(text)")
        }
    }
}
