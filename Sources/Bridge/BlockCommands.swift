import Blocks
import SCSI

/// READ, WRITE and their kin at one unit. Foreign numbers are checked before the store sees them.
struct BlockCommands {
    let unit: LogicalUnit
    let task: SCSITask

    func read(_ transfer: BlockTransfer) throws(CheckCondition) -> SCSIOutcome {
        let range = try check(transfer)
        guard !range.isEmpty else { return .good }
        unit.ranges.lock(range, exclusive: false)
        defer { unit.ranges.unlock(range, exclusive: false) }
        return SCSIOutcome(status: .good, dataIn: try bytes(of: range))
    }

    /// What is stored there now; the caller holds the range.
    func bytes(of range: ByteRange) throws(CheckCondition) -> [UInt8] {
        var failure: StoreError?
        let data = [UInt8](unsafeUninitializedCapacity: Int(range.count)) { buffer, count in
            let bytes = UnsafeMutableRawBufferPointer(buffer)
            do throws(StoreError) {
                try unit.store.read(
                    at: range.offset,
                    into: UnsafeMutableRawBufferPointer(rebasing: bytes[..<Int(range.count)]))
                count = Int(range.count)
            } catch { failure = error }
        }
        if let failure {
            let lba = LBA(range.offset / UInt64(unit.blockSize))
            throw CheckCondition(SenseTable.sense(failure, .read, lba: lba))
        }
        return data
    }

    func write(_ transfer: BlockTransfer) throws(CheckCondition) -> SCSIOutcome {
        let range = try check(transfer)
        try requireWritable()
        unit.ranges.lock(range, exclusive: false)
        defer { unit.ranges.unlock(range, exclusive: false) }
        try writeData(transfer, range, task.dataOut[...])
        return SCSIOutcome(status: .good, dataOutUsed: Int(range.count))
    }

    /// Writes `data` at the start of `range`, which the caller holds. An initiator that sends less than the CDB
    /// says gets its whole blocks written, and hears of the rest by the residual overflow.
    func writeData(
        _ transfer: BlockTransfer, _ range: ByteRange, _ data: ArraySlice<UInt8>
    ) throws(CheckCondition) {
        let blockSize = Int(unit.blockSize)
        let count = min(Int(range.count), data.count / blockSize * blockSize)
        guard count > 0 || transfer.fua else { return }
        let durable = transfer.fua || unit.isWriteThrough
        try store(.write, transfer.lba) { () throws(StoreError) in
            try write(data.prefix(count), at: range.offset, durable: durable)
        }
    }

    /// Where the unit has no write cache, all that was written is on stable storage at return.
    func settle() throws(CheckCondition) {
        guard unit.isWriteThrough else { return }
        try store(.write) { () throws(StoreError) in try unit.store.flush() }
    }

    func requireWritable() throws(CheckCondition) {
        if let why = unit.writeProtection { throw CheckCondition(SenseData(.dataProtect, why)) }
    }

    private func write(_ data: ArraySlice<UInt8>, at offset: UInt64, durable: Bool) throws(StoreError) {
        let failure = data.withUnsafeBytes { bytes -> StoreError? in
            do throws(StoreError) {
                try unit.store.write(bytes, at: offset, durable: durable)
                return nil
            } catch { return error }
        }
        if let failure { throw failure }
    }

    /// The blocks that a command without data is about, however many.
    func place(_ transfer: BlockTransfer) throws(CheckCondition) -> ByteRange {
        if transfer.protect != 0 { throw .cdb(1, bit: 7) }
        guard let range = unit.range(transfer.lba, transfer.count.value) else {
            throw CheckCondition(SenseTable.outOfRange(transfer.lba))
        }
        return range
    }

    /// The blocks of a command that transfers them all.
    func check(_ transfer: BlockTransfer) throws(CheckCondition) -> ByteRange {
        let range = try place(transfer)
        guard range.count <= UInt64(BridgeLimits.transferBytes) else {
            throw .cdb(Self.countField(transfer.form))
        }
        return range
    }

