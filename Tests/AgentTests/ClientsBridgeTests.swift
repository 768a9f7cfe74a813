import Blocks
import Bridge
import Foundation
import ISCSI
import Logging
import SCSI
import TestSupport
import Testing

@testable import Agent

/// The initiator against our own copy manager, in one process, over a socket.
@Suite struct InitiatorWithBridgeTests {
    private static let megabyte = 1 << 20

    private func withBridge(_ body: @Sendable @escaping (Initiator, String) throws -> Void) async throws {
        let directory = NSTemporaryDirectory() + "outboard-" + UUID().uuidString
        try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: false)
        // Only litter would remain.
        defer { try? FileManager.default.removeItem(atPath: directory) }
        let pattern = Data((0..<4 * Self.megabyte).map { UInt8(truncatingIfNeeded: $0 &* 31 >> 5) })
        try pattern.write(to: URL(fileURLWithPath: directory + "/source"))
        try Data(count: 4 * Self.megabyte).write(to: URL(fileURLWithPath: directory + "/copy"))
        let logger = Logger(label: "test", factory: { _ in SwiftLogNoOpLogHandler() })
        let device = try BridgeDevice(
            units: [
                BridgeUnit(number: 0, path: directory + "/source", readOnly: true),
                BridgeUnit(number: 1, path: directory + "/copy"),
            ], logger: logger)
        let name = "iqn.2026-01.net.example:bridge"
        let target = try await ISCSITarget.start(
            device: device,
            configuration: ISCSITargetConfiguration(host: "127.0.0.1", port: 0, targetName: name),
            logger: logger)
        let address = BridgeAddress(host: "127.0.0.1", port: target.port, targetName: name)
        let outcome = await withCheckedContinuation { continuation in
            BlockingThread.start {
                continuation.resume(returning: Result { try body(Initiator(address), directory) })
            }
        }
        await target.shutdown()
        device.close()
        try outcome.get()
    }

    @Test func storeConforms() async throws {
        try await withBridge { initiator, _ in
            let store = try ISCSIStore(initiator, lun: 1)
            #expect(store.unit.limits != nil && store.capabilities.contains(.writable))
            try BlockStoreConformance.run(store, operations: 200)
            let source = try ISCSIStore(initiator, lun: 0)
            #expect(!source.capabilities.contains(.writable))
            try BlockStoreConformance.run(source)
        }
    }

    @Test func copies() async throws {
        try await withBridge { initiator, directory in
            #expect(try initiator.reportLUNs() == [0, 1])
            let limits = try initiator.copyOperatingParameters(lun: 1)
            #expect(limits.maximumSegmentDescriptors >= 64)
            let units = try [0, 1].map { lun in
                let unit = try initiator.describe(lun: lun)
                return CSCDDescriptor(
                    designation: try #require(unit.copyDesignator),
                    diskBlockLength: unit.capacity.blockLength)
            }
            func list(_ source: UInt16, _ destination: UInt16, _ count: UInt32) -> CopyParameterList {
                CopyParameterList(
                    listIdentifier: 5, usage: .hold, cscds: units,
                    segments: [
                        SegmentDescriptor(
                            source: source, sourceLBA: LBA(2048), destination: destination,
                            destinationLBA: LBA(0),
                            amount: .bytes(count, sourceOffset: 0, destinationOffset: 0))
                    ])
            }
            try initiator.extendedCopy(lun: 1, list(0, 1, UInt32(2 * Self.megabyte)))
            try initiator.synchronizeCache(lun: 1)
            let source = try Data(contentsOf: URL(fileURLWithPath: directory + "/source"))
            let copy = try Data(contentsOf: URL(fileURLWithPath: directory + "/copy"))
            let expected = source[Self.megabyte..<3 * Self.megabyte] + Data(count: 2 * Self.megabyte)
            #expect(copy == expected)
            let status = try initiator.copyStatus(lun: 1, listIdentifier: 5)
            #expect(status.state == .completed && status.transferredBytes == UInt64(2 * Self.megabyte))

            // A read-only unit is no destination.
            #expect { try initiator.extendedCopy(lun: 1, list(1, 0, 512)) } throws: { error in
                guard let error = error as? AgentError, case .sense(let sense) = error.cause else {
                    return false
                }
                return sense.key == .dataProtect || sense.key == .copyAborted
            }
            let details = try initiator.failedSegmentDetails(lun: 1, listIdentifier: 5)
            #expect(details?.status == 0x02)
        }
    }

    @Test func failedWriteSaysWhy() async throws {
        try await withBridge { initiator, _ in
            let zeros = [UInt8](repeating: 0, count: 512)
            #expect {
                try initiator.writeSame(lun: 0, lba: LBA(0), blocks: BlockCount(1), block: zeros)
            } throws: {
                ($0 as? AgentError)?.status == .notPermitted
            }
            #expect {
                try initiator.writeSame(lun: 1, lba: LBA(1 << 40), blocks: BlockCount(1), block: zeros)
            } throws: {
                ($0 as? AgentError)?.reason.contains("OUT OF RANGE") == true
            }
        }
    }
}
