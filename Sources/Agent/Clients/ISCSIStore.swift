import Blocks
import SCSI
import Synchronization

/// A logical unit as a store: READ (16), WRITE (16), WRITE SAME (16), SYNCHRONIZE CACHE (16), at any byte.
/// Several threads may use it at once; their commands share the initiator's session.
public final class ISCSIStore: BlockStore {
    private let initiator: Initiator
    public let unit: UnitDescription
    private let patience: Initiator.Patience
    private var longPatience: Initiator.Patience { .unlimited(isCancelled: patience.isCancelled) }
    private let blocks: PartialBlocks
    private let transferBytes: Int
    private let zeroBytes: UInt64
    private let hasWriteSame = Atomic(true)

    public let size: UInt64
    public let capabilities: StoreCapabilities

    /// - Parameter patience: for each command but those that take what they take, WRITE SAME and SYNCHRONIZE CACHE:
    ///   they may take as long as the target answers NOPs, and are cancelled by it.
    /// - Throws: 66 when there is no such unit.
    public init(
        _ initiator: Initiator, lun: Int, patience: Initiator.Patience = .init()
    ) throws(AgentError) {
        self.initiator = initiator
        self.patience = patience
        unit = try initiator.describe(lun: lun, patience: patience)
        size = unit.size
        capabilities = unit.isWriteProtected ? [] : [.writable]
        let length = UInt64(unit.capacity.blockLength)
        blocks = PartialBlocks(blockLength: length)
        let greatest = unit.limits.map { UInt64($0.maximumTransfer) * length } ?? 0
        let bound = UInt64(ClientLimits.scsiTransferBytes)
        transferBytes = Int(greatest > 0 ? min(greatest, bound) : bound)
        let same = unit.limits.map { $0.maximumWriteSame } ?? 0
        let (sameBytes, overflow) = same.multipliedReportingOverflow(by: length)
        zeroBytes =
            same > 0 && !overflow ? min(sameBytes, ClientLimits.writeSameBytes) : ClientLimits.writeSameBytes
    }

    public func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
        requireWithin(ByteRange(offset: offset, count: UInt64(buffer.count)))
        try blocks.read(at: offset, into: buffer, whole: readBlocks)
    }

    public func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64, durable: Bool) throws(StoreError) {
        let range = ByteRange(offset: offset, count: UInt64(buffer.count))
        try requireWritable(range)
        let fua = durable && unit.supportsFUA
        try blocks.write(
            buffer, at: offset, read: readBlocks,
            whole: { position, bytes throws(StoreError) in try writeBlocks(position, bytes, fua: fua) })
        if durable, !fua { try flush() }
    }

    public func writeZeroes(_ range: ByteRange, options: ZeroOptions) throws(StoreError) {
        try requireWritable(range)
        guard !options.contains(.onlyIfFast) else { throw StoreError(.notSupported) }
        try blocks.writeZeroes(
            range, whole: zeroBlocks, read: readBlocks,
            write: { position, bytes throws(StoreError) in try writeBlocks(position, bytes, fua: false) })
        if options.contains(.durable) { try flush() }
    }

    public func trim(_ range: ByteRange, durable: Bool) throws(StoreError) {
        try requireWritable(range)
        if durable { try flush() }
    }

    public func flush() throws(StoreError) {
        guard capabilities.contains(.writable) else { throw StoreError(.readOnly) }
        try scsi { () throws(AgentError) in
            try initiator.synchronizeCache(lun: unit.number, patience: longPatience)
        }
    }

    private func readBlocks(_ offset: UInt64, _ buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
        var done = 0
        while done < buffer.count {
            let count = min(buffer.count - done, transferBytes)
            let part = UnsafeMutableRawBufferPointer(rebasing: buffer[done..<done + count])
            let (lba, blocks) = address(offset + UInt64(done), UInt64(count))
            try scsi { () throws(AgentError) in
                try initiator.read(lun: unit.number, lba: lba, blocks: blocks, into: part, patience: patience)
            }
            done += count
        }
    }

    private func writeBlocks(
        _ offset: UInt64, _ buffer: UnsafeRawBufferPointer, fua: Bool
    ) throws(StoreError) {
        var done = 0
        while done < buffer.count {
            let count = min(buffer.count - done, transferBytes)
            let part = UnsafeRawBufferPointer(rebasing: buffer[done..<done + count])
            let (lba, blocks) = address(offset + UInt64(done), UInt64(count))
            try scsi { () throws(AgentError) in
                try initiator.write(
                    lun: unit.number, lba: lba, blocks: blocks, part, fua: fua, patience: patience)
            }
            done += count
        }
    }

    private func zeroBlocks(_ range: ByteRange) throws(StoreError) {
        var position = range.offset
        while position < range.end {
            let count = min(range.end - position, zeroBytes)
            let (lba, blocks) = address(position, count)
            guard hasWriteSame.load(ordering: .relaxed) else { return try writeZeros(position, range.end) }
            do throws(AgentError) {
                try initiator.writeSame(
                    lun: unit.number, lba: lba, blocks: blocks,
                    block: [UInt8](repeating: 0, count: Int(unit.capacity.blockLength)),
                    patience: longPatience)
            } catch {
                guard case .sense(let sense) = error.cause, sense.key == .illegalRequest,
                    sense.code == .invalidOperationCode || sense.code == .invalidFieldInCDB
                else { throw Self.storeError(error) }
                hasWriteSame.store(false, ordering: .relaxed)
                continue
            }
            position += count
        }
    }

    private func writeZeros(_ start: UInt64, _ end: UInt64) throws(StoreError) {
        let zeros = ZeroedMemory(count: Int(min(end - start, UInt64(transferBytes))))
        var position = start
        while position < end {
            let count = Int(min(end - position, UInt64(zeros.count)))
            try writeBlocks(
                position, UnsafeRawBufferPointer(rebasing: zeros.buffer[..<count]), fua: false)
            position += UInt64(count)
        }
    }

    private func address(_ offset: UInt64, _ count: UInt64) -> (LBA, BlockCount) {
        (LBA(offset / blocks.blockLength), BlockCount(count / blocks.blockLength))
    }

    private func scsi(_ body: () throws(AgentError) -> Void) throws(StoreError) {
        do throws(AgentError) { try body() } catch { throw Self.storeError(error) }
    }

    static func storeError(_ error: AgentError) -> StoreError {
        switch error.cause {
        case .sense(let sense):
            switch (sense.key, sense.code) {
            case (_, .spaceAllocationFailedWriteProtect): StoreError(.noSpace)
            case (.dataProtect, _): StoreError(.readOnly)
            case (_, .logicalUnitNotSupported): StoreError(.gone)
            case (_, .invalidOperationCode): StoreError(.notSupported)
            default: StoreError(.io)
            }
        case .noSpace: StoreError(.noSpace)
        case .disconnected, .timedOut, .interrupted: StoreError(.gone)
        case .scsiStatus, .control, .restarted, nil: StoreError(.io)
        }
    }
}
