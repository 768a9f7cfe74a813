import Blocks
import Foundation
import TestSupport
import Testing

@testable import TableOfContents

/// Against the kernel: what it has when it mounts the same bytes is what we must tell.
@Suite(.enabled(if: ExtImage.canMount, Comment(rawValue: ExtImage.reason)), .serialized)
struct ExtKernelTests {
    struct Form: Sendable, CustomTestStringConvertible {
        let options: [String]
        var mount = "loop"
        var testDescription: String { (options + [mount]).joined(separator: " ") }
        var hasJournal: Bool { !options.contains { $0.contains("^has_journal") } }
    }

    static let forms: [Form] = [
        Form(options: []),
        Form(options: ["-b", "1024", "-I", "128"]),
        Form(options: ["-b", "4096", "-I", "1024", "-O", "inline_data,ea_inode"]),
        Form(options: ["-b", "4096", "-O", "inline_data"]),
        Form(options: ["-b", "2048", "-O", "^metadata_csum,^64bit,uninit_bg"]),
        Form(options: ["-b", "1024", "-t", "ext3"]),
        Form(options: ["-b", "4096", "-O", "^has_journal"], mount: "loop"),
        Form(options: ["-b", "1024", "-g", "1024", "-O", "meta_bg,^resize_inode"]),
        Form(options: ["-b", "4096", "-O", "bigalloc", "-C", "16384"]),
        Form(options: ["-b", "1024", "-O", "bigalloc,^resize_inode", "-C", "8192"]),
        Form(options: ["-b", "4096", "-O", "sparse_super2,mmp,orphan_file"]),
        Form(options: ["-b", "4096", "-g", "2048", "-O", "^flex_bg"]),
        Form(options: ["-b", "4096"], mount: "loop,data=journal"),
        Form(options: ["-b", "1024", "-O", "^64bit"], mount: "loop,data=journal"),
        Form(options: ["-b", "1024", "-J", "size=1"]),
        Form(options: ["-b", "1024", "-J", "size=1"], mount: "loop,data=journal"),
        Form(options: ["-b", "4096"], mount: "loop,journal_checksum"),
        Form(options: ["-b", "4096", "-O", "^metadata_csum"], mount: "loop,journal_checksum"),
        Form(
            options: ["-b", "4096", "-O", "^metadata_csum"], mount: "loop,data=writeback,journal_async_commit"
        ),
    ]

