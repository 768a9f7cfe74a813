import Blocks
import Foundation
import TestSupport
import Testing

@testable import PhysicalCopy

@Suite struct ChecksumFileTests {
    private let length: UInt64 = 5 * 65_536 - 100

    private func table(_ seed: UInt64) -> ChecksumTable {
        var random = SeededGenerator(seed: seed)
        var table = ChecksumTable(length: length)
        for chunk in 0..<table.count {
            table[chunk] = .known(UInt32.random(in: 0...UInt32.max, using: &random))
        }
        return table
    }

    @Test("Every flipped bit, every cut and every byte more is found", arguments: [false, true])
    func flips(isPartial: Bool) throws {
        var table = table(1)
        if isPartial { table[3] = .unknown }
        let bytes = isPartial ? table.encoded() : ChecksumFile.encode(table.complete!, length: length)
        func refused(_ bytes: [UInt8], at place: Int) {
            let error = #expect(throws: ChecksumFile.Malformed.self, "byte \(place)") {
                try ChecksumFile.decode(bytes)
            }
            guard let range = error?.range, bytes.count > ChecksumFile.headerLength else { return }
            #expect(range.offset <= UInt64(place) && UInt64(place) < range.end, "\(place): \(range)")
        }
        for place in bytes.indices {
            for bit in 0..<8 {
                var flipped = bytes
                flipped[place] ^= 1 << bit
                refused(flipped, at: place)
            }
        }
        for count in bytes.indices { refused(Array(bytes[..<count]), at: ChecksumFile.headerLength) }
        refused(bytes + [0], at: bytes.count)
    }

    /// What sums up right, but says what cannot be.
    @Test func nonsense() {
        let good = ChecksumFile.encode(table(2).complete!, length: length)
        func refused(_ place: Int, _ value: UInt64) {
            var bytes = good
            bytes.withUnsafeMutableBytes { bytes in
                bytes.storeBigEndian(value, at: place)
                let sum = CRC32C.checksum(UnsafeRawBufferPointer(rebasing: bytes[..<60]))
                bytes.storeBigEndian(sum, at: 60)
            }
            #expect(throws: ChecksumFile.Malformed.self, "\(value) at \(place)") {
                try ChecksumFile.decode(bytes)
            }
        }
        refused(0, 1)
        refused(8, 2 << 32)
        refused(8, 1 << 32 | 2)
        for value in [0, length + 65_536, UInt64.max, 1 << 61] as [UInt64] { refused(16, value) }
        for value in [0, 65_537, 32_768, 1 << 20, 1 << 63] as [UInt64] { refused(24, value) }
        for value in [0, 4, 6, UInt64.max] as [UInt64] { refused(32, value) }
    }

    /// Another copy's, or what only a copy in the making has, is not believed.
    @Test func ofAnother() throws {
        let sums = table(3).complete!
        let bytes = ChecksumFile.encode(sums, length: length)
        let description = ChecksumFile.describe(bytes, sums, name: "checksums")
        #expect(try ChecksumFile.decode(bytes, as: description, length: length) == sums)
        func refused(_ bytes: [UInt8], _ description: ChecksumDescription, _ length: UInt64) {
            #expect(throws: ChecksumFile.Malformed.self) {
                try ChecksumFile.decode(bytes, as: description, length: length)
            }
        }
        refused(bytes, description, length - 1)
        let other = table(4)
        refused(ChecksumFile.encode(other.complete!, length: length), description, length)
        refused(table(3).encoded(), description, length)
        var larger = description
        larger.chunkSize *= 2
        refused(bytes, larger, length)
    }

    @Test func tablesAreMerged() throws {
        var table = table(5)
        let before = table
        var newer = ChecksumTable(length: length)
        newer[1] = .known(7)
        newer[2] = .unknown
        table.merge(newer)
        #expect(
            (0..<table.count).map { table[$0] } == [before[0], .known(7), .unknown, before[3], before[4]])
        table.forget(ByteRange(offset: 4 * 65_536 - 1, count: 2))
        #expect(table[3] == .unknown && table[4] == .unknown && table[1] == .known(7))
        table.forget(ByteRange(offset: length, count: 10))
        #expect(table[0] == before[0])
        let kept = before.only(
            RangeList([
                ByteRange(offset: 65_537, count: 65_535), ByteRange(offset: 2 * 65_536, count: 65_536),
                ByteRange(offset: 3 * 65_536, count: 2 * 65_536),
            ]))
        #expect((0..<5).map { kept[$0] } == [.unknown, .unknown, before[2], before[3], before[4]])
        #expect(try ChecksumTable(decoding: kept.encoded()) == kept)
        #expect(kept.unknownBytes == 2 * 65_536)
    }

    /// What is not known is read, whole chunks and the last one, and nothing else is.
    @Test func theUnknownIsRead() throws {
        let parent = TemporaryDirectory()
        var random = SeededGenerator(seed: 6)
        let bytes = (0..<Int(length)).map { _ in UInt8.random(in: 0...255, using: &random) }
        let path = parent.path + "/data"
        try Data(bytes).write(to: URL(fileURLWithPath: path))
        let store = try CrashableFile(path, writable: false)
        var table = ChecksumTable(length: length)
        var read: UInt64 = 0
        try table.readUnknown(in: store) { count throws(CopyError) in read += count }
        #expect(read == length)
        for chunk in 0..<table.count {
            let range = table.range(of: chunk)
            #expect(table[chunk] == .known(CRC32C.checksum(bytes[Int(range.offset)..<Int(range.end)])))
        }
        let whole = table
        table[1] = .unknown
        #expect(try table.readBack(in: store) { _ throws(CopyError) in } == nil)
        #expect(table == whole)
        table[1] = .known(1)
        table[3] = .unknown
        var other = table
        #expect(try other.readBack(in: store) { _ throws(CopyError) in } == 1)
        read = 0
        try table.readUnknown(in: store) { count throws(CopyError) in read += count }
        #expect(read == 65_536 && table[1] == .known(1) && table[3] == whole[3])
    }
}
