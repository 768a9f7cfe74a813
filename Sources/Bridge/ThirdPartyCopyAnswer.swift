import Blocks
import SCSI

/// VPD page 8Fh: what the copy manager can do with a unit, made from what is enforced.
enum ThirdPartyCopyAnswer {
    static func page(_ unit: LogicalUnit) -> VPDPage {
        let block = UInt64(unit.blockSize)
        let seconds = BridgeLimits.tokenSeconds
        return ThirdPartyCopyPage([
            .blockDeviceTokenLimits(
                rangeDescriptors: UInt16(BridgeLimits.tokenRanges),
                inactivityTimeout: (seconds.upperBound, BridgeLimits.tokenDefaultSeconds),
                blocks: (BridgeLimits.tokenBytes / block, BridgeLimits.tokenBestBytes / block)),
            .supportedCommands(commands),
            .parameterData(
                cscdDescriptors: UInt16(BridgeLimits.cscdDescriptors),
                segmentDescriptors: UInt16(BridgeLimits.segmentDescriptors),
                descriptorListLength: UInt32(BridgeLimits.descriptorListBytes), inlineDataLength: 0),
            .supportedDescriptors([
                SegmentDescriptor.TypeCode.blockToBlock, SegmentDescriptor.TypeCode.blockToBlockWithOffset,
                CSCDDescriptor.typeCode,
            ]),
            .copyGroup(uuid: group),
            // A token that is used in time has no end.
            .tokenFeatures(
                lifetime: seconds.lowerBound...UInt32.max, inactivityTimeout: seconds.upperBound,
                bytes: (BridgeLimits.tokenBytes, BridgeLimits.tokenBestBytes)),
            .supportedRODs(rods(unit)),
            .generalOperations(
                concurrentCopies: UInt32(BridgeLimits.concurrentCopies),
                identifiedCopies: UInt32(BridgeLimits.concurrentCopiesOfNexus),
                segmentLength: BridgeLimits.segmentBytes),
            // No segment that is taken makes held data.
            .heldData(limit: 0, granularity: 0),
        ]).page
    }

    private static func rods(_ unit: LogicalUnit) -> [ThirdPartyCopyPage.Descriptor.SupportedROD] {
        let isWritable = !unit.isReadOnly
        var rods: [ThirdPartyCopyPage.Descriptor.SupportedROD] = [
            .init(.accessUponReference, isMade: true, isTaken: isWritable)
        ]
        if unit.keepsInstants { rods.append(.init(.pointInTimeDefault, isMade: true, isTaken: false)) }
        if isWritable {
            rods.append(.init(.pointInTimeChangeVulnerable, isMade: unit.keepsInstants, isTaken: true))
        }
        if unit.keepsInstants { rods.append(.init(.pointInTimeAny, isMade: true, isTaken: false)) }
        if isWritable { rods.append(.init(.blockDeviceZero, isMade: false, isTaken: true)) }
        return rods
    }

    /// A UUID (version 4) of this process: its units copy among each other, and with nobody else's.
    private static let group: [UInt8] = {
        var uuid = (0..<16).map { _ in UInt8.random(in: 0...255) }
        uuid[6] = uuid[6] & 0x0F | 0x40
        uuid[8] = uuid[8] & 0x3F | 0x80
        return uuid
    }()

    /// From the operation table, so that neither has what the other lacks.
    private static let commands: [(code: OperationCode, serviceActions: [UInt8])] =
        [.extendedCopy, .receiveCopyResults].map { code in
            (code, OperationTable.operations(of: code).compactMap(\.serviceAction).sorted())
        }
}
