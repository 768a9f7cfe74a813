import Agent
import Blocks
import Foundation
import SCSI
import TestSupport
import Testing

@testable import ISCSI

/// A standing bridge is told to stop while an EXTENDED COPY is really running.
@Suite(.serialized) struct BridgeStopTests {
    private final class Site {
        let scratch: ScratchDirectory
        let bridge: BridgeProcess
        let copying: WireInitiator
        let idle: WireInitiator
        let size: Int

        /// - Parameter size: of both units, bytes.
        init(size: Int) throws {
            self.size = size
            scratch = try ScratchDirectory()
            try makePatternFile(scratch("source"), count: min(size, 32 << 20))
            guard truncate(scratch("source"), off_t(size)) == 0 else { throw TestFailure("truncate") }
            try makeSparseFile(scratch("destination"), size: UInt64(size))
            bridge = try BridgeProcess(units: [
                "0=" + scratch("source") + ",ro", "1=" + scratch("destination"),
            ])
            copying = try WireInitiator(bridge.portal, target: bridge.target)
            idle = try WireInitiator(bridge.portal, target: bridge.target)
            for (number, wire) in [copying, idle].enumerated() {
                guard try wire.logIn(0x8000_0000_0001 + UInt64(number))[half: 36] == 0 else {
                    throw TestFailure("login is refused")
                }
            }
        }

        /// A copy of as many segments, each of the whole unit.
        private func copyList(_ initiator: Initiator, segments count: Int) throws -> CopyParameterList {
            let cscds = try (0...1).map { unit -> CSCDDescriptor in
                let designators = try initiator.designators(lun: unit)
                let naa = try #require(
                    designators.first { $0.type == DesignationDescriptor.DesignatorType.naa })
                return CSCDDescriptor(designation: naa, diskBlockLength: 512)
            }
            let segments = (0..<count).map { _ in
                SegmentDescriptor(
                    source: 0, sourceLBA: LBA(0), destination: 1, destinationLBA: LBA(0),
                    amount: .bytes(UInt32(size), sourceOffset: 0, destinationOffset: 0))
            }
            return CopyParameterList(listIdentifier: 7, cscds: cscds, segments: segments)
        }

        /// How many segments take about two seconds on this machine, however fast it is now: less than the half
        /// minute that a copy is given, and more than a moment.
        func segmentsOfTwoSeconds() throws -> Int {
            let initiator = try Initiator(try BridgeAddress(parsing: bridge.uri))
            defer { initiator.close() }
            let list = try copyList(initiator, segments: 2)
            let begun = MonotonicClock.now
            try initiator.extendedCopy(lun: 1, list)
            return Int(min(1024, max(2, 4_000_000_000 / max(1, MonotonicClock.now - begun))))
        }

        /// Begins a copy of as many segments, each of the whole unit, and sees that it moves bytes.
        /// - Returns: its task tag.
        func beginCopy(segments count: Int) throws -> UInt32 {
            let initiator = try Initiator(try BridgeAddress(parsing: bridge.uri))
            defer { initiator.close() }
            let list = try copyList(initiator, segments: count).encoded()
            // POWER ON OCCURRED comes first.
            for unit in 0...1 {
                try copying.send(copying.command(.testUnitReady, lun: unit))
                _ = try copying.expect(Opcode.scsiResponse)
            }
            let command = copying.command(
                .extendedCopy(parameterListLength: list.count), lun: 1, write: list.count,
                isFinal: true)
            try copying.send(command)
            let r2t = try copying.expect(Opcode.r2t)
            try copying.send(
                copying.dataOut(
                    to: command.initiatorTaskTag, r2t.targetTransferTag, offset: 0, list, isFinal: true))
            var moved: UInt64 = 0
            while moved == 0 {
                let poll = copying.command(
                    .receiveCopyResults(.copyStatus, listIdentifier: 7, allocationLength: 12), lun: 1,
                    read: 12)
                try copying.send(poll)
                let answer = try #require(try copying.receive())
                guard answer.initiatorTaskTag == poll.initiatorTaskTag else {
                    throw TestFailure("the copy ended too early: \(answer)")
                }
                // Before the copy has its list identifier, there is nothing to tell.
                guard answer.opcode == Opcode.dataIn else { continue }
                let status = try CopyStatus(decoding: Array(answer.data))
                #expect(status.state == .inProgress)
                moved = status.transferredBytes ?? 0
            }
            return command.initiatorTaskTag
        }

        /// RFC 7143 §11.9.1: the target asks for a logout.
        func expectNotice(_ wire: WireInitiator) throws {
            let message = try wire.expect(Opcode.asyncMessage)
            #expect(message[byte: 36] == 1 && message[half: 42] == UInt16(ISCSILimits.shutdownSeconds))
        }
    }

    /// Within the stated time it ends, and is answered; sessions without work do not wait for it.
    @Test func aRunningCopyFinishes() throws {
        let site = try Site(size: 16 << 20)
        let tag = try site.beginCopy(segments: try site.segmentsOfTwoSeconds())
        site.bridge.process.signal(SIGTERM)
        try site.expectNotice(site.copying)
        try site.expectNotice(site.idle)
        try site.idle.send(site.idle.request(Opcode.logoutRequest))
        #expect(try site.idle.expect(Opcode.logoutResponse)[byte: 2] == 0)
        #expect(try site.idle.receive() == nil)
        // Nobody new.
        #expect(throws: (any Error).self) {
            try WireInitiator(site.bridge.portal, target: site.bridge.target).logIn(9)
        }
        let response = try site.copying.expect(Opcode.scsiResponse)
        #expect(response.initiatorTaskTag == tag && response[byte: 3] == SCSIStatus.good.rawValue)
        #expect(try site.copying.receive() == nil)
        #expect(site.bridge.process.wait() == .exit(0), "\(site.bridge.process.errors)")
        #expect(try haveSameContents(site.scratch("source"), site.scratch("destination")))
    }

    /// One that would take much longer is aborted when the stated time is over, and the bridge ends in order.
    @Test(.enabled(if: Tier.isFull, "the full tier: it takes the half minute that a copy is given"))
    func aCopyThatTakesTooLongIsAborted() throws {
        let site = try Site(size: 256 << 20)
        _ = try site.beginCopy(segments: 1024)
        let begun = MonotonicClock.now
        site.bridge.process.signal(SIGTERM)
        try site.expectNotice(site.copying)
        let given = UInt64(ISCSILimits.shutdownSeconds + ISCSILimits.drainSeconds) * 1_000_000_000
        // A ping may come meanwhile, but no answer.
        while let pdu = try site.copying.receive(seconds: 120) { #expect(pdu.opcode == Opcode.nopIn) }
        #expect(MonotonicClock.now - begun >= given)
        #expect(site.bridge.process.wait(seconds: 20) == .exit(0), "\(site.bridge.process.errors)")
        let lines = site.bridge.process.errors.split(separator: "\n").filter {
            $0.contains("EXTENDED COPY ")
        }
        #expect(lines.count == 1 && lines[0].contains(" result=aborted "), "\(site.bridge.process.errors)")
    }

    @Test func aSecondSignalEndsItAtOnce() throws {
        let site = try Site(size: 256 << 20)
        _ = try site.beginCopy(segments: 1024)
        site.bridge.process.signal(SIGTERM)
        try site.expectNotice(site.copying)
        site.bridge.process.signal(SIGTERM)
        #expect(site.bridge.process.wait(seconds: 20) == .exit(75), "\(site.bridge.process.errors)")
    }
}
