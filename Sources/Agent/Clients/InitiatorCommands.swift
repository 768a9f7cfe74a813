import Blocks
import SCSI

/// What is needed of a logical unit before it is used.
public struct UnitDescription: Hashable, Sendable {
    public var number: Int
    public var capacity: Capacity
    public var isWriteProtected: Bool
    /// READ and WRITE take FUA.
    public var supportsFUA: Bool
    /// Of VPD page 83h, in its order.
    public var designators: [DesignationDescriptor]
    /// Nil where the unit has no VPD page B0h.
    public var limits: BlockLimits?
    /// INQUIRY says that it is a bridge of ours: it may be asked for checksums.
    public var isOurs = false

    /// Bytes.
    public var size: UInt64 { (capacity.lastLBA.value + 1) * UInt64(capacity.blockLength) }

    /// The designator for an identification CSCD descriptor: of the logical unit and at most 20 bytes; NAA
    /// before EUI-64 before T10 vendor identification before others.
    public var copyDesignator: DesignationDescriptor? {
        let order = [
            DesignationDescriptor.DesignatorType.naa, DesignationDescriptor.DesignatorType.eui64,
            DesignationDescriptor.DesignatorType.t10VendorID,
        ]
        return designators.filter {
            $0.association == DesignationDescriptor.Association.logicalUnit
                && $0.designator.count <= SCSILimits.cscdDesignatorBytes
        }.min { a, b in
            (order.firstIndex(of: a.type) ?? order.count) < (order.firstIndex(of: b.type) ?? order.count)
        }
    }
}

extension Initiator {
    /// TEST UNIT READY.
    /// - Throws: 66 when there is no such unit; else what the unit answers.
    public func testUnitReady(lun: Int, patience: Patience = Patience()) throws(AgentError) {
        try perform(.testUnitReady, lun: lun, patience: patience, doing: "looking whether it is ready:")
    }

    /// REPORT LUNS: the numbers of the units in single-level addressing.
    public func reportLUNs(patience: Patience = Patience()) throws(AgentError) -> [Int] {
        let doing = "asking for the logical units of"
        var length = 8 + 8 * 256
        while true {
            let bytes = try dataIn(
                .reportLUNs(select: ReportLUNs.selectAddressed, allocationLength: length), lun: 0, length,
                patience, doing: doing)
            let answer = try decoding(doing, lun: 0) { () throws(MalformedParameterData) in
                try ReportLUNs.decode(bytes)
            }
            // 16383 units are the most that single-level addressing has.
            guard answer.wholeLength > length, length < 8 + 8 * 16384 else {
                return answer.units.compactMap(\.number)
            }
            length = min(answer.wholeLength, 8 + 8 * 16384)
        }
    }

    /// Standard INQUIRY data.
    public func inquiry(lun: Int, patience: Patience = Patience()) throws(AgentError) -> StandardInquiry {
        let doing = "identifying"
        let bytes = try dataIn(
            .inquiry(page: nil, allocationLength: 96), lun: lun, 96, patience, doing: doing)
        return try decoding(doing, lun: lun) { () throws(MalformedParameterData) in
            try StandardInquiry(decoding: bytes)
        }
    }

    /// One VPD page.
    public func vitalProductData(
        page: UInt8, lun: Int, patience: Patience = Patience()
    ) throws(AgentError) -> VPDPage {
        let doing = "reading VPD page \(String(page, radix: 16, uppercase: true))h of"
        let bytes = try dataIn(
            .inquiry(page: page, allocationLength: 4096), lun: lun, 4096, patience, doing: doing)
        return try decoding(doing, lun: lun) { () throws(MalformedParameterData) in
            try VPDPage(decoding: bytes, expecting: page)
        }
    }

    /// The designators of VPD page 83h.
    public func designators(
        lun: Int, patience: Patience = Patience()
    ) throws(AgentError) -> [DesignationDescriptor] {
        let page = try vitalProductData(
            page: VPDPageCode.deviceIdentification, lun: lun, patience: patience)
        return try decoding("reading the designators of", lun: lun) { () throws(MalformedParameterData) in
            try page.designationDescriptors()
        }
    }

    /// READ CAPACITY (16).
    public func readCapacity(lun: Int, patience: Patience = Patience()) throws(AgentError) -> Capacity {
        let doing = "reading the capacity of"
        let bytes = try dataIn(
            .readCapacity16(allocationLength: 32), lun: lun, 32, patience, doing: doing)
        let capacity = try decoding(doing, lun: lun) { () throws(MalformedParameterData) in
            try Capacity(decoding16: bytes)
        }
        let length = capacity.blockLength
        guard length >= 512, length <= ClientLimits.scsiBlockBytes, length & (length - 1) == 0,
            capacity.lastLBA.value < UInt64.max / UInt64(length)
        else { throw malformed("its capacity cannot be", doing, lun: lun) }
        return capacity
    }

