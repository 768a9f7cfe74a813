import Blocks
import Foundation
import TestSupport
import Testing

@testable import TableOfContents

/// Forms that only xfs_db can make on this kind of machine, and what mkfs and the kernel make rarely.
@Suite struct XFSOddTests {
    /// Attributes of version 4, which few kernels mount any more: short form, leaf, hash tree and remote values.
    @Test(arguments: ["-m crc=0,finobt=0", "-b size=1024"])
    func attributesByXfsDb(_ options: String) throws {
        let scratch = try ScratchDirectory()
        let image = try XFSReaderTests.image(scratch, options: options, entries: 3)
        let (before, _) = try XFSReaderTests.read(image)
        let paths = before.paths
        func number(_ path: String) throws -> UInt64 { try #require(paths[Array(path.utf8)]) }
        var script: [String] = []
        var expected: [UInt64: [[UInt8]: [UInt8]]] = [:]
        func set(_ path: String, _ names: [String], value: Int, flag: String = "-u", space: String = "user")
            throws
        {
            script.append("inode \(try number(path))")
            for name in names {
                script.append("attr_set \(flag) -v \(value) \(name)")
                expected[try number(path), default: [:]][Array("\(space).\(name)".utf8)] =
                    [UInt8](repeating: UInt8(ascii: "v"), count: value)
            }
        }
        try set("/empty", ["small"], value: 5)
        try set("/empty", ["root"], value: 7, flag: "-r", space: "trusted")
        try set("/empty", ["label"], value: 9, flag: "-s", space: "security")
        try set("/file", (0..<12).map { "leaf-attribute-\($0)" }, value: 10)
        try set("/setuid", (0..<300).map { "attribute-of-a-tree-\($0)" }, value: 40)
        try set("/setuid", ["remote", "remote-too"], value: 9000)
        try set("/nested", ["longest"], value: 65_536)
        try Data((script + [""]).joined(separator: "\n").utf8).write(to: URL(filePath: scratch("script")))
        try shell("xfs_db -x \(image) < \(scratch("script")) 2>&1")
        let (found, _) = try XFSReaderTests.read(image)
        #expect(found.problems == [])
        for (node, attributes) in expected {
            let ours = found.attributes[node] ?? [:]
            #expect(Set(ours.keys) == Set(attributes.keys))
            // xfs_db writes a value of its own choosing; its length is what was asked for.
            #expect(ours.mapValues(\.count) == attributes.mapValues(\.count))
            #expect(ours.values.allSatisfy { value in value.allSatisfy { $0 == value.first } })
        }
        #expect(found.attributes.count == expected.count)
    }

    /// mkfs.xfs gives them no headers in version 5; those are made by the kernel, in XFSLoopTests.
    @Test(arguments: ["-m crc=0,finobt=0", "-m crc=0,finobt=0 -b size=512"])
    func linksThatDoNotFitTheirInode(_ options: String) throws {
        let scratch = try ScratchDirectory()
        let targets = [100, 300, 700, 1000].map { count in
            String((0..<count).map { Character(UnicodeScalar(UInt8(97 + $0 % 23))) })
        }
        let links = targets.enumerated().map { "link\($0.offset) l--777 0 0 \($0.element)" }
        let text = "/dev/null\n0 0\nd--755 0 0\n\(links.joined(separator: "\n"))\n$\n"
        try Data(text.utf8).write(to: URL(filePath: scratch("prototype")))
        let image = scratch("image")
        try shell("truncate -s 400M \(image); mkfs.xfs -q \(options) -p \(scratch("prototype")) \(image)")
        let (found, _) = try XFSReaderTests.read(image)
        #expect(found.problems == [])
        for (index, target) in targets.enumerated() {
            let number = try #require(found.paths[Array("/link\(index)".utf8)])
            #expect(found.nodes[number]?.target == Array(target.utf8))
        }
    }

    @Test func dataOnARealtimeDevice() throws {
        let scratch = try ScratchDirectory()
        let image = try XFSReaderTests.image(scratch, options: "", entries: 1)
        let (whole, _) = try XFSReaderTests.read(image)
        let file = try #require(whole.paths[Array("/file".utf8)])
        let offset = try XFSReaderTests.offset(ofInode: file, image)
        let store = try PatchedStore(image)
        try store.patch(offset + 91, [1], checksumOf: offset..<offset + 512, at: 100)
        let reader = try #require(try XFSReader(store, ByteRange(offset: 0, count: store.size), index: 0))
        let found = try CollectedRecords(reader)
        guard case .unavailable(let reason) = found.streams[file]?.storage else {
            Issue.record("the file is listed as if it were there")
            return
        }
        #expect(reason.contains("realtime") && found.extents[file] == nil && found.problems == [])
    }

    /// An extent of a file that passes its group's end makes the file unavailable, not one with zeros.
    @Test func anExtentThatCannotBe() throws {
        let scratch = try ScratchDirectory()
        let image = try XFSReaderTests.image(scratch, options: "", entries: 1)
        let (whole, _) = try XFSReaderTests.read(image)
        let file = try #require(whole.paths[Array("/file".utf8)])
        let offset = try XFSReaderTests.offset(ofInode: file, image)
        let store = try PatchedStore(image)
        try store.patch(offset + 176 + 13, [0x1F], checksumOf: offset..<offset + 512, at: 100)
        let reader = try #require(try XFSReader(store, ByteRange(offset: 0, count: store.size), index: 0))
        let found = try CollectedRecords(reader)
        guard case .unavailable = found.streams[file]?.storage else {
            Issue.record("the file is listed as if it were there")
            return
        }
        #expect(found.extents[file] == nil && found.problems.map(\.node) == [file])
    }

    /// Chunks of inodes with holes: the free space is so fragmented that no whole chunk fits.
    @Test(.enabled(if: MountedImage.isPossible, Comment(rawValue: MountedImage.reason)))
    func sparseChunks() throws {
        let scratch = try ScratchDirectory()
        let image = scratch("image")
        try shell(
            "truncate -s 300M \(image); mkfs.xfs -q -b size=1024 -d agcount=2 "
                + "-m reflink=0,finobt=0,inobtcount=0 \(image)")
        let mounted = try MountedImage(image, at: scratch("mnt"))
        // Holes of 28 KiB: half a chunk fits, a whole one of 32 KiB does not.
        try shell(
            """
            xfs_io -x -c 'resblks 0' . >/dev/null; mkdir d e
            free=$(df --output=avail -k . | tail -1); fallocate -l $((free - 12000))k filler
            for i in $(seq 2000); do head -c 28672 /dev/zero 2>/dev/null > d/$i || break; done
            for i in $(seq 300); do head -c 1024 /dev/zero 2>/dev/null > d/small$i || break; done
            sync -f .; rm -f d/*[13579]; sync -f .
            seq 20000 | (cd e; xargs touch 2>/dev/null) || true
            """, directory: mounted.mountPoint)
        try mounted.unmount()
        let records = try shell(
            """
            for i in 0 1; do xfs_db -r -c "agi $i" -c 'addr root' -c btdump \(image); done |
                grep -oE '[0-9]+:\\[[0-9]+,[0-9a-fx]+,[0-9]+,' | cut -d , -f 2 | sort -u
            """)
        #expect(records.split(separator: "\n").contains { $0 != "0" }, "no chunk has holes here")
        let again = try MountedImage(image, at: scratch("mnt"), options: "loop,ro")
        let (found, _) = try XFSReaderTests.read(image)
        let kernel = try KernelEntry.tree(again.mountPoint)
        #expect(found.problems == [])
        #expect(Set(found.paths.keys) == Set(kernel.keys))
        #expect(Set(found.nodes.keys) == Set(kernel.values.map { UInt64($0.status.st_ino) }))
    }
}
