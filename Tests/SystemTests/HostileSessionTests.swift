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

    /// What a flood may make the bridge hold, and what it sends, all of which it would hold without that.
    private struct Allowance {
        /// By the limits that the flood runs into, bytes.
        let limit: Int
        let most: Int
        let ending: Ending

        enum Ending {
            /// The target reads no more until its answers are taken.
            case takesNoMore
            /// The target reads all of it and keeps what the limits let it.
            case takesAll
            /// The target ends the connection.
            case ends
        }
    }

    private static func allowance(_ flood: Flood) -> Allowance {
        let commands = ISCSILimits.commandsPerSession + ISCSILimits.immediateCommands
        let outbound = ISCSILimits.outboundHighWater
        return switch flood {
        // In commands that would read 1 GiB.
        case .reads:
            Allowance(limit: ISCSILimits.sessionDataBytes + outbound, most: 1 << 20, ending: .takesAll)
        case .pings: Allowance(limit: outbound, most: 128 << 20, ending: .takesNoMore)
        case .writes:
            Allowance(limit: commands * ISCSILimits.firstBurst, most: 320 << 20, ending: .takesAll)
        // As many as the window has.
        case .early: Allowance(limit: ISCSILimits.earlyBytes, most: 127 << 18, ending: .ends)
        case .text: Allowance(limit: ISCSILimits.textBytes, most: 64 << 20, ending: .ends)
        // 48 bytes each, in buffers of their own.
        case .functions: Allowance(limit: 2 * outbound, most: 48 << 20, ending: .takesNoMore)
        }
    }

    /// Bytes that a process may have more of for other reasons: buffers of the socket, data on their way between
    /// device and socket, and what an allocator keeps.
    private static func slack(_ limit: Int) -> Int { limit / 2 + 16 << 20 }

    private static func pdu(_ flood: Flood, _ number: Int, _ wire: WireInitiator) -> PDU {
        switch flood {
        case .reads:
            let transfer = BlockTransfer(.sixteen, lba: LBA(0), count: BlockCount(16384))
            return wire.command(.read(transfer), lun: 0, read: 8 << 20)
        case .pings, .early:
            var ping = wire.request(Opcode.nopOut)
            if flood == .early { ping.cmdSN &+= 1 }
            // As much as is echoed; or as is allowed.
            let count = flood == .early ? ISCSILimits.receiveDataSegment : ISCSILimits.loginDataSegment
            ping.data = [UInt8](repeating: 1, count: count)[...]
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

    /// Kilobytes, once they are the same for a while. By the clock: what a process has taken in is no event for others.
    private static func settledMemory(of process: pid_t) throws -> Int {
        var last = 0
        var repeated = 0
        while repeated < 10 {
            let now = try RunningProcesses.residentMemory(of: process)
            repeated = abs(now - last) < 256 ? repeated + 1 : 0
            last = now
            usleep(50_000)
        }
        return last
    }

    private static func start(_ scratch: ScratchDirectory) throws -> BridgeProcess {
        for unit in ["unit0", "unit1"] { try makeSparseFile(scratch(unit), size: 8 << 20) }
        return try BridgeProcess(units: ["0=" + scratch("unit0") + ",ro", "1=" + scratch("unit1")])
    }

    @Test(arguments: Flood.allCases) func memoryIsBounded(flood: Flood) throws {
        let scratch = try ScratchDirectory()
        let bridge = try Self.start(scratch)
        let other = try WireInitiator(bridge.portal, target: bridge.target)
        #expect(try other.logIn(1)[half: 36] == 0)
        let hostile = try WireInitiator(bridge.portal, target: bridge.target)
        #expect(try hostile.logIn(2)[half: 36] == 0)
        let before = try RunningProcesses.residentMemory(of: bridge.process.identifier)
        let allowance = Self.allowance(flood)
        let most = allowance.most * (Tier.isFull && allowance.ending == .takesNoMore ? 4 : 1)
        var number = 0
        var sent = 0
        var isTaken = true
        while isTaken, sent < most {
            // Small ones by the hundred.
            var bytes: [UInt8] = []
            repeat {
                bytes += Self.pdu(flood, number, hostile).encoded()
                number += 1
            } while bytes.count < 8192
            isTaken = hostile.sendIfTaken(bytes, milliseconds: 2000)
            sent += bytes.count
        }
        let after = try Self.settledMemory(of: bridge.process.identifier)
        let bound = (allowance.limit + Self.slack(allowance.limit)) / 1024
        print(
            "flood \(flood): \(number) PDUs, \(sent >> 20) MiB, all taken: \(isTaken); \(before) KiB, then "
                + "\(after) KiB, \(bound) KiB more allowed")
        #expect(after - before <= bound)
        #expect(isTaken == (allowance.ending == .takesAll))
        if allowance.ending == .ends, !isTaken {
            while let pdu = try hostile.receive() { #expect(pdu.opcode != Opcode.logoutResponse) }
        }
        // The other one is served.
        try other.send(other.request(Opcode.nopOut))
        #expect(try other.receive()?.opcode == Opcode.nopIn)
        hostile.drop(resets: true)
        #expect(bridge.process.stop() == .exit(0), "\(bridge.process.errors)")
    }

    /// With all that is allowed a session goes on; with one PDU more its connection ends.
    @Test(arguments: [Flood.early, .text]) func theConnectionEndsBeyondTheLimit(flood: Flood) throws {
        let scratch = try ScratchDirectory()
        let bridge = try Self.start(scratch)
        let hostile = try WireInitiator(bridge.portal, target: bridge.target)
        #expect(try hostile.logIn(1)[half: 36] == 0)
        let size = flood == .early ? ISCSILimits.receiveDataSegment : 8192
        let allowed = Self.allowance(flood).limit / size
        for number in 0..<allowed {
            try hostile.send(Self.pdu(flood, number, hostile))
            if flood == .text { _ = try hostile.expect(Opcode.textResponse) }
        }
        if flood == .early {
            var ping = hostile.request(Opcode.nopOut)
            ping.isImmediate = true
            try hostile.send(ping)
            #expect(try hostile.expect(Opcode.nopIn).initiatorTaskTag == ping.initiatorTaskTag)
        }
        try hostile.send(Self.pdu(flood, allowed, hostile))
        // What was wrong may be told.
        while let pdu = try hostile.receive() { #expect(pdu.opcode == Opcode.reject) }
        #expect(bridge.process.stop() == .exit(0), "\(bridge.process.errors)")
    }
}
