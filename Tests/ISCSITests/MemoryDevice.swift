import Blocks
import SCSI
import Synchronization

/// A small disk in memory, as a target device for the transport's tests. One unit, number 0, of 512-byte
/// blocks.
final class MemoryDevice: SCSITargetDevice {
    struct State {
        var bytes: [UInt8]
        var openNexuses: [ObjectIdentifier: Nexus] = [:]
        var opened = 0
        var closed = 0
        var resets: [LogicalUnitNumber] = []
        var executed = 0
        /// What sessions see, by their identifiers; others see unit 0.
        var visible: [UInt64: [Int]] = [:]
        /// Commands that hang in ``hangCode`` until they are aborted or the gate opens.
        var hanging = 0
        var isGateOpen = false
        /// A reset came while a command that it concerns still ran.
        var wasResetTooEarly = false
    }

    /// A vendor-specific 6-byte command that waits for the gate or its abort.
    static let hangCode: UInt8 = 0x02
    /// One that goes on for some time after its abort, as a copy with requests in flight does.
    static let lingerCode: UInt8 = 0x22
    static let blockLength = 512
    let state: Monitor<State>

    init(blocks: Int = 8192) {
        state = Monitor(State(bytes: [UInt8](repeating: 0, count: blocks * Self.blockLength)))
    }

    func openNexus(_ nexus: Nexus) {
        state.withLockAndNotify {
            $0.openNexuses[ObjectIdentifier(nexus)] = nexus
            $0.opened += 1
        }
    }

    func closeNexus(_ nexus: Nexus) {
        state.withLockAndNotify {
            $0.openNexuses[ObjectIdentifier(nexus)] = nil
            $0.closed += 1
        }
    }

    func resetLogicalUnit(_ lun: LogicalUnitNumber, from nexus: Nexus) {
        state.withLockAndNotify { $0.resets.append(lun) }
    }

    func execute(_ task: SCSITask) -> SCSIOutcome {
        state.withLockAndNotify { $0.executed += 1 }
        if task.cdb[0] == Self.hangCode { return hang(task) }
        if task.cdb[0] == Self.lingerCode {
            _ = hang(task)
            // For what must not come, there is no event to wait for: so long it is given.
            _ = state.wait(nanoseconds: 200_000_000) { state -> Void? in
                if state.resets.isEmpty { return nil }
                state.wasResetTooEarly = true
                return ()
            }
            return .good
        }
        do throws(CheckCondition) {
            let command = try Command(decoding: task.cdb)
            if case .reportLUNs = command {
                let visible = state.withLock { $0.visible[task.nexus.sessionIdentifier] } ?? [0]
                return SCSIOutcome(
                    status: .good, dataIn: ReportLUNs.encode(visible.compactMap { LogicalUnitNumber($0) }))
            }
            guard task.lun.rawValue == 0 else {
                throw CheckCondition(SenseData(.illegalRequest, .logicalUnitNotSupported))
            }
            return try run(command, task)
        } catch {
            return .checkCondition(error.sense)
        }
    }

    private func hang(_ task: SCSITask) -> SCSIOutcome {
        state.withLockAndNotify { $0.hanging += 1 }
        // An abort sets no condition: look at it often, as the contract says.
        while !task.isAborted {
            if state.wait(nanoseconds: 1_000_000, until: { $0.isGateOpen ? true : nil }) == true { break }
        }
        state.withLockAndNotify { $0.hanging -= 1 }
        return .good
    }

    private func run(_ command: Command, _ task: SCSITask) throws(CheckCondition) -> SCSIOutcome {
        switch command {
        case .testUnitReady, .synchronizeCache: return .good
        case .requestSense(_, let length):
            return answer(SenseData(.noSense, .noAdditionalSense).encodedFixed(), length)
        case .inquiry(nil, let length):
            return answer(
                StandardInquiry(vendor: "OUTBOARD", product: "memory", revision: "1").encoded(), length)
        case .inquiry(let page?, let length): return answer(try vpd(page).encoded(), length)
        case .readCapacity10: return answer(capacity.encoded10(), 8)
        case .readCapacity16(let length): return answer(capacity.encoded16(), length)
        case .read(let transfer):
            let range = try range(transfer)
            return SCSIOutcome(status: .good, dataIn: state.withLock { Array($0.bytes[range]) })
        case .write(let transfer):
            let range = try range(transfer)
            let data = task.dataOut.prefix(range.count)
            state.withLockAndNotify { state in
                state.bytes.replaceSubrange(range.lowerBound..<range.lowerBound + data.count, with: data)
            }
            return SCSIOutcome(status: .good, dataOutUsed: range.count)
        case .modeSense(let sense):
            let parameters = ModeParameters(
                isWriteProtected: false, supportsFUA: true, capacity: nil,
                pages: [.caching(writeCache: false), .control()])
            let data =
                sense.form == .six ? parameters.encoded6() : parameters.encoded10(longDescriptor: false)
            return answer(data, sense.allocationLength)
        default: throw CheckCondition(.invalidOperationCode)
        }
    }

    private var blocks: Int { state.withLock { $0.bytes.count } / Self.blockLength }
    private var capacity: Capacity {
        Capacity(lastLBA: LBA(UInt64(blocks - 1)), blockLength: UInt32(Self.blockLength))
    }

    private func answer(_ bytes: [UInt8], _ allocation: Int) -> SCSIOutcome {
        SCSIOutcome(status: .good, dataIn: Array(bytes.prefix(allocation)))
    }

    private func vpd(_ page: UInt8) throws(CheckCondition) -> VPDPage {
        switch page {
        case VPDPageCode.supportedPages: .supportedPages([0x00, 0x80, 0x83, 0xB0, 0xB1, 0xB2])
        case VPDPageCode.unitSerialNumber: .unitSerialNumber("0123")
        case VPDPageCode.deviceIdentification: .deviceIdentification([.naaLocallyAssigned(0x0123)])
        case VPDPageCode.blockLimits: BlockLimits().page
        case VPDPageCode.blockDeviceCharacteristics: BlockDeviceCharacteristics(rotationRate: 1).page
        case VPDPageCode.logicalBlockProvisioning: LogicalBlockProvisioning().page
        default: throw CheckCondition(.invalidFieldInCDB(byte: 2))
        }
    }

    private func range(_ transfer: BlockTransfer) throws(CheckCondition) -> Range<Int> {
        if transfer.protect != 0 { throw CheckCondition(.invalidFieldInCDB(byte: 1, bit: 7)) }
        guard
            let range = ByteRange(checking: transfer.lba.value, transfer.count.value, within: UInt64(blocks))
        else { throw CheckCondition(SenseData(.illegalRequest, .logicalBlockAddressOutOfRange)) }
        return Int(range.offset) * Self.blockLength..<Int(range.end) * Self.blockLength
    }
}
