import AsyncIO
import Bridge
import Foundation
import ISCSI
import Logging
import TestSupport
import Testing

/// Bridge and iSCSI target together, with initiators that others wrote: libiscsi's tools and qemu.
@Suite(.serialized) struct BridgeConformanceTests {
    private static let name = "iqn.2026-01.net.example:bridge"
    private static let size: UInt64 = 64 << 20

    /// Unit 0 is writable, of 512-byte blocks; unit 1 of 4096; unit 2 reads the file of unit 0.
    private static func withBridge(
        credentials: CHAPCredentials? = nil,
        _ body: (_ portal: String, _ directory: String) async throws -> Void
    ) async throws {
        let directory = FileManager.default.temporaryDirectory.appendingPathComponent("bridge-\(UUID())")
        try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: directory) }  // A file in /tmp may stay behind.
        let files = (0..<2).map { directory.appendingPathComponent("unit\($0)").path }
        for file in files { try StorageFile.create(file, size: size, preallocate: false) }
        let device = try BridgeDevice(
            units: [
                BridgeUnit(number: 0, path: files[0]), BridgeUnit(number: 1, path: files[1], blockSize: 4096),
                BridgeUnit(number: 2, path: files[0], readOnly: true),
            ], logger: Logger(label: "test"))
        defer { device.close() }
        let target = try await ISCSITarget.start(
            device: device,
            configuration: ISCSITargetConfiguration(
                host: "127.0.0.1", port: 0, targetName: name, credentials: credentials),
            logger: Logger(label: "test"))
        do { try await body("127.0.0.1:\(target.port)", directory.path) } catch {
            await target.shutdown()
            throw error
        }
        await target.shutdown()
    }

    @Test func libiscsiTools() async throws {
        try await Self.withBridge { portal, _ in
            let list = try await runAlongside("iscsi-ls", ["-s", "iscsi://\(portal)"])
            #expect(list.status == 0 && list.output.contains("Target:\(Self.name) Portal:\(portal),1"))
            for unit in 0...2 { #expect(list.output.contains("Lun:\(unit)"), "\(list.output)") }
            let inquiry = try await runAlongside("iscsi-inq", ["iscsi://\(portal)/\(Self.name)/0"])
            #expect(inquiry.status == 0 && inquiry.output.contains("OUTBOARD"), "\(inquiry.output)")
            let page = try await runAlongside(
                "iscsi-inq", ["-e", "1", "-c", "131", "iscsi://\(portal)/\(Self.name)/1"])
            #expect(page.status == 0 && page.output.contains("NAA"), "\(page.output)")
            let capacity = try await runAlongside(
                "iscsi-readcapacity16", ["iscsi://\(portal)/\(Self.name)/1"])
            #expect(capacity.status == 0 && capacity.output.contains("Total size:\(Self.size)"))
        }
    }

    @Test func qemuWithAndWithoutCHAP() async throws {
        let credentials = try CHAPCredentials(name: "operator", secret: Array("a-secret-of-many-bytes".utf8))
        for (given, prefix) in [(nil, ""), (credentials, "operator%a-secret-of-many-bytes@")] {
            try await Self.withBridge(credentials: given) { portal, directory in
                let image = directory + "/image"
                var generator = SystemRandomNumberGenerator()
                let words = (0..<Int(Self.size) / 8 / 16).map { _ in generator.next() }
                var bytes = words.withUnsafeBytes { Data($0) }
                bytes.append(Data(count: Int(Self.size) - bytes.count))
                try bytes.write(to: URL(fileURLWithPath: image))
                for unit in 0...1 {
                    let url = "iscsi://\(prefix)\(portal)/\(Self.name)/\(unit)"
                    let convert = try await runAlongside(
                        "qemu-img", ["convert", "-n", "-f", "raw", "-O", "raw", image, url])
                    #expect(convert.status == 0, "\(convert.output)")
                    let compare = try await runAlongside(
                        "qemu-img", ["compare", "-f", "raw", "-F", "raw", image, url])
                    #expect(compare.status == 0 && compare.output.contains("identical"), "\(compare.output)")
                    #expect(try Data(contentsOf: URL(fileURLWithPath: directory + "/unit\(unit)")) == bytes)
                }
                let refused = try await runAlongside(
                    "qemu-io",
                    ["-f", "raw", "iscsi://\(prefix)\(portal)/\(Self.name)/2", "-c", "write 0 4k"])
                #expect(refused.status != 0)
            }
        }
    }
}
