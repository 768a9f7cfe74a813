import Blocks
import SCSI

/// The copy manager: EXTENDED COPY, COPY OPERATION ABORT and THIRD-PARTY COPY IN.
extension BridgeDevice {
    func extendedCopy(
        _ form: CopyParameterList.Form, _ task: SCSITask, parameterListLength length: Int,
        _ unit: LogicalUnit, _ state: NexusState
    ) throws(CheckCondition) -> SCSIOutcome {
        // No list is no error and copies nothing.
        if length == 0 { return .good }
        var audit = CopyAudit("EXTENDED COPY", task.nexus)
        let list: CopyParameterList
        do throws(CheckCondition) {
            guard task.dataOut.count >= length else { throw CheckCondition(.parameterListLengthError) }
            list = try CopyParameterList(
                form, decoding: Array(task.dataOut.prefix(length)), limits: BridgeLimits.copyList)
        } catch {
            audit.log(CopyAudit.describe(error.sense), logger)
            throw error
        }
        audit.listIdentifier = list.usage == .none ? nil : list.listIdentifier
        audit.segments = list.segments.count
        let origin = CopyOrigin(
            task: task, unit: unit, state: state,
            serviceAction: form == .lid1 ? ServiceAction.extendedCopyLID1 : ServiceAction.extendedCopyLID4,
            listIdentifier: audit.listIdentifier, isImmediate: list.isImmediate)
        let units = units(visibleTo: task.nexus)
        var outcome = try originate(origin, audit) { _ throws(CheckCondition) in
            CopyWork(plan: try CopyPlan(list, units: units))
        }
        outcome.dataOutUsed = length
        if outcome.status == .good, list.wantsSense, !list.isImmediate {
            outcome.sense = SenseTable.copied(segments: list.segments.count)
                .encoded(descriptorFormat: unit.mode.descriptorSense)
        }
        return outcome
    }

    func execute(
        _ command: CopyCommand, _ task: SCSITask, _ unit: LogicalUnit, _ state: NexusState
    ) throws(CheckCondition) -> SCSIOutcome {
        switch command {
        case .extendedCopy(let length):
            return try extendedCopy(.lid4, task, parameterListLength: length, unit, state)
        case .abort(let identifier):
            // Nothing of the operation runs when this is answered.
            guard state.find(identifier, at: unit)?.terminate() == true else { throw .cdb(2) }
            return .good
        case .status(let identifier, let length):
            guard let record = state.find(identifier, at: unit) else { throw .cdb(2) }
            return .data(
                report(of: record, descriptorFormat: unit.mode.descriptorSense).encoded(),
                allocationLength: length
            )
        }
    }

    func copyResults(
        _ action: CopyResultsServiceAction, _ identifier: UInt8, _ unit: LogicalUnit, _ state: NexusState
    ) throws(CheckCondition) -> [UInt8] {
        switch action {
        case .copyStatus:
            guard let status = state.takeStatus(identifier, at: unit) else { throw .cdb(2) }
            return status.encoded()
        case .failedSegmentDetails:
            let format = unit.mode.descriptorSense
            guard let details = state.takeFailure(identifier, at: unit, descriptorFormat: format) else {
                throw .cdb(2)
            }
            return details
        case .operatingParameters: return Self.operatingParameters.encoded()
        default: throw .cdb(1, bit: 4)
        }
    }

    static var operatingParameters: CopyOperatingParameters {
        var parameters = CopyOperatingParameters()
        parameters.supportsNoListIdentifier = BridgeLimits.copyList.supportsNoListIdentifier
        parameters.maximumCSCDDescriptors = UInt16(BridgeLimits.cscdDescriptors)
        parameters.maximumSegmentDescriptors = UInt16(BridgeLimits.segmentDescriptors)
        parameters.maximumDescriptorListLength = UInt32(BridgeLimits.descriptorListBytes)
        parameters.maximumSegmentLength = BridgeLimits.segmentBytes
        parameters.totalConcurrentCopies = UInt16(BridgeLimits.concurrentCopies)
        parameters.maximumConcurrentCopies = UInt8(BridgeLimits.concurrentCopiesOfNexus)
        parameters.implementedDescriptorTypes = [
            SegmentDescriptor.TypeCode.blockToBlock, SegmentDescriptor.TypeCode.blockToBlockWithOffset,
            CSCDDescriptor.typeCode,
        ]
        return parameters
    }
}
