import Blocks
import Foundation
import TestSupport
import Testing

@testable import TableOfContents

/// Images by the kinds' own tools where those can be had, else made by hand; blkid is asked what it takes them for.
@Suite struct ForeignKindsTests {
    private let scratch: ScratchDirectory
    private let image: String

    init() throws {
        scratch = try ScratchDirectory()
        image = scratch("image")
    }

    private func recognized() throws -> (kind: FileSystemKind, label: String, uuid: String)? {
        let store = try ImageStore(image)
        return try ForeignKinds.recognize(store, ByteRange(offset: 0, count: store.size))
    }

    private func blkid(_ tag: String) throws -> String {
        try shell("blkid -p -o value -s \(tag) \(image)").trimmingCharacters(in: .whitespacesAndNewlines)
    }

    @Test func btrfs() throws {
        try shell("truncate -s 256M \(image); mkfs.btrfs -q -L 'a label' \(image)")
        let found = try #require(try recognized())
        #expect(found.kind == .btrfs && found.label == "a label")
        #expect(try found.uuid == blkid("UUID"))
    }

    @Test(arguments: [4096, 65536]) func swap(_ page: Int) throws {
        try shell("truncate -s 8M \(image); mkswap -q -p \(page) -L paging \(image) 2>&1")
        let found = try #require(try recognized())
        #expect(found.kind == .swap && found.label == "paging")
        #expect(try found.uuid == blkid("UUID"))
    }

    @Test(arguments: [1, 2]) func luks(_ version: UInt8) throws {
        var bytes = [UInt8](repeating: 0, count: 4 << 20)
        bytes.replaceSubrange(0..<8, with: Array("LUKS".utf8) + [0xBA, 0xBE, 0, version])
        if version == 2 { bytes.replaceSubrange(24..<28, with: Array("name".utf8)) }
        let uuid = Array("10a7c5a4-2b0e-4b6c-8c53-0e1d2a3b4c5d".utf8)
        bytes.replaceSubrange(168..<168 + uuid.count, with: uuid)
        try Data(bytes).write(to: URL(filePath: image))
        let found = try #require(try recognized())
        #expect(found.kind == .luks && found.label == (version == 2 ? "name" : ""))
        #expect(try found.uuid == blkid("UUID"))
        #expect(try blkid("TYPE") == "crypto_LUKS")
    }

    @Test func secondHeaderOfLUKS2() throws {
        var bytes = [UInt8](repeating: 0, count: 1 << 20)
        let uuid = Array("10a7c5a4-2b0e-4b6c-8c53-0e1d2a3b4c5d".utf8)
        bytes.replaceSubrange(0x4000..<0x4008, with: Array("SKUL".utf8) + [0xBA, 0xBE, 0, 2])
        bytes.replaceSubrange(0x4000 + 24..<0x4000 + 28, with: Array("name".utf8))
        bytes.replaceSubrange(0x4000 + 168..<0x4000 + 168 + uuid.count, with: uuid)
        let store = MemoryStore(bytes)
        let found = try #require(
            try ForeignKinds.recognize(store, ByteRange(offset: 0, count: store.size)))
        #expect(found.kind == .luks && found.label == "name" && Array(found.uuid.utf8) == uuid)
    }

    @Test func physicalVolume() throws {
        var sector = [UInt8](repeating: 0, count: 512)
        sector.replaceSubrange(0..<8, with: Array("LABELONE".utf8))
        sector[8] = 1
        sector[20] = 32
        sector.replaceSubrange(24..<32, with: Array("LVM2 001".utf8))
        sector.replaceSubrange(32..<64, with: Array("abcdefGHIJklmnOPQRstuvWXYZ012345".utf8))
        // CRC-32 with a start of LVM's own, over what follows it.
        var crc: UInt32 = 0xF597_A6CF
        for byte in sector[20...] {
            crc ^= UInt32(byte)
            for _ in 0..<8 { crc = crc >> 1 ^ (crc & 1 == 0 ? 0 : 0xEDB8_8320) }
        }
        withUnsafeBytes(of: crc.littleEndian) { sector.replaceSubrange(16..<20, with: $0) }
        try Data([UInt8](repeating: 0, count: 512) + sector + [UInt8](repeating: 0, count: 4 << 20))
            .write(to: URL(filePath: image))
        let found = try #require(try recognized())
        #expect(found.kind == .lvm)
        #expect(try found.uuid == blkid("UUID"))
        #expect(try blkid("TYPE") == "LVM2_member")
    }

    /// Versions 1.1, 1.2 and 1.0, at their places.
    @Test(arguments: [0, 8, 8192 - 16]) func raid(_ place: Int) throws {
        var block = [UInt8](repeating: 0, count: 256)
        block.replaceSubrange(0..<5, with: [0xFC, 0x4E, 0x2B, 0xA9, 1])
        for index in 0..<16 { block[16 + index] = UInt8(index * 16 + 1) }
        block.replaceSubrange(32..<39, with: Array("host:md".utf8))
        withUnsafeBytes(of: UInt64(place).littleEndian) { block.replaceSubrange(144..<152, with: $0) }
        var sum: UInt64 = 0
        for index in stride(from: 0, to: 256, by: 4) {
            sum += block[index..<index + 4].reversed().reduce(0) { $0 << 8 | UInt64($1) }
        }
        let folded = UInt32(truncatingIfNeeded: (sum & 0xFFFF_FFFF) + sum >> 32)
        withUnsafeBytes(of: folded.littleEndian) { block.replaceSubrange(216..<220, with: $0) }
        // blkid does not look for these on what is no larger than a floppy.
        var bytes = [UInt8](repeating: 0, count: 4 << 20)
        bytes.replaceSubrange(place * 512..<place * 512 + 256, with: block)
        try Data(bytes).write(to: URL(filePath: image))
        let found = try #require(try recognized())
        #expect(found.kind == .raid && found.label == "host:md")
        #expect(found.uuid == "01112131:41516171:8191a1b1:c1d1e1f1")
        #expect(try blkid("TYPE") == "linux_raid_member")
        #expect(try blkid("UUID").filter { $0 != "-" } == found.uuid.filter { $0 != ":" })
    }

    @Test func oldRaid() throws {
        var bytes = [UInt8](repeating: 0, count: (1 << 20) + 5000)
        let place = bytes.count / 65536 * 65536 - 65536
        for (word, value) in [(0, 0xA92B_4EFC), (2, 90), (5, 0x0102_0304), (13, 5), (14, 6), (15, 7)] {
            withUnsafeBytes(of: UInt32(value).littleEndian) {
                bytes.replaceSubrange(place + word * 4..<place + word * 4 + 4, with: $0)
            }
        }
        let store = MemoryStore(bytes)
        let found = try #require(
            try ForeignKinds.recognize(store, ByteRange(offset: 0, count: store.size)))
        #expect(found.kind == .raid && found.uuid == "01020304:00000005:00000006:00000007")
    }

    @Test(arguments: [0, 1, 511, 512, 4096, 65_535, 1 << 20]) func nothingOfThese(_ count: Int) throws {
        let zeros = MemoryStore(size: count)
        #expect(try ForeignKinds.recognize(zeros, ByteRange(offset: 0, count: zeros.size)) == nil)
        let noise = MemoryStore(seededBytes(count, seed: 3))
        #expect(try ForeignKinds.recognize(noise, ByteRange(offset: 0, count: noise.size)) == nil)
    }
}