    /// Where TRANSFER LENGTH stands.
    private static func countField(_ form: CDBForm) -> Int {
        switch form {
        case .six: 4
        case .ten: 7
        case .twelve: 6
        case .sixteen: 10
        }
    }

    /// IMMED is taken and the work done all the same before the status.
    func synchronizeCache(_ fields: SynchronizeCache) throws(CheckCondition) -> SCSIOutcome {
        guard unit.range(fields.lba, fields.count.value) != nil else {
            throw CheckCondition(SenseTable.outOfRange(fields.lba))
        }
        guard !unit.isReadOnly else { return .good }
        try store(.write) { () throws(StoreError) in try unit.store.flush() }
        return .good
    }

    func writeSame(_ fields: WriteSame, form: CDBForm) throws(CheckCondition) -> SCSIOutcome {
        if fields.protect != 0 { throw .cdb(1, bit: 7) }
        // Blocks are never anchored (VPD page B2h), and only those of a thin unit are unmapped.
        if fields.anchor { throw .cdb(1, bit: 4) }
        // A unit that is never written says so, whether or not it would unmap.
        if fields.unmap { try requireWritable() }
        if fields.unmap, !unit.isThin { throw .cdb(1, bit: 3) }
        // WSNZ: no blocks would mean all up to the end, which nobody should get by mistake.
        guard fields.count.value > 0 else { throw .cdb(Self.countField(form)) }
        guard let range = unit.range(fields.lba, fields.count.value) else {
            throw CheckCondition(SenseTable.outOfRange(fields.lba))
        }
        try requireWritable()
        let blockSize = Int(unit.blockSize)
        // One block: with less or more the initiator means something else than its CDB says.
        guard fields.noDataOut || task.dataOut.count == blockSize && task.expectedDataOut == blockSize else {
            throw CheckCondition(SenseTable.wrongDataLength)
        }
        let block = fields.noDataOut ? [] : Array(task.dataOut[..<blockSize])
        let isZero = block.withUnsafeBytes(\.isAllZeros)
        let pattern = isZero ? [] : Self.pattern(block, range.count)
        var position = range.offset
        while position < range.end {
            if task.isAborted { return SCSIOutcome(status: .taskAborted) }
            let step = min(range.end - position, isZero ? BridgeLimits.writeSameStep : UInt64(pattern.count))
            let part = ByteRange(offset: position, count: step)
            unit.ranges.lock(part, exclusive: false)
            defer { unit.ranges.unlock(part, exclusive: false) }
            try store(.write, LBA(position / UInt64(blockSize))) { () throws(StoreError) in
                if isZero {
                    // Unmapped blocks read as zeros: the same bytes for UNMAP and without.
                    try unit.store.writeZeroes(part, options: unit.zeroOptions)
                } else {
                    try write(pattern[..<Int(step)], at: position, durable: false)
                }
            }
            position += step
        }
        try settle()
        return SCSIOutcome(status: .good, dataOutUsed: fields.noDataOut ? 0 : blockSize)
    }

    /// `block` again and again, whole blocks, at most `wanted` bytes.
    private static func pattern(_ block: [UInt8], _ wanted: UInt64) -> [UInt8] {
        let count = Int(min(UInt64(BridgeLimits.patternBytes), wanted)) / block.count
        var pattern: [UInt8] = []
        pattern.reserveCapacity(count * block.count)
        for _ in 0..<count { pattern += block }
        return pattern
    }

    func store(
        _ direction: SenseTable.Direction, _ lba: LBA? = nil, _ body: () throws(StoreError) -> Void
    ) throws(CheckCondition) {
        do throws(StoreError) { try body() } catch {
            throw CheckCondition(SenseTable.sense(error, direction, lba: lba))
        }
    }
}
