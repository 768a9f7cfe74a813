import Blocks
import SCSI

/// Checksums of what is written to a unit: WRITE BUFFER has them kept, READ BUFFER asks for them (<doc:Checksums>).
extension BridgeDevice {
    func execute(
        _ command: BufferCommand, _ task: SCSITask, _ unit: LogicalUnit
    ) throws(CheckCondition) -> SCSIOutcome {
        switch command {
        case .read(let place, let length):
            try Self.check(place)
            return .data(Self.told(place.offset, length, unit).encoded(), allocationLength: length)
        case .write(let place, let length):
            try Self.check(place)
            if place.offset != 0 { throw .cdb(3) }
            guard task.dataOut.count >= length else { throw CheckCondition(.parameterListLengthError) }
            let keeping = try ChecksumKeeping(decoding: Array(task.dataOut.prefix(length)))
            guard try keep(keeping, of: unit, task) else { return SCSIOutcome(status: .taskAborted) }
            return SCSIOutcome(status: .good, dataOutUsed: length)
        }
    }

    private static func check(_ place: BufferCommand.Place) throws(CheckCondition) {
        guard place.mode == BufferCommand.vendorSpecific else { throw .cdb(1, bit: 4) }
        guard place.buffer == ChecksumBuffer.identifier else { throw .cdb(2) }
    }

    /// - Returns: false when the command was aborted before it was its turn.
    private func keep(
        _ keeping: ChecksumKeeping, of unit: LogicalUnit, _ task: SCSITask
    ) throws(CheckCondition) -> Bool {
        // What somebody else may write is not known here.
        guard unit.keepsInstants else { throw CheckCondition(SenseTable.writeProtected) }
        let kept = keeping.length == 0 ? nil : try Self.checksums(keeping, unit)
        // A write that is under way was not told to what is kept from now on.
        let whole = ByteRange(offset: 0, count: unit.store.size)
        guard unit.ranges.lock(whole, exclusive: true, unless: { task.isAborted }) else { return false }
        defer { unit.ranges.unlock(whole, exclusive: true) }
        try checksumChange.withLock { _ throws(CheckCondition) in
            // Units over the same storage have the same.
            var counts: [ObjectIdentifier: Int] = [:]
            for other in units {
                counts[ObjectIdentifier(other.checksums)] = other.checksums.current?.count
            }
            counts[ObjectIdentifier(unit.checksums)] = kept?.count
            guard counts.values.reduce(0, +) <= BridgeLimits.checksumChunksInAll else {
                throw CheckCondition(SenseData(.illegalRequest, .insufficientResources))
            }
            unit.checksums.keep(kept)
        }
        return true
    }

    private static func checksums(
        _ keeping: ChecksumKeeping, _ unit: LogicalUnit
    ) throws(CheckCondition) -> ChunkChecksums {
        let size = keeping.chunkSize
        guard keeping.length <= unit.store.size else {
            throw CheckCondition(.invalidFieldInParameterList(byte: ChecksumKeeping.lengthField))
        }
        guard BridgeLimits.checksumChunkSizes.contains(size), size & (size - 1) == 0 else {
            throw CheckCondition(.invalidFieldInParameterList(byte: ChecksumKeeping.chunkSizeField))
        }
        guard (keeping.length - 1) / size < UInt64(BridgeLimits.checksumChunks) else {
            throw CheckCondition(SenseData(.illegalRequest, .insufficientResources))
        }
        return ChunkChecksums(identifier: keeping.identifier, length: keeping.length, chunkSize: size)
    }

    private static func told(_ first: UInt32, _ length: Int, _ unit: LogicalUnit) -> KeptChecksums {
        guard let kept = unit.checksums.current else { return KeptChecksums(keeping: nil) }
        var told = KeptChecksums(
            keeping: ChecksumKeeping(
                identifier: kept.identifier, length: kept.length, chunkSize: kept.chunkSize))
        told.first = first
        let most = min(KeptChecksums.chunks(inLength: length), BridgeLimits.checksumsAtOnce)
        let start = min(Int(first), kept.count)
        told.entries = (start..<min(start + most, kept.count)).map { kept[$0] }
        return told
    }
}
