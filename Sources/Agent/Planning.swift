import Blocks
import SCSI

/// What a copy manager takes in one command.
public struct PlanLimits: Hashable, Sendable {
    /// Segment descriptors of one command, more than 0.
    public var segments: Int
    /// Bytes of one segment.
    public var segmentBytes: UInt64
    /// Bytes of CSCD and segment descriptors together.
    public var listBytes: Int
    /// Commands of one initiator at a time.
    public var commands: Int
    public var hasBlockToBlock: Bool
    public var hasBlockToBlockWithOffset: Bool

    public init(
        segments: Int, segmentBytes: UInt64, listBytes: Int, commands: Int, hasBlockToBlock: Bool,
        hasBlockToBlockWithOffset: Bool
    ) {
        self.segments = segments
        self.segmentBytes = segmentBytes
        self.listBytes = listBytes
        self.commands = commands
        self.hasBlockToBlock = hasBlockToBlock
        self.hasBlockToBlockWithOffset = hasBlockToBlockWithOffset
    }

    init(_ parameters: CopyOperatingParameters) {
        let types = parameters.implementedDescriptorTypes
        segments = Int(parameters.maximumSegmentDescriptors)
        segmentBytes =
            parameters.maximumSegmentLength == 0
            ? UInt64(UInt32.max) : UInt64(parameters.maximumSegmentLength)
        listBytes = Int(parameters.maximumDescriptorListLength)
        commands = max(1, Int(parameters.maximumConcurrentCopies))
        hasBlockToBlock = types.contains(SegmentDescriptor.TypeCode.blockToBlock)
        hasBlockToBlockWithOffset = types.contains(SegmentDescriptor.TypeCode.blockToBlockWithOffset)
    }
}

/// Bytes that lie one behind the other on the source and on the destination.
public struct CopyRun: Hashable, Sendable {
    /// Byte addresses.
    public var source: UInt64
    public var destination: UInt64
    public var count: UInt64

    public init(source: UInt64, destination: UInt64, count: UInt64) {
        self.source = source
        self.destination = destination
        self.count = count
    }
}

/// The segments of one EXTENDED COPY.
public struct PlannedCommand: Hashable, Sendable {
    public var segments: [SegmentDescriptor]
    /// Bytes of the destination that they write, segment by segment.
    public var destinations: [ByteRange]
    public var bytes: UInt64
}

/// Cuts runs into commands, lazily: within the copy manager's limits, and none larger than asked.
public struct CommandPlan: Sequence, IteratorProtocol, Sendable {
    private let segmentBytes: UInt64
    private let segmentsPerCommand: Int
    private let commandBytes: UInt64
    private let sourceBlock: UInt64
    private let destinationBlock: UInt64
    private let usesOffsets: Bool
    private var runs: [CopyRun]
    private var current = 0

    /// Bytes of all commands together.
    public let total: UInt64

    /// - Parameters:
    ///   - runs: whole blocks of both units.
    ///   - commandBytes: what one command shall move at most; at least one segment of one block it is always.
    /// - Returns: nil when the copy manager cannot copy between two such units at all.
    public init?(
        _ runs: [CopyRun], sourceBlock: UInt64, destinationBlock: UInt64, limits: PlanLimits,
        commandBytes: UInt64 = AgentLimits.commandBytes
    ) {
        let block = Swift.max(sourceBlock, destinationBlock)
        // A 02h segment counts in 16 bits; a power of two of blocks keeps every segment aligned for direct I/O.
        usesOffsets = sourceBlock != destinationBlock || !limits.hasBlockToBlock
        guard usesOffsets ? limits.hasBlockToBlockWithOffset : true else { return nil }
        let most = usesOffsets ? UInt64(UInt32.max) : 0x8000 * sourceBlock
        let bound = Swift.min(most, limits.segmentBytes, Swift.max(commandBytes, block))
        guard bound >= block, limits.segments > 0 else { return nil }
        segmentBytes = 1 << (63 - UInt64(bound.leadingZeroBitCount))
        let room = limits.listBytes - 2 * CSCDDescriptor.length
        segmentsPerCommand = Swift.min(limits.segments, room / (usesOffsets ? 32 : 28))
        guard segmentsPerCommand > 0, segmentBytes % block == 0 else { return nil }
        self.commandBytes = Swift.max(commandBytes, segmentBytes)
        self.sourceBlock = sourceBlock
        self.destinationBlock = destinationBlock
        self.runs = runs
        total = runs.reduce(0) { $0 + $1.count }
    }

    public mutating func next() -> PlannedCommand? {
        var command = PlannedCommand(segments: [], destinations: [], bytes: 0)
        while current < runs.count, command.segments.count < segmentsPerCommand {
            let count = Swift.min(runs[current].count, segmentBytes, commandBytes - command.bytes)
            if count == 0 {
                if runs[current].count > 0 { break }
                current += 1
                continue
            }
            command.segments.append(segment(runs[current], count))
            command.destinations.append(ByteRange(offset: runs[current].destination, count: count))
            command.bytes += count
            runs[current].source += count
            runs[current].destination += count
            runs[current].count -= count
            if runs[current].count == 0 { current += 1 }
        }
        return command.segments.isEmpty ? nil : command
    }

    private func segment(_ run: CopyRun, _ count: UInt64) -> SegmentDescriptor {
        precondition(
            run.source % sourceBlock == 0 && run.destination % destinationBlock == 0
                && count % sourceBlock == 0 && count % destinationBlock == 0, "a run of parts of blocks")
        return SegmentDescriptor(
            source: 0, sourceLBA: LBA(run.source / sourceBlock), destination: 1,
            destinationLBA: LBA(run.destination / destinationBlock),
            amount: usesOffsets
                ? .bytes(UInt32(count), sourceOffset: 0, destinationOffset: 0)
                : .blocks(UInt16(count / sourceBlock), ofDestination: false))
    }
}

/// Places at which two views of a volume are compared, in their order: both ends, and `count` drawn by lot between,
/// each in a part of its own; all of a volume that they could cover.
func samplePlaces(of size: UInt64, block: UInt64, count: Int) -> [ByteRange] {
    let length = AgentLimits.sampleBytes
    guard size > UInt64(count) * length else {
        return stride(from: 0, to: size, by: Int(length)).map {
            ByteRange(offset: $0, count: min(length, size - $0))
        }
    }
    var places = [ByteRange(offset: 0, count: length)]
    let part = size / UInt64(count)
    var random = RandomSource()
    for index in 0..<UInt64(count) {
        let start = UInt64.random(in: 0...(part - length), using: &random) + index * part
        places.append(ByteRange(offset: start.roundedDown(to: block), count: length))
    }
    let last = (size - length).roundedDown(to: block)
    places.append(ByteRange(offset: last, count: size - last))
    return places
}
