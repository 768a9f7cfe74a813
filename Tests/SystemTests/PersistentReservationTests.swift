import Blocks
import Foundation
import SCSI
import TestSupport
import Testing

@testable import ISCSI

/// Persistent reservations of a bridge that dies without warning.
@Suite(.serialized) struct PersistentReservationTests {
    private static let isid: UInt64 = 0x4000_0100_0000
    private let scratch: ScratchDirectory

    init() throws {
        scratch = try ScratchDirectory()
        try makeSparseFile(scratch("unit"), size: 1 << 20)
        guard mkdir(scratch("state"), 0o700) == 0 else { throw TestFailure("mkdir") }
        try "state: state\nunits: [{number: 0, path: unit}]\n"
            .write(toFile: scratch("bridge.yaml"), atomically: true, encoding: .utf8)
        guard chmod(scratch("bridge.yaml"), 0o600) == 0 else { throw TestFailure("chmod") }
    }

    private func start() throws -> BridgeProcess {
        try BridgeProcess(arguments: ["--portal", "127.0.0.1:0", "--config", scratch("bridge.yaml")])
    }

    private func logIn(_ bridge: BridgeProcess, _ isid: UInt64) throws -> WireInitiator {
        let wire = try WireInitiator(bridge.portal, target: bridge.target)
        try wire.logIn(isid)
        // POWER ON OCCURRED.
        try wire.send(wire.command(.testUnitReady, lun: 0))
        _ = try wire.expect(Opcode.scsiResponse)
        return wire
    }

    /// - Returns: the SCSI status.
    private func out(
        _ wire: WireInitiator, _ action: PersistentReserveOutAction, key: UInt64, new: UInt64 = 0,
        type: ReservationType? = nil
    ) throws -> UInt8 {
        let data = ReservationParameters(key: key, serviceActionKey: new, persists: true).encoded()
        try wire.send(
            wire.command(
                .reservation(.persistentOut(PersistentReserveOut(action, type: type))), lun: 0,
                write: data.count, data: data))
        return try wire.expect(Opcode.scsiResponse)[byte: 3]
    }

    private func write(_ wire: WireInitiator) throws -> UInt8 {
        let transfer = BlockTransfer(.ten, lba: LBA(0), count: BlockCount(1))
        let data = [UInt8](repeating: 1, count: 512)
        try wire.send(wire.command(.write(transfer), lun: 0, write: 512, data: data))
        return try wire.expect(Opcode.scsiResponse)[byte: 3]
    }

    @Test func theyOutliveTheBridge() throws {
        let good = SCSIStatus.good.rawValue
        let conflict = SCSIStatus.reservationConflict.rawValue
        do {
            let bridge = try start()
            let holder = try logIn(bridge, Self.isid)
            #expect(try out(holder, .register, key: 0, new: 7) == good)
            #expect(try out(holder, .reserve, key: 7, type: .writeExclusive) == good)
            bridge.process.signal(SIGKILL)
            #expect(bridge.process.waitForExit() == .signal(SIGKILL))
        }
        do {
            let bridge = try start()
            #expect(try write(try logIn(bridge, Self.isid + 1)) == conflict)
            let holder = try logIn(bridge, Self.isid)
            #expect(try write(holder) == good, "it is the holder still")
            #expect(try out(holder, .register, key: 7, new: 8) == good, "under its key")
            bridge.process.signal(SIGKILL)
            #expect(bridge.process.waitForExit() == .signal(SIGKILL))
        }
        // One bit of the file is wrong: nobody is let in as if nothing had been reserved.
        let names = try FileManager.default.contentsOfDirectory(atPath: scratch("state"))
        let path = scratch("state") + "/" + (try #require(names.first))
        #expect(names.count == 1)
        var bytes = try Data(contentsOf: URL(fileURLWithPath: path))
        bytes[bytes.count / 2] ^= 1
        try bytes.write(to: URL(fileURLWithPath: path))
        for options in [["--check-config"], []] {
            let result = try Outboard.run(
                ["bridge", "--portal", "127.0.0.1:0", "--config", scratch("bridge.yaml")] + options)
            #expect(result.status == 65 && result.errors.contains(path), "\(result)")
        }
        bytes[bytes.count / 2] ^= 1
        try bytes.write(to: URL(fileURLWithPath: path))
        let bridge = try start()
        #expect(try write(try logIn(bridge, Self.isid + 1)) == conflict)
        #expect(bridge.process.stop() == .exit(0))
    }

    @Test func theDirectoryMustBeThere() throws {
        let result = try Outboard.run([
            "bridge", "--check-config", "--unit", "0=" + scratch("unit"), "--state", scratch("none"),
        ])
        #expect(result.status == 66 && result.errors.contains(scratch("none")), "\(result)")
    }
}
