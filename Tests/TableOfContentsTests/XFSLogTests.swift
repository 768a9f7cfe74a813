import Blocks
import Foundation
import TestSupport
import Testing

@testable import TableOfContents

/// What the kernel leaves in a log, and what the reader makes of it.
@Suite(.enabled(if: MountedImage.isPossible, Comment(rawValue: MountedImage.reason)))
struct XFSLogTests {
    private let scratch: ScratchDirectory
    private let image: String

    init() throws {
        scratch = try ScratchDirectory()
        image = scratch("image")
    }

    private func make(_ options: String) throws -> MountedImage {
        try shell("truncate -s 1G \(image); mkfs.xfs -q \(options) \(image)")
        return try MountedImage(image, at: scratch("mnt"))
    }

    private func read(_ path: String) throws -> CollectedRecords {
        let store = try ImageStore(path)
        return try CollectedRecords(
            #require(try XFSReader(store, ByteRange(offset: 0, count: store.size), index: 0)))
    }

    private static let work = """
        mkdir -p d; for i in $(seq 2000); do echo $i > d/file-$i; done; rm d/*7
        for i in 1 2 3 4 5 6 8 9 10; do mkdir -p e/$i/f; mv d/file-$i e/$i/f; done; setfattr -n user.a -v b d
        """

    /// A frozen file system is whole as it lies there; the kernel, which recovers it, finds the same.
    @Test(arguments: ["", "-l su=32k", "-l size=64m -b size=1024", "-i nrext64=1 -l su=256k"])
    func frozen(_ options: String) throws {
        let mounted = try make(options)
        try shell(Self.work, directory: mounted.mountPoint)
        // Deleted while open: recovery takes care of it.
        let child = try ChildProcess(
            "bash", ["-c", "exec 3> deleted; echo some >&3; rm deleted; echo ready; read -r"],
            directory: mounted.mountPoint, keepsInputOpen: true)
        _ = child.line { $0 == "ready" }
        let copy = scratch("copy")
        try shell("fsfreeze -f \(mounted.mountPoint)")
        do {
            try shell("cp --sparse=always \(image) \(copy)")
        } catch {
            try shell("fsfreeze -u \(mounted.mountPoint)")
            throw error
        }
        try shell("fsfreeze -u \(mounted.mountPoint)")
        child.closeInput()
        _ = child.wait()
        let found = try read(copy)
        #expect(found.problems == [])
        #expect(found.description?.knowsUse == true, "\(found.description?.remark ?? "")")
        try mounted.unmount()
        try expectSameNames(found, copy)
    }

    /// Names and uses of the kernel's view of `copy`, which it recovers.
    private func expectSameNames(_ found: CollectedRecords, _ copy: String) throws {
        let recovered = try MountedImage(copy, at: scratch("copy-mnt"), options: "loop,nouuid")
        let kernel = try KernelEntry.tree(recovered.mountPoint)
        let paths = found.paths
        #expect(Set(paths.keys) == Set(kernel.keys))
        #expect(found.nodes.count == kernel.count)
        for (path, entry) in kernel {
            let number = try #require(paths[path])
            #expect(number == UInt64(entry.status.st_ino))
            #expect(found.nodes[number]?.size == UInt64(entry.status.st_size))
            #expect(found.nodes[number]?.changed == FileTime(entry.status.st_ctim))
            #expect(found.attributes[number] ?? [:] == entry.attributes)
        }
    }

    /// Without a freeze some of it is in the log alone, and the log is replayed.
    @Test func inUse() throws {
        let mounted = try make("")
        try shell(Self.work + "\nsync -f .", directory: mounted.mountPoint)
        let copy = scratch("copy")
        try shell("cp --sparse=always \(image) \(copy)")
        let found = try read(copy)
        #expect(found.description?.knowsUse == true, "\(found.description?.remark ?? "")")
        #expect(found.problems == [] && found.isEnded)
        try mounted.unmount()
        try expectSameNames(found, copy)
    }

    /// More than the log's size is written, and its end is looked at wherever it then is in the ring.
    @Test(arguments: ["-l size=64m", "-l size=64m,su=64k", "-l size=64m,su=256k -i size=1024"])
    func unmountedAtManyPlaces(_ options: String) throws {
        try shell("truncate -s 1G \(image); mkfs.xfs -q \(options) \(image)")
        let value = seededBytes(2000, seed: 5)
        for round in 0..<5 {
            let mounted = try MountedImage(image, at: scratch("mnt"))
            // Each of these attributes lies in a block of its own, which is logged whole.
            for index in 0..<4500 {
                let path = "\(mounted.mountPoint)/\(round)-\(index)"
                try KernelEntry.makeFile(path, attribute: "user.a", value: value)
            }
            try shell("sync -f \(mounted.mountPoint); rm -f \(mounted.mountPoint)/\(round)-*[0-4]")
            try mounted.unmount()
            let found = try read(image)
            #expect(found.description?.knowsUse == true, "\(found.description?.remark ?? "")")
            #expect(found.problems == [] && found.nodes.count == 1 + (round + 1) * 2250)
        }
        let log = try shell("xfs_logprint -d \(image) 2>/dev/null | grep -o 'Cycle [0-9]*' | sort -u")
        #expect(log.split(separator: "\n").count > 1, "the log has not been filled once")
    }

    /// A log that says nothing is not taken for clean. Where its last record is damaged, recovery takes that for torn
    /// and replays what is before it; all of that is in its place already, so the blocks in use are the same.
    @Test func doubt() throws {
        let mounted = try make("")
        try shell(Self.work, directory: mounted.mountPoint)
        try mounted.unmount()
        let output = try shell("xfs_db -r -c 'sb 0' -c 'p logstart agblklog agblocks' \(image)")
        let numbers = output.split(separator: "\n").compactMap {
            UInt64($0.split(separator: "=").last?.trimmingCharacters(in: .whitespaces) ?? "")
        }
        try #require(numbers.count == 3)
        let log = ((numbers[0] >> numbers[1]) * numbers[2] + numbers[0] & (1 << numbers[1] - 1)) * 4096
        func patched(_ offset: UInt64, _ bytes: [UInt8]) throws -> CollectedRecords {
            let store = try PatchedStore(image)
            try store.patch(log + offset, bytes)
            let reader = try XFSReader(store, ByteRange(offset: 0, count: store.size), index: 0)
            return try CollectedRecords(#require(reader))
        }
        let store = try ImageStore(image)
        let start = try store.bytes(at: log, count: 16 << 20)
        // The unmount record is the last that has a header in the first round.
        let sectors = Array(stride(from: 0, to: start.count, by: 512))
        // Magic number and round of the first; what a mount clears ahead of the head is of an older one.
        let found = sectors.last { start[$0..<$0 + 8].elementsEqual(start[..<8]) }
        let last = UInt64(try #require(found))
        let clean = try patched(last, [0xFE])
        #expect(clean.description?.knowsUse == true && clean.problems == [])
        for (offset, bytes) in [(last + 40, [1]), (last + 512 + 9, [0]), (last + 700, [1])]
            as [(UInt64, [UInt8])]
        {
            let torn = try patched(offset, bytes)
            #expect(torn.description?.knowsUse == true && torn.problems == [])
            #expect(torn.used == clean.used && torn.nodes == clean.nodes)
        }
        // Neither a torn record nor a whole one: what is on disk is newer than the log's end then.
        let cut = try patched(last, [0, 0, 0, 0])
        #expect(cut.description?.knowsUse == false || cut.used == clean.used)
        let nothing = try patched(0, [0, 0, 0, 0, 0, 0, 0, 0])
        #expect(nothing.description?.knowsUse == false && nothing.used.isEmpty)
        #expect(nothing.description?.isListed == true && nothing.nodes == clean.nodes)
        #expect(nothing.problems.contains { $0.reason.contains("--freeze") })
    }
}
