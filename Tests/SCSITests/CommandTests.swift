import Blocks
import Testing

@testable import SCSI

@Suite struct CommandTests {
    /// Commands with the CDBs that the standards' tables give them.
    static let golden: [(Command, [UInt8])] = [
        (.testUnitReady, [0, 0, 0, 0, 0, 0]),
        (.requestSense(descriptorFormat: true, allocationLength: 252), [3, 1, 0, 0, 252, 0]),
        (.inquiry(page: nil, allocationLength: 0x0124), [0x12, 0, 0, 1, 0x24, 0]),
        (.inquiry(page: 0x83, allocationLength: 255), [0x12, 1, 0x83, 0, 255, 0]),
        (.reportLUNs(select: 2, allocationLength: 4096), [0xA0, 0, 2, 0, 0, 0, 0, 0, 0x10, 0, 0, 0]),
        (.readCapacity10, [0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        (
            .readCapacity16(allocationLength: 32),
            [0x9E, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0]
        ),
        (.read(BlockTransfer(.six, lba: LBA(0x1F_0203), count: BlockCount(256))), [8, 0x1F, 2, 3, 0, 0]),
        (
            .write(BlockTransfer(.ten, lba: LBA(0x0102_0304), count: BlockCount(0x0506), fua: true)),
            [0x2A, 8, 1, 2, 3, 4, 0, 5, 6, 0]
        ),
        (
            .read(BlockTransfer(.twelve, lba: LBA(1), count: BlockCount(0x0102_0304))),
            [0xA8, 0, 0, 0, 0, 1, 1, 2, 3, 4, 0, 0]
        ),
        (
            .write(BlockTransfer(.sixteen, lba: LBA(0x0102_0304_0506_0708), count: BlockCount(9))),
            [0x8A, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 9, 0, 0]
        ),
        (
            .synchronizeCache(SynchronizeCache(.ten, lba: LBA(7), count: BlockCount(8), immediate: true)),
            [0x35, 2, 0, 0, 0, 7, 0, 0, 8, 0]
        ),
        (
            .synchronizeCache(SynchronizeCache(.sixteen, lba: LBA(7), count: BlockCount(8))),
            [0x91, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 8, 0, 0]
        ),
        (
            .writeSame16(WriteSame(lba: LBA(3), count: BlockCount(4), unmap: true, noDataOut: true)),
            [0x93, 9, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0]
        ),
        (.modeSelect(ModeSelect(.six, parameterListLength: 24)), [0x15, 0x10, 0, 0, 24, 0]),
        (
            .modeSelect(ModeSelect(.ten, parameterListLength: 0x0118)),
            [0x55, 0x10, 0, 0, 0, 0, 0, 0x01, 0x18, 0]
        ),
        (.modeSense(ModeSense(.six, page: 0x3F, allocationLength: 255)), [0x1A, 0, 0x3F, 0, 255, 0]),
        (
            .modeSense(ModeSense(.ten, page: 8, allocationLength: 0x0203)),
            [0x5A, 0, 8, 0, 0, 0, 0, 2, 3, 0]
        ),
        (
            .extendedCopy(parameterListLength: 0x0001_0203),
            [0x83, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 0, 0]
        ),
        (
            .receiveCopyResults(.operatingParameters, listIdentifier: 9, allocationLength: 0x0400),
            [0x84, 3, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0]
        ),
        (
            .copy(.extendedCopy(parameterListLength: 0x0001_0203)),
            [0x83, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 0, 0]
        ),
        (
            .copy(.abort(listIdentifier: 0x0102_0304)),
            [0x83, 0x1C, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        ),
        (
            .copy(.status(listIdentifier: 0x0102_0304, allocationLength: 0x0506)),
            [0x84, 5, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 5, 6, 0, 0]
        ),
        (
            .buffer(
                .read(.init(mode: 0x1E, buffer: 0x43, offset: 0x01_0203), allocationLength: 0x04_0506)),
            [0x3C, 0x1E, 0x43, 1, 2, 3, 4, 5, 6, 0]
        ),
        (
            .buffer(.write(.init(mode: 1, buffer: 0xFF), parameterListLength: 0xFF_FFFF)),
            [0x3B, 1, 0xFF, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0]
        ),
    ]

    static let goldenBlockCommands: [(Command, [UInt8])] = [
        (
            .block(.verify(BlockTransfer(.ten, lba: LBA(0x0102_0304), count: BlockCount(5)), .oneBlock)),
            [0x2F, 6, 1, 2, 3, 4, 0, 0, 5, 0]
        ),
        (
            .block(.verify(BlockTransfer(.twelve, lba: LBA(9), count: BlockCount(0x01_0203)), .data)),
            [0xAF, 2, 0, 0, 0, 9, 0, 1, 2, 3, 0, 0]
        ),
        (
            .block(.writeAndVerify(BlockTransfer(.sixteen, lba: LBA(9), count: BlockCount(7)), .medium)),
            [0x8E, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 7, 0, 0]
        ),
        (
            .block(.prefetch(BlockTransfer(.ten, lba: LBA(2), count: BlockCount(3)), immediate: true)),
            [0x34, 2, 0, 0, 0, 2, 0, 0, 3, 0]
        ),
        (.block(.unmap(anchor: true, parameterListLength: 0x0118)), [0x42, 1, 0, 0, 0, 0, 0, 1, 0x18, 0]),
        (
            .block(
                .readDefectData(
                    ReadDefectData(
                        .ten, wantsPrimary: true, wantsGrown: false, format: 3, allocationLength: 0x0118))),
            [0x37, 0, 0x13, 0, 0, 0, 0, 1, 0x18, 0]
        ),
        (
            .block(
                .readDefectData(
                    ReadDefectData(.twelve, wantsPrimary: false, wantsGrown: true, allocationLength: 0x0118))),
            [0xB7, 0x08, 0, 0, 0, 0, 0, 0, 1, 0x18, 0, 0]
        ),
        (
            .block(.writeSame10(WriteSame(lba: LBA(3), count: BlockCount(4), unmap: true))),
            [0x41, 8, 0, 0, 0, 3, 0, 0, 4, 0]
        ),
        (
            .block(
                .compareAndWrite(BlockTransfer(.sixteen, lba: LBA(3), count: BlockCount(255), fua: true))),
            [0x89, 8, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 255, 0, 0]
        ),
        (
            .block(.orWrite(BlockTransfer(.sixteen, lba: LBA(3), count: BlockCount(0x0100)))),
            [0x8B, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 1, 0, 0, 0]
        ),
        (
            .block(.getLBAStatus(lba: LBA(0x0506), allocationLength: 0x0207)),
            [0x9E, 0x12, 0, 0, 0, 0, 0, 0, 5, 6, 0, 0, 2, 7, 0, 0]
        ),
        (.block(.startStop(start: true, loadOrEject: true, powerCondition: 3)), [0x1B, 0, 0, 0, 0x33, 0]),
        (.block(.preventAllow(prevent: 1)), [0x1E, 0, 0, 0, 1, 0]),
    ]

    @Test func goldenBytesBothWays() throws {
        for (command, bytes) in Self.golden + Self.goldenBlockCommands {
            #expect(command.encoded() == bytes)
            #expect(try Command(decoding: bytes) == command)
            // As a transport hands it in: filled up to 16 bytes.
            let padded = bytes + [UInt8](repeating: 0, count: 16 - bytes.count)
            #expect(try Command(decoding: padded) == command)
        }
    }

    @Test func everyTruncationAndEveryFirstByteIsAnAnswer() {
        for code in UInt8.min...UInt8.max {
            for length in 0...16 {
                let cdb = [UInt8]([code] + [UInt8](repeating: 0xFF, count: 15)).prefix(length)
                _ = try? Command(decoding: Array(cdb))  // Either outcome is right; a trap is not.
            }
        }
        for (_, bytes) in Self.golden {
            for length in 0..<bytes.count {
                #expect(throws: CheckCondition(.invalidOperationCode)) {
                    try Command(decoding: Array(bytes[..<length]))
                }
            }
        }
    }

    @Test func fieldsNobodyHonoursAreRefusedWithTheirPlace() {
        let cases: [([UInt8], Int, UInt8?)] = [
            ([0x12, 0, 0x80, 0, 255, 0], 2, nil),
            ([0x12, 2, 0, 0, 255, 0], 1, 1),
            ([0x28, 0, 0, 0, 0, 0, 0, 0, 1, 4], 9, 2),
            ([0x25, 0, 0, 0, 0, 1, 0, 0, 0, 0], 2, nil),
            ([0xA0, 0, 0, 0, 0, 0, 0, 0, 0, 15, 0, 0], 6, nil),
            ([0x83, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 1, 4),
            ([0x93, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0], 1, 2),
        ]
        for (cdb, byte, bit) in cases {
            #expect(throws: CheckCondition(.invalidFieldInCDB(byte: byte, bit: bit))) {
                try Command(decoding: cdb)
            }
        }
    }
}
