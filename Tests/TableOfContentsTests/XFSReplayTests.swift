import Blocks
import Foundation
import Glibc
import TestSupport
import Testing

@testable import TableOfContents

/// Logs that a shutdown left, replayed in memory and by the kernel: both must show the same files, and what is told to
/// be free must be free for the kernel, too.
@Suite(.enabled(if: MountedImage.isPossible, Comment(rawValue: MountedImage.reason)))
struct XFSReplayTests {
    /// When the file system goes down.
    enum End: String, CaseIterable, Sendable {
        /// All that was done is in the log.
        case flushed
        /// What is in memory is lost, and nothing happens at that moment.
        case idle
        /// The same in the midst of work.
        case busy
    }

    struct Case: CustomTestStringConvertible, Sendable {
        var options: String
        var seed: UInt64
        var end: End
        var steps = 1500
        var testDescription: String { "\(options) seed \(seed) \(end)" }
    }

    /// None has directory blocks of more than one block: the kernel's recovery of such that lie in pieces is not to
    /// be relied on (below).
    private static let forms = [
        "", "-m rmapbt=1", "-b size=1024", "-b size=2048 -i size=1024", "-s size=4096 -l su=32k",
        "-l su=256k",
        // Logs that go round.
        "--unsupported -l size=10m", "--unsupported -b size=1024 -l size=4m",
        "-b size=1024 -m finobt=0,inobtcount=0 -i sparse=0", "-i nrext64=1 -m bigtime=0,reflink=0",
    ]

    /// `OUTBOARD_XFS_SEEDS`: that many cases instead of the few of every day.
    static let cases: [Case] = {
        if let seeds = getenv("OUTBOARD_XFS_SEEDS").flatMap({ UInt64(String(cString: $0)) }) {
            return (1...seeds).map { seed in
                Case(
                    options: forms[Int(seed) % forms.count], seed: seed,
                    end: End.allCases[Int(seed / 3) % 3], steps: 500 + Int(seed * 977 % 6000))
            }
        }
        return forms.enumerated().map { index, options in
            Case(options: options, seed: UInt64(index), end: End.allCases[index % 3])
        }
    }()

    @Test(arguments: cases)
    func showsWhatRecoveryShows(_ test: Case) throws {
        let scratch = try ScratchDirectory()
        let image = scratch("image")
        try shell("truncate -s 400M \(image); mkfs.xfs -q \(test.options) \(image)")
        try work(test, MountedImage(image, at: scratch("mnt")))
        let store = try ImageStore(image)
        let range = ByteRange(offset: 0, count: store.size)
        let found = try CollectedRecords(#require(try XFSReader(store, range, index: 0)))
        #expect(found.description?.knowsUse == true, "\(found.description?.remark ?? "")")
        try #require(found.description?.knowsUse == true)
        let free = try found.overwriteFree(image)
        let recovered = try MountedImage(image, at: scratch("mnt"), options: "loop,noatime")
        try found.expectEqual(store, recovered.mountPoint, unfinished: test.end == .busy)
        try recovered.unmount()
        try shell("xfs_repair -n \(image) 2>&1")
        let after = try CollectedRecords(#require(try XFSReader(store, range, index: 0)))
        let kernelFree = store.size - after.used.reduce(0) { $0 + $1.count }
        print(
            "\(test.testDescription): \(found.nodes.count) nodes, \(free >> 10) KiB free of the kernel's \(kernelFree >> 10), "
                + "\(found.problems.count) under way")
        #expect(free <= kernelFree && kernelFree - free < 32 << 20)
    }

    /// Directory blocks that lie in pieces are logged piece by piece. The kernel does not recover such a log: 6.18 ends in
    /// a fault that takes the machine's sync(2) with it. So it is asked for the tree before, and MUST NOT be given the image
    /// again.
    @Test func directoryBlocksInPieces() throws {
        let scratch = try ScratchDirectory()
        let image = scratch("image")
        try shell("truncate -s 320M \(image); mkfs.xfs -q -n size=64k -m reflink=0 -d agcount=2 \(image)")
        let mounted = try MountedImage(image, at: scratch("mnt"))
        let root = mounted.mountPoint
        func allocate(_ name: String, _ count: off_t) -> Bool {
            let file = open(root + "/" + name, O_CREAT | O_WRONLY | O_CLOEXEC, 0o644)
            defer { close(file) }
            return posix_fallocate(file, 0, count) == 0
        }
        // All but a little is taken; the rest in gaps of 20 KiB.
        try #require(allocate("most", 170 << 20))
        try shell("mkdir fill big", directory: root)
        var files = 0
        while allocate("fill/\(files)", 20 << 10) { files += 1 }
        for index in stride(from: 0, through: files, by: 2) { unlink(root + "/fill/\(index)") }
        try shell("sync -f .", directory: root)
        for index in 0..<300 { _ = allocate("big/\(index)", 64 << 10) }
        // Links: for more inodes there is no room.
        for directory in 0..<4 {
            try #require(mkdir(root + "/d\(directory)", 0o755) == 0)
            for index in 0..<2500 {
                _ = link(root + "/fill/1", root + "/d\(directory)/some-name-of-a-file-\(index)")
            }
        }
        let pieces = try shell("for i in 0 1 2 3; do xfs_bmap d$i | wc -l; done", directory: root)
        try #require(pieces.split(separator: "\n").contains { (Int($0) ?? 0) > 4 }, "\(pieces)")
        let kernel = try KernelEntry.tree(root)
        try shell("xfs_io -x -c 'shutdown -f' \(root)")
        try mounted.unmount()
        let store = try ImageStore(image)
        let range = ByteRange(offset: 0, count: store.size)
        let found = try CollectedRecords(#require(try XFSReader(store, range, index: 0)))
        #expect(found.problems == [] && found.description?.knowsUse == true)
        #expect(Set(found.paths.keys) == Set(kernel.keys))
    }

    private func work(_ test: Case, _ mounted: MountedImage) throws {
        var workload = XFSWorkload(mounted.mountPoint, seed: test.seed)
        switch test.end {
        case .flushed, .idle:
            workload.run(test.steps)
            try shell("xfs_io -x -c 'shutdown \(test.end == .flushed ? "-f" : "")' \(mounted.mountPoint)")
        case .busy:
            let child = try ChildProcess(
                "bash", ["-c", "read -r; exec xfs_io -x -c shutdown \(mounted.mountPoint)"],
                keepsInputOpen: true)
            workload.run(test.steps)
            child.closeInput()
            workload.run(100_000) { access(mounted.mountPoint + "/none", F_OK) != 0 && errno == EIO }
            _ = child.wait()
        }
        try mounted.unmount()
    }
}
