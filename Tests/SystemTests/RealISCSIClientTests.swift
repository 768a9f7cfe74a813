import Foundation
import TestSupport
import Testing

/// Unmodified initiators against a running bridge.
@Suite(.serialized) struct RealISCSIClientTests {
    private static let size = 16 << 20

    private func withBridge(
        options: [String] = [], _ body: (ScratchDirectory, BridgeProcess) throws -> Void
    ) throws {
        let scratch = try ScratchDirectory()
        for unit in 0...1 {
            try makePatternFile(scratch("unit\(unit)"), count: Self.size, seed: UInt64(unit))
        }
        let bridge = try BridgeProcess(
            units: ["0=" + scratch("unit0"), "1=" + scratch("unit1")], options: options)
        try body(scratch, bridge)
        #expect(bridge.process.stop() == .exit(0), "\(bridge.process.errors)")
    }

    private func succeed(_ program: String, _ arguments: [String]) throws -> String {
        let result = try runProgram(program, arguments)
        #expect(result.isSuccess, "\(result)")
        return result.output
    }

    private func expect(_ text: String, in output: String) { #expect(output.contains(text), "\(output)") }

    @Test func iscsiToolsFindTheUnits() throws {
        try withBridge { _, bridge in
            try expect("Lun:1", in: succeed("iscsi-ls", ["-s", "iscsi://\(bridge.portal)"]))
            try expect("DIRECT_ACCESS", in: succeed("iscsi-inq", [bridge.uri(unit: 0)]))
            try expect("Total size:\(Self.size)", in: succeed("iscsi-readcapacity16", [bridge.uri(unit: 1)]))
        }
    }

    @Test func qemuImgConvertsBothWays() throws {
        try withBridge { scratch, bridge in
            _ = try succeed(
                "qemu-img", ["convert", "-f", "raw", "-O", "raw", bridge.uri(unit: 0), scratch("read")])
            #expect(try haveSameContents(scratch("read"), scratch("unit0")))
            _ = try succeed(
                "qemu-img", ["convert", "-n", "-f", "raw", "-O", "raw", scratch("read"), bridge.uri(unit: 1)])
            #expect(try haveSameContents(scratch("read"), scratch("unit1")))
        }
    }

    @Test func extendedCopySimplePassesAndIsNotSkipped() throws {
        try withBridge { _, bridge in
            let result = try runProgram(
                "iscsi-test-cu", ["-d", "-t", "SCSI.ExtendedCopy.Simple", bridge.uri(unit: 0)])
            #expect(result.isSuccess, "\(result)")
            let log = result.output + result.errors
            #expect(log.contains("Test: Simple ...passed"), "\(log)")
            // The suite asks for commands that it would use to clean up, and says that it does without. A skip
            // of the test itself speaks of the copy, and a test that was skipped has asserted nothing.
            let skips = log.split(separator: "\n").filter { $0.contains("[SKIPPED]") }
            #expect(!skips.contains { $0.contains("COPY") }, "\(log)")
            #expect(!log.contains("asserts      0"), "\(log)")
        }
    }

    @Test func onlyTheRightSecretIsLetIn() throws {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("unit0"), count: 1 << 20)
        try "user a-long-enough-secret\n".write(toFile: scratch("chap"), atomically: true, encoding: .utf8)
        chmod(scratch("chap"), 0o644)
        let exposed = try Outboard.run([
            "bridge", "--unit", "0=" + scratch("unit0"), "--chap-file", scratch("chap"),
        ])
        #expect(exposed.ending == .exit(77), "\(exposed)")
        chmod(scratch("chap"), 0o600)
        let bridge = try BridgeProcess(
            units: ["0=" + scratch("unit0")], options: ["--chap-file", scratch("chap")])
        let rest = "\(bridge.portal)/\(bridge.target)/0"
        _ = try succeed("iscsi-readcapacity16", ["iscsi://user%a-long-enough-secret@\(rest)"])
        let wrong = try runProgram("iscsi-readcapacity16", ["iscsi://user%another-long-secret@\(rest)"])
        #expect(!wrong.isSuccess, "\(wrong)")
        let none = try runProgram("iscsi-readcapacity16", ["iscsi://\(rest)"])
        #expect(!none.isSuccess, "\(none)")
    }

    @Test func aConfigurationFileSaysTheSame() throws {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("unit0"), count: 1 << 20)
        try """
        target: iqn.2026-01.net.example:configured
        units:
          - {number: 3, path: unit0, read_only: true}
        """.write(toFile: scratch("bridge.yaml"), atomically: true, encoding: .utf8)
        let bridge = try BridgeProcess(units: [], options: ["--config", scratch("bridge.yaml")])
        #expect(bridge.target == "iqn.2026-01.net.example:configured")
        try expect("Total size:\(1 << 20)", in: succeed("iscsi-readcapacity16", [bridge.uri(unit: 3)]))
        try "units: [{number: 0, path: unit0, readonly: true}]"
            .write(toFile: scratch("typo.yaml"), atomically: true, encoding: .utf8)
        let typo = try Outboard.run(["bridge", "--config", scratch("typo.yaml")])
        #expect(typo.ending == .exit(64) && typo.errors.contains("'readonly'"), "\(typo)")
    }

    @Test func aPrivateBridgeEndsWithItsAgent() throws {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("unit0"), count: 1 << 20)
        let bridge = try Outboard.start(
            ["bridge", "--private", "--portal", "127.0.0.1:0", "--unit", "0=" + scratch("unit0")],
            keepsInputOpen: true)
        let ready = bridge.line { $0.hasPrefix("ready ") }
        #expect(ready != nil)
        bridge.signal(SIGINT)
        bridge.closeInput()
        #expect(bridge.wait(seconds: 20) == .exit(0))
    }
}
