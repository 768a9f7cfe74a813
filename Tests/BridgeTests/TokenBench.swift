import Blocks
import SCSI
import TestSupport
import Testing

@testable import Bridge

/// Units in memory, a clock that stands still, and what one does with tokens.
struct TokenBench {
    static let alpha = "iqn.2026-01.net.example:alpha"
    static let beta = "iqn.2026-01.net.example:beta"

    let time = Monitor<UInt64>(1_000_000_000)
    let bench: Bench
    /// Sees all units but 3.
    let alpha = Nexus(initiatorName: alpha, sessionIdentifier: 1, authenticatedName: nil)
    /// Sees all units but 2.
    let beta = Nexus(initiatorName: beta, sessionIdentifier: 2, authenticatedName: nil)
    let lines = LogLines()

    /// 0 and 1 are writable and seen by all, 2 and 3 by one each, 4 is read-only over the bytes of 0, 5 is not locked,
    /// 6 has blocks of 4096 bytes.
    init(_ stores: [any BlockStore], mover: any CopyMover = SerialMover()) throws {
        precondition(stores.count == 6)
        var units: [LogicalUnit] = []
        for number in 0..<7 {
            var unit = BridgeUnit(number: number, path: "memory\(number)", readOnly: number == 4)
            if number == 2 { unit.initiators = [Self.alpha] }
            if number == 3 { unit.initiators = [Self.beta] }
            if number == 0 { unit.isThin = true }
            if number == 5 { unit.isLocked = false }
            if number == 6 { unit.blockSize = 4096 }
            let store = number == 4 ? 0 : number > 4 ? number - 1 : number
            units.append(
                try LogicalUnit(
                    unit, store: stores[store], storage: StorageKey(device: 1, inode: UInt64(100 + store))))
        }
        bench = try Bench(
            units, mover: mover, logger: lines.logger, clock: DeviceClock { [time] in time.withLock { $0 } })
        for nexus in [alpha, beta] {
            bench.device.openNexus(nexus)
            for unit in 0..<7 { _ = bench.send(.testUnitReady, unit, on: nexus) }
        }
    }

    init() throws {
        try self.init((0..<6).map { MemoryStore(pattern: 64 << 10, seed: UInt64(40 + $0)) })
    }

    func pass(seconds: UInt64) { time.withLock { $0 += seconds * 1_000_000_000 } }

    static func ranges(_ ranges: [(UInt64, UInt64)]) -> [BlockDeviceRange] {
        ranges.map { BlockDeviceRange(lba: LBA($0.0), count: BlockCount($0.1)) }
    }

    func populate(
        _ unit: Int, _ list: PopulateTokenList, identifier: UInt32 = 7, on nexus: Nexus? = nil
    ) -> SCSIOutcome {
        let data = list.encoded()
        return bench.send(
            .token(.populate(listIdentifier: identifier, parameterListLength: data.count)), unit, data: data,
            on: nexus ?? alpha)
    }

    func information(
        _ identifier: UInt32 = 7, _ unit: Int = 0, on nexus: Nexus? = nil
    ) throws -> (report: CopyOperationReport, token: [UInt8]?) {
        let outcome = bench.send(
            .token(.information(listIdentifier: identifier, allocationLength: 4096)), unit,
            on: nexus ?? alpha)
        try #require(outcome.isGood)
        let report = try CopyOperationReport(decoding: outcome.dataIn)
        let trailer = Array(CopyOperationReport.trailer(in: outcome.dataIn))
        #expect(UInt32(bigEndianBytes: trailer[..<4]) == UInt32(trailer.count - 4))
        #expect(UInt32(bigEndianBytes: outcome.dataIn[..<4]) == UInt32(outcome.dataIn.count - 4))
        guard trailer.count > 4 else { return (report, nil) }
        try #require(trailer.count == 4 + 2 + RODToken.length)
        return (report, Array(trailer[6...]))
    }

    /// Makes a token and gets it.
    func token(
        _ unit: Int, _ ranges: [(UInt64, UInt64)], type: RODType? = nil, timeout: UInt32 = 0,
        on nexus: Nexus? = nil
    ) throws -> [UInt8] {
        var list = PopulateTokenList(Self.ranges(ranges))
        list.type = type
        list.inactivityTimeout = timeout
        try #require(populate(unit, list, on: nexus).isGood)
        return try #require(try information(7, unit, on: nexus).token)
    }

    func write(
        _ token: [UInt8], _ unit: Int, _ ranges: [(UInt64, UInt64)], offset: UInt64 = 0, delete: Bool = false,
        identifier: UInt32 = 8, on nexus: Nexus? = nil
    ) -> SCSIOutcome {
        bench.device.execute(
            writeTask(
                token, unit, ranges, offset: offset, delete: delete, identifier: identifier, on: nexus))
    }

    func writeTask(
        _ token: [UInt8], _ unit: Int, _ ranges: [(UInt64, UInt64)], offset: UInt64 = 0, delete: Bool = false,
        immediate: Bool = false, identifier: UInt32 = 8, on nexus: Nexus? = nil
    ) -> SCSITask {
        var list = WriteUsingTokenList(token: token, Self.ranges(ranges))
        list.offset = BlockCount(offset)
        list.deleteToken = delete
        list.immediate = immediate
        let data = list.encoded()
        let command = Command.token(
            .write(listIdentifier: identifier, parameterListLength: data.count))
        return bench.task(command.encoded(), unit, data: data, on: nexus ?? alpha)
    }

    /// Writes one block the ordinary way.
    func overwrite(_ unit: Int, _ lba: UInt64, blockSize: Int = 512) -> SCSIOutcome {
        bench.send(
            .write(BlockTransfer(.sixteen, lba: LBA(lba), count: BlockCount(1))), unit,
            data: [UInt8](repeating: 0x5A, count: blockSize), on: alpha)
    }
}

extension UInt32 {
    init(bigEndianBytes bytes: ArraySlice<UInt8>) {
        precondition(bytes.count == 4)
        self = bytes.reduce(0) { $0 << 8 | UInt32($1) }
    }
}

extension SCSIOutcome {
    /// INVALID TOKEN OPERATION with `code`.
    func refusedToken(_ code: AdditionalSenseCode) -> Bool { failed(.illegalRequest, code) }

    /// INVALID FIELD IN PARAMETER LIST with the place of the field.
    func refused(listByte byte: UInt16) -> Bool {
        guard case .fieldPointer(inCDB: false, byte, _)? = senseData?.specific else { return false }
        return failed(.illegalRequest, .invalidFieldInParameterList)
    }
}