    /// MODE SENSE (6) for all pages: write protection and FUA.
    public func modeFlags(
        lun: Int, patience: Patience = Patience()
    ) throws(AgentError) -> (isWriteProtected: Bool, supportsFUA: Bool) {
        var fields = ModeSense(.six, page: ModeSense.allPages, allocationLength: 255)
        fields.disableBlockDescriptors = true
        let doing = "asking for write protection of"
        let bytes = try dataIn(.modeSense(fields), lun: lun, 255, patience, doing: doing)
        guard bytes.count >= 4 else { throw malformed("MODE SENSE data are too short", doing, lun: lun) }
        return (bytes[2] & 0x80 != 0, bytes[2] & 0x10 != 0)
    }

    /// All of the above for one unit.
    /// - Throws: 66 when the target has no such unit, or it is no disk.
    public func describe(lun: Int, patience: Patience = Patience()) throws(AgentError) -> UnitDescription {
        let inquiry = try inquiry(lun: lun, patience: patience)
        guard inquiry.peripheralQualifier == 0, inquiry.deviceType == PeripheralDeviceType.directAccessBlock
        else {
            let isMissing = inquiry.peripheralQualifier != 0
            throw AgentError(
                .inputMissing, doing: "identifying", to: "unit \(lun) of \(address)",
                because: isMissing ? "there is no such unit" : "it is no direct-access block device",
                advice: "name a unit that the bridge has")
        }
        try testUnitReady(lun: lun, patience: patience)
        let capacity = try readCapacity(lun: lun, patience: patience)
        let mode = try modeFlags(lun: lun, patience: patience)
        let designators = try designators(lun: lun, patience: patience)
        return UnitDescription(
            number: lun, capacity: capacity, isWriteProtected: mode.isWriteProtected,
            supportsFUA: mode.supportsFUA, designators: designators,
            limits: try blockLimits(lun: lun, patience),
            isOurs: inquiry.vendor == BridgeIdentity.vendor && inquiry.product == BridgeIdentity.product)
    }

    /// VPD page B0h, which is optional: a unit that refuses it, or answers what is none, has no limits to tell.
    private func blockLimits(lun: Int, _ patience: Patience) throws(AgentError) -> BlockLimits? {
        let page: VPDPage
        do throws(AgentError) {
            page = try vitalProductData(page: VPDPageCode.blockLimits, lun: lun, patience: patience)
        } catch {
            if case .sense(let sense) = error.cause, sense.key == .illegalRequest { return nil }
            throw error
        }
        return try decoding("reading VPD page B0h of", lun: lun) { () throws(MalformedParameterData) in
            try BlockLimits(page: page)
        }
    }

    /// READ (16) of whole blocks.
    /// - Parameter buffer: a multiple of the block length, at most ``ClientLimits/scsiTransferBytes``.
    public func read(
        lun: Int, lba: LBA, blocks: BlockCount, into buffer: UnsafeMutableRawBufferPointer,
        patience: Patience = Patience()
    ) throws(AgentError) {
        let doing = "reading \(blocks.value) blocks from LBA \(lba.value) of"
        let moved = try perform(
            .read(BlockTransfer(.sixteen, lba: lba, count: blocks)), lun: lun, data: .dataIn(buffer),
            patience: patience, doing: doing)
        guard moved == buffer.count else {
            throw malformed("it sent \(moved) of \(buffer.count) bytes", doing, lun: lun)
        }
    }

    /// WRITE (16) of whole blocks.
    /// - Parameter buffer: a multiple of the block length, at most ``ClientLimits/scsiTransferBytes``.
    public func write(
        lun: Int, lba: LBA, blocks: BlockCount, _ buffer: UnsafeRawBufferPointer, fua: Bool = false,
        patience: Patience = Patience()
    ) throws(AgentError) {
        let doing = "writing \(blocks.value) blocks from LBA \(lba.value) of"
        let moved = try perform(
            .write(BlockTransfer(.sixteen, lba: lba, count: blocks, fua: fua)), lun: lun,
            data: .dataOut(buffer), patience: patience, doing: doing)
        guard moved == buffer.count else {
            throw malformed("it took \(moved) of \(buffer.count) bytes", doing, lun: lun)
        }
    }

    /// SYNCHRONIZE CACHE (16) of the whole unit.
    public func synchronizeCache(lun: Int, patience: Patience = Patience()) throws(AgentError) {
        try perform(
            .synchronizeCache(SynchronizeCache(.sixteen, lba: LBA(0), count: BlockCount(0))), lun: lun,
            patience: patience, doing: "making durable")
    }

