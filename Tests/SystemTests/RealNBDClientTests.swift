import Foundation
import TestSupport
import Testing

/// Unmodified clients against a running host.
@Suite(.serialized) struct RealNBDClientTests {
    private static let size = 16 << 20

    private func withHost(
        options: [String] = [], _ body: (ScratchDirectory, HostProcess) throws -> Void
    ) throws {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("volume.img"), count: Self.size)
        let host = try HostProcess(scratch, options: options)
        try body(scratch, host)
        #expect(host.stop() == .exit(0), "\(host.process.errors)")
    }

    private func succeed(_ program: String, _ arguments: [String], seconds: Double = 120) throws -> String {
        let result = try runProgram(program, arguments, seconds: seconds)
        #expect(result.isSuccess, "\(result)")
        return result.output
    }

    private func expect(_ text: String, in output: String) { #expect(output.contains(text), "\(output)") }

    @Test func nbdinfoSeesExportAndAllocation() throws {
        try withHost { _, host in
            let size = try succeed("nbdinfo", ["--size", host.uri])
            #expect(size == "\(Self.size)\n")
            try expect("the live volume", in: succeed("nbdinfo", ["--list", host.uri]))
            try expect("data", in: succeed("nbdinfo", ["--map", host.uri]))
        }
    }

    @Test func nbdcopyReadsAndWritesWithFourConnections() throws {
        try withHost { scratch, host in
            _ = try succeed("nbdcopy", ["--connections=4", "--requests=64", host.uri, scratch("read")])
            #expect(try haveSameContents(scratch("read"), host.source))
            try makePatternFile(scratch("new"), count: Self.size, seed: 2)
            _ = try succeed("nbdcopy", ["--connections=4", "--flush", scratch("new"), host.uri])
            #expect(try haveSameContents(scratch("new"), host.source))
        }
    }

    @Test func nbdkitNBDProxies() throws {
        try withHost { scratch, host in
            let proxy = scratch("proxy.sock")
            let nbdkit = try ChildProcess("nbdkit", ["-f", "-U", proxy, "nbd", "socket=" + host.socket])
            defer { nbdkit.stop() }
            // libnbd tries until the socket is there.
            let copy = try succeed(
                "bash",
                [
                    "-c",
                    "for i in $(seq 100); do [ -S \(proxy) ] && break; sleep 0.05; done; "
                        + "nbdcopy 'nbd+unix:///?socket=\(proxy)' \(scratch("read"))",
                ])
            #expect(copy.isEmpty)
            #expect(try haveSameContents(scratch("read"), host.source))
        }
    }

    @Test func qemuImgMapsComparesAndConverts() throws {
        try withHost { scratch, host in
            try expect("virtual size: 16 MiB", in: succeed("qemu-img", ["info", host.uri]))
            try expect("\"data\": true", in: succeed("qemu-img", ["map", "--output=json", host.uri]))
            _ = try succeed("qemu-img", ["compare", "-f", "raw", "-F", "raw", host.uri, host.source, "-U"])
            _ = try succeed("qemu-img", ["convert", "-f", "raw", "-O", "raw", host.uri, scratch("read")])
            #expect(try haveSameContents(scratch("read"), host.source))
            try makePatternFile(scratch("new"), count: Self.size, seed: 3)
            _ = try succeed(
                "qemu-img", ["convert", "-n", "-f", "raw", "-O", "raw", scratch("new"), host.uri])
            #expect(try haveSameContents(scratch("new"), host.source))
        }
    }

    @Test func qemuIoWritesZeroesDiscardsAndFlushes() throws {
        try withHost { _, host in
            let commands = [
                "write -P 0x5a 4096 65536", "read -P 0x5a 4096 65536", "write -f -P 0x33 512 1024",
                "read -P 0x33 512 1024", "write -z 1M 1M", "read -P 0 1M 1M", "write -z -u 3M 1M",
                "read -P 0 3M 1M", "discard 5M 1M", "flush",
            ]
            let output = try succeed(
                "qemu-io", ["-f", "raw"] + commands.flatMap { ["-c", $0] } + [host.uri])
            #expect(!output.contains("failed"), "\(output)")
        }
    }

    @Test func fioVerifiesAtDepth64OverFourConnections() throws {
        try withHost { scratch, host in
            let result = try runProgram(
                "fio",
                [
                    "--name=v", "--ioengine=nbd", "--uri=" + host.uri, "--rw=randwrite", "--bs=4k",
                    "--iodepth=64", "--numjobs=4", "--size=4M", "--offset_increment=4M", "--verify=crc32c",
                    "--verify_fatal=1", "--verify_state_save=0", "--group_reporting",
                ], directory: scratch.path)
            #expect(result.isSuccess, "\(result)")
        }
    }

    @Test(.enabled(if: Machine.canMount, "needs root, FUSE and loop devices"))
    func nbdfuseMakesAFileOfIt() throws {
        try withHost { scratch, host in
            let file = scratch("fuse")
            try makeSparseFile(file, size: 0)
            let fuse = try ChildProcess("nbdfuse", [file, "--unix", host.socket])
            defer {
                _ = try? runProgram("fusermount3", ["-u", file])  // not mounted is as good
                fuse.stop()
            }
            _ = try succeed(
                "bash",
                [
                    "-c",
                    "for i in $(seq 200); do [ \"$(stat -c %s \(file))\" = \(Self.size) ] && break; "
                        + "sleep 0.05; done; cmp \(file) \(host.source)",
                ])
        }
    }
}
