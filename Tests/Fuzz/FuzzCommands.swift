import Blocks
import Logging
import SCSI
import TestSupport

@testable import Bridge

/// A device with two units that can be written, one that cannot, and one that another initiator alone may see.
struct FuzzedDevice {
    static let readOnlyUnit = 2
    static let foreignUnit = 3
    static let blocks = 64

    let stores: [MemoryStore]
    let device: BridgeDevice
    let nexuses: [Nexus]

    init() {
        let stores = [512, 4096, 512, 512].map { size in
            MemoryStore(
                [UInt8](repeating: UInt8(size >> 9), count: Self.blocks * size),
                capabilities: [.writable, .trims, .zeroesFast, .knowsAllocation])
        }
        do {
            let units = try stores.enumerated().map { number, store in
                var unit = BridgeUnit(
                    number: number, path: "memory\(number)", readOnly: number == Self.readOnlyUnit,
                    blockSize: number == 1 ? 4096 : 512)
                if number == Self.foreignUnit { unit.initiators = ["iqn.2026-01.net.example:somebody.else"] }
                return try LogicalUnit(
                    unit, store: store, storage: StorageKey(device: 1, inode: UInt64(1000 + number)))
            }
            device = try BridgeDevice(
                opened: units, mover: SerialMover(),
                logger: Logger(label: "fuzz") { _ in SwiftLogNoOpLogHandler() })
        } catch { preconditionFailure("units that are right: \(error)") }
        self.stores = stores
        nexuses = (0..<2).map {
            Nexus(
                initiatorName: "iqn.2026-01.net.example:peer\($0)", sessionIdentifier: UInt64($0),
                authenticatedName: nil)
        }
        for nexus in nexuses { device.openNexus(nexus) }
        // The unit attention of power on would eat the first command to each unit.
        for nexus in nexuses {
            for unit in 0...Self.readOnlyUnit {
                _ = execute([0, 0, 0, 0, 0, 0], [], unit: unit, nexus: nexus)
            }
        }
    }

    func execute(_ cdb: [UInt8], _ data: [UInt8], unit: Int, nexus: Nexus) -> SCSIOutcome {
        guard let lun = LogicalUnitNumber(unit) else { preconditionFailure("a unit number within bounds") }
        return device.execute(
            SCSITask(
                nexus: nexus, lun: lun, cdb: cdb, dataOut: data, expectedDataIn: 1 << 20,
                expectedDataOut: data.count))
    }

    func withToken(_ list: [UInt8]) -> [UInt8] {
        let place = 16..<(16 + RODToken.length)
        guard list.count >= place.upperBound, list[place.lowerBound] == 0xFE,
            let token = device.tokens.all(of: device.units).last
        else { return list }
        var list = list
        list.replaceSubrange(place, with: token)
        return list
    }

    /// Nothing reached what may not be written, and what cannot be seen.
    func checkUntouched() {
        for unit in [Self.readOnlyUnit, Self.foreignUnit] {
            let bytes = try? stores[unit].bytes(at: 0, count: Int(stores[unit].size))
            precondition(bytes?.allSatisfy { $0 == 1 } == true, "unit \(unit) was written")
        }
    }
}

/// Commands one after the other: a byte (bits 0 to 2 the unit, bit 3 the nexus, bit 4 that data are filled up to 4 KiB,
/// bit 5 that the unit is reset before, bit 6 that the nexus is lost and comes again), a CDB of the length that its
/// first byte tells, two bytes of length, and data. In a list for WRITE USING TOKEN a token that begins with FEh is
/// replaced by one that lives, because none can be guessed.
///
/// What must hold: no trap; sense data that can be read with every CHECK CONDITION; data-in within what was asked for;
/// read-only and foreign units stay as they are.
func fuzzCommands(_ input: [UInt8]) {
    var input = FuzzInput(input)
    let fuzzed = FuzzedDevice()
    for _ in 0..<64 where !input.isEmpty {
        let how = input.byte()
        let code = input.byte()
        let length = OperationCode(rawValue: code).cdbLength
        var cdb = [code] + input.bytes((length ?? 16) - 1)
        cdb += [UInt8](repeating: 0, count: (length ?? 16) - cdb.count)
        var data = input.bytes(input.half())
        if how & 0x10 != 0 { data += [UInt8](repeating: 0xE5, count: max(0, 4096 - data.count)) }
        let nexus = fuzzed.nexuses[Int(how >> 3 & 1)]
        let unit = Int(how & 7)
        if how & 0x20 != 0, let lun = LogicalUnitNumber(unit) {
            fuzzed.device.resetLogicalUnit(lun, from: nexus)
        }
        if how & 0x40 != 0 {
            fuzzed.device.closeNexus(nexus)
            fuzzed.device.openNexus(nexus)
        }
        if code == OperationCode.extendedCopy.rawValue { data = fuzzed.withToken(data) }
        check(fuzzed.execute(cdb, data, unit: unit, nexus: nexus))
    }
    for nexus in fuzzed.nexuses { fuzzed.device.closeNexus(nexus) }
    fuzzed.device.close()
    fuzzed.checkUntouched()
}

func check(_ outcome: SCSIOutcome) {
    let isReadable = SenseData(decoding: outcome.sense) != nil
    precondition(isReadable || outcome.status != .checkCondition, "CHECK CONDITION without sense")
    precondition(isReadable || outcome.sense.isEmpty, "sense that nobody can read")
    precondition(outcome.dataIn.count <= SCSITargetLimits.dataInBytes, "more data-in than a command may have")
}
