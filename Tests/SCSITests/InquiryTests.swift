import Blocks
import Testing

@testable import SCSI

@Suite struct InquiryTests {
    @Test func standardInquiry() throws {
        var inquiry = StandardInquiry(vendor: "OUTBOARD", product: "bridge \u{e9}", revision: "1")
        inquiry.thirdPartyCopy = true
        inquiry.versionDescriptors = [0x0460, 0x04C0]
        let bytes = inquiry.encoded()
        #expect(bytes.count == 96)
        #expect(bytes[0..<8] == [0, 0, 6, 0x12, 91, 8, 0, 2])
        #expect(String(decoding: bytes[8..<36], as: UTF8.self) == "OUTBOARDbridge ??       1   ")
        #expect(bytes[58..<62] == [4, 0x60, 4, 0xC0])
        inquiry.product = "bridge ??"
        #expect(try StandardInquiry(decoding: bytes) == inquiry)
        #expect(throws: MalformedParameterData.self) {
            try StandardInquiry(decoding: Array(bytes[..<35]))
        }
    }

    @Test func deviceIdentification() throws {
        let descriptors: [DesignationDescriptor] = [
            .naaLocallyAssigned(0x0123), .t10Vendor("OUTBOARD", unique: "x1"), .eui64(5),
            .naaRegisteredExtended(company: 0xABCDEF, vendor: 1, extensionValue: 2),
            DesignationDescriptor(
                codeSet: 3, association: 1, type: 8, protocolIdentifier: 5, designator: [65, 0, 0, 0]),
        ]
        let page = VPDPage.deviceIdentification(descriptors)
        let bytes = page.encoded()
        #expect(
            bytes[0..<16] == [0, 0x83, 0, UInt8(bytes.count - 4), 1, 3, 0, 8, 0x30, 0, 0, 0, 0, 0, 1, 0x23])
        #expect(descriptors[3].designator.prefix(8) == [0x6A, 0xBC, 0xDE, 0xF0, 0, 0, 0, 1])
        #expect(descriptors[4].encoded()[0..<4] == [0x53, 0x98, 0, 4])
        let decoded = try VPDPage(decoding: bytes, expecting: 0x83)
        #expect(try decoded.designationDescriptors() == descriptors)
        for length in 0..<bytes.count {
            #expect(throws: MalformedParameterData.self) {
                try VPDPage(decoding: Array(bytes[..<length]), expecting: 0x83)
            }
        }
        #expect(throws: MalformedParameterData.self) {
            try VPDPage(code: 0x83, body: [1, 3, 0, 8, 0]).designationDescriptors()
        }
    }

    @Test func designatorsCompareByTheirWholeName() {
        let name = DesignationDescriptor.eui64(0x0100)
        var shorter = name
        shorter.designator.removeLast()
        #expect(!name.names(sameAs: shorter))
        #expect(!shorter.names(sameAs: name))
        var port = name
        port.association = DesignationDescriptor.Association.targetPort
        #expect(!name.names(sameAs: port))
        #expect(name.names(sameAs: .eui64(0x0100)))
    }

    @Test func otherPages() throws {
        #expect(VPDPage.supportedPages([0x83, 0]).encoded() == [0, 0, 0, 2, 0, 0x83])
        #expect(VPDPage.unitSerialNumber("ab").encoded() == [0, 0x80, 0, 2, 97, 98])
        #expect(VPDPage.unitSerialNumber("ab ").serialNumber == "ab")
        var limits = BlockLimits()
        limits.maximumTransfer = 65536
        limits.unmapGranularityAlignment = 3
        limits.maximumWriteSame = 1 << 33
        limits.writeSameNonZero = true
        #expect(limits.page.encoded().count == 64)
        #expect(limits.page.body[28..<32] == [0x80, 0, 0, 3])
        #expect(try BlockLimits(page: limits.page) == limits)
        #expect(
            BlockDeviceCharacteristics(rotationRate: 1).page.encoded().prefix(6) == [0, 0xB1, 0, 60, 0, 1])
        var provisioning = LogicalBlockProvisioning()
        provisioning.writeSame16Unmap = true
        provisioning.type = .thin
        #expect(provisioning.page.encoded() == [0, 0xB2, 0, 4, 0, 0x40, 2, 0])
        let copy = ThirdPartyCopyPage([
            .supportedCommands([(.extendedCopy, [0]), (.receiveCopyResults, [0, 3, 4])])
        ])
        #expect(
            copy.page.encoded() == [
                0, 0x8F, 0, 16, 0, 1, 0, 12, 8, 0x83, 1, 0, 0x84, 3, 0, 3, 4, 0, 0, 0,
            ])
    }

    @Test func capacityAndUnits() throws {
        var capacity = Capacity(lastLBA: LBA(0x1_0000_0001), blockLength: 512)
        capacity.physicalBlockExponent = 3
        capacity.isProvisioned = true
        #expect(capacity.encoded10() == [255, 255, 255, 255, 0, 0, 2, 0])
        #expect(capacity.encoded16().count == 32)
        #expect(capacity.encoded16()[8..<16] == [0, 0, 2, 0, 0, 3, 0x80, 0])
        #expect(try Capacity(decoding16: capacity.encoded16()) == capacity)
        #expect(
            try Capacity(decoding10: [0, 0, 0, 9, 0, 0, 16, 0])
                == Capacity(lastLBA: LBA(9), blockLength: 4096))
        let units = [0, 255, 256, 16383].compactMap { LogicalUnitNumber($0) }
        let data = ReportLUNs.encode(units)
        #expect(data[0..<4] == [0, 0, 0, 32])
        #expect(data[16..<18] == [0, 255])
        #expect(data[24..<26] == [0x41, 0])
        let (decoded, length) = try ReportLUNs.decode(data)
        #expect(decoded == units && length == data.count)
        #expect(decoded.map(\.number) == [0, 255, 256, 16383])
        #expect(try ReportLUNs.decode(Array(data[..<17])).units.count == 1)
    }

    @Test func modeParameters() {
        let parameters = ModeParameters(
            isWriteProtected: true, supportsFUA: true, capacity: Capacity(lastLBA: LBA(7), blockLength: 512),
            pages: [.caching(writeCache: true)])
        let six = parameters.encoded6()
        #expect(six[0..<14] == [31, 0, 0x90, 8, 0, 0, 0, 8, 0, 0, 2, 0, 8, 18])
        #expect(six.count == 32 && six[14] == 4)
        let ten = parameters.encoded10(longDescriptor: true)
        #expect(ten[0..<8] == [0, 42, 0, 0x90, 1, 0, 0, 16])
        #expect(ten.count == 44)
    }
}
