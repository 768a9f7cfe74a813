import Blocks
import TestSupport

@testable import Bridge
@testable import SCSI

/// A parameter list for EXTENDED COPY. A designator whose first byte is FEh is replaced by that of the unit that its
/// second byte names, so that inputs reach units at all. Before it, one byte: bits 0 and 1, the unit that the command
/// goes to; bit 2, by which nexus; bit 3, that it is EXTENDED COPY (LID4).
///
/// What must hold besides what holds for any command (``fuzzCommands(_:)``): a copy that ended with GOOD, of segments
/// that fill whole blocks, moved exactly what a byte after byte reading of its segments moves; any other moved nothing
/// beyond the ranges that its segments name.
func fuzzCopy(_ input: [UInt8]) {
    var input = FuzzInput(input)
    let how = input.byte()
    let fuzzed = FuzzedDevice()
    fillWithPattern(fuzzed)
    let before = FuzzedDevice.contents(fuzzed)
    let form: CopyParameterList.Form = how & 8 == 0 ? .lid1 : .lid4
    let list = withDesignators(input.all(), form, fuzzed)
    let command: Command =
        form == .lid1
        ? .extendedCopy(parameterListLength: list.count)
        : .copy(.extendedCopy(parameterListLength: list.count))
    let outcome = fuzzed.execute(
        command.encoded(), list, unit: Int(how & 1), nexus: fuzzed.nexuses[Int(how >> 2 & 1)])
    check(outcome)
    let decoded = try? CopyParameterList(form, decoding: list, limits: BridgeLimits.copyList)
    // The loss of its nexus ends one that goes on in the background.
    if decoded?.isImmediate == true { for nexus in fuzzed.nexuses { fuzzed.device.closeNexus(nexus) } }
    let after = FuzzedDevice.contents(fuzzed)
    if outcome.status == .good, !list.isEmpty {
        guard let decoded else { preconditionFailure("GOOD for a list that cannot be read") }
        if !decoded.isImmediate, let expected = CopyModel(decoded, fuzzed)?.applied(to: before) {
            precondition(expected == after, "the copy moved something else than its segments say")
        }
    } else if SenseData(decoding: outcome.sense)?.key == .illegalRequest {
        precondition(before == after, "a refused list moved something")
    }
    fuzzed.checkUntouched()
    // Whatever is held of it can be asked for.
    for action in CopyResultsServiceAction.all {
        check(
            fuzzed.execute(
                Command.receiveCopyResults(action, listIdentifier: list.first ?? 0, allocationLength: 4096)
                    .encoded(), [], unit: Int(how & 1), nexus: fuzzed.nexuses[Int(how >> 2 & 1)]))
    }
    for nexus in fuzzed.nexuses { fuzzed.device.closeNexus(nexus) }
    fuzzed.device.close()
}

extension CopyResultsServiceAction {
    fileprivate static let all: [CopyResultsServiceAction] = [
        .copyStatus, .failedSegmentDetails, .operatingParameters,
    ]
}

private let patterns = (0..<FuzzedDevice.readOnlyUnit).map { unit in
    seededBytes(FuzzedDevice.blocks * (unit == 1 ? 4096 : 512), seed: UInt64(unit))
}

/// Units that can be written get bytes that tell where they come from.
private func fillWithPattern(_ fuzzed: FuzzedDevice) {
    for unit in 0..<FuzzedDevice.readOnlyUnit {
        guard (try? fuzzed.stores[unit].write(patterns[unit], at: 0)) != nil else {
            preconditionFailure("a store in memory that cannot be written")
        }
    }
}

private func withDesignators(
    _ bytes: [UInt8], _ form: CopyParameterList.Form, _ fuzzed: FuzzedDevice
) -> [UInt8] {
    var list = bytes
    guard bytes.count >= form.headerLength else { return list }
    let length = Int(bytes.bigEndian(at: form == .lid1 ? 2 : 42, as: UInt16.self))
    var offset = form.headerLength
    while offset + CSCDDescriptor.length <= min(list.count, form.headerLength + length) {
        if list[offset + 8] == 0xFE {
            let unit = fuzzed.device.units[Int(list[offset + 9]) % fuzzed.device.units.count]
            var descriptor = CSCDDescriptor(designation: unit.naa, diskBlockLength: unit.blockSize).encoded()
            // PAD and the block length stay what the input has where it has any.
            if list[(offset + 28)..<(offset + 32)].contains(where: { $0 != 0 }) {
                descriptor.replaceSubrange(28..<32, with: list[(offset + 28)..<(offset + 32)])
            }
            list.replaceSubrange(offset..<(offset + CSCDDescriptor.length), with: descriptor)
        }
        offset += CSCDDescriptor.length
    }
    return list
}

extension FuzzedDevice {
    static func contents(_ fuzzed: FuzzedDevice) -> [[UInt8]] {
        fuzzed.stores.map { store in
            guard let bytes = try? store.bytes(at: 0, count: Int(store.size)) else {
                preconditionFailure("a store in memory that cannot be read")
            }
            return bytes
        }
    }
}

/// What a copy does by the plainest reading of its segments, one after the other, byte by byte.
private struct CopyModel {
    private struct Move {
        var source: Int
        var sourceOffset: Int
        var target: Int
        var targetOffset: Int
        var count: Int
    }
    private var moves: [Move] = []

    /// Nil where a segment leaves a residue or asks for concatenation.
    init?(_ list: CopyParameterList, _ fuzzed: FuzzedDevice) {
        func unit(_ index: UInt16) -> LogicalUnit? {
            guard Int(index) < list.cscds.count else { return nil }
            let wanted = list.cscds[Int(index)].designation
            return fuzzed.device.units.first { $0.designations.contains { $0.names(sameAs: wanted) } }
        }
        for segment in list.segments {
            guard !segment.concatenate, let source = unit(segment.source),
                let target = unit(segment.destination)
            else { return nil }
            let from = Int(source.blockSize)
            let to = Int(target.blockSize)
            var move = Move(
                source: source.number, sourceOffset: Int(segment.sourceLBA.value) * from,
                target: target.number, targetOffset: Int(segment.destinationLBA.value) * to, count: 0)
            switch segment.amount {
            case .blocks(let count, ofDestination: false): move.count = Int(count) * from
            case .blocks(let count, ofDestination: true): move.count = Int(count) * to
            case .bytes(let count, let sourceOffset, let targetOffset):
                move.count = Int(count)
                move.sourceOffset += Int(sourceOffset)
                move.targetOffset += Int(targetOffset)
            }
            if case .blocks = segment.amount, move.count % from != 0 || move.count % to != 0 { return nil }
            moves.append(move)
        }
    }

    func applied(to units: [[UInt8]]) -> [[UInt8]] {
        var units = units
        for move in moves {
            let bytes = units[move.source][move.sourceOffset..<(move.sourceOffset + move.count)]
            units[move.target].replaceSubrange(
                move.targetOffset..<(move.targetOffset + move.count), with: Array(bytes))
        }
        return units
    }
}
