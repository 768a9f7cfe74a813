import Agent
import Blocks
import Foundation
import HostControl
import PhysicalCopy
import TestSupport
import Testing

/// What is left when a process of a running copy is stopped or dies, and that the next copy works.
@Suite(.serialized) struct InterruptionTests {
    private static let size = 12 << 20

    private func makeHost(_ options: [String] = []) throws -> HostProcess {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("volume.img"), count: Self.size)
        return try HostProcess(scratch, options: options)
    }

    /// Nothing is left of it but why it failed.
    private func expectReason(_ copy: CopyInProgress, _ status: Int32) throws {
        #expect(copy.names == ["copy"])
        let left = try #require(try AbandonedCopy.find(copy.destination))
        #expect(left.postMortem.exitStatus == status)
        #expect(copy.process.errors.contains(left.postMortem.reason), "\(copy.process.errors)")
    }

    /// A copy of the idle volume is the volume.
    @discardableResult
    private func copyAgain(_ host: HostProcess, _ options: [String] = []) throws -> ProgramResult {
        let copy = host.directory("copies/copy")
        let result = try Outboard.run(["copy", "--host", host.control, "--to", copy] + options)
        #expect(result.status == 0, "\(result)")
        #expect(try haveSameContents(copy + "/data.img", host.source))
        #expect(try FileManager.default.contentsOfDirectory(atPath: host.directory("copies")) == ["copy"])
        #expect(try host.isIdle())
        return result
    }

    @Test(arguments: [SIGINT, SIGTERM], ["overlay", "append"])
    func aSignalEndsACopyInOrder(signal: Int32, mode: String) throws {
        let host = try makeHost()
        let copy = try CopyInProgress(of: host, options: ["--mode", mode])
        let bridge = try copy.bridge()
        copy.process.signal(signal)
        #expect(copy.process.wait() == .exit(75), "\(copy.process.errors)")
        #expect(copy.names == [])
        #expect(RunningProcesses.hasEnded(bridge))
        #expect(try host.isIdle())
        try copyAgain(host)
        #expect(host.stop() == .exit(0), "\(host.process.errors)")
    }

    @Test func aKilledAgentsBridgeEndsAndTheNextCopyClearsUp() throws {
        let host = try makeHost()
        let copy = try CopyInProgress(of: host)
        let bridge = try copy.bridge()
        copy.process.signal(SIGKILL)
        #expect(copy.process.waitForExit() == .signal(SIGKILL))
        // By the clock: it is no child of ours, and the host tells of its holders only when it is asked.
        try waitUntil("the private bridge has ended") { RunningProcesses.hasEnded(bridge) }
        try waitUntil("the host sees that the agent is gone") {
            try host.status().epoch?.isHeld == false
        }
        #expect(!FileManager.default.fileExists(atPath: copy.destination))
        let next = try copyAgain(host)
        #expect(next.errors.contains("was left by a copy that died"), "\(next)")
    }

    @Test func aSecondCopyIsRefusedWhileOneRuns() throws {
        let host = try makeHost()
        let copy = try CopyInProgress(of: host, rate: "4MiB")
        let second = try Outboard.run(["copy", "--host", host.control, "--to", host.directory("second")])
        #expect(second.status == 75, "\(second)")
        #expect(second.errors.contains("another copy"), "\(second)")
        #expect(!FileManager.default.fileExists(atPath: host.directory("second")))
        #expect(copy.process.wait() == .exit(0), "\(copy.process.errors)")
        #expect(try haveSameContents(copy.destination + "/data.img", host.source))
    }

    /// Draft and epoch stay: it can go on, and it need not.
    @Test(arguments: [true, false]) func aKilledPrivateBridgeStopsTheCopy(resumes: Bool) throws {
        let host = try makeHost()
        let copy = try CopyInProgress(of: host)
        kill(try copy.bridge(), SIGKILL)
        #expect(copy.process.wait(seconds: 30) == .exit(69), "\(copy.process.errors)")
        #expect(copy.process.errors.contains("--resume"), "\(copy.process.errors)")
        #expect(copy.names.count == 1 && copy.names[0].hasPrefix(".copy.partial-"), "\(copy.names)")
        let epoch = try host.status().epoch
        #expect(epoch?.state == .open && epoch?.isHeld == false, "\(String(describing: epoch))")
        if resumes {
            try copyAgain(host, ["--resume"])
        } else {
            let next = try copyAgain(host)
            #expect(next.errors.contains("was left by a copy that died"), "\(next)")
        }
        let nothing = try Outboard.run([
            "copy", "--host", host.control, "--to", host.directory("copies/other"), "--resume",
        ])
        #expect(nothing.status == 66 && nothing.errors.contains("nothing to resume"), "\(nothing)")
    }

    @Test func aKilledHostEndsTheCopyAndResumesAtItsNextStart() throws {
        let host = try makeHost()
        let copy = try CopyInProgress(of: host)
        host.process.signal(SIGKILL)
        #expect(host.process.waitForExit() == .signal(SIGKILL))
        #expect(copy.process.wait(seconds: 30) == .exit(69), "\(copy.process.errors)")
        #expect(copy.process.errors.contains("host"), "\(copy.process.errors)")
        try expectReason(copy, 69)

        let again = try HostProcess(host.directory)
        let epoch = try again.status().epoch
        #expect(epoch?.state == .open && epoch?.isHeld == false, "\(String(describing: epoch))")
        let next = try copyAgain(again)
        #expect(next.errors.contains("was left by a copy that died"), "\(next)")
    }

    @Test func aFullCacheAbandonsTheCopyAndHarmsNoWrite() throws {
        let host = try makeHost(["--cache-size", "2MiB", "--chunk-size", "64KiB"])
        let copy = try CopyInProgress(of: host)
        let store = try NBDStore(.unixSocket(host.socket, export: ""))
        let oracle = PrefixOracle(seed: 7, region: ByteRange(offset: 0, count: 4 << 20))
        let new = oracle.content(of: 1, at: oracle.region)
        try store.write(new, at: 0)
        #expect(try store.bytes(at: 0, count: new.count) == new)
        #expect(copy.process.wait(seconds: 30) == .exit(75), "\(copy.process.errors)")
        #expect(copy.process.errors.contains("full"), "\(copy.process.errors)")
        try expectReason(copy, 75)
        #expect(try host.isIdle())
        try copyAgain(host)
        #expect(try store.bytes(at: 0, count: new.count) == new)
    }
}