    /// Files of every kind, made by the kernel; then some are changed and deleted, part of it synchronized.
    static func fill(_ root: String) throws {
        let script = #"""
            set -eu
            cd "$1"
            mkdir -p d/e/f many deleted "$(printf 'na\xff\xfeme\n\001')"
            echo hello > small
            printf 'tiny' > d/tiny
            head -c 3000000 /dev/urandom > big
            head -c 100000 /dev/zero > zeros
            for i in $(seq 1 700); do echo "file $i" > "many/a-rather-long-name-of-a-file-$i"; done
            for i in $(seq 1 300); do mkdir deleted/dir$i; echo $i > deleted/dir$i/x; done
            ln -s short link
            ln -s "$(printf 'x%.0s' $(seq 1 300))" long
            ln -s "$(printf 'c\001\033l')" control
            ln small hard
            mknod char c 300 70000
            mknod block b 8 17
            mkfifo fifo
            truncate -s 5M sparse
            printf 'in the middle' | dd of=sparse bs=1 seek=2500000 conv=notrunc status=none
            touch unwritten beyond
            # ext3 cannot.
            fallocate -l 400000 unwritten || true
            printf 'start' | dd of=unwritten conv=notrunc status=none
            fallocate -n -l 700000 beyond || true
            printf 'abc' | dd of=beyond conv=notrunc status=none
            touch -d '2100-01-01 00:00:00.123456789Z' future
            touch -d '1931-05-06 07:08:09.5Z' past
            chown 100000:4000000000 future
            chmod 6751 future
            for i in $(seq 1 60); do
                dd if=/dev/zero of=pieces bs=1k count=4 seek=$((i * 12)) conv=notrunc status=none
                echo $i > between$i
            done
            setfattr -n user.one -v 1 small
            setfattr -n user.empty small
            setfattr -n trusted.two -v "$(printf 'v%.0s' $(seq 1 400))" small
            setfattr -n security.three -v three small
            setfattr -n user.dir -v of-a-directory d
            setfattr -n user.tiny -v of-inline-data d/tiny
            setfacl -m u:1234:rw,g:77:r big
            setfacl -d -m u:1235:rwx d
            """#
        try ExtImage.succeed("bash", ["-c", script, "fill", root])
    }

    static func change(_ root: String) throws {
        let script = #"""
            set -eu
            cd "$1"
            rm -r deleted
            head -c 300000 /dev/urandom > big
            for i in $(seq 1 20); do rm between$i; head -c $((i * 3000)) /dev/urandom > reused$i; done
            mv many/a-rather-long-name-of-a-file-1 d/e/moved
            sync -f .
            for i in $(seq 21 40); do rm between$i; head -c $((i * 1000)) /dev/urandom > again$i; done
            sync again21 again25
            printf '\300\073\071\230 a file that begins as a journal block does' > escaped
            sync escaped
            """#
        try ExtImage.succeed("bash", ["-c", script, "change", root])
    }

    /// The bytes of the image while it is mounted and has changes that only its journal holds.
    static func crash(_ form: Form) throws -> ExtImage {
        let image = try ExtImage(mebibytes: 64, form.options)
        let mount = try ExtMount(image, form.mount)
        try fill(mount.path)
        try ExtImage.succeed("sync", ["-f", mount.path])
        try change(mount.path)
        let held = try ChildProcess("tail", ["-f", mount("again21")])
        defer { held.stop() }
        // An open file without a name: an orphan.
        try ExtImage.succeed(
            "bash", ["-c", "rm again21; echo more > \(mount.path)/last; sync \(mount.path)/last"])
        // Without one nothing keeps the order, and a write-back that has come half-way leaves what not even the kernel reads.
        if !form.hasJournal { try ExtImage.succeed("sync", ["-f", mount.path]) }
        try ExtImage.succeed("cp", ["--sparse=always", image.path, image.scratch("crashed.img")])
        held.stop()
        try mount.unmount()
        try ExtImage.succeed("mv", [image.scratch("crashed.img"), image.path])
        return image
    }

    @Test(arguments: forms) func treeAndUseAreTheKernels(_ form: Form) throws {
        let image = try Self.crash(form)
        let store = try image.store()
        let system = try ExtFileSystem.of(store)
        let hasJournal = form.hasJournal
        #expect(system.description.isListed)
        #expect(system.description.knowsUse == hasJournal, "\(system.description.remark)")
        if hasJournal {
            #expect(system.replayed is JournalOverlay)
            let journal = try UInt64(
                ExtImage.succeed("debugfs", ["-R", "bmap <8> 0", image.path]).output
                    .trimmingCharacters(in: .whitespacesAndNewlines))
            let expected = try image.replayedByE2fsck()
            let size = form.options.firstIndex(of: "-b").flatMap { Int(form.options[$0 + 1]) } ?? 1024
            let own = try Self.blocksOfE2fsck(system.replayed)
            let differing = try differingBlocks(system.replayed, expected, size, journal: journal ?? 0)
            #expect(differing.filter { !own.contains(UInt64($0)) } == [])
        }
        let ours = try system.tree(store)
        #expect(ours.problems == [])
        try Self.expectAllNodes(of: store, in: ours.tree)

        let sink = RecordList()
        try system.readUse(into: sink)
        #expect(sink.problems == [])
        let copy = image.scratch("used.img")
        try Self.copy(sink.used, of: store, to: copy)
        let whole = image.scratch("whole.img")
        try ExtImage.succeed("cp", ["--sparse=always", image.path, whole])

        let reference = try Self.mounted(whole, image)
        #expect(reference.count > 700)
        #expect(differences(ours.tree, reference) == [])
        guard hasJournal else { return }
        #expect(sink.used.reduce(0) { $0 + $1.count } < store.size / 2)
        try ExtImage.succeed("cp", ["--sparse=always", copy, image.scratch("checked.img")])
        #expect(differences(try Self.mounted(copy, image), reference) == [])
        try ExtImage.succeed("e2fsck", ["-fn", copy])
        // And without the kernel: e2fsck replays the copy's journal, and has nothing to mend then.
        try ExtImage.succeed(
            "e2fsck", ["-y", "-E", "journal_only", image.scratch("checked.img")], codes: [0, 1])
        try ExtImage.succeed("e2fsck", ["-fp", image.scratch("checked.img")], codes: [0, 1])
        try ExtImage.succeed("e2fsck", ["-fn", image.scratch("checked.img")])
    }

    /// The whole reader, which walks inodes and not names, comes to the same nodes and names.
    static func expectAllNodes(of store: any BlockStore, in tree: Tree) throws {
        let reader = try #require(try ExtVolumeReader(store, ByteRange(offset: 0, count: store.size)))
        let sink = RecordList()
        try reader.read(.files, into: sink)
        #expect(sink.problems == [])
        var nodes: [UInt64: FileNode] = [:]
        for case .node(let node) in sink.records { nodes[node.address] = node }
        let names = sink.names.filter { !($0.parent == 2 && $0.name == Array("lost+found".utf8)) }
        // The root has no name.
        #expect(names.count == tree.count - 1)
        #expect(names.allSatisfy { nodes[$0.node] != nil })
        let links = names.filter { nodes[$0.node]?.kind != .directory }.reduce(into: [UInt64: UInt32]()) {
            $0[$1.node, default: 0] += 1
        }
        #expect(links.allSatisfy { nodes[$0.key]?.links == $0.value })
        // The root and lost+found, and what of deleted files the disk still has where no journal keeps the order.
        let others = nodes.count - Set(names.map(\.node)).count
        #expect(reader.description.knowsUse ? others == 2 : others >= 2)
    }

    /// Blocks that e2fsck writes on its own account: copies of descriptors in meta groups, and its mark that it is
    /// at work.
    static func blocksOfE2fsck(_ store: any BlockStore) throws -> Set<UInt64> {
        guard let superblock = ExtSuperblock(try store.bytes(at: 1024, count: 1024)) else { return [] }
        var blocks: Set<UInt64> = []
        if superblock.has(incompatible: ExtFeature.Incompatible.multipleMount) {
            blocks.insert(superblock.multipleMountBlock)
        }
        guard superblock.has(incompatible: ExtFeature.Incompatible.metaGroups) else { return blocks }
        for group in 0..<superblock.groupCount where group % superblock.descriptorsPerBlock != 0 {
            let first = superblock.firstBlock(ofGroup: group)
            blocks.formUnion(first..<first + superblock.baseBlocks(ofGroup: group))
        }
        return blocks
    }

    static func copy(_ ranges: [ByteRange], of store: any BlockStore, to path: String) throws {
        // What is not copied is not zeros, so that nothing relies on that.
        var bytes = seededBytes(Int(store.size), seed: 77)
        for range in ranges {
            bytes.replaceSubrange(
                Int(range.offset)..<Int(range.end),
                with: try store.bytes(at: range.offset, count: Int(range.count)))
        }
        try Data(bytes).write(to: URL(fileURLWithPath: path))
    }

    /// The tree of an image that the kernel recovers.
    static func mounted(_ path: String, _ image: ExtImage) throws -> Tree {
        let point = image.scratch("reference")
        try FileManager.default.createDirectory(atPath: point, withIntermediateDirectories: true)
        try ExtImage.succeed("mount", ["-o", "loop,noatime", path, point])
        defer { _ = try? runProgram("umount", [point]) }
        return try KernelTree.read(point)
    }
}
