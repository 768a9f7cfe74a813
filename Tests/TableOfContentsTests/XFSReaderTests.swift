import Blocks
import Foundation
import TestSupport
import Testing

@testable import TableOfContents

/// Images by mkfs.xfs alone, from prototype files: no mount, no root. The reference is xfs_db.
@Suite struct XFSReaderTests {
    struct Variant: CustomTestStringConvertible, Sendable {
        var options: String
        var testDescription: String { options }
    }

    static let variants = [
        "", "-m crc=0,finobt=0", "-m crc=0,finobt=0 -n ftype=0 -i attr=1", "-m crc=0,finobt=0 -b size=512",
        "-m crc=0,finobt=0 -b size=512 -n size=32k", "-b size=1024", "-n size=64k",
        "-b size=16384 -i size=2048",
        "-b size=65536", "-m bigtime=0,reflink=0,inobtcount=0,finobt=0", "-i nrext64=1",
    ].map { Variant(options: $0) }

    static let prototype = """
        /dev/null
        0 0
        d--755 3 1
        file ---644 1000 100 CONTENT
        empty ---600 0 0 /dev/null
        setuid -u-755 5 6 CONTENT
        link l--777 0 0 some/where/else
        pipe p--620 0 0
        char c--600 0 5 5 1
        block b--660 0 6 259 7
        many d--700 0 0
        ENTRIES
        $
        nested d--755 0 0
        inner d--711 1 1
        leaf ---444 2 2 CONTENT
        $
        $
        $
        """

    /// An image by mkfs.xfs with `options`, of a tree with `entries` files in one directory.
    static func image(_ scratch: ScratchDirectory, options: String, entries: Int = 300) throws -> String {
        let content = scratch("content")
        try Data(seededBytes(70_001, seed: 1)).write(to: URL(filePath: content))
        let many = (0..<entries).map { "name-of-entry-number-\($0) ---644 0 0 /dev/null" }
        let text = prototype.replacingOccurrences(of: "CONTENT", with: content)
            .replacingOccurrences(of: "ENTRIES", with: many.joined(separator: "\n"))
        try Data((text + "\n").utf8).write(to: URL(filePath: scratch("prototype")))
        let image = scratch("image")
        try shell(
            "truncate -s 400M \(image); mkfs.xfs -q -L named \(options) -p \(scratch("prototype")) \(image)")
        return image
    }

    static func read(_ image: String) throws -> (CollectedRecords, ImageStore) {
        let store = try ImageStore(image)
        let reader = try #require(try XFSReader(store, ByteRange(offset: 0, count: store.size), index: 0))
        return (try CollectedRecords(reader), store)
    }

    /// As xfs_db tells it.
    static func offset(ofInode number: UInt64, _ image: String) throws -> UInt64 {
        let output = try shell("xfs_db -r -c 'convert inode \(number) fsbyte' \(image)")
        return try #require(output.split(separator: "(").last.flatMap { UInt64($0.prefix { $0 != ")" }) })
    }

