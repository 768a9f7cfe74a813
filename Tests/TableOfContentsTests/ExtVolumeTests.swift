import Blocks
import Foundation
import TestSupport
import Testing

@testable import TableOfContents

/// ext2, ext3 and ext4 as a whole: libtsk's inodes and what completes them.
struct ExtVolumeTests {
    @Test(arguments: ["ext2", "ext3", "ext4"], [1024, 4096])
    func extIsReadAsMkfsWroteIt(kind: String, blockSize: Int) throws {
        let scratch = try ScratchDirectory()
        try makeTree(scratch("tree"))
        let tree = scratch("tree")
        try run(
            "bash",
            [
                "-ec",
                """
                cd "$1"; ln -s small.txt link; ln -s "$(printf 'long%.0s' {1..40})" longlink; mkfifo fifo
                ln small.txt hard; printf x | dd of=sparse bs=1 seek=9000000 conv=notrunc 2>&1
                printf 'x' > $'not utf-8 \\xff\\xfe'; touch -d '2030-02-03 04:05:06.7 UTC' empty; chmod 4751 empty
                """, "-", tree,
            ])
        let path = try image(scratch, "ext.img", bytes: 64 << 20)
        try run("mkfs.\(kind)", ["-q", "-b", "\(blockSize)", "-I", "256", "-L", "label", "-d", tree, path])
        let listed = try ListedVolume.read(try open(path))
        #expect(listed.description?.kind.rawValue == kind)
        #expect(listed.description?.label == "label")
        #expect(listed.problems.isEmpty, "\(listed.problems)")
        let paths = listed.paths
        #expect(listed.names.contains { $0.name == Array("not utf-8 ".utf8) + [0xFF, 0xFE] })
        #expect(paths["/hard"] == paths["/small.txt"])
        #expect(listed.node("/empty")?.permissions == 0o4751)
        #expect(listed.node("/fifo")?.kind == .fifo)
        #expect(listed.node("/empty")?.modified?.seconds == 1_896_321_906)
        // Foundation cannot name that one.
        try FileManager.default.removeItem(atPath: tree + "/fifo")
        try run("bash", ["-c", "rm \"$1\"/not*", "-", tree])
        let odd = Set(paths.keys.filter { $0.hasPrefix("/not utf-8") })
        try listed.expectEqual(to: tree, leavingOut: odd.union(["/lost+found", "/fifo"]))
        listed.expectUsed()
        // Nothing without a name, but the root.
        let named = Set(listed.names.map(\.node))
        #expect(listed.nodes.keys.filter { !named.contains($0) } == [2])
    }

    @Test func aGroupThatCannotBeReadLosesItselfAlone() throws {
        let scratch = try ScratchDirectory()
        try makeTree(scratch("tree"))
        let path = try image(scratch, "ext.img", bytes: 64 << 20)
        try run(
            "mkfs.ext4", ["-q", "-b", "1024", "-O", "^metadata_csum,^flex_bg", "-d", scratch("tree"), path])
        var bytes = try [UInt8](Data(contentsOf: URL(fileURLWithPath: path)))
        let whole = try ListedVolume.read(MemoryStore(bytes))
        // The second group's inode bitmap lies nowhere.
        let descriptor = 2048 + 64
        for index in 4..<8 { bytes[descriptor + index] = 0xFF }
        let damaged = try ListedVolume.read(MemoryStore(bytes))
        #expect(!damaged.problems.isEmpty)
        #expect(damaged.nodes.count > 100 && damaged.nodes.count <= whole.nodes.count)
    }
}
