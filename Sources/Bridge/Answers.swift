import SCSI

/// INQUIRY data, standard and vital product data pages.
enum InquiryAnswer {
    /// SPC-4, SBC-3, iSCSI (SPC-4 table 149).
    private static let versionDescriptors: [UInt16] = [0x0460, 0x04C0, 0x0960]
    /// Peripheral qualifier 011b with device type 1Fh: nothing can be here.
    private static let absentQualifier: UInt8 = 0b011

    /// - Parameter unit: nil where there is none, which INQUIRY tells without an error.
    static func data(_ page: UInt8?, _ unit: LogicalUnit?) throws(CheckCondition) -> [UInt8] {
        guard let page else { return standard(unit) }
        guard let unit else { throw .cdb(2) }
        guard let body = pages.first(where: { $0.code == page }) else { throw .cdb(2) }
        return body.make(unit).encoded()
    }

    private static func standard(_ unit: LogicalUnit?) -> [UInt8] {
        var inquiry = StandardInquiry(
            vendor: Identity.vendor, product: Identity.product, revision: Identity.revision)
        inquiry.thirdPartyCopy = unit != nil
        inquiry.versionDescriptors = versionDescriptors
        if unit == nil {
            inquiry.peripheralQualifier = absentQualifier
            inquiry.deviceType = PeripheralDeviceType.unknown
        }
        return inquiry.encoded()
    }

    private static var pages: [(code: UInt8, make: (LogicalUnit) -> VPDPage)] {
        [
            (VPDPageCode.supportedPages, { _ in .supportedPages(Self.pages.map(\.code)) }),
            (VPDPageCode.unitSerialNumber, { .unitSerialNumber($0.serial) }),
            (
                VPDPageCode.deviceIdentification,
                { .deviceIdentification($0.designations + $0.storageDesignations) }
            ),
            (VPDPageCode.extendedInquiry, { _ in extendedInquiry }),
            (VPDPageCode.modePagePolicy, { _ in .sharedModePages }),
            (VPDPageCode.thirdPartyCopy, { ThirdPartyCopyAnswer.page($0) }),
            (VPDPageCode.blockLimits, blockLimits),
            // Not told whether it rotates.
            (
                VPDPageCode.blockDeviceCharacteristics,
                { _ in BlockDeviceCharacteristics(rotationRate: 0).page }
            ),
            (VPDPageCode.logicalBlockProvisioning, provisioning),
        ]
    }

    private static var extendedInquiry: VPDPage {
        var extended = ExtendedInquiry()
        extended.hasVolatileCache = true
        extended.orderedTasks = true
        extended.senseDataLength = UInt8(SCSILimits.senseBytes)
        return extended.page
    }

    private static func blockLimits(_ unit: LogicalUnit) -> VPDPage {
        var limits = BlockLimits()
        let most = UInt32(BridgeLimits.transferBytes) / unit.blockSize
        limits.optimalTransferGranularity = UInt16(
            clamping: max(4096, unit.physicalBlockSize) / unit.blockSize)
        limits.maximumTransfer = most
        limits.writeSameNonZero = true
        limits.optimalTransfer = UInt32(1 << 20) / unit.blockSize
        limits.maximumCompareAndWrite = BridgeLimits.compareAndWriteBlocks
        if unit.isThin {
            // All ones: as many as the descriptor's field can say.
            limits.maximumUnmapLBAs = .max
            limits.maximumUnmapDescriptors = UInt32(BridgeLimits.unmapDescriptors)
            limits.optimalUnmapGranularity = max(4096, unit.physicalBlockSize) / unit.blockSize
            limits.unmapGranularityAlignment = 0
        }
        return limits.page
    }

    private static func provisioning(_ unit: LogicalUnit) -> VPDPage {
        var provisioning = LogicalBlockProvisioning()
        if unit.isThin {
            provisioning.unmap = true
            provisioning.writeSame16Unmap = true
            provisioning.writeSame10Unmap = true
            provisioning.unmappedReadsZeros = true
            provisioning.type = .thin
        }
        return provisioning.page
    }
}
