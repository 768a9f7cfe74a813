import Blocks
import Foundation
import TestSupport
import Testing

@testable import TableOfContents

/// Whatever the bytes are, reading ends, and names nothing outside of the file system.
@Suite struct ExtHostileTests {
    /// Counts, and checks what is put.
    private final class Checker: RecordSink {
        let size: UInt64
        var count = 0
        var last: UInt64 = 0
        init(size: UInt64) { self.size = size }

        struct TooMuch: Error {}

        func put(_ record: VolumeRecord) throws(TocError) {
            count += 1
            // What is read is bounded by the volume's size; a test need not wait for all of it.
            guard count < 200_000 else { throw TocError(.cancelled, "enough") }
            switch record {
            case .extents(_, let extents):
                for extent in extents {
                    #expect(extent.volumeOffset <= size && extent.count <= size - extent.volumeOffset)
                    #expect(extent.count > 0)
                }
            case .used(let ranges):
                for range in ranges {
                    #expect(range.end <= size && range.offset >= last)
                    last = range.end
                }
            case .name(let name): #expect(!name.name.isEmpty && !name.name.contains(0))
            case .attribute(let attribute): #expect(attribute.value.count <= TocLimits.attributeBytes)
            default: break
            }
        }
    }

    private static func image(_ options: [String]) throws -> [UInt8] {
        let image = try ExtImage(mebibytes: 8, options + ["-N", "128"])
        let file = try image.write("content", seededBytes(40_000, seed: 1))
        let long = String(repeating: "x", count: 200)
        var lines: [String] = [
            "write \(file) big", "mkdir d", "mkdir d/e", "symlink l \(long)", "symlink s short",
            "mknod c c 4 5",
            "ea_set d user.one \(long)", "ea_set big user.two 2",
        ]
        for number in 1...20 { lines.append("write \(file) d/f\(number)") }
        if !options.contains("^has_journal") {
            lines.append(contentsOf: [
                "jo", "jw -b 5000-5003 \(file)", "jw -r 5001", "jw -b 5001 \(file)", "jc",
            ])
        }
        try image.debug(lines)
        return try ExtImage.bytes(image.path)
    }

    static let forms: [[String]] = [
        ["-b", "1024"], ["-b", "1024", "-O", "^metadata_csum,^64bit"],
        ["-b", "1024", "-O", "^extent,^64bit,^metadata_csum"],
        ["-b", "1024", "-O", "inline_data,^metadata_csum"], ["-b", "1024", "-O", "meta_bg,^resize_inode"],
        ["-b", "2048", "-O", "bigalloc", "-C", "8192"], ["-b", "65536", "-O", "^has_journal"],
    ]

    private func readAll(_ bytes: [UInt8]) throws {
        let store = MemoryStore(bytes, capabilities: [])
        let range = ByteRange(offset: 0, count: store.size)
        guard let system = try ExtFileSystem(store, range), system.description.isListed else { return }
        let sink = Checker(size: store.size)
        do throws(TocError) {
            try system.readUse(into: sink)
            let supplement = system.supplement
            for address in UInt64(1)...400 {
                var node = FileNode(address: address, kind: .regular)
                if try supplement.complete(&node, into: sink) == .extents, node.kind == .regular {
                    try supplement.extents(of: node, into: sink)
                }
            }
        } catch {
            guard error.kind == .cancelled else { throw error }
        }
    }

    @Test(arguments: forms) func mutatedImages(_ options: [String]) throws {
        let original = try Self.image(options)
        let system = try ExtFileSystem.of(MemoryStore(original, capabilities: []))
        #expect(system.description.isListed)
        // Where something other than zeros is: there the damage counts.
        var used: [Int] = []
        for start in stride(from: 0, to: original.count, by: 512) {
            let isEmpty = original.withUnsafeBytes { bytes in
                UnsafeRawBufferPointer(rebasing: bytes[start..<start + 512]).isAllZeros
            }
            if !isEmpty { used.append(start) }
        }
        var generator = SeededGenerator(seed: 2026)
        for round in 0..<(Tier.isFull ? 1500 : 150) {
            var bytes = original
            let most: Int = round % 3 == 0 ? 200 : 4
            for _ in 0..<Int.random(in: 1...most, using: &generator) {
                // The superblock, descriptors and inodes are most of what leads to others.
                let near = Int.random(in: 0..<3, using: &generator) == 0
                let limit: Int = near ? min(8, used.count) : used.count
                let sector: Int = used[Int.random(in: 0..<limit, using: &generator)]
                let offset = sector + Int.random(in: 0..<512, using: &generator)
                let value: UInt8 = UInt8.random(in: 0...255, using: &generator)
                switch Int.random(in: 0..<4, using: &generator) {
                case 0:
                    let bit: UInt8 = 1 << (value & 7)
                    bytes[offset] ^= bit
                case 1: bytes[offset] = 0xFF
                case 2: bytes[offset] = value
                default:
                    // A small number where a field may be.
                    let field: Int = offset & ~3
                    let small: [UInt8] = [value, value >> 3, 0, 0]
                    bytes.replaceSubrange(field..<field + 4, with: small)
                }
            }
            try readAll(bytes)
        }
    }

    /// A map that leads to itself comes to its end.
    @Test func mapsInCirclesEnd() throws {
        let image = try ExtImage(
            mebibytes: 8, ["-b", "1024", "-O", "^extent,^64bit,^metadata_csum,^has_journal"])
        let file = try image.write("content", seededBytes(400_000, seed: 1))
        try image.debug(["write \(file) big"])
        let number = UInt64(12)
        var bytes = try ExtImage.bytes(image.path)
        let reader = try ExtReader(
            #require(ExtSuperblock(Array(bytes[1024..<2048]))), MemoryStore(bytes),
            ByteRange(offset: 0, count: 8 << 20))
        let table = Int(try reader.descriptor(ofGroup: 0).inodeTable)
        let at: Int = table * 1024 + 11 * reader.superblock.inodeSize
        let single = bytes.little32(at + 88)
        // Each pointer of the block of pointers leads back to it.
        let pointer: [UInt8] = withUnsafeBytes(of: single.littleEndian) { Array($0) }
        for index in 0..<256 {
            let place: Int = Int(single) * 1024 + 4 * index
            bytes.replaceSubrange(place..<place + 4, with: pointer)
        }
        // It is the triple's, too, and the file has all that this could map.
        bytes.replaceSubrange(at + 96..<at + 100, with: pointer)
        let high: [UInt8] = [0xFF, 0xFF, 0, 0]
        bytes.replaceSubrange(at + 108..<at + 112, with: high)
        let system = try ExtFileSystem.of(MemoryStore(bytes))
        let sink = RecordList()
        var node = FileNode(address: number, kind: .regular)
        let storage = try system.supplement.complete(&node, into: sink)
        // What cannot be found whole is not there.
        guard case .unavailable = storage else { throw ExtTestFailure("\(String(describing: storage))") }
        #expect(node.size > 1 << 40)
        #expect(sink.problems.contains { $0.contains("circles") })
    }
}
