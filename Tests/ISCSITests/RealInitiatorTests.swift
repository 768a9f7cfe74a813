import Foundation
import Logging
import TestSupport
import Testing

@testable import ISCSI

/// The target with initiators that others wrote: libiscsi's tools and suite, and qemu.
@Suite(.serialized) struct RealInitiatorTests {
    static let name = "iqn.2026-01.net.example:outboard"

    static func withTarget(
        credentials: CHAPCredentials? = nil, device: MemoryDevice = MemoryDevice(),
        times: ISCSITimes = ISCSITimes(),
        _ body: (MemoryDevice, _ portal: String) async throws -> Void
    ) async throws {
        var configuration = ISCSITargetConfiguration(
            host: "127.0.0.1", port: 0, targetName: name, credentials: credentials)
        configuration.times = times
        let target = try await ISCSITarget.start(
            device: device, configuration: configuration, logger: Logger(label: "test"))
        do { try await body(device, "127.0.0.1:\(target.port)") } catch {
            await target.shutdown()
            throw error
        }
        await target.shutdown()
        #expect(device.state.withLock { $0.openNexuses.isEmpty && $0.opened == $0.closed })
    }

    @Test func libiscsiTools() async throws {
        try await Self.withTarget { _, portal in
            let list = try await runAlongside("iscsi-ls", ["-s", "iscsi://\(portal)"])
            #expect(list.status == 0 && list.output.contains("Target:\(Self.name) Portal:\(portal),1"))
            #expect(list.output.contains("Lun:0"))
            let inquiry = try await runAlongside("iscsi-inq", ["iscsi://\(portal)/\(Self.name)/0"])
            #expect(inquiry.status == 0 && inquiry.output.contains("OUTBOARD"))
            let capacity = try await runAlongside(
                "iscsi-readcapacity16", ["iscsi://\(portal)/\(Self.name)/0"])
            #expect(capacity.status == 0 && capacity.output.contains("Total size:4194304"))
            let wrong = try await runAlongside("iscsi-inq", ["iscsi://\(portal)/\(Self.name)x/0"])
            #expect(wrong.status != 0)
        }
    }

    @Test(arguments: [
        "SCSI.Read10.Simple", "SCSI.Write16.Simple", "SCSI.ReadCapacity16.Simple",
        "SCSI.TestUnitReady.Simple",
        "iSCSI.iSCSIcmdsn", "iSCSI.iSCSIdatasn", "iSCSI.iSCSIResiduals.Read10Invalid",
        "iSCSI.iSCSIResiduals.Read10Residuals", "iSCSI.iSCSIResiduals.Write10Residuals", "iSCSI.iSCSITMF",
    ])
    func conformanceSuite(test: String) async throws {
        try await Self.withTarget { _, portal in
            let result = try await runAlongside(
                "iscsi-test-cu", ["-d", "-f", "-t", test, "iscsi://\(portal)/\(Self.name)/0"])
            #expect(result.status == 0, "\(result.output)")
            // The suite counts a skip as a pass. What it skips before and after the tests, when it asks for
            // reservations and operation codes that a mere memory disk has none of, is not a test's skip.
            let tests = result.output.components(separatedBy: "Suite:").dropFirst().joined()
            let skipped = tests.split(separator: "\n").filter {
                $0.contains("[SKIPPED]") && !$0.contains("PERSISTENT RESERVE IN")
            }
            #expect(tests.contains("Test:") && skipped.isEmpty, "\(result.output)")
        }
    }

    @Test func qemu() async throws {
        try await Self.withTarget { device, portal in
            let url = "iscsi://\(portal)/\(Self.name)/0"
            let info = try await runAlongside("qemu-img", ["info", "-f", "raw", url])
            #expect(info.status == 0 && info.output.contains("4 MiB"), "\(info.output)")
            let io = try await runAlongside(
                "qemu-io",
                [
                    "-f", "raw", url, "-c", "aio_write -P 7 0 3M", "-c", "aio_write -P 9 3M 64k", "-c",
                    "aio_flush",
                    "-c", "read -P 7 0 3M", "-c", "read -P 9 3M 64k", "-c", "write -P 1 512 512", "-c",
                    "flush",
                ])
            #expect(io.status == 0 && !io.output.contains("failed"), "\(io.output)")
            #expect(device.state.withLock { $0.bytes[511] == 7 && $0.bytes[512] == 1 && $0.bytes[1024] == 7 })
        }
    }

