import Blocks
import Foundation
import TestSupport
import Testing

@testable import TableOfContents

/// Partitions as sfdisk and sgdisk write them.
struct VolumeLayoutTests {
    private func volume(
        _ scratch: ScratchDirectory, _ script: String, bytes: UInt64 = 64 << 20
    ) throws -> (path: String, bytes: [UInt8]) {
        let path = try image(scratch, "disk.img", bytes: bytes)
        try Data(script.utf8).write(to: URL(fileURLWithPath: scratch("script")))
        try run(
            "bash",
            [
                "-ec", "sfdisk --quiet --no-tell-kernel \"$1\" < \"$2\"", "-", path,
                scratch("script"),
            ])
        return (path, try [UInt8](Data(contentsOf: URL(fileURLWithPath: path))))
    }

    /// Puts a file system of a kind at an offset.
    private func make(
        _ scratch: ScratchDirectory, _ command: [String], _ bytes: Int, into disk: inout [UInt8],
        at offset: Int
    ) throws {
        let path = try image(scratch, "part.img", bytes: UInt64(bytes))
        try run(command[0], Array(command.dropFirst()) + [path])
        disk.replaceSubrange(offset..<offset + bytes, with: try Data(contentsOf: URL(fileURLWithPath: path)))
        try FileManager.default.removeItem(atPath: path)
    }

    private static let ext = ["mkfs.ext4", "-q", "-L", "root"]
    private static let fat = ["mkfs.fat", "-F", "16", "-s", "1"]

    /// What lies on each place of a volume.
    private func descriptions(_ store: any BlockStore) throws -> [FileSystemDescription] {
        try VolumeReader.places(store).map { place in
            let listed = ListedVolume(store)
            try VolumeReader.read(store, place.range, [], into: listed)
            return try #require(listed.description)
        }
    }

    @Test func gptAndItsBackup() throws {
        let scratch = try ScratchDirectory()
        var (_, disk) = try volume(
            scratch, "label: gpt\nstart=2048, size=32768\nstart=40960, size=40960\nstart=90112, size=8192\n")
        try make(scratch, Self.ext, 16 << 20, into: &disk, at: 1 << 20)
        try make(scratch, Self.fat, 20 << 20, into: &disk, at: 20 << 20)
        func expect(_ bytes: [UInt8]) throws -> [FileSystemDescription] {
            let found = try descriptions(MemoryStore(bytes))
            #expect(found.map(\.kind) == [.ext4, .fat16, .unknown])
            #expect(found.map(\.isListed) == [true, true, false])
            let places = try VolumeReader.places(MemoryStore(bytes))
            #expect(places.map(\.range) == found.map(\.range))
            #expect(places.map(\.range.offset) == [1 << 20, 20 << 20, 44 << 20])
            #expect(places.map(\.range.count) == [16 << 20, 20 << 20, 4 << 20])
            #expect(places.map(\.index) == [0, 1, 2])
            #expect(places.map(\.knowsUse) == [true, true, true])
            return places
        }
        #expect(try expect(disk)[0].remark.isEmpty)
        // A wrong byte in the table: its checksum does not fit, and the backup has it right.
        var damaged = disk
        damaged[1024 + 32] ^= 1
        #expect(try expect(damaged)[0].remark.contains("backup"))
        damaged[512] = 0
        #expect(try expect(damaged)[0].remark.contains("backup"))
        // Both gone: nothing is made up.
        damaged[damaged.count - 512] = 0
        let none = try VolumeReader.places(MemoryStore(damaged))
        #expect(none.allSatisfy { $0.range.end <= 64 << 20 })
    }

    @Test func mbrWithLogicalPartitions() throws {
        let scratch = try ScratchDirectory()
        var (_, disk) = try volume(
            scratch,
            """
            label: dos
            start=2048, size=32768, type=83
            start=40960, size=81920, type=5
            start=43008, size=32768, type=83
            start=77824, size=40960, type=6

            """)
        try make(scratch, Self.ext, 16 << 20, into: &disk, at: 2048 * 512)
        try make(scratch, Self.ext, 16 << 20, into: &disk, at: 43008 * 512)
        try make(scratch, Self.fat, 20 << 20, into: &disk, at: 77824 * 512)
        let found = try descriptions(MemoryStore(disk))
        #expect(found.map(\.kind) == [.ext4, .ext4, .fat16])
        let offsets: [UInt64] = [2048, 43008, 77824]
        #expect(found.map { $0.range.offset / 512 } == offsets)
        for index in 0..<3 {
            let listed = try ListedVolume.read(MemoryStore(disk), index)
            #expect(listed.problems.isEmpty && listed.description?.knowsUse == true)
            listed.expectUsed()
        }
        // A chain that leads back to its start ends, and so does one of partitions beyond the volume.
        var loop = disk
        let second = 446 + 16
        let first = 40960 * 512 + second
        let link = Array(loop[first..<first + 16])
        let next = Int(link[8]) | Int(link[9]) << 8 | Int(link[10]) << 16
        let again = (40960 + next) * 512 + second
        loop.replaceSubrange(again..<again + 16, with: link)
        #expect(try VolumeReader.places(MemoryStore(loop)).count == 3)
    }

    @Test func partitionsThatOverlapDoNotSayWhatIsFree() throws {
        let scratch = try ScratchDirectory()
        var (_, disk) = try volume(scratch, "label: dos\nstart=2048, size=65536, type=83\n")
        try make(scratch, Self.ext, 32 << 20, into: &disk, at: 1 << 20)
        // A second entry, from the middle of the first to far beyond the volume.
        disk.replaceSubrange(
            462..<478, with: [0, 0, 0, 0, 0x83, 0, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0xF0] as [UInt8])
        let found = try VolumeReader.places(MemoryStore(disk))
        #expect(found.count == 2)
        #expect(found.allSatisfy { !$0.knowsUse && $0.remark.contains("overlaps") })
        #expect(found[1].range.end == 64 << 20)
    }

    @Test func wholeVolumesAndForeignKinds() throws {
        let scratch = try ScratchDirectory()
        for (command, kind, mebibytes) in [
            (["mkfs.ext2", "-q"], FileSystemKind.ext2, 8), (["mkfs.xfs", "--unsupported", "-q"], .xfs, 16),
            (["mkfs.fat", "-F", "16"], .fat16, 16), (["mkswap"], .swap, 1),
        ] {
            var disk = [UInt8](repeating: 0, count: mebibytes << 20)
            try make(scratch, command, disk.count, into: &disk, at: 0)
            let found = try descriptions(MemoryStore(disk))
            #expect(found.map(\.kind) == [kind])
            #expect(found[0].range == ByteRange(offset: 0, count: UInt64(mebibytes) << 20))
            #expect(found[0].isListed == (kind != .swap))
            #expect(found[0].isListed || !found[0].remark.isEmpty)
        }
        let nothing = try descriptions(MemoryStore(size: 1 << 20))
        #expect(nothing.map(\.kind) == [.unknown])
        #expect(try descriptions(MemoryStore(size: 0)).count == 1)
    }
}
