import Blocks
import Glibc
import SCSI

/// Commands that look at what is stored and decide or compute by it.
extension BlockCommands {
    func verify(_ transfer: BlockTransfer, _ check: ByteCheck) throws(CheckCondition) -> SCSIOutcome {
        let range = check == .data ? try self.check(transfer) : try place(transfer)
        let wanted =
            switch check {
            case .medium: 0
            case .data: Int(range.count)
            case .oneBlock: Int(unit.blockSize)
            }
        // A part of a comparison is none.
        if task.dataOut.count < wanted, !range.isEmpty { throw CheckCondition(SenseTable.wrongDataLength) }
        guard try compare(range, check, lock: true) else { return SCSIOutcome(status: .taskAborted) }
        return SCSIOutcome(status: .good, dataOutUsed: range.isEmpty ? 0 : wanted)
    }

    /// What is written is on stable storage before it is read back, so FUA is in it.
    func writeAndVerify(_ transfer: BlockTransfer, _ check: ByteCheck) throws(CheckCondition) -> SCSIOutcome {
        let range = try self.check(transfer)
        try requireWritable()
        var durable = transfer
        durable.fua = true
        // Nobody else may write in between, or what is read is not what was written.
        guard lock(range) else { return SCSIOutcome(status: .taskAborted) }
        defer { unit.ranges.unlock(range, exclusive: true) }
        try writeData(durable, range, task.dataOut[...])
        // Whole blocks, as a WRITE does where fewer bytes came than the CDB says: the residual overflow tells that the
        // rest was neither written nor verified.
        let blockSize = UInt64(unit.blockSize)
        let count = min(range.count, UInt64(task.dataOut.count).roundedDown(to: blockSize))
        let written = ByteRange(offset: range.offset, count: count)
        guard try compare(written, check, lock: false) else { return SCSIOutcome(status: .taskAborted) }
        return SCSIOutcome(status: .good, dataOutUsed: Int(range.count))
    }

    /// Shuts everybody else out of `range`.
    /// - Returns: false when the command was aborted before it was its turn.
    private func lock(_ range: ByteRange) -> Bool {
        unit.ranges.lock(range, exclusive: true) { task.isAborted }
    }

    /// Reads `range` and compares as `check` says, with as many bytes as came.
    /// - Parameter lock: the range is held piece by piece; without, the caller holds it.
    /// - Returns: false when the command was aborted.
    /// - Throws: MISCOMPARE where bytes differ.
    private func compare(
        _ range: ByteRange, _ check: ByteCheck, lock: Bool
    ) throws(CheckCondition) -> Bool {
        let blockSize = UInt64(unit.blockSize)
        var position = range.offset
        while position < range.end {
            if task.isAborted { return false }
            let part = ByteRange(offset: position, count: min(BridgeLimits.verifyStep, range.end - position))
            if lock { unit.ranges.lock(part, exclusive: false) }
            defer { if lock { unit.ranges.unlock(part, exclusive: false) } }
            let stored = try bytes(of: part)
            switch check {
            case .medium: break
            case .data:
                let expected = task.dataOut.dropFirst(Int(position - range.offset)).prefix(stored.count)
                if Self.firstDifference(stored[..<expected.count], expected) != nil {
                    throw Self.miscompare()
                }
            case .oneBlock:
                let expected = task.dataOut.prefix(Int(blockSize))
                for start in stride(from: 0, to: stored.count, by: Int(blockSize))
                where Self.firstDifference(stored[start..<start + Int(blockSize)], expected) != nil {
                    throw Self.miscompare()
                }
            }
            position += part.count
        }
        return true
    }

    /// Nothing else happens to the blocks between the comparison and the write.
    func compareAndWrite(_ transfer: BlockTransfer) throws(CheckCondition) -> SCSIOutcome {
        let range = try check(transfer)
        try requireWritable()
        let count = Int(range.count)
        // A part of a comparison is none; and 256 blocks of data with a count that cannot say so are an error.
        guard task.dataOut.count == 2 * count else { throw .cdb(13) }
        guard count > 0 else { return .good }
        guard lock(range) else { return SCSIOutcome(status: .taskAborted) }
        defer { unit.ranges.unlock(range, exclusive: true) }
        if let offset = Self.firstDifference(try bytes(of: range)[...], task.dataOut[..<count]) {
            throw Self.miscompare(at: UInt64(offset))
        }
        try writeData(transfer, range, task.dataOut[count...])
        return SCSIOutcome(status: .good, dataOutUsed: 2 * count)
    }

    /// The blocks become what they are or-ed with the data.
    func orWrite(_ transfer: BlockTransfer) throws(CheckCondition) -> SCSIOutcome {
        let range = try check(transfer)
        try requireWritable()
        let blockSize = Int(unit.blockSize)
        let count = min(Int(range.count), task.dataOut.count / blockSize * blockSize)
        guard lock(range) else { return SCSIOutcome(status: .taskAborted) }
        defer { unit.ranges.unlock(range, exclusive: true) }
        var stored = try bytes(of: ByteRange(offset: range.offset, count: UInt64(count)))
        stored.withUnsafeMutableBytes { stored in
            task.dataOut.withUnsafeBytes { data in
                // Whole blocks, so whole words.
                for offset in stride(from: 0, to: count, by: 8) {
                    let word = data.loadUnaligned(fromByteOffset: offset, as: UInt64.self)
                    let old = stored.loadUnaligned(fromByteOffset: offset, as: UInt64.self)
                    stored.storeBytes(of: old | word, toByteOffset: offset, as: UInt64.self)
                }
            }
        }
        try writeData(transfer, range, stored[...])
        return SCSIOutcome(status: .good, dataOutUsed: Int(range.count))
    }

    /// - Parameter offset: of the first byte that differs, in the data-out.
    private static func miscompare(at offset: UInt64? = nil) -> CheckCondition {
        CheckCondition(SenseData(.miscompare, .miscompareDuringVerify, information: offset))
    }

    /// Counted from the start of both, which have the same length.
    private static func firstDifference(_ left: ArraySlice<UInt8>, _ right: ArraySlice<UInt8>) -> Int? {
        left.withUnsafeBytes { left in
            right.withUnsafeBytes { right in
                precondition(left.count == right.count)
                var part = 0..<left.count
                guard !Self.equal(left, right, part) else { return nil }
                // It is in the half that differs: memcmp looks at most of the bytes, however we are built.
                while part.count > 1 {
                    let half = part.lowerBound..<part.lowerBound + part.count / 2
                    part = Self.equal(left, right, half) ? half.upperBound..<part.upperBound : half
                }
                return part.lowerBound
            }
        }
    }

    private static func equal(
        _ left: UnsafeRawBufferPointer, _ right: UnsafeRawBufferPointer, _ part: Range<Int>
    ) -> Bool {
        guard !part.isEmpty, let left = left.baseAddress, let right = right.baseAddress else { return true }
        return memcmp(left + part.lowerBound, right + part.lowerBound, part.count) == 0
    }
}
