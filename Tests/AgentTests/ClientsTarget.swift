import Blocks
import Foundation
import Glibc
import ISCSI
import Logging
import SCSI
import TestSupport

@testable import Agent

/// A SCSI target device for the initiator's tests: units in memory whose oddities can be set.
final class FakeDevice: SCSITargetDevice {
    struct Behaviour: Sendable {
        /// So many commands of each unit are answered with UNIT ATTENTION or this status.
        var unitAttentions = 0
        var busy = 0
        var isReadOnly = false
        var hasWriteSame = true
        var supportsFUA = true
        var failing: SenseData?
        /// Bytes that are left out of READ's answer.
        var shortBy = 0
        var commands = 0
        /// An EXTENDED COPY runs until it is aborted or this is set.
        var copyMayEnd = false
        var copiesRunning = 0
        var copiesAborted = 0
        var lists: [[UInt8]] = []
        var durableWrites = 0
        var flushes = 0
        /// What INQUIRY says.
        var (vendor, product) = ("TEST", "FAKE")
        /// What WRITE BUFFER and READ BUFFER are answered with; by nothing: they are not known.
        var bufferAnswers: [SCSIOutcome] = []
        /// SYNCHRONIZE CACHE and WRITE SAME take so long.
        var slowNanoseconds: UInt64 = 0
    }
    let behaviour = Monitor(Behaviour())
    let blockLength: Int
    let units: [Int: MemoryStore]

    init(units: [Int: Int], blockLength: Int = 512) {
        self.units = units.mapValues { MemoryStore(size: $0 * blockLength) }
        self.blockLength = blockLength
    }

    func openNexus(_ nexus: Nexus) {}
    func closeNexus(_ nexus: Nexus) {}
    func resetLogicalUnit(_ lun: LogicalUnitNumber, from nexus: Nexus) {}

    func execute(_ task: SCSITask) -> SCSIOutcome {
        let command: Command
        do throws(CheckCondition) { command = try Command(decoding: task.cdb) } catch {
            return .checkCondition(error.sense)
        }
        let early = behaviour.withLock { behaviour -> SCSIOutcome? in
            behaviour.commands += 1
            if case .inquiry = command { return nil }
            if behaviour.unitAttentions > 0 {
                behaviour.unitAttentions -= 1
                return .checkCondition(SenseData(.unitAttention, .powerOnOrReset))
            }
            if behaviour.busy > 0 {
                behaviour.busy -= 1
                return SCSIOutcome(status: behaviour.busy % 2 == 0 ? .busy : .taskSetFull)
            }
            return behaviour.failing.map { .checkCondition($0) }
        }
        if let early { return early }
        if case .reportLUNs = command {
            return SCSIOutcome(
                status: .good,
                dataIn: ReportLUNs.encode(units.keys.sorted().compactMap { LogicalUnitNumber($0) }))
        }
        guard let number = task.lun.number, let unit = units[number] else { return noUnit(command) }
        do { return try execute(command, task, unit, number) } catch {
            return .checkCondition(SenseData(.hardwareError, .internalTargetFailure))
        }
    }

    private func noUnit(_ command: Command) -> SCSIOutcome {
        guard case .inquiry = command else {
            return .checkCondition(SenseData(.illegalRequest, .logicalUnitNotSupported))
        }
        var inquiry = StandardInquiry(vendor: "", product: "", revision: "")
        inquiry.peripheralQualifier = 3
        inquiry.deviceType = PeripheralDeviceType.unknown
        return SCSIOutcome(status: .good, dataIn: inquiry.encoded())
    }

    private func execute(
        _ command: Command, _ task: SCSITask, _ unit: MemoryStore, _ number: Int
    ) throws -> SCSIOutcome {
        let length = UInt64(blockLength)
        switch command {
        case .testUnitReady: return .good
        case .inquiry(let page, _): return inquiry(page, number)
        case .readCapacity16:
            let capacity = Capacity(lastLBA: LBA(unit.size / length - 1), blockLength: UInt32(length))
            return SCSIOutcome(status: .good, dataIn: capacity.encoded16())
        case .modeSense:
            let flags = behaviour.withLock { ($0.isReadOnly, $0.supportsFUA) }
            let parameters = ModeParameters(
                isWriteProtected: flags.0, supportsFUA: flags.1, capacity: nil, pages: [])
            return SCSIOutcome(status: .good, dataIn: parameters.encoded6())
        case .read(let transfer):
            let cut = behaviour.withLock { $0.shortBy }
            let bytes = try unit.bytes(
                at: transfer.lba.value * length, count: Int(transfer.count.value * length))
            return SCSIOutcome(status: .good, dataIn: Array(bytes.dropLast(cut)))
        case .write(let transfer):
            if transfer.fua { behaviour.withLock { $0.durableWrites += 1 } }
            try unit.write(task.dataOut, at: transfer.lba.value * length)
            return SCSIOutcome(status: .good, dataOutUsed: task.dataOut.count)
        case .writeSame16(let same):
            guard behaviour.withLock({ $0.hasWriteSame }) else {
                return .checkCondition(.invalidOperationCode)
            }
            pause(task)
            for block in 0..<same.count.value {
                try unit.write(task.dataOut, at: (same.lba.value + block) * length)
            }
            return SCSIOutcome(status: .good, dataOutUsed: task.dataOut.count)
        case .synchronizeCache:
            behaviour.withLockAndNotify { $0.flushes += 1 }
            pause(task)
            return .good
        case .buffer:
            return behaviour.withLock {
                $0.bufferAnswers.isEmpty
                    ? .checkCondition(.invalidOperationCode) : $0.bufferAnswers.removeFirst()
            }
        default: return copy(command, task)
        }
    }

