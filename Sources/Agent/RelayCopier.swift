import Blocks
import SCSI

/// Copies as a third-party copier does where no one target has both units: it executes an EXTENDED COPY's segments
/// itself, by reading from the one and writing to the other. So a restore from a standing bridge's unit is
/// planned, paced, watched and stopped as any other.
final class RelayCopier: ThirdPartyCopier {
    let name: String
    /// Of the lists, by index.
    private let units: [UnitDescription]
    private let reading: any BlockStore
    private let writing: any BlockStore
    private let other: any ThirdPartyCopier
    /// Bytes done of each running list.
    private let progress = Monitor<[UInt8: UInt64]>([:])

    /// - Parameters:
    ///   - reading: what is read: another bridge's unit, or data of this machine; and what that is called.
    ///   - destination: the unit that is written, and its bridge; units are looked up there.
    init(
        from reading: any BlockStore, of name: String, to destination: UnitDescription,
        at writer: any ThirdPartyCopier, isCancelled: @escaping @Sendable () -> Bool
    ) throws(AgentError) {
        self.name = "\(name) and \(writer.name)"
        self.reading = reading
        writing = try writer.store(of: destination, isCancelled: isCancelled)
        // A store is read at any byte, so it has the destination's blocks. Nobody asks what it is called.
        var source = destination
        let length = UInt64(destination.capacity.blockLength)
        guard reading.size >= length else {
            throw AgentError(
                .inputMissing, doing: "reading the copy's data on", to: name,
                because: "they have \(reading.size) bytes, less than a block of the destination")
        }
        source.capacity = Capacity(
            lastLBA: LBA(reading.size / length - 1), blockLength: destination.capacity.blockLength)
        units = [source, destination]
        other = writer
    }

    /// The unit that is read, in blocks of the destination.
    var source: UnitDescription { units[0] }

    func unit(_ number: Int) throws(AgentError) -> UnitDescription { try other.unit(number) }

    func store(
        of unit: UnitDescription, isCancelled: @escaping @Sendable () -> Bool
    ) throws(AgentError) -> any BlockStore {
        try other.store(of: unit, isCancelled: isCancelled)
    }

    func planLimits(of unit: UnitDescription) throws(AgentError) -> PlanLimits {
        PlanLimits(
            segments: AgentLimits.relaySegments, segmentBytes: UInt64(UInt32.max),
            listBytes: .max, commands: AgentLimits.relayCommands, hasBlockToBlock: true,
            hasBlockToBlockWithOffset: true)
    }

    func copiedBytes(of listIdentifier: UInt8, at unit: UnitDescription) -> UInt64? {
        progress.withLock { $0[listIdentifier] }
    }

    func copy(
        to unit: UnitDescription, _ list: CopyParameterList, isCancelled: @escaping @Sendable () -> Bool
    ) throws(AgentError) {
        let identifier = UInt8(truncatingIfNeeded: list.listIdentifier)
        progress.withLock { $0[identifier] = 0 }
        defer { progress.withLock { _ = $0.removeValue(forKey: identifier) } }
        let memory = ZeroedMemory(count: AgentLimits.relayBytes)
        for segment in list.segments {
            let length = (source: blockLength(segment.source), destination: blockLength(segment.destination))
            var from = segment.sourceLBA.value * length.source
            var to = segment.destinationLBA.value * length.destination
            var left: UInt64
            switch segment.amount {
            case .blocks(let count, let isOfDestination):
                left = UInt64(count) * (isOfDestination ? length.destination : length.source)
            case .bytes(let count, let sourceOffset, let destinationOffset):
                left = UInt64(count)
                from += UInt64(sourceOffset)
                to += UInt64(destinationOffset)
            }
            while left > 0 {
                if isCancelled() { throw CancellationToken.interrupted }
                let part = UnsafeMutableRawBufferPointer(
                    rebasing: memory.buffer.prefix(Int(min(left, UInt64(memory.count)))))
                try onStore("reading the copy's data on", name) { () throws(StoreError) in
                    try reading.read(at: from, into: part)
                }
                try onStore("writing what was read on", name) { () throws(StoreError) in
                    try writing.write(UnsafeRawBufferPointer(part), at: to, durable: false)
                }
                let count = UInt64(part.count)
                (from, to, left) = (from + count, to + count, left - count)
                progress.withLock { $0[identifier, default: 0] += count }
            }
        }
    }

    private func blockLength(_ index: UInt16) -> UInt64 { UInt64(units[Int(index)].capacity.blockLength) }

    /// Ends nothing: both sessions are others'.
    func close() {}
}
