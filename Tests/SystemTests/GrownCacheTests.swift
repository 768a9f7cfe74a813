import Blocks
import Foundation
import HostControl
import TestSupport
import Testing

/// `outboard grow` under a copy whose bridge has opened the cache as it was before.
@Suite(.serialized) struct GrownCacheTests {
    private static let size = 4 << 20
    private static let cacheSize: UInt64 = 512 << 10

    @Test(arguments: ["overlay", "append"])
    func theCopyHasTheOriginalsBehindTheFormerEnd(mode: String) throws {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("volume.img"), count: Self.size)
        let host = try HostProcess(
            scratch,
            options: [
                "--cache-size", "\(Self.cacheSize)", "--chunk-size", "64KiB", "--on-cache-full", "block",
            ])
        let writer = try Writer(
            PrefixOracle(
                seed: 31, region: ByteRange(offset: 0, count: UInt64(Self.size)), maximumLength: 32 << 10,
                flushInterval: 50), to: host.socket)
        writer.start()
        writer.waitForOperations(10)
        let copy = try CopyInProgress(of: host, rate: "1MiB", options: ["--mode", mode])
        copy.process.signal(SIGSTOP)
        let grown = try Outboard.run(["grow", "--host", host.control, "--to", "8MiB"])
        #expect(grown.isSuccess, "\(grown)")
        try waitUntil("the log goes beyond the cache's former end") {
            try host.status().cacheUsed > Self.cacheSize
        }
        copy.process.signal(SIGCONT)
        #expect(copy.process.wait() == .exit(0), "\(copy.process.errors)")
        try writer.stop()
        try CopyJudge.expectRight(copy.destination, [writer], in: scratch)
        #expect(host.stop() == .exit(0), "\(host.process.errors)")
        try CopyJudge.expectKept(host.source, [writer])
    }
}