    private func pause(_ task: SCSITask) {
        let end = MonotonicClock.now + behaviour.withLock { $0.slowNanoseconds }
        while MonotonicClock.now < end, !task.isAborted {
            _ = behaviour.wait(nanoseconds: 5_000_000) { _ -> Void? in nil }
        }
    }

    private func inquiry(_ page: UInt8?, _ number: Int) -> SCSIOutcome {
        switch page {
        case nil:
            let name = behaviour.withLock { ($0.vendor, $0.product) }
            let inquiry = StandardInquiry(vendor: name.0, product: name.1, revision: "1")
            return SCSIOutcome(status: .good, dataIn: inquiry.encoded())
        case VPDPageCode.deviceIdentification:
            let page = VPDPage.deviceIdentification([
                .t10Vendor("TEST", unique: "a name of more than twenty bytes"),
                .naaRegisteredExtended(company: 0x1234, vendor: 5, extensionValue: UInt64(number)),
            ])
            return SCSIOutcome(status: .good, dataIn: page.encoded())
        default: return .checkCondition(.invalidFieldInCDB(byte: 2))
        }
    }

    private func copy(_ command: Command, _ task: SCSITask) -> SCSIOutcome {
        switch command {
        case .extendedCopy:
            behaviour.withLockAndNotify {
                $0.lists.append(task.dataOut)
                $0.copiesRunning += 1
            }
            while !task.isAborted {
                let mayEnd = behaviour.wait(nanoseconds: 5_000_000) { $0.copyMayEnd ? true : nil }
                if mayEnd == true { break }
            }
            behaviour.withLockAndNotify {
                $0.copiesRunning -= 1
                if task.isAborted { $0.copiesAborted += 1 }
            }
            return SCSIOutcome(status: .good, dataOutUsed: task.dataOut.count)
        case .receiveCopyResults(.copyStatus, _, _):
            return SCSIOutcome(
                status: .good,
                dataIn: CopyStatus(state: .inProgress, segmentsProcessed: 3, bytes: 5 << 20).encoded())
        case .receiveCopyResults(.operatingParameters, _, _):
            var parameters = CopyOperatingParameters()
            parameters.maximumSegmentDescriptors = 17
            parameters.implementedDescriptorTypes = [0x02, 0xE4]
            return SCSIOutcome(status: .good, dataIn: parameters.encoded())
        case .receiveCopyResults(.failedSegmentDetails, _, _):
            return SCSIOutcome(status: .good, dataIn: FailedSegmentDetails.nothingHeld)
        default: return .checkCondition(.invalidOperationCode)
        }
    }
}

/// A listening TCP socket on the loopback, for foreign servers.
final class TCPListener: Sendable {
    let port: Int
    private let descriptor: Int32
    private let isServed: Bool
    private let isOver = Monitor(false)

    /// - Parameter serve: one thread for each connection; nil: nobody accepts.
    init(_ serve: (@Sendable (Int32) -> Void)?) throws {
        let listener = socket(AF_INET, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        descriptor = listener
        isServed = serve != nil
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
        var length = socklen_t(MemoryLayout<sockaddr_in>.size)
        let code = withUnsafeMutablePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(listener, $0, length) == 0 && listen(listener, 16) == 0
                    && getsockname(listener, $0, &length) == 0
            }
        }
        guard code else { throw POSIXError(.EIO) }
        port = Int(UInt16(bigEndian: address.sin_port))
        guard let serve else { return }
        BlockingThread.start { [isOver] in
            while true {
                let connection = acceptConnection(listener)
                guard connection >= 0 else { break }
                BlockingThread.start {
                    serve(connection)
                    close(connection)
                }
            }
            // By who accepts: closed under it, the descriptor might be another test's when it accepts again.
            isOver.wait { $0 ? () : nil }
            close(listener)
        }
    }

    deinit {
        // Wakes the thread in accept.
        shutdown(descriptor, Int32(SHUT_RDWR))
        if isServed { isOver.withLockAndNotify { $0 = true } } else { close(descriptor) }
    }
}