    @Test func chap() async throws {
        let credentials = try CHAPCredentials(
            name: "operator", secret: Array("a secret of many bytes".utf8).map { $0 == 0x20 ? 0x2D : $0 })
        let secret = "a-secret-of-many-bytes"
        try await Self.withTarget(credentials: credentials) { _, portal in
            func inquire(_ prefix: String) async throws -> ProgramResult {
                try await runAlongside("iscsi-inq", ["iscsi://\(prefix)\(portal)/\(Self.name)/0"])
            }
            let right = try await inquire("operator%\(secret)@")
            #expect(right.status == 0 && right.output.contains("OUTBOARD"), "\(right.output)")
            #expect(try await inquire("operator%\(secret)x@").status != 0)
            #expect(try await inquire("nobody%\(secret)@").status != 0)
            #expect(try await inquire("").status != 0)
            let io = try await runAlongside(
                "qemu-io",
                ["-f", "raw", "iscsi://operator%\(secret)@\(portal)/\(Self.name)/0", "-c", "read -P 0 0 64k"])
            #expect(io.status == 0, "\(io.output)")
        }
    }

    @Test func chapBothWays() async throws {
        let credentials = try CHAPCredentials(
            name: "operator", secret: Array("a-secret-of-many-bytes".utf8),
            mutual: (name: "target", secret: Array("another-secret-here".utf8)))
        try await Self.withTarget(credentials: credentials) { _, portal in
            func url(_ targetSecret: String) -> String {
                "iscsi://operator%a-secret-of-many-bytes@\(portal)/\(Self.name)/0"
                    + "?target_user=target&target_password=\(targetSecret)"
            }
            let right = try await runAlongside("iscsi-inq", [url("another-secret-here")])
            #expect(right.status == 0, "\(right.output)")
            #expect(try await runAlongside("iscsi-inq", [url("a-different-secret")]).status != 0)
        }
    }

    /// Discovery, copying and comparing, all with both sides' proof.
    @Test func discoveryAndQemuWithCHAPBothWays() async throws {
        let credentials = try CHAPCredentials(
            name: "operator", secret: Array("a-secret-of-many-bytes".utf8),
            mutual: (name: "target", secret: Array("another-secret-here".utf8)))
        try await Self.withTarget(credentials: credentials) { _, portal in
            let user = "operator%a-secret-of-many-bytes@"
            let proof = "?target_user=target&target_password=another-secret-here"
            let list = try await runAlongside("iscsi-ls", ["iscsi://\(user)\(portal)"])
            #expect(list.status == 0 && list.output.contains("Portal:\(portal),1"), "\(list.output)")
            let stranger = try await runAlongside("iscsi-ls", ["iscsi://\(portal)"])
            #expect(!stranger.output.contains("Portal:"), "\(stranger.output)")
            let url = "iscsi://\(user)\(portal)/\(Self.name)/0\(proof)"
            let image = FileManager.default.temporaryDirectory.appendingPathComponent("image-\(UUID())")
            defer { try? FileManager.default.removeItem(at: image) }  // A file in /tmp may stay behind.
            try Data((0..<(4 << 20)).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ $0 >> 9) }).write(to: image)
            let convert = try await runAlongside(
                "qemu-img", ["convert", "-n", "-f", "raw", "-O", "raw", image.path, url])
            #expect(convert.status == 0, "\(convert.output)")
            let compare = try await runAlongside(
                "qemu-img", ["compare", "-f", "raw", "-F", "raw", image.path, url])
            #expect(compare.status == 0 && compare.output.contains("identical"), "\(compare.output)")
        }
    }

    /// A client that is idle for longer than the target bears without a sign of life gives one: the session stays.
    @Test func anIdleClientAnswersPings() async throws {
        var times = ISCSITimes()
        times.ping = .milliseconds(1500)
        try await Self.withTarget(times: times) { device, portal in
            let io = try await runAlongside(
                "qemu-io",
                [
                    "-f", "raw", "iscsi://\(portal)/\(Self.name)/0", "-c", "write -P 5 0 64k", "-c",
                    "sleep 4000",
                    "-c", "read -P 5 0 64k",
                ])
            #expect(io.status == 0 && !io.output.contains("failed"), "\(io.output)")
            // qemu connects anew when a session is lost, and says so to nobody.
            #expect(device.state.withLock { $0.opened } == 1)
        }
    }

    @Test func headerDigest() async throws {
        try await Self.withTarget { _, portal in
            let result = try await runAlongside(
                "qemu-io",
                [
                    "--image-opts",
                    "driver=iscsi,transport=tcp,portal=\(portal),target=\(Self.name),lun=0,header-digest=crc32c",
                    "-c", "write -P 5 0 1M", "-c", "read -P 5 0 1M",
                ])
            #expect(result.status == 0 && !result.output.contains("failed"), "\(result.output)")
        }
    }
}
