import Blocks
import Testing

@testable import SCSI

/// The bytes of ROD tokens and of their commands.
@Suite struct TokenTests {
    private let creator = CSCDDescriptor(
        designation: .naaLocallyAssigned(0x123), diskBlockLength: 512)

    private func token(_ extended: [UInt8] = [9, 8, 7]) -> RODToken {
        var device = DesignationDescriptor.naaLocallyAssigned(0xABC)
        device.association = DesignationDescriptor.Association.targetDevice
        var capacity = Capacity(lastLBA: LBA(99), blockLength: 4096)
        capacity.isProvisioned = true
        capacity.physicalBlockExponent = 3
        return RODToken(
            type: .accessUponReference, identifier: 0x1122_3344_5566_7788, creator: creator,
            bytesRepresented: 1 << 40, capacity: capacity, device: device, extendedData: extended)
    }

    @Test func commands() throws {
        let commands: [(TokenCommand, [UInt8])] = [
            (
                .populate(listIdentifier: 0x0102_0304, parameterListLength: 32),
                [0x83, 0x10, 0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 32, 0, 0]
            ),
            (
                .write(listIdentifier: 0x0102_0304, parameterListLength: 552),
                [0x83, 0x11, 0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 2, 40, 0, 0]
            ),
            (
                .information(listIdentifier: 0x0102_0304, allocationLength: 1024),
                [0x84, 0x07, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0]
            ),
            (.reportAll(allocationLength: 255), [0x84, 0x08, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0]),
        ]
        for (command, cdb) in commands {
            #expect(Command.token(command).encoded() == cdb)
            #expect(try Command(decoding: cdb) == .token(command))
        }
        // What EXTENDED COPY and RECEIVE COPY RESULTS are stays so.
        #expect(
            try Command(decoding: [0x83] + [UInt8](repeating: 0, count: 15))
                == .extendedCopy(parameterListLength: 0))
    }

    @Test func tokenLayout() throws {
        let bytes = token().encoded()
        #expect(bytes.count == RODToken.length)
        #expect(bytes[..<16] == [0, 1, 0, 0, 0, 0, 1, 0xF8, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88])
        #expect(Array(bytes[16..<48]) == creator.encoded())
        #expect(bytes[48..<64] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0])
        #expect(bytes[64..<96].allSatisfy { $0 == 0 })
        #expect(bytes[96..<104] == [0, 0, 16, 0, 0, 3, 0x80, 0])
        // A binary NAA designator of the target device.
        #expect(bytes[128..<134] == [0x01, 0x23, 0, 8, 0x30, 0])
        #expect(bytes[140..<143] == [9, 8, 7])
        let read = try RODToken(decoding: bytes)
        #expect(read.encoded() == bytes && read.identifier == 0x1122_3344_5566_7788)
        #expect(read.capacity.isProvisioned && !read.capacity.unmappedReadsZeros)
        #expect(read.capacity.blockLength == 4096 && read.capacity.physicalBlockExponent == 3)
        #expect(throws: MalformedParameterData.self) { try RODToken(decoding: bytes.dropLast()) }
        for offset in [6, 16, 23, 48] {
            var broken = bytes
            broken[offset] = 0xFF
            #expect(throws: MalformedParameterData.self) { try RODToken(decoding: broken) }
        }
        #expect(RODToken.blockDeviceZero.count == 512)
        #expect(RODToken.blockDeviceZero[..<8] == [0xFF, 0xFF, 0, 1, 0, 0, 1, 0xF8])
        #expect(RODToken.blockDeviceZero[8...].allSatisfy { $0 == 0 })
    }

    @Test func populateTokenList() throws {
        var list = PopulateTokenList([
            BlockDeviceRange(lba: LBA(0x10), count: BlockCount(2)),
            BlockDeviceRange(lba: LBA(1 << 40), count: BlockCount(0)),
        ])
        list.inactivityTimeout = 60
        list.type = .pointInTimeAny
        list.immediate = true
        let bytes = list.encoded()
        #expect(bytes[..<16] == [0, 46, 3, 0, 0, 0, 0, 60, 0, 0x80, 0xFF, 0xFF, 0, 0, 0, 32])
        #expect(bytes[16..<32] == [0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 2, 0, 0, 0, 0])
        #expect(try PopulateTokenList(decoding: bytes, most: 2) == list)
        list.type = nil
        #expect(try PopulateTokenList(decoding: list.encoded(), most: 2).type == nil)
        // Without RTV the type means nothing.
        var untold = list.encoded()
        untold[8] = 0xEE
        #expect(try PopulateTokenList(decoding: untold, most: 2).type == nil)
    }

    @Test func writeUsingTokenList() throws {
        let token = token().encoded()
        var list = WriteUsingTokenList(token: token, [BlockDeviceRange(lba: LBA(7), count: BlockCount(9))])
        list.offset = BlockCount(0x0102)
        list.deleteToken = true
        let bytes = list.encoded()
        #expect(bytes.count == 552)
        #expect(bytes[..<16] == [2, 38, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2])
        #expect(Array(bytes[16..<528]) == token)
        #expect(bytes[528..<544] == [0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 7])
        #expect(try WriteUsingTokenList(decoding: bytes, most: 1) == list)
    }

    private func refusal(_ bytes: [UInt8], most: Int = 4) -> SenseData? {
        do throws(CheckCondition) {
            _ = try PopulateTokenList(decoding: bytes, most: most)
            return nil
        } catch { return error.sense }
    }

    private func populate(_ ranges: [(UInt64, UInt64)]) -> [UInt8] {
        PopulateTokenList(ranges.map { BlockDeviceRange(lba: LBA($0.0), count: BlockCount($0.1)) }).encoded()
    }

    @Test func badLists() throws {
        let good = populate([(0, 8)])
        #expect(refusal(good) == nil)
        for count in 0..<16 { #expect(refusal(Array(good[..<count])) == .parameterListLengthError) }
        for count in 16..<32 { #expect(refusal(Array(good[..<count])) == .parameterListLengthError) }
        // Fewer bytes told than one descriptor needs.
        var short = good
        short[1] = 29
        #expect(refusal(short) == .invalidFieldInParameterList(byte: 0))
        // No descriptor, a part of one, more than came.
        for (length, sense): (UInt8, SenseData) in [
            (0, .invalidFieldInParameterList(byte: 14)), (15, .invalidFieldInParameterList(byte: 14)),
            (17, .invalidFieldInParameterList(byte: 14)), (32, .parameterListLengthError),
        ] {
            var bytes = good
            bytes[15] = length
            #expect(refusal(bytes) == sense)
        }
        // One more than are taken.
        let five = populate((0..<5).map { ($0 * 10, 1) })
        #expect(refusal(five, most: 5) == nil)
        #expect(
            refusal(five, most: 4)
                == .invalidFieldInParameterList(byte: 14, code: .tooManySegmentDescriptors))
    }

    @Test func rangesThatShareBlocks() {
        let cases: [([(UInt64, UInt64)], Int?)] = [
            ([(0, 8), (8, 8)], nil),
            ([(8, 8), (0, 8)], nil),
            ([(8, 8), (0, 9)], 32),
            ([(0, 9), (8, 8)], 32),
            ([(5, 1), (5, 1)], 32),
            // Ranges of nothing share nothing.
            ([(5, 0), (5, 1), (5, 0)], nil),
            ([(0, 100), (50, 0), (99, 1)], 48),
            ([(UInt64.max, 0xFFFF_FFFF), (0, 0xFFFF_FFFF)], nil),
            ([(UInt64.max - 1, 2), (UInt64.max, 1)], 32),
        ]
        for (ranges, byte) in cases {
            #expect(refusal(populate(ranges)) == byte.map { .invalidFieldInParameterList(byte: $0) })
        }
    }

    @Test func allTokens() throws {
        let answer = AllRODTokens.encode([token().encoded(), token([1]).encoded()])
        #expect(answer.count == 8 + 192 && answer[..<8] == [0, 0, 0, 196, 0, 0, 0, 0])
        #expect(try AllRODTokens.decode(answer).map(\.count) == [96, 96])
        #expect(try AllRODTokens.decode(AllRODTokens.encode([])).isEmpty)
        #expect(throws: MalformedParameterData.self) { try AllRODTokens.decode(answer.dropLast()) }
        #expect(throws: MalformedParameterData.self) { try AllRODTokens.decode([0, 0, 0]) }
        #expect(throws: MalformedParameterData.self) { try AllRODTokens.decode([0, 0, 0, 0, 0, 0, 0, 0]) }
    }

    @Test func thirdPartyCopyPage() throws {
        let page = ThirdPartyCopyPage([
            .heldData(limit: 5, granularity: 1),
            .generalOperations(concurrentCopies: 1, identifiedCopies: 2, segmentLength: 3),
            .supportedRODs([.init(.accessUponReference, isMade: true, isTaken: true)]),
            .tokenFeatures(lifetime: 1...9, inactivityTimeout: 8, bytes: (7, 6)),
            .copyGroup(uuid: [UInt8](0..<16)),
            .supportedDescriptors([0xE4, 0x02]),
            .parameterData(
                cscdDescriptors: 1, segmentDescriptors: 2, descriptorListLength: 3, inlineDataLength: 4),
            .supportedCommands([(.extendedCopy, [0x10, 0x11])]),
            .blockDeviceTokenLimits(
                rangeDescriptors: 1, inactivityTimeout: (2, 3), blocks: (4, 5)),
        ])
        let read = try ThirdPartyCopyPage(page: page.page)
        #expect(
            read.descriptors.map(\.type) == [0, 1, 4, 8, 0xD, 0x106, 0x108, 0x8001, 0xC001])
        // What the standard's tables give each, behind the four bytes of type and length.
        #expect(read.descriptors.map(\.body.count) == [32, 8, 28, 4, 20, 92, 68, 32, 28])
        #expect(read.descriptors.allSatisfy { $0.body.count % 4 == 0 })
        let bodies = read.descriptors.map(\.body)
        #expect(bodies[0][6..<16] == [0, 1, 0, 0, 0, 2, 0, 0, 0, 3])
        #expect(bodies[0][16...] == [0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 5])
        #expect(bodies[1] == [4, 0x83, 2, 0x10, 0x11, 0, 0, 0])
        #expect(bodies[3] == [2, 0x02, 0xE4, 0])
        #expect(bodies[4][..<5] == [18, 0x10, 0, 0, 1])
        #expect(bodies[5][12..<24] == [0, 0, 0, 1, 0, 0, 0, 9, 0, 0, 0, 8])
        #expect(bodies[5][42..<48] == [0, 48, 0, 0, 0, 44])
        #expect(bodies[5][52..<60] == [0, 0, 0, 0, 0, 0, 0, 7])
        #expect(try read.descriptors[6].rodTypes().map(\.type) == [.accessUponReference])
        #expect(throws: MalformedParameterData.self) { try read.descriptors[5].rodTypes() }
        var cut = page.page
        cut.body.removeLast()
        #expect(throws: MalformedParameterData.self) { try ThirdPartyCopyPage(page: cut) }
    }
}