    /// WRITE SAME (16): fills `blocks` blocks with `block`, which is one block of data.
    public func writeSame(
        lun: Int, lba: LBA, blocks: BlockCount, block: [UInt8], patience: Patience = Patience()
    ) throws(AgentError) {
        precondition(blocks.value > 0 && blocks.value <= UInt64(UInt32.max))
        try dataOut(
            .writeSame16(WriteSame(lba: lba, count: blocks)), lun: lun, block, patience,
            doing: "filling \(blocks.value) blocks from LBA \(lba.value) of")
    }

    /// EXTENDED COPY (LID1), to the copy manager at `lun`. Returns when the copy is done.
    /// - Throws: what the copy manager answers; ``AgentError/Cause/sense(_:)`` has the segment's number.
    public func extendedCopy(
        lun: Int, _ list: CopyParameterList, patience: Patience = .unlimited()
    ) throws(AgentError) {
        let bytes = list.encoded()
        try dataOut(
            .extendedCopy(parameterListLength: bytes.count), lun: lun, bytes, patience,
            doing: "copying (EXTENDED COPY of \(list.segments.count) segments) by")
    }

    /// RECEIVE COPY OPERATING PARAMETERS.
    public func copyOperatingParameters(
        lun: Int, patience: Patience = Patience()
    ) throws(AgentError) -> CopyOperatingParameters {
        let doing = "asking for the copy manager's limits at"
        let bytes = try dataIn(
            .receiveCopyResults(.operatingParameters, listIdentifier: 0, allocationLength: 1024), lun: lun,
            1024, patience, doing: doing)
        return try decoding(doing, lun: lun) { () throws(MalformedParameterData) in
            try CopyOperatingParameters(decoding: bytes)
        }
    }

    /// RECEIVE COPY STATUS (LID1). The status of a copy that has ended is told once.
    public func copyStatus(
        lun: Int, listIdentifier: UInt8, patience: Patience = Patience()
    ) throws(AgentError) -> CopyStatus {
        let doing = "asking for the copy's progress at"
        let bytes = try dataIn(
            .receiveCopyResults(.copyStatus, listIdentifier: listIdentifier, allocationLength: 12), lun: lun,
            12, patience, doing: doing)
        return try decoding(doing, lun: lun) { () throws(MalformedParameterData) in
            try CopyStatus(decoding: bytes)
        }
    }

    /// RECEIVE COPY FAILURE DETAILS (LID1); nil when nothing is held.
    public func failedSegmentDetails(
        lun: Int, listIdentifier: UInt8, patience: Patience = Patience()
    ) throws(AgentError) -> FailedSegmentDetails? {
        let doing = "asking why the copy failed at"
        let bytes = try dataIn(
            .receiveCopyResults(
                .failedSegmentDetails, listIdentifier: listIdentifier, allocationLength: 512), lun: lun,
            512, patience, doing: doing)
        return try decoding(doing, lun: lun) { () throws(MalformedParameterData) in
            try FailedSegmentDetails.decode(bytes)
        }
    }

    func dataIn(
        _ command: Command, lun: Int, _ length: Int, _ patience: Patience, doing: String
    ) throws(AgentError) -> [UInt8] {
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: length, alignment: 8)
        defer { buffer.deallocate() }
        buffer.initializeMemory(as: UInt8.self, repeating: 0)
        let moved = try perform(
            command, lun: lun, data: .dataIn(buffer), patience: patience, doing: doing)
        return Array(buffer.prefix(moved))
    }

    func dataOut(
        _ command: Command, lun: Int, _ bytes: [UInt8], _ patience: Patience, doing: String
    ) throws(AgentError) {
        // A copy that stays where it is: an array's bytes do so only within a closure.
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: bytes.count, alignment: 8)
        defer { buffer.deallocate() }
        buffer.copyBytes(from: bytes)
        try perform(
            command, lun: lun, data: .dataOut(UnsafeRawBufferPointer(buffer)), patience: patience,
            doing: doing)
    }

    func decoding<Value>(
        _ doing: String, lun: Int, _ body: () throws(MalformedParameterData) -> Value
    ) throws(AgentError) -> Value {
        do throws(MalformedParameterData) { return try body() } catch {
            throw malformed("\(error.what) wrong at byte \(error.offset)", doing, lun: lun)
        }
    }

    func malformed(_ why: String, _ doing: String, lun: Int) -> AgentError {
        AgentError(
            .unavailable, doing: doing, to: "unit \(lun) of \(address)", because: why,
            advice: "check that the target is a bridge of this version")
    }
}
