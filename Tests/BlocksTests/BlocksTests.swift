import Blocks
import CChecksum
import Testing

@Suite struct ChecksumTests {
    @Test func checkValueOfTheStandard() {
        #expect(CRC32C.checksum(Array("123456789".utf8)) == 0xE306_9283)
        #expect(CRC32C.checksum([UInt8](repeating: 0, count: 32)) == 0x8A91_36AA)
        #expect(CRC32C.checksum([UInt8](repeating: 0xFF, count: 32)) == 0x62A8_AB43)
    }

    @Test(arguments: [0, 1, 7, 8, 63, 1023, 3071, 3072, 3073, 6144, 65_537])
    func instructionEqualsTable(count: Int) {
        var generator = SystemRandomNumberGenerator()
        let bytes = (0..<count).map { _ in UInt8.random(in: 0...255, using: &generator) }
        bytes.withUnsafeBytes {
            #expect(CRC32C.checksum($0) == outboard_crc32c_portable(0, $0.baseAddress, $0.count))
        }
        var parts = CRC32C()
        parts.update(bytes.prefix(count / 3))
        parts.update(bytes.dropFirst(count / 3))
        #expect(parts.value == CRC32C.checksum(bytes))
    }
}

@Suite struct UnitTests {
    @Test(arguments: [
        ("4096", 4096), ("64KiB", 65536), ("64k", 65536), ("1.5GiB", 3 << 29), ("2T", 2 << 40), ("0", 0),
    ])
    func sizesParse(text: String, bytes: UInt64) {
        #expect(ByteCount(parsing: text)?.bytes == bytes)
    }

    @Test(arguments: ["", "KiB", "12X", "-1", "0.3B", "99999999TiB", "1e3", "1..5G", "64KB "])
    func nonsenseDoesNot(text: String) { #expect(ByteCount(parsing: text) == nil) }

    @Test func sizesPrint() {
        #expect(ByteCount(65536).description == "64KiB")
        #expect(ByteCount(65537).description == "65537B")
        #expect(ByteCount(1_476_395_008).rounded == "1.38GiB")
        #expect(ByteCount(0).description == "0B")
    }

    @Test func rangesWithinASize() {
        #expect(ByteRange(checking: 10, 10, within: 20) != nil)
        #expect(ByteRange(checking: 11, 10, within: 20) == nil)
        #expect(ByteRange(checking: UInt64.max, 10, within: 20) == nil)
        #expect(ByteRange(checking: 0, UInt64.max, within: 20) == nil)
        let range = ByteRange(offset: 10, count: 10)
        #expect(range.intersection(ByteRange(offset: 15, count: 10)) == ByteRange(offset: 15, count: 5))
        #expect(range.intersection(ByteRange(offset: 20, count: 10)) == nil)
    }
}

@Suite struct ChunkBitmapTests {
    @Test func exactlyOneOfManyInserts() async {
        let bitmap = ChunkBitmap(count: 1000)
        let wins = await withTaskGroup(of: Int.self) { group in
            for _ in 0..<8 { group.addTask { (0..<1000).count { bitmap.insert(UInt64($0)) } } }
            return await group.reduce(0, +)
        }
        #expect(wins == 1000)
        #expect(bitmap.population == 1000)
        bitmap.remove(999)
        bitmap.remove(999)
        #expect(!bitmap.contains(999) && bitmap.population == 999)
    }

    @Test func aHugeOneCostsNothing() {
        let bitmap = ChunkBitmap(count: 1 << 36)
        bitmap.insert((1 << 36) - 1)
        #expect(bitmap.contains((1 << 36) - 1) && !bitmap.contains(0))
    }

    @Test func beyondTheVolumeTraps() async {
        await #expect(processExitsWith: .failure) { _ = ChunkBitmap(count: 10).contains(10) }
    }
}

@Suite struct BigEndianTests {
    @Test func fieldsComeBack() throws {
        var writer = BigEndianWriter()
        writer.integer(UInt16(0x1234))
        writer.integer(UInt64.max - 1)
        writer.zeros(2)
        writer.set(UInt16(7), at: 10)
        try writer.bytes.withUnsafeBytes { bytes throws in
            var reader = BigEndianReader(bytes)
            let fields = (
                try reader.integer(UInt16.self), try reader.integer(UInt64.self),
                try reader.integer(UInt16.self)
            )
            #expect(fields == (0x1234, UInt64.max - 1, 7))
            #expect(throws: BigEndianReader.Truncated.self) { try reader.integer(UInt8.self) }
        }
    }

    @Test func zerosAreFound() {
        for count in [0, 1, 63, 64, 65, 4096] {
            var bytes = [UInt8](repeating: 0, count: count)
            #expect(bytes.withUnsafeBytes { $0.isAllZeros })
            if count > 0 {
                bytes[count - 1] = 1
                #expect(!bytes.withUnsafeBytes { $0.isAllZeros })
            }
        }
    }
}

@Suite struct MonitorTests {
    @Test func waitsForTheState() {
        let monitor = Monitor(0)
        BlockingThread.start { monitor.withLockAndNotify { $0 = 5 } }
        #expect(monitor.wait { $0 == 5 ? true : nil })
        #expect(monitor.wait(nanoseconds: 1_000_000) { $0 == 6 ? true : nil } == nil)
    }
}
