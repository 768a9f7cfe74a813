import Blocks
import SCSI

/// Bytes that go from one place to another.
struct CopyPiece: Sendable {
    /// The index of the segment descriptor that they belong to.
    var segment: Int
    /// Nil: zeros, which fill up a last block (PAD).
    var source: LogicalUnit?
    var sourceOffset: UInt64
    var target: LogicalUnit
    var targetOffset: UInt64
    /// More than 0.
    var count: UInt64

    var sourceRange: ByteRange { ByteRange(offset: sourceOffset, count: count) }
    var targetRange: ByteRange { ByteRange(offset: targetOffset, count: count) }

    /// Whether it reads what it writes.
    var overlapsItself: Bool {
        source?.storage == target.storage && sourceRange.overlaps(targetRange)
    }
}

/// An EXTENDED COPY that was checked from its first segment to its last, before a byte is moved: every
/// designator resolved, every destination writable, every range within its unit.
struct CopyPlan: Sendable {
    var pieces: [CopyPiece] = []
    var segmentCount: Int
    /// Bytes to be written.
    var totalBytes: UInt64 = 0
    /// The units that take part, for the audit log.
    var sources: Set<Int> = []
    var targets: Set<Int> = []

    /// A plan whose parts were checked elsewhere.
    /// - Parameter sources: the units that are read; more than those of the pieces, where a command reads none now but
    ///   lets them be read later.
    init(pieces: [CopyPiece], segmentCount: Int, sources: Set<Int>, targets: Set<Int>) {
        self.pieces = pieces
        self.segmentCount = segmentCount
        self.sources = sources
        self.targets = targets
        totalBytes = pieces.reduce(0) { $0 + $1.count }
    }

    /// - Parameter units: all that the nexus may see; a designator means nothing outside.
    init(_ list: CopyParameterList, units: [LogicalUnit]) throws(CheckCondition) {
        segmentCount = list.segments.count
        let devices = list.cscds.enumerated().map { [form = list.form] in
            CopyDevice($1, at: form.headerLength + $0 * CSCDDescriptor.length, units: units)
        }
        var residue = CopyResidue()
        for (index, segment) in list.segments.enumerated() {
            let step = SegmentPlanner(index: index, descriptor: segment, devices: devices)
            pieces += try step.pieces(with: &residue)
            sources.insert(try step.source().unit.number)
            targets.insert(try step.destination().unit.number)
        }
        for piece in pieces { totalBytes += piece.count }
    }

    /// Bytes of the pieces that come before that at `index` in its segment.
    func bytesOfSegment(before index: Int) -> UInt64 {
        pieces[..<index].reversed().prefix { $0.segment == pieces[index].segment }.reduce(0) { $0 + $1.count }
    }
}

/// A CSCD descriptor and the unit that it names.
struct CopyDevice: Sendable {
    let result: Result<(unit: LogicalUnit, pad: Bool), DeviceFault>

    /// What is told when a segment uses the device.
    enum DeviceFault: Error {
        /// COPY ABORTED with this code and the segment's number.
        case aborted(AdditionalSenseCode)
        /// ILLEGAL REQUEST: the byte of the parameter list that is wrong.
        case field(Int)
    }

    /// - Parameter offset: of the descriptor in the parameter list.
    init(_ descriptor: CSCDDescriptor, at offset: Int, units: [LogicalUnit]) {
        guard descriptor.deviceType == PeripheralDeviceType.directAccessBlock else {
            result = .failure(.aborted(.incorrectCopyTargetDeviceType))
            return
        }
        // By type, association, code set, length and every byte: a designator cut short or filled up
        // names nothing.
        let unit = units.first { unit in
            unit.designations.contains { $0.names(sameAs: descriptor.designation) }
        }
        guard let unit, !descriptor.isNullDevice else {
            result = .failure(.aborted(.copyTargetDeviceNotReachable))
            return
        }
        guard descriptor.diskBlockLength == unit.blockSize else {
            result = .failure(.field(offset + 29))
            return
        }
        result = .success((unit, descriptor.pad))
    }
}

/// Data of earlier segments that go in front of the next (SPC-2 table 30, which SPC-3 and SPC-4 keep): where they
/// lie. They are read when they are written; a list that would overwrite them before is refused.
struct CopyResidue {
    /// Residual destination data, which did not fill a block, and behind them residual source data, which were read
    /// because blocks are read whole.
    var extents: [(unit: LogicalUnit, range: ByteRange)] = []
    /// Bytes of residual destination data.
    var destinationCount: UInt64 = 0

    var count: UInt64 { extents.reduce(0) { $0 + $1.range.count } }

    mutating func append(_ unit: LogicalUnit, _ range: ByteRange) {
        if !range.isEmpty { extents.append((unit, range)) }
    }

