import Blocks
import SCSI

/// Which blocks have space, and commands that move no data.
extension BlockCommands {
    func execute(_ command: BlockCommand) throws(CheckCondition) -> SCSIOutcome {
        switch command {
        case .verify(let transfer, let check): return try verify(transfer, check)
        case .writeAndVerify(let transfer, let check): return try writeAndVerify(transfer, check)
        case .prefetch(let transfer, _): return try prefetch(transfer)
        case .unmap(let anchor, let length): return try unmap(anchor, length)
        case .writeSame10(let fields): return try writeSame(fields, form: .ten)
        case .compareAndWrite(let transfer): return try compareAndWrite(transfer)
        case .orWrite(let transfer): return try orWrite(transfer)
        case .getLBAStatus(let lba, let length): return try allocation(lba, length)
        case .readDefectData(let fields):
            return .data(fields.nothingFound, allocationLength: fields.allocationLength)
        case .startStop(let start, let loadOrEject, let powerCondition):
            return try startStop(start, loadOrEject, powerCondition)
        case .preventAllow(let prevent):
            // There is no medium to remove, so keeping it is easy; 10b and 11b are obsolete.
            guard prevent < 2 else { throw .cdb(4, bit: 1) }
            return .good
        }
    }

    /// GOOD, not CONDITION MET: what the page cache keeps is not ours to promise.
    private func prefetch(_ transfer: BlockTransfer) throws(CheckCondition) -> SCSIOutcome {
        var transfer = transfer
        if transfer.count.value == 0 {
            transfer.count = BlockCount(unit.blockCount - min(transfer.lba.value, unit.blockCount))
        }
        let range = try place(transfer)
        try store(.read, transfer.lba) { () throws(StoreError) in try unit.store.prefetch(range) }
        return .good
    }

    /// All ranges are checked before the first is unmapped.
    private func unmap(_ anchor: Bool, _ length: Int) throws(CheckCondition) -> SCSIOutcome {
        // That a unit is never written comes before what it could do if it were.
        if unit.isReadOnly { try requireWritable() }
        guard unit.isThin else { throw CheckCondition(.invalidOperationCode) }
        if anchor { throw .cdb(1, bit: 0) }
        guard task.dataOut.count >= length else { throw CheckCondition(SenseTable.dataPhaseError) }
        let list = try UnmapList(
            decoding: Array(task.dataOut.prefix(length)), limit: BridgeLimits.unmapDescriptors)
        try requireWritable()
        var ranges: [ByteRange] = []
        // No blocks may also be none behind the last.
        for range in list.ranges where range.count.value > 0 || range.lba.value > unit.blockCount {
            guard let bytes = unit.range(range.lba, range.count.value) else {
                throw CheckCondition(SenseTable.outOfRange(range.lba))
            }
            ranges.append(bytes)
        }
        for range in ranges {
            guard try unmap(range) else { return SCSIOutcome(status: .taskAborted) }
        }
        if !ranges.isEmpty { try settle() }
        return SCSIOutcome(status: .good, dataOutUsed: length)
    }

    /// - Returns: false when the command was aborted.
    private func unmap(_ range: ByteRange) throws(CheckCondition) -> Bool {
        var position = range.offset
        while position < range.end {
            if task.isAborted { return false }
            let part = ByteRange(
                offset: position, count: min(BridgeLimits.writeSameStep, range.end - position))
            unit.ranges.lock(part, exclusive: false)
            defer { unit.ranges.unlock(part, exclusive: false) }
            try store(.write, LBA(position / UInt64(unit.blockSize))) { () throws(StoreError) in
                // Where a part of it cannot be given back, it is written: unmapped blocks read as zeros (LBPRZ).
                try unit.store.writeZeroes(part, options: [])
            }
            position += part.count
        }
        return true
    }

    /// A block is deallocated if all of it is a hole. What is not told here is asked for in the next command.
    private func allocation(_ lba: LBA, _ length: Int) throws(CheckCondition) -> SCSIOutcome {
        guard let start = unit.range(lba, 1) else { throw CheckCondition(SenseTable.outOfRange(lba)) }
        let space = max(length - LBAStatus.headerBytes, 0) / LBAStatus.descriptorBytes
        let limit = min(max(space, 1), BridgeLimits.lbaStatusDescriptors)
        var status = LBAStatus([])
        let blockSize = UInt64(unit.blockSize)
        let most = UInt64(UInt32.max) * blockSize
        let range = ByteRange(
            offset: start.offset, count: min(unit.store.size - start.offset, most))
        var extents: [AllocationExtent] = []
        if unit.isThin {
            // Twice as many as wanted: neighbours melt into one where blocks are coarser than extents.
            try store(.read, lba) { () throws(StoreError) in
                extents = try unit.store.allocation(of: range, limit: 2 * limit)
            }
        } else {
            extents = [AllocationExtent(count: range.count, isHole: false, readsAsZeros: false)]
        }
        for extent in Self.blocks(extents, from: range.offset, blockSize) {
            let provisioning: LBAStatus.Provisioning = extent.isHole ? .deallocated : .mapped
            let next = status.extents.last.map { $0.lba.value + $0.count.value } ?? lba.value
            if let last = status.extents.last, last.provisioning == provisioning {
                status.extents[status.extents.count - 1].count = BlockCount(last.count.value + extent.blocks)
            } else if status.extents.count < limit {
                status.extents.append(
                    LBAStatus.Extent(lba: LBA(next), count: BlockCount(extent.blocks), provisioning))
            } else {
                break
            }
        }
        return .data(status.encoded(), allocationLength: length)
    }

    /// Extents in whole blocks from `offset`, a block's start; a block that is only partly a hole is data, and
    /// so is one of which the store did not tell all.
    private static func blocks(
        _ extents: [AllocationExtent], from offset: UInt64, _ blockSize: UInt64
    ) -> [(isHole: Bool, blocks: UInt64)] {
        var result: [(isHole: Bool, blocks: UInt64)] = []
        var done = offset
        var position = offset
        for extent in extents {
            position += extent.count
            // Holes end at the last whole block, data at the block that they reach into; a hole that begins
            // within that block begins after it.
            let isHole = extent.isHole && extent.readsAsZeros
            let end = isHole ? position.roundedDown(to: blockSize) : position.roundedUp(to: blockSize)
            guard end > done else { continue }
            result.append((isHole, (end - done) / blockSize))
            done = end
        }
        if done < position.roundedUp(to: blockSize) { result.append((false, 1)) }
        return result
    }

    /// Units do not stop, and have nothing to eject.
    private func startStop(
        _ start: Bool, _ loadOrEject: Bool, _ powerCondition: UInt8
    ) throws(CheckCondition) -> SCSIOutcome {
        if powerCondition != 0 { throw .cdb(4, bit: 7) }
        if loadOrEject { throw .cdb(4, bit: 1) }
        if !start { throw .cdb(4, bit: 0) }
        return .good
    }
}
