import Agent
import Blocks
import Foundation
import TestSupport
import Testing

/// The finished copy is what the `snapshot` export showed while its epoch was open, byte for byte.
@Suite(.serialized) struct SnapshotEqualityTests {
    @Test(arguments: ["overlay", "append"], ["before-cache-copy", "after-cache-copy"])
    func aCopyIsTheLogicalSnapshot(mode: String, end: String) throws {
        let size: UInt64 = (3 << 20) + 512
        let host = try HostProcess(size: size, ["--cache-size", "32MiB", "--chunk-size", "16KiB"])
        let writer = try Writer(
            PrefixOracle(seed: 5, region: ByteRange(offset: 0, count: size)), to: host.socket)
        writer.start()
        writer.waitForOperations(20)
        let copy = try CopyInProgress(of: host, rate: "2MiB", options: ["--mode", mode, "--end", end])
        let epoch = try host.status().epoch
        writer.waitForOperations(writer.oracle.operations.count + 50)
        let snapshot = try NBDStore(.unixSocket(host.socket, export: "snapshot"))
        let shown = try snapshot.bytes(at: 0, count: Int(size))
        let now = try host.status().epoch
        #expect(now?.state == .open && now?.uuid == epoch?.uuid, "the snapshot was read too late")
        #expect(copy.process.wait() == .exit(0), "\(copy.process.errors)")
        try writer.stop()
        if mode == "append" {
            let integrated = try Outboard.run(["integrate", copy.destination])
            #expect(integrated.status == 0, "\(integrated)")
        }
        let copied = try contents(copy.destination + "/data.img")
        let isSame = copied == shown
        #expect(isSame, "they differ")
        let hasMoved = try copied != contents(host.source)
        #expect(hasMoved, "the volume has not moved on: nothing was shown")
    }
}