    /// Takes the first `wanted` bytes.
    mutating func take(_ wanted: UInt64) -> CopyResidue {
        var taken = CopyResidue()
        var rest = wanted
        while rest > 0, let (unit, range) = extents.first {
            let count = min(rest, range.count)
            taken.append(unit, ByteRange(offset: range.offset, count: count))
            rest -= count
            extents.removeFirst()
            if count < range.count {
                extents.insert(
                    (unit, ByteRange(offset: range.offset + count, count: range.count - count)), at: 0)
            }
        }
        precondition(rest == 0, "a residue shorter than what was taken")
        return taken
    }
}

/// What a segment reads, writes and leaves over, in bytes; the residue of earlier ones is used first.
struct SegmentAmounts {
    /// From the source, whole blocks except for a byte range.
    var read: UInt64
    var write: UInt64
    /// Less than a block of the destination, or what an earlier segment left and this has no use for.
    var destinationResidue: UInt64
    /// Read, and not processed.
    var sourceResidue: UInt64
    /// Whether a last block may be filled up with zeros.
    var mayPad = false

    /// 02h: `count` source blocks are processed, and as many blocks written as that fills.
    static func processing(
        _ count: UInt64, of block: UInt64, to targetBlock: UInt64, _ residue: CopyResidue
    ) -> Self {
        let processed = count * block
        let old = residue.count - residue.destinationCount
        let read = (processed - min(processed, old)).roundedUp(to: block)
        let data = residue.destinationCount + processed
        return Self(
            read: read, write: data.roundedDown(to: targetBlock), destinationResidue: data % targetBlock,
            sourceResidue: old + read - processed, mayPad: true)
    }

    /// 02h with DC: `count` destination blocks are written, and as many blocks read as that needs.
    static func writing(
        _ count: UInt64, of targetBlock: UInt64, from block: UInt64, _ residue: CopyResidue
    ) -> Self {
        let write = count * targetBlock
        let wanted = write - min(write, residue.destinationCount)
        let old = residue.count - residue.destinationCount
        let read = (wanted - min(wanted, old)).roundedUp(to: block)
        return Self(
            read: read, write: write,
            destinationResidue: residue.destinationCount - min(residue.destinationCount, write),
            sourceResidue: old + read - wanted)
    }

    /// 0Ah: `count` bytes are processed and written.
    static func range(_ count: UInt64, _ residue: CopyResidue) -> Self {
        let old = residue.count - residue.destinationCount
        return Self(
            read: count - min(count, old), write: count, destinationResidue: residue.destinationCount,
            sourceResidue: old - min(count, old))
    }
}

extension SegmentDescriptor.Amount {
    fileprivate var isZero: Bool {
        switch self {
        case .blocks(let count, _): count == 0
        case .bytes(let count, _, _): count == 0
        }
    }
}

/// One segment descriptor with the devices that it may name.
struct SegmentPlanner {
    let index: Int
    let descriptor: SegmentDescriptor
    let devices: [CopyDevice]

    func source() throws(CheckCondition) -> (unit: LogicalUnit, pad: Bool) {
        try device(descriptor.source, field: 4)
    }

    func destination() throws(CheckCondition) -> (unit: LogicalUnit, pad: Bool) {
        let device = try device(descriptor.destination, field: 6)
        if let why = device.unit.writeProtection { throw aborted(why) }
        return device
    }

    private func device(
        _ index: UInt16, field: UInt16
    ) throws(CheckCondition) -> (unit: LogicalUnit, pad: Bool) {
        guard Int(index) < devices.count else { throw aborted(.unreachableCopyTarget, field: field) }
        switch devices[Int(index)].result {
        case .success(let device): return device
        case .failure(.aborted(let code)): throw aborted(code)
        case .failure(.field(let byte)): throw CheckCondition(.invalidFieldInParameterList(byte: byte))
        }
    }

    private func aborted(_ code: AdditionalSenseCode, field: UInt16? = nil) -> CheckCondition {
        CheckCondition(
            .copyAborted(
                code, segment: UInt16(clamping: index),
                pointer: field.map { .segmentPointer(inSegmentDescriptor: true, byte: $0, bit: nil) }))
    }

