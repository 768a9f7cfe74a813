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
            (VPDPageCode.thirdPartyCopy, { _ in thirdPartyCopy }),
            (VPDPageCode.blockLimits, blockLimits),
            // Not told whether it rotates.
            (
                VPDPageCode.blockDeviceCharacteristics,
                { _ in BlockDeviceCharacteristics(rotationRate: 0).page }
            ),
            (VPDPageCode.logicalBlockProvisioning, provisioning),
        ]
    }

    private static var thirdPartyCopy: VPDPage {
        ThirdPartyCopyPage(commands: [
            (OperationCode.extendedCopy, [ServiceAction.extendedCopyLID1]),
            (
                OperationCode.receiveCopyResults,
                [
                    CopyResultsServiceAction.copyStatus.rawValue,
                    CopyResultsServiceAction.operatingParameters.rawValue,
                    CopyResultsServiceAction.failedSegmentDetails.rawValue,
                ]
            ),
        ]).page
    }

    private static func blockLimits(_ unit: LogicalUnit) -> VPDPage {
        var limits = BlockLimits()
        let most = UInt32(BridgeLimits.transferBytes) / unit.blockSize
        limits.optimalTransferGranularity = UInt16(4096 / unit.blockSize)
        limits.maximumTransfer = most
        limits.optimalTransfer = UInt32(1 << 20) / unit.blockSize
        limits.maximumCompareAndWrite = BridgeLimits.compareAndWriteBlocks
        if unit.isThin {
            // All ones: as many as the descriptor's field can say.
            limits.maximumUnmapLBAs = .max
            limits.maximumUnmapDescriptors = UInt32(BridgeLimits.unmapDescriptors)
            limits.optimalUnmapGranularity = max(4096 / unit.blockSize, 1)
            limits.unmapGranularityAlignment = 0
        }
        return limits.page
    }

    private static func provisioning(_ unit: LogicalUnit) -> VPDPage {
        var provisioning = LogicalBlockProvisioning()
        if unit.isThin {
            provisioning.unmap = true
            provisioning.writeSame16Unmap = true
            provisioning.unmappedReadsZeros = true
            provisioning.type = .thin
        }
        return provisioning.page
    }
}

/// MODE SENSE data.
enum ModeSenseAnswer {
    static func data(_ fields: ModeSense, _ unit: LogicalUnit) throws(CheckCondition) -> [UInt8] {
        if fields.control == .saved { throw CheckCondition(SenseTable.savedNotSupported) }
        let selected: [ModePage]
        if fields.page == ModeSense.allPages {
            guard fields.subpage == 0 || fields.subpage == ModeSense.allSubpages else { throw .cdb(3) }
            selected = pages
        } else {
            selected = pages.filter { $0.code == fields.page }
            if selected.isEmpty { throw .cdb(2, bit: 5) }
            guard fields.subpage == 0 else { throw .cdb(3) }
        }
        let parameters = ModeParameters(
            isWriteProtected: unit.isReadOnly, supportsFUA: true,
            capacity: fields.disableBlockDescriptors ? nil : unit.capacity,
            pages: fields.control == .changeable ? selected.map(\.nothingChangeable) : selected)
        return fields.form == .six
            ? parameters.encoded6() : parameters.encoded10(longDescriptor: fields.longLBAAccepted)
    }

    /// GOOD may come before the data are on stable storage: direct I/O leaves them in the device's cache.
    private static let pages: [ModePage] = [
        .caching(writeCache: true), .control(),
        ModePage(code: ModePage.informationalExceptions, body: [UInt8](repeating: 0, count: 10)),
    ]
}
