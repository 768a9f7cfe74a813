import Blocks
import Foundation
import NBD
import TestSupport
import Testing

/// Clients that others wrote, unmodified, against the server in this process.
@Suite(.serialized) struct RealClientTests {
    let size = 16 << 20

    private func uri(_ socket: String, _ name: String = "") -> String {
        "nbd+unix:///\(name)?socket=\(socket)"
    }

    private func contents(_ path: String) throws -> [UInt8] {
        [UInt8](try Data(contentsOf: URL(fileURLWithPath: path)))
    }

    private func expectSuccess(_ result: ProgramResult, _ source: SourceLocation = #_sourceLocation) {
        #expect(
            result.status == 0, "status \(result.status): \(result.output)\(result.errors)",
            sourceLocation: source)
    }

    @Test func nbdinfoTellsWhatTheServerCan() async throws {
        let readOnly = MemoryStore([UInt8](repeating: 7, count: 4096), capabilities: [])
        let provider = TestProvider([
            NBDExport(name: "", description: "the volume", store: MemoryStore(size: size)),
            NBDExport(name: "snapshot", description: "as it was", store: readOnly),
        ])
        try await withServer(provider) { _, socket in
            let info = try await runAlongside("nbdinfo", [uri(socket)])
            expectSuccess(info)
            for text in [
                "export-size: \(size)", "is_read_only: false", "can_multi_conn: true", "can_fua: true",
                "can_flush: true", "can_trim: true", "can_zero: true", "can_fast_zero: true",
                "can_cache: true", "can_df: true", "block_size_minimum: 1", "block_size_preferred: 4096",
                "block_size_maximum: 33554432", "base:allocation", "description: the volume",
                "newstyle-fixed without TLS, using structured packets",
            ] { #expect(info.output.contains(text), "\(text) is not in \(info.output)") }

            let list = try await runAlongside("nbdinfo", ["--list", uri(socket)])
            expectSuccess(list)
            #expect(list.output.contains("export=\"snapshot\"") && list.output.contains("export=\"\""))

            let result1 = try await runAlongside("nbdinfo", ["--is", "read-only", uri(socket, "snapshot")])
            #expect(result1.status == 0)
            let result2 = try await runAlongside("nbdinfo", ["--can", "trim", uri(socket, "snapshot")])
            #expect(result2.status == 2)
            let result3 = try await runAlongside("nbdinfo", ["--size", uri(socket, "absent")])
            #expect(result3.status != 0)

            let map = try await runAlongside("nbdinfo", ["--map", "--json", uri(socket)])
            expectSuccess(map)
            #expect(map.output.contains("\"length\": \(size)"))
        }
    }

    @Test func snapshotExportComesAndGoes() async throws {
        let volume = NBDExport(name: "", description: "", store: MemoryStore(size: size))
        let snapshot = NBDExport(
            name: "snapshot", description: "", store: MemoryStore([1, 2, 3], capabilities: []))
        let provider = TestProvider([volume])
        try await withServer(provider) { _, socket in
            let result4 = try await runAlongside("nbdinfo", ["--size", uri(socket, "snapshot")])
            #expect(result4.status != 0)
            provider.set([volume, snapshot])
            let result5 = try await runAlongside("nbdinfo", ["--size", uri(socket, "snapshot")])
            #expect(result5.output == "3\n")
            provider.set([volume])
            let result6 = try await runAlongside("nbdinfo", ["--size", uri(socket, "snapshot")])
            #expect(result6.status != 0)
        }
    }

    @Test func nbdcopyCopiesBothWays() async throws {
        let store = MemoryStore(size: size)
        try await withTemporaryDirectory { directory in
            let file = directory + "/data"
            let back = directory + "/back"
            let data = pattern(size, seed: 1)
            try Data(data).write(to: URL(fileURLWithPath: file))
            try await withServer(TestProvider(store)) { _, socket in
                expectSuccess(try await runAlongside("nbdcopy", [file, uri(socket)]))
                let written = try store.bytes(at: 0, count: size)
                #expect(written == data)
                expectSuccess(
                    try await runAlongside(
                        "nbdcopy", ["--request-size=33554432", "--requests=4", uri(socket), back]))
                #expect(try contents(back) == data)
            }
        }
    }

    @Test func qemuImgReadsMapsAndConverts() async throws {
        let data = pattern(size, seed: 2)
        let store = MemoryStore(data)
        try await withTemporaryDirectory { directory in
            try await withServer(TestProvider(store)) { _, socket in
                let info = try await runAlongside("qemu-img", ["info", "--output=json", uri(socket)])
                expectSuccess(info)
                #expect(info.output.contains("\"virtual-size\": \(size)"))
                expectSuccess(
                    try await runAlongside("qemu-img", ["map", "-f", "raw", "--output=json", uri(socket)]))
                let raw = directory + "/raw"
                expectSuccess(
                    try await runAlongside(
                        "qemu-img", ["convert", "-f", "raw", "-O", "raw", uri(socket), raw]))
                #expect(try contents(raw) == data)
                expectSuccess(
                    try await runAlongside(
                        "qemu-img", ["compare", "-f", "raw", "-F", "raw", uri(socket), raw]))
                try store.write([UInt8](repeating: 0, count: size), at: 0)
                expectSuccess(
                    try await runAlongside(
                        "qemu-img",
                        ["convert", "-n", "-W", "-m", "16", "-f", "raw", "-O", "raw", raw, uri(socket)]))
                let written = try store.bytes(at: 0, count: size)
                #expect(written == data)
            }
        }
    }

    @Test func qemuIoExercisesTheCommands() async throws {
        let store = MemoryStore(size: size)
        try await withServer(TestProvider(store)) { _, socket in
            let commands = [
                "write -P 0xaa 513 70001", "read -P 0xaa 513 70001", "write -f -P 0xbb 1M 8M",
                "read -P 0xbb 1M 8M", "write -z 2M 1M", "read -P 0 2M 1M", "write -z -u 3M 1M",
                "discard 4M 1M", "flush", "read -P 0 0 513", "aio_write -P 0xcc 12M 4M", "aio_flush",
                "read -P 0xcc 12M 4M",
            ]
            let result = try await runAlongside(
                "qemu-io", ["-f", "raw", uri(socket)] + commands.flatMap { ["-c", $0] })
            expectSuccess(result)
            #expect(
                !result.output.contains("failed") && !result.output.contains("Pattern"), "\(result.output)")
            let written = try store.bytes(at: 513, count: 70001)
            #expect(written.allSatisfy { $0 == 0xaa })
        }
    }

    @Test func mapsShowHoles() async throws {
        let store = StripedStore(size: UInt64(size), stripe: 1 << 20)
        try await withServer(TestProvider(store)) { _, socket in
            let map = try await runAlongside("nbdinfo", ["--map", uri(socket)])
            expectSuccess(map)
            let lines = map.output.split(separator: "\n").map { $0.split(separator: " ").map(String.init) }
            #expect(lines.count == 16)
            for (index, line) in lines.enumerated() {
                #expect(line.prefix(3) == [String(index << 20), String(1 << 20), index % 2 == 0 ? "0" : "3"])
            }
            let qemu = try await runAlongside("qemu-img", ["map", "-f", "raw", "--output=json", uri(socket)])
            expectSuccess(qemu)
            #expect(qemu.output.split(separator: "\n").count == 16, "\(qemu.output)")
        }
    }

    @Test(arguments: [(64, 1), (16, 4)]) func fioVerifies(depth: Int, connections: Int) async throws {
        let store = MemoryStore(size: size)
        try await withServer(TestProvider(store)) { server, socket in
            let result = try await runAlongside(
                "fio",
                [
                    "--name=verify", "--ioengine=nbd", "--uri=\(uri(socket))", "--rw=randwrite",
                    "--bsrange=512-256k", "--blockalign=512", "--iodepth=\(depth)",
                    "--numjobs=\(connections)",
                    "--size=\(size / connections)", "--offset_increment=\(size / connections)",
                    "--verify=crc32c", "--group_reporting", "--randseed=7", "--fallocate=none",
                    "--verify_state_save=0",
                ])
            expectSuccess(result)
            #expect(!result.output.contains("verify: bad"), "\(result.output)")
        }
    }

    @Test func nbdkitIsAClient() async throws {
        let data = pattern(size, seed: 3)
        try await withServer(TestProvider(MemoryStore(data))) { _, socket in
            let result = try await runAlongside(
                "nbdkit",
                ["-U", "-", "nbd", "uri=\(uri(socket))", "--run", "nbdcopy \"$uri\" - | sha256sum"])
            expectSuccess(result)
            let direct = try await runAlongside("sh", ["-c", "nbdcopy '\(uri(socket))' - | sha256sum"])
            #expect(result.output == direct.output && direct.output.count > 64)
        }
    }
}