    /// The segment as pieces in the order of the destination's bytes. `residue` goes in front and is left with
    /// what remains.
    func pieces(with residue: inout CopyResidue) throws(CheckCondition) -> [CopyPiece] {
        let (source, sourcePad) = try source()
        let (target, targetPad) = try destination()
        let (sourceBlock, targetBlock) = (UInt64(source.blockSize), UInt64(target.blockSize))
        var (sourceSkip, targetSkip): (UInt64, UInt64) = (0, 0)
        let amounts: SegmentAmounts
        switch descriptor.amount {
        case .blocks(let count, let ofDestination):
            amounts =
                ofDestination
                ? .writing(UInt64(count), of: targetBlock, from: sourceBlock, residue)
                : .processing(UInt64(count), of: sourceBlock, to: targetBlock, residue)
        case .bytes(let count, let sourceOffset, let targetOffset):
            guard UInt64(sourceOffset) < sourceBlock else {
                throw aborted(.invalidFieldInParameterList, field: 28)
            }
            guard UInt64(targetOffset) < targetBlock else {
                throw aborted(.invalidFieldInParameterList, field: 30)
            }
            (sourceSkip, targetSkip) = (UInt64(sourceOffset), UInt64(targetOffset))
            amounts = .range(UInt64(count), residue)
        }
        let read = try sourceRange(source, skip: sourceSkip, count: amounts.read)
        // Nothing is processed, and nothing of an earlier residue either.
        if descriptor.amount.isZero {
            _ = try targetRange(target, skip: targetSkip, count: 0)
            return []
        }
        let fate = try fate(of: amounts, sourcePad, targetPad)
        let padding = fate.isPadded ? targetBlock - amounts.destinationResidue : 0
        let used = amounts.write + (fate.isPadded ? amounts.destinationResidue : 0)
        let range = try targetRange(target, skip: targetSkip, count: used + padding)
        var data = residue
        data.append(source, read)
        let written = data.take(used)
        data.destinationCount = fate.isPadded ? 0 : amounts.destinationResidue
        residue = fate.isKept ? data : CopyResidue()
        let pieces = place(written, padding, target, range.offset)
        try requireReadBeforeWritten(pieces, residue)
        return pieces
    }

    /// Pieces are read when it is their turn, and a residue when a later segment writes it: no piece may overwrite what
    /// is still to be read, since all of it counts as read by the segments that named it.
    private func requireReadBeforeWritten(
        _ pieces: [CopyPiece], _ residue: CopyResidue
    ) throws(CheckCondition) {
        for (position, piece) in pieces.enumerated() {
            let isLater = pieces[(position + 1)...].contains {
                $0.source?.storage == piece.target.storage && $0.sourceRange.overlaps(piece.targetRange)
            }
            let isHeld = residue.extents.contains {
                $0.unit.storage == piece.target.storage && $0.range.overlaps(piece.targetRange)
            }
            if isLater || isHeld { throw aborted(.invalidFieldInParameterList, field: 20) }
        }
    }

    /// What becomes of data that are left over (SPC-2 table 30 and its note).
    private func fate(
        of amounts: SegmentAmounts, _ sourcePad: Bool, _ targetPad: Bool
    ) throws(CheckCondition) -> (isPadded: Bool, isKept: Bool) {
        if descriptor.concatenate { return (false, true) }
        let hasDestination = amounts.destinationResidue > 0
        if targetPad {
            // Where it is said how much is written, nothing may be added to that.
            if hasDestination, !amounts.mayPad { throw aborted(.unexpectedInexactSegment) }
            return (hasDestination, !sourcePad)
        }
        if !sourcePad, hasDestination || amounts.sourceResidue > 0 {
            throw aborted(.unexpectedInexactSegment)
        }
        return (false, false)
    }

    private func place(
        _ data: CopyResidue, _ padding: UInt64, _ target: LogicalUnit, _ offset: UInt64
    ) -> [CopyPiece] {
        var pieces: [CopyPiece] = []
        var position = offset
        for (unit, range) in data.extents {
            pieces.append(
                CopyPiece(
                    segment: index, source: unit, sourceOffset: range.offset, target: target,
                    targetOffset: position, count: range.count))
            position += range.count
        }
        if padding > 0 {
            pieces.append(
                CopyPiece(
                    segment: index, source: nil, sourceOffset: 0, target: target, targetOffset: position,
                    count: padding))
        }
        return pieces
    }

    /// A range beyond its unit: COPY ABORTED with a pointer to the address, and no code, because the standard has
    /// none for it and initiators (libiscsi's suite) expect none of those that mean something else.
    private func sourceRange(
        _ unit: LogicalUnit, skip: UInt64, count: UInt64
    ) throws(CheckCondition) -> ByteRange {
        guard let range = Self.bytes(unit, descriptor.sourceLBA, skip, count) else {
            throw aborted(.noAdditionalSense, field: 12)
        }
        return range
    }

    private func targetRange(
        _ unit: LogicalUnit, skip: UInt64, count: UInt64
    ) throws(CheckCondition) -> ByteRange {
        guard let range = Self.bytes(unit, descriptor.destinationLBA, skip, count) else {
            throw aborted(.noAdditionalSense, field: 20)
        }
        return range
    }

    private static func bytes(
        _ unit: LogicalUnit, _ lba: LBA, _ skip: UInt64, _ count: UInt64
    ) -> ByteRange? {
        guard lba.value <= unit.blockCount else { return nil }
        // No overflow: a unit has at most 2⁶³ bytes, the skip is less than a block.
        return ByteRange(
            checking: lba.value * UInt64(unit.blockSize) + skip, count, within: unit.store.size)
    }
}
