import AsyncIO
import Blocks
import Foundation
import Logging
import SCSI
import TestSupport
import Testing

@testable import Bridge

/// A device over stores in memory or files, with one open nexus, and the commands one sends to it.
final class Bench: Sendable {
    let device: BridgeDevice
    let nexus = Bench.makeNexus()

    static func makeNexus(_ session: UInt64 = 1) -> Nexus {
        Nexus(
            initiatorName: "iqn.2000-01.org.example:initiator", sessionIdentifier: session,
            authenticatedName: nil)
    }

    static var quiet: Logger { Logger(label: "quiet") { _ in SwiftLogNoOpLogHandler() } }

    /// A unit in memory.
    static func unit(
        _ number: Int, _ store: any BlockStore, readOnly: Bool = false, blockSize: UInt32 = 512,
        inode: UInt64? = nil, locks: StorageLocks = StorageLocks()
    ) throws -> LogicalUnit {
        try LogicalUnit(
            BridgeUnit(number: number, path: "memory\(number)", readOnly: readOnly, blockSize: blockSize),
            store: store, storage: StorageKey(device: 1, inode: inode ?? UInt64(1000 + number)), locks: locks)
    }

    init(
        _ units: [LogicalUnit], mover: any CopyMover = SerialMover(), logger: Logger = Bench.quiet,
        settled: Bool = true, clock: DeviceClock = .monotonic
    ) throws {
        device = try BridgeDevice(opened: units, mover: mover, logger: logger, clock: clock)
        open(settled: settled)
    }

    init(device: BridgeDevice) {
        self.device = device
        open(settled: true)
    }

    private func open(settled: Bool) {
        device.openNexus(nexus)
        guard settled else { return }
        for unit in device.units { _ = send(.testUnitReady, unit.number) }
    }

    /// Executes a command on this thread.
    func send(
        _ command: Command, _ unit: Int = 0, data: [UInt8] = [], expecting: Int = 1 << 20,
        on nexus: Nexus? = nil
    ) -> SCSIOutcome {
        device.execute(task(command.encoded(), unit, data: data, expecting: expecting, on: nexus))
    }

    func task(
        _ cdb: [UInt8], _ unit: Int = 0, data: [UInt8] = [], expecting: Int = 1 << 20, on other: Nexus? = nil
    ) -> SCSITask {
        SCSITask(
            nexus: other ?? nexus, lun: LogicalUnitNumber(unit)!, cdb: cdb, dataOut: data,
            expectedDataIn: expecting, expectedDataOut: data.count)
    }

    /// A second session; it is registered at the unit with key 2, the first with key 1.
    func secondRegistrant(at unit: Int) throws -> Nexus {
        let second = Bench.makeNexus(2)
        device.openNexus(second)
        for unit in device.units { _ = send(.testUnitReady, unit.number, on: second) }
        for (nexus, key) in [(nexus, UInt64(1)), (second, 2)] {
            let parameters = ReservationParameters(key: 0, serviceActionKey: key)
            let register = Command.reservation(.persistentOut(PersistentReserveOut(.register)))
            try #require(send(register, unit, data: parameters.encoded(), on: nexus).isGood)
        }
        return second
    }

    func cscd(_ unit: Int, blockSize: UInt32? = nil, pad: Bool = false) -> CSCDDescriptor {
        let unit = device.units.first { $0.number == unit }!
        var descriptor = CSCDDescriptor(designation: unit.naa, diskBlockLength: blockSize ?? unit.blockSize)
        descriptor.pad = pad
        return descriptor
    }

    func copyTask(_ list: CopyParameterList, _ unit: Int = 0, on nexus: Nexus? = nil) -> SCSITask {
        let bytes = list.encoded()
        let command: Command =
            list.form == .lid1
            ? .extendedCopy(parameterListLength: bytes.count)
            : .copy(.extendedCopy(parameterListLength: bytes.count))
        return task(command.encoded(), unit, data: bytes, on: nexus)
    }

    func copy(_ list: CopyParameterList, _ unit: Int = 0, on nexus: Nexus? = nil) -> SCSIOutcome {
        device.execute(copyTask(list, unit, on: nexus))
    }

    func results(
        _ action: CopyResultsServiceAction, _ list: UInt8 = 0, on nexus: Nexus? = nil
    ) -> SCSIOutcome {
        send(.receiveCopyResults(action, listIdentifier: list, allocationLength: 4096), on: nexus)
    }

    /// RECEIVE COPY STATUS (LID4).
    func status(_ list: UInt32, _ unit: Int = 0, on nexus: Nexus? = nil) -> SCSIOutcome {
        send(.copy(.status(listIdentifier: list, allocationLength: 4096)), unit, on: nexus)
    }

    func report(_ list: UInt32, on nexus: Nexus? = nil) throws -> CopyOperationReport {
        try CopyOperationReport(decoding: status(list, on: nexus).dataIn)
    }

    /// COPY OPERATION ABORT.
    func abortCopy(_ list: UInt32, on nexus: Nexus? = nil) -> SCSIOutcome {
        send(.copy(.abort(listIdentifier: list)), on: nexus)
    }
}

extension SCSIOutcome {
    /// The sense data; nil for anything but CHECK CONDITION.
    var senseData: SenseData? { status == .checkCondition ? SenseData(decoding: sense) : nil }
    var isGood: Bool { status == .good }

    /// The segment that COPY ABORTED tells; -1 without.
    var failedSegment: Int { senseData?.commandSpecificInformation.map { Int($0) } ?? -1 }

    func failed(_ key: SenseKey, _ code: AdditionalSenseCode) -> Bool {
        senseData?.key == key && senseData?.code == code
    }

    /// INVALID FIELD with the place of the field.
    func refused(cdbByte byte: UInt16) -> Bool {
        guard case .fieldPointer(inCDB: true, byte, _)? = senseData?.specific else { return false }
        return failed(.illegalRequest, .invalidFieldInCDB)
    }
}

extension CopyStatus {
    /// Bytes written. (Not an Optional in the expectations: the testing library's comparison of Optional
    /// integers reads one byte too many by AddressSanitizer's measure.)
    var bytes: UInt64 { transferredBytes ?? .max }
}

/// Bytes without pattern, the same for the same seed.
func pattern(_ count: Int, seed: UInt64) -> [UInt8] { seededBytes(count, seed: seed) }

extension MemoryStore {
    convenience init(pattern count: Int, seed: UInt64) { self.init(seededBytes(count, seed: seed)) }
    var all: [UInt8] { get throws { try bytes(at: 0, count: Int(size)) } }
}
