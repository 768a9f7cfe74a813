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
        var audit = CopyAudit(.extendedCopy, task.nexus, unit)
        let most = form.headerLength + BridgeLimits.descriptorListBytes
        let list = try read(task, length, most: most, audit) { bytes throws(CheckCondition) in
            try CopyParameterList(form, decoding: bytes, limits: BridgeLimits.copyList)
        }
        audit.listIdentifier = list.usage == .none ? nil : list.listIdentifier
        audit.segments = list.segments.count
        let origin = CopyOrigin(
            task: task, unit: unit, state: state,
            serviceAction: form == .lid1 ? ServiceAction.extendedCopyLID1 : ServiceAction.extendedCopyLID4,
            listIdentifier: audit.listIdentifier, isImmediate: list.isImmediate)
        let units = units(visibleTo: task.nexus)
        var outcome = try originate(origin, audit) { audit throws(CheckCondition) in
            do throws(CheckCondition) { return CopyWork(plan: try CopyPlan(list, units: units)) } catch {
                audit.refused = Self.unresolved(list, error.sense, units)
                throw error
            }
        }
        outcome.dataOutUsed = length
        if outcome.status == .good, list.wantsSense, !list.isImmediate {
            outcome.sense = SenseTable.copied(segments: list.segments.count)
                .encoded(descriptorFormat: unit.mode.descriptorSense)
        }
        return outcome
    }

    /// The designator of the segment named by `sense` that names no unit, if that is what is wrong with it.
    private static func unresolved(
        _ list: CopyParameterList, _ sense: SenseData, _ units: [LogicalUnit]
    ) -> [UInt8]? {
        guard sense.key == .copyAborted, let index = sense.commandSpecificInformation,
            index < list.segments.count
        else { return nil }
        let segment = list.segments[Int(index)]
        for device in [segment.source, segment.destination] where device < list.cscds.count {
            let descriptor = list.cscds[Int(device)]
            if case .failure = CopyDevice(descriptor, at: 0, units: units).result {
                return descriptor.designation.designator
            }
        }
        return nil
    }

    /// Reads a parameter list; what is wrong with it leaves its line of audit, too.
    /// - Parameter most: the bytes of the longest list that keeps to the limits.
    func read<List>(
        _ task: SCSITask, _ length: Int, most: Int, _ audit: CopyAudit,
        _ decode: ([UInt8]) throws(CheckCondition) -> List
    ) throws(CheckCondition) -> List {
        do throws(CheckCondition) {
            guard task.dataOut.count >= length else { throw CheckCondition(.parameterListLengthError) }
            // Afterwards: who sends too many descriptors is told so.
            let list = try decode(Array(task.dataOut.prefix(length)))
            guard length <= most else { throw CheckCondition(.parameterListLengthError) }
            return list
        } catch {
            audit.log(CopyAudit.describe(error.sense), logger)
            throw error
        }
    }

    func execute(
        _ command: CopyCommand, _ task: SCSITask, _ unit: LogicalUnit, _ state: NexusState
    ) throws(CheckCondition) -> SCSIOutcome {
        switch command {
        case .extendedCopy(let length):
            return try extendedCopy(.lid4, task, parameterListLength: length, unit, state)
        case .abort(let identifier):
            // Nothing of the operation runs when this is answered.
            let isTerminated = state.find(identifier, at: unit)?.terminate() == true
            CopyAudit(.copy(command), task.nexus, unit)?.log(isTerminated ? "done" : "nothing runs", logger)
            guard isTerminated else { throw .cdb(2) }
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
