import Blocks
import SCSI

/// VPD page 8Fh: what the copy manager can do with a unit, made from what is enforced.
enum ThirdPartyCopyAnswer {
    static func page(_ unit: LogicalUnit) -> VPDPage {
        ThirdPartyCopyPage([
            .supportedCommands(commands),
            .parameterData(
                cscdDescriptors: UInt16(BridgeLimits.cscdDescriptors),
                segmentDescriptors: UInt16(BridgeLimits.segmentDescriptors),
                descriptorListLength: UInt32(BridgeLimits.descriptorListBytes), inlineDataLength: 0),
            .supportedDescriptors([
                SegmentDescriptor.TypeCode.blockToBlock, SegmentDescriptor.TypeCode.blockToBlockWithOffset,
                CSCDDescriptor.typeCode,
            ]),
            .generalOperations(
                concurrentCopies: UInt32(BridgeLimits.concurrentCopies),
                identifiedCopies: UInt32(BridgeLimits.concurrentCopiesOfNexus),
                segmentLength: BridgeLimits.segmentBytes),
            // No segment that is taken makes held data.
            .heldData(limit: 0, granularity: 0),
        ]).page
    }

    /// From the operation table, so that neither has what the other lacks.
    private static let commands: [(code: OperationCode, serviceActions: [UInt8])] =
        [.extendedCopy, .receiveCopyResults].map { code in
            (code, OperationTable.operations(of: code).compactMap(\.serviceAction).sorted())
        }
}