    @Test(arguments: variants) func readsWhatMkfsWrote(_ variant: Variant) throws {
        let scratch = try ScratchDirectory()
        let image = try Self.image(scratch, options: variant.options)
        let (found, store) = try Self.read(image)
        #expect(found.problems == [] && found.isEnded)
        let description = try #require(found.description)
        #expect(description.kind == .xfs && description.label == "named" && description.isListed)
        #expect(description.knowsUse, "\(description.remark)")
        #expect(
            try description.uuid
                == shell("blkid -p -o value -s UUID \(image)").trimmingCharacters(in: .newlines))
        let paths = found.paths
        #expect(paths.count == 300 + 12 && found.nodes.count == paths.count)
        let content = seededBytes(70_001, seed: 1)
        for name in ["/file", "/setuid", "/nested/inner/leaf"] {
            let number = try #require(paths[Array(name.utf8)])
            #expect(try found.content(number, from: store) == content)
        }
        func node(_ name: String) throws -> FileNode {
            let number = try #require(paths[Array(name.utf8)])
            return try #require(found.nodes[number])
        }
        #expect(try node("/file").owner == 1000 && node("/file").group == 100)
        #expect(try node("/file").permissions == 0o644 && node("/setuid").permissions == 0o4755)
        #expect(try node("/link").target == Array("some/where/else".utf8))
        #expect(try node("/pipe").kind == .fifo && node("/empty").size == 0)
        #expect(try node("/char").device == DeviceNumber(major: 5, minor: 1))
        #expect(try node("/block").device == DeviceNumber(major: 259, minor: 7))
        #expect(try node("/block").kind == .blockDevice && node("/many").kind == .directory)
        #expect(try node("/nested").links == 3)
        try expectFreeSpaceAsDatabaseSays(found, image, store.size)
    }

    /// xfs_db counts the free space by extents of the same trees.
    private func expectFreeSpaceAsDatabaseSays(_ found: CollectedRecords, _ image: String, _ size: UInt64)
        throws
    {
        let block = try #require(found.description?.blockSize)
        var free: Set<[UInt64]> = []
        let output = try shell("xfs_db -r -c 'sb 0' -c 'p agblocks' -c 'freesp -d' \(image)")
        var groupBlocks: UInt64 = 0
        for line in output.split(separator: "\n") {
            if let value = line.split(separator: "=").last, line.hasPrefix("agblocks") {
                groupBlocks = UInt64(value.trimmingCharacters(in: .whitespaces)) ?? 0
            }
            let numbers = line.split(separator: " ").compactMap { UInt64($0) }
            guard numbers.count == 3, line.split(separator: " ").count == 3 else { continue }
            free.insert([(numbers[0] * groupBlocks + numbers[1]) * block, numbers[2] * block])
        }
        // The free list's own blocks are in no tree and are kept as used here; they are single ones.
        var cursor: UInt64 = 0
        var ours: Set<[UInt64]> = []
        for range in found.used + [ByteRange(offset: size, count: 0)] {
            if range.offset > cursor { ours.insert([cursor, range.offset - cursor]) }
            cursor = range.end
        }
        #expect(ours.count > 2 && ours.isSubset(of: free))
        #expect(free.subtracting(ours).allSatisfy { $0[1] == block })
    }

    @Test func liesAnywhereOnAVolume() throws {
        let scratch = try ScratchDirectory()
        let image = try Self.image(scratch, options: "")
        let (whole, _) = try Self.read(image)
        try shell(
            "truncate -s 403M \(scratch("volume")); dd if=\(image) of=\(scratch("volume")) bs=1M seek=1 conv=notrunc,sparse status=none"
        )
        let store = try ImageStore(scratch("volume"))
        let range = ByteRange(offset: 1 << 20, count: 401 << 20)
        let reader = try #require(try XFSReader(store, range, index: 3))
        let found = try CollectedRecords(reader)
        #expect(found.problems == [] && found.nodes == whole.nodes && found.description?.index == 3)
        #expect(found.used.allSatisfy { $0.offset >= range.offset && $0.end <= range.end })
        // What lies behind the file system in its range may hold anything.
        #expect(found.used.last.map { $0.end } == range.end)
        #expect(found.used.last.map { $0.offset <= 401 << 20 } == true)
        let file = try #require(found.paths[Array("/file".utf8)])
        #expect(try found.content(file, from: store) == seededBytes(70_001, seed: 1))
        #expect(try XFSReader(store, ByteRange(offset: 0, count: store.size), index: 0) == nil)
    }

    @Test func tellsWhatItDoesNotKnow() throws {
        let scratch = try ScratchDirectory()
        let image = try Self.image(scratch, options: "", entries: 1)
        func reader(_ offset: UInt64, _ bytes: [UInt8]) throws -> CollectedRecords {
            let store = try PatchedStore(image)
            try store.patch(offset, bytes, checksumOf: 0..<512, at: 224)
            return try CollectedRecords(
                #require(try XFSReader(store, ByteRange(offset: 0, count: store.size), index: 0)))
        }
        let metadataDirectory = try reader(218, [1])
        #expect(metadataDirectory.description?.isListed == false && metadataDirectory.nodes.isEmpty)
        #expect(metadataDirectory.description?.remark.contains("metadata directory") == true)
        #expect(try reader(216, [0x80]).description?.remark.contains("not known") == true)
        #expect(try reader(88, [0, 0, 0, 99]).description?.remark.contains("damaged") == true)
        let writable = try reader(212, [0x80])
        #expect(writable.description?.isListed == true && writable.description?.knowsUse == false)
        let repair = try reader(219, [0x1B])
        #expect(repair.problems.count == 1 && repair.description?.knowsUse == false && !repair.nodes.isEmpty)
        let log = try reader(48, [0, 0, 0, 0, 0, 0, 0, 0])
        #expect(log.problems.count == 1 && log.description?.knowsUse == false && !log.nodes.isEmpty)
        let unfinished = try reader(126, [1])
        #expect(unfinished.description?.isListed == false)
    }

    @Test func damageIsToldAndTheRestIsRead() throws {
        let scratch = try ScratchDirectory()
        let image = try Self.image(scratch, options: "")
        let (whole, _) = try Self.read(image)
        let root = try #require(whole.description?.root)
        let file = try #require(whole.paths[Array("/file".utf8)])
        let offset = try Self.offset(ofInode: file, image)
        let store = try PatchedStore(image)
        try store.patch(offset + 20, [0xFF])
        let reader = try #require(try XFSReader(store, ByteRange(offset: 0, count: store.size), index: 0))
        let found = try CollectedRecords(reader)
        #expect(found.problems.map(\.node) == [file])
        #expect(found.nodes.count == whole.nodes.count - 1 && found.nodes[root] != nil)
        #expect(found.description?.knowsUse == true)
        // Of the free space, any flipped bit means that all must be taken for used.
        let space = try PatchedStore(image)
        try space.patch(512 + 55, [0x01])
        let doubtful = try CollectedRecords(
            #require(try XFSReader(space, ByteRange(offset: 0, count: store.size), index: 0)))
        #expect(doubtful.description?.knowsUse == false && doubtful.used.isEmpty)
        #expect(doubtful.nodes == whole.nodes && doubtful.problems.count == 1)
        // The same where checksums fit and the count alone is wrong.
        let count = try PatchedStore(image)
        try count.patch(512 + 55, [0x01], checksumOf: 512..<1024, at: 216)
        let counted = try CollectedRecords(
            #require(try XFSReader(count, ByteRange(offset: 0, count: store.size), index: 0)))
        #expect(counted.description?.knowsUse == false && counted.problems.count == 1)
    }

    @Test func aVolumeThatFailsIsNoDamage() throws {
        let scratch = try ScratchDirectory()
        let image = try Self.image(scratch, options: "", entries: 1)
        let store = try PatchedStore(image)
        let reader = try #require(try XFSReader(store, ByteRange(offset: 0, count: store.size), index: 0))
        store.fail()
        let sink = CollectedRecords()
        #expect(throws: TocError.self) { try reader.read([.files], into: sink) }
        #expect(!sink.isEnded)
    }

    @Test func aSinkThatThrowsEndsTheReading() throws {
        final class Full: RecordSink {
            var count = 0
            func put(_ record: VolumeRecord) throws(TocError) {
                count += 1
                // Of the kind that damage has, too.
                if count == 5 { throw TocError(.damaged, "the database is") }
            }
        }
        let scratch = try ScratchDirectory()
        let image = try Self.image(scratch, options: "", entries: 1)
        let store = try ImageStore(image)
        let reader = try #require(try XFSReader(store, ByteRange(offset: 0, count: store.size), index: 0))
        let sink = Full()
        #expect(throws: TocError(.damaged, "the database is")) { try reader.read([.files], into: sink) }
        #expect(sink.count == 5)
    }
}

/// An image with bytes changed in memory.
final class PatchedStore: BlockStore {
    private let image: ImageStore
    private let state = Monitor<(patches: [(UInt64, [UInt8])], isFailing: Bool)>(([], false))

    init(_ path: String) throws { image = try ImageStore(path) }

    var size: UInt64 { image.size }
    var capabilities: StoreCapabilities { [] }

    func fail() { state.withLock { $0.isFailing = true } }

    func patch(_ offset: UInt64, _ bytes: [UInt8]) throws {
        state.withLock { $0.patches.append((offset, bytes)) }
    }

    /// And sets right the checksum of `range` that lies `place` bytes into it.
    func patch(_ offset: UInt64, _ bytes: [UInt8], checksumOf range: Range<UInt64>, at place: UInt64) throws {
        try patch(offset, bytes)
        try patch(range.lowerBound + place, [0, 0, 0, 0])
        let sum = CRC32C.checksum(try self.bytes(at: range.lowerBound, count: range.count))
        try patch(range.lowerBound + place, withUnsafeBytes(of: sum.littleEndian) { Array($0) })
    }

    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
        try image.read(at: offset, into: buffer)
        let (patches, isFailing) = state.withLock { $0 }
        if isFailing { throw StoreError(.io, errno: 5) }
        for (start, bytes) in patches {
            for (index, byte) in bytes.enumerated() {
                let place = start + UInt64(index)
                if place >= offset, place < offset + UInt64(buffer.count) {
                    buffer[Int(place - offset)] = byte
                }
            }
        }
    }

    func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64, durable: Bool) throws(StoreError) {
        throw StoreError(.readOnly)
    }
    func writeZeroes(_ range: ByteRange, options: ZeroOptions) throws(StoreError) {
        throw StoreError(.readOnly)
    }
    func flush() throws(StoreError) { throw StoreError(.readOnly) }
}
