import Blocks
import Foundation
import SCSI
import TestSupport
import Testing

@testable import ISCSI

/// What one session may make a bridge hold, whatever it sends: memory stays below the bounds that `ISCSILimits`
/// names, and another session goes on.
@Suite(.serialized) struct HostileSessionTests {
    enum Flood: String, CaseIterable, CustomTestStringConvertible {
        /// Reads whose data nobody takes.
        case reads
        /// Pings that are to be echoed, and whose echo nobody takes.
        case pings
        /// Writes with as much unsolicited data as is allowed, that never get the rest.
        case writes
        /// Pings ahead of their turn, which never comes.
        case early
        /// Text that never ends.
        case text
        /// Functions, which are answered one by one.
        case functions

        var testDescription: String { rawValue }
    }

    /// Bytes that a session may hold by its limits.
    private static let limit =
        ISCSILimits.sessionDataBytes + ISCSILimits.outboundHighWater + ISCSILimits.earlyBytes
        + (ISCSILimits.commandsPerSession + ISCSILimits.immediateCommands) * ISCSILimits.firstBurst

    /// Kilobytes. Three times that: data lie between device and socket once more for a moment, and an allocator keeps
    /// what it has had.
    private static let bound = 3 * limit / 1024

    private static func pdu(_ flood: Flood, _ number: Int, _ wire: WireInitiator) -> PDU {
        switch flood {
        case .reads:
            let transfer = BlockTransfer(.sixteen, lba: LBA(0), count: BlockCount(2048))
            return wire.command(.read(transfer), lun: 0, read: 1 << 20)
        case .pings, .early:
            var ping = wire.request(Opcode.nopOut)
            if flood == .early { ping.cmdSN &+= 1 }
            ping.data = [UInt8](repeating: 1, count: ISCSILimits.receiveDataSegment)[...]
            return ping
        case .writes:
            let transfer = BlockTransfer(.sixteen, lba: LBA(0), count: BlockCount(2048))
            var write = wire.command(
                .write(transfer), lun: 1, write: 1 << 20,
                data: [UInt8](repeating: 1, count: ISCSILimits.firstBurst), isFinal: false)
            // Every other one out of turn as well.
            write.isImmediate = number % 2 == 1
            return write
        case .text:
            var text = wire.request(Opcode.textRequest, flags: 0x40)
            text.targetTransferTag = number == 0 ? reservedTag : 1
            text.data = [UInt8](repeating: 0x41, count: 8192)[...]
            return text
        case .functions:
            var function = wire.request(Opcode.taskManagementRequest, flags: 0x81)
            function.isImmediate = true
            return function
        }
    }

    @Test(arguments: Flood.allCases) func memoryIsBounded(flood: Flood) throws {
        let scratch = try ScratchDirectory()
        for unit in ["unit0", "unit1"] { try makeSparseFile(scratch(unit), size: 8 << 20) }
        let bridge = try BridgeProcess(units: ["0=" + scratch("unit0") + ",ro", "1=" + scratch("unit1")])
        let other = try WireInitiator(bridge.portal, target: bridge.target)
        #expect(try other.logIn(1)[half: 36] == 0)
        let hostile = try WireInitiator(bridge.portal, target: bridge.target)
        #expect(try hostile.logIn(2)[half: 36] == 0)
        let before = try RunningProcesses.residentMemory(of: bridge.process.identifier)
        // Until the target takes no more for a while, or ends the connection; or it has taken enough.
        var number = 0
        var sent = 0
        while sent < (Tier.isFull ? 1 << 30 : 128 << 20), number < (Tier.isFull ? 200_000 : 20_000) {
            let bytes = Self.pdu(flood, number, hostile).encoded()
            guard hostile.sendIfTaken(bytes, milliseconds: 1000) else { break }
            sent += bytes.count
            number += 1
        }
        let after = try RunningProcesses.residentMemory(of: bridge.process.identifier)
        print("flood \(flood): \(number) PDUs, \(sent >> 20) MiB; \(before) KiB, then \(after) KiB")
        #expect(after - before <= Self.bound)
        // The other one is served.
        try other.send(other.request(Opcode.nopOut))
        #expect(try other.receive()?.opcode == Opcode.nopIn)
        hostile.drop(resets: true)
        #expect(bridge.process.stop() == .exit(0), "\(bridge.process.errors)")
    }
}
