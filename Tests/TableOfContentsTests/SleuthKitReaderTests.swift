import Blocks
import Foundation
import TestSupport
import Testing

@testable import TableOfContents

/// File systems made by their own tools, held against what was put on them.
struct SleuthKitReaderTests {
    @Test(arguments: [12, 16, 32])
    func fatIsReadAsMtoolsWroteIt(bits: Int) throws {
        let scratch = try ScratchDirectory()
        try makeTree(scratch("tree"))
        let path = try image(scratch, "fat.img", bytes: 64 << 20)
        let perCluster = bits == 12 ? "64" : bits == 16 ? "4" : "1"
        try run(
            "mkfs.fat", ["-F", "\(bits)", "-s", perCluster, "-n", "LABEL\(bits)", "-i", "1234abcd", path])
        let members = try FileManager.default.contentsOfDirectory(atPath: scratch("tree")).map {
            scratch("tree/" + $0)
        }
        try run(
            "mcopy", ["-s", "-m", "-i", path] + members + ["::"],
            environment: ["TZ": "UTC", "LC_ALL": "C.UTF-8"])
        let listed = try ListedVolume.read(try open(path))
        #expect(listed.description?.kind == [12: .fat12, 16: .fat16, 32: .fat32][bits])
        #expect(listed.description?.label == "LABEL\(bits)")
        #expect(listed.description?.uuid == "1234-abcd")
        #expect(listed.problems.isEmpty, "\(listed.problems)")
        try listed.expectEqual(to: scratch("tree"))
        listed.expectUsed()
        let free = (64 << 20) - listed.used.reduce(0) { $0 + $1.count }
        #expect(free > 40 << 20, "\(free) bytes are free")
        let modified = try #require(
            FileManager.default.attributesOfItem(atPath: scratch("tree/big.bin"))[.modificationDate] as? Date)
        let told = try #require(listed.node("/big.bin")?.modified)
        #expect(abs(Double(told.seconds) - modified.timeIntervalSince1970) <= 2)
        #expect(listed.node("/big.bin")?.permissions == nil)
    }

    @Test func dirtyFATDoesNotSayWhatIsFree() throws {
        let scratch = try ScratchDirectory()
        let path = try image(scratch, "fat.img", bytes: 64 << 20)
        try run("mkfs.fat", ["-F", "32", "-s", "1", path])
        var bytes = try [UInt8](Data(contentsOf: URL(fileURLWithPath: path)))
        #expect(try ListedVolume.read(MemoryStore(bytes)).description?.knowsUse == true)
        bytes[65] |= 1
        let dirty = try ListedVolume.read(MemoryStore(bytes))
        #expect(dirty.description?.knowsUse == false)
        #expect(dirty.used.isEmpty)
    }

    @Test func directoriesThatLoopAreReadOnce() throws {
        let scratch = try ScratchDirectory()
        try makeTree(scratch("tree"))
        let path = try image(scratch, "fat.img", bytes: 64 << 20)
        try run("mkfs.fat", ["-F", "32", "-s", "1", path])
        try run("mcopy", ["-s", "-i", path, scratch("tree/a"), "::"])
        var bytes = try [UInt8](Data(contentsOf: URL(fileURLWithPath: path)))
        let before = try ListedVolume.read(MemoryStore(bytes))
        let geometry = try #require(
            bytes.withUnsafeBytes { FATGeometry(UnsafeRawBufferPointer(rebasing: $0[..<512])) })
        // The entry of /a leads to the root itself.
        let root = Int(geometry.firstClusterSector * 512)
        let entry = try #require(
            stride(from: root, to: root + 512, by: 32).first {
                bytes[$0] == UInt8(ascii: "A") && bytes[$0 + 11] & 0x10 != 0
            })
        bytes[entry + 26] = 2
        bytes[entry + 27] = 0
        let after = try ListedVolume.read(MemoryStore(bytes))
        #expect(before.problems.isEmpty)
        #expect(!after.problems.isEmpty)
        #expect(after.names.count <= 3)
    }

    @Test(.enabled(if: Machine.canMount, "needs root, FUSE and loop devices"))
    func exfatIsReadAsItsDriverShowsIt() throws {
        let scratch = try ScratchDirectory()
        try makeTree(scratch("tree"))
        let path = try image(scratch, "exfat.img", bytes: 64 << 20)
        try run("mkfs.exfat", ["-n", "exlabel", path])
        try onLoopDevice(path) { device in
            try mounted("mount.exfat-fuse", [device], at: scratch("mnt")) { point in
                try run("cp", ["-rp", scratch("tree") + "/.", point])
                try run("truncate", ["-s", "1000000", point + "/longer than written"])
            }
        }
        let listed = try ListedVolume.read(try open(path))
        #expect(listed.description?.kind == .exfat)
        #expect(listed.problems.isEmpty, "\(listed.problems)")
        try run("truncate", ["-s", "1000000", scratch("tree/longer than written")])
        try listed.expectEqual(to: scratch("tree"))
        listed.expectUsed()
    }

    @Test(.enabled(if: Machine.canMount, "needs root, FUSE and loop devices"))
    func ntfsIsReadAsItsDriverShowsIt() throws {
        let scratch = try ScratchDirectory()
        let path = try image(scratch, "ntfs.img", bytes: 64 << 20)
        try run("mkntfs", ["-F", "-q", "-L", "nt läbel", path])
        let mount = ["-o", "streams_interface=windows", path]
        try mounted("ntfs-3g", mount, at: scratch("mnt")) { point in
            try makeTree(point)
            try run(
                "bash",
                [
                    "-ec",
                    """
                    cd "$1"; echo other > big.bin:alternate; ln -s small.txt link; mkfifo fifo; mknod chr c 5 6
                    ln small.txt hard; echo x > '😀'; truncate -s 10M sparse; printf x | dd of=sparse bs=1 seek=5000000 conv=notrunc
                    touch -d '1950-02-03 04:05:06.7 UTC' empty; touch -d '2150-02-03 04:05:06.7 UTC' small.txt
                    """, "-", point,
                ])
            try run("cp", ["-a", point, scratch("reference")])
        }
        let listed = try ListedVolume.read(try open(path))
        #expect(listed.description?.kind == .ntfs)
        #expect(listed.description?.label == "nt läbel")
        #expect(listed.problems.isEmpty, "\(listed.problems)")
        try listed.expectEqual(to: scratch("reference"))
        // ntfs-3g leaves no trace of whether it was unmounted; a journal that says so is believed.
        #expect(listed.description?.knowsUse == false && listed.used.isEmpty)
        try closeJournal(of: path)
        try ListedVolume.read(try open(path)).expectUsed()
        let paths = listed.paths
        #expect(paths["/hard"] == paths["/small.txt"])
        #expect(listed.node("/hard")?.links == 2)
        #expect(listed.node("/fifo")?.kind == .fifo)
        #expect(listed.node("/chr")?.kind == .characterDevice)
        #expect(listed.node("/chr")?.device == DeviceNumber(major: 5, minor: 6))
        #expect(listed.node("/empty")?.modified == FileTime(seconds: -628_286_094, nanoseconds: 700_000_000))
        #expect(
            listed.node("/small.txt")?.modified == FileTime(seconds: 5_683_147_506, nanoseconds: 700_000_000))
        let big = try #require(paths["/big.bin"])
        let alternate = StreamIdentifier(node: big, number: 1)
        #expect(listed.streams[alternate]?.name == Array("alternate".utf8))
        #expect(try listed.content(alternate) == Array("other\n".utf8))
        let sparse = try #require(paths["/sparse"])
        let allocated = listed.extents[StreamIdentifier(node: sparse)]?.reduce(0) { $0 + $1.count } ?? 0
        #expect((1...131_072).contains(allocated))
    }
}

/// Runs `body` while an image stands as a block device.
func onLoopDevice(_ path: String, _ body: (String) throws -> Void) throws {
    let device = try run("losetup", ["--find", "--show", path]).trimmingCharacters(
        in: .whitespacesAndNewlines)
    defer { _ = try? runProgram("losetup", ["--detach", device]) }
    try body(device)
}

/// Runs `body` while a file system is mounted.
func mounted(_ program: String, _ arguments: [String], at point: String, _ body: (String) throws -> Void)
    throws
{
    try FileManager.default.createDirectory(atPath: point, withIntermediateDirectories: true)
    try run(program, arguments + [point])
    var isMounted = true
    defer { if isMounted { _ = try? runProgram("umount", ["-l", point]) } }
    try body(point)
    // A process that another test starts meanwhile may have what it inherits open for a moment.
    while true {
        let result = try runProgram("umount", [point])
        if result.isSuccess { break }
        try #require(result.errors.contains("busy"), "\(result)")
    }
    isMounted = false
}

/// Writes the restart pages of an NTFS journal that nobody uses over one that was reset.
private func closeJournal(of path: String) throws {
    let file = try FileHandle(forUpdating: URL(fileURLWithPath: path))
    defer { try? file.close() }  // only the write counts, and it has its own error
    let image = [UInt8](try #require(try file.readToEnd()))
    let start = try #require(
        stride(from: 0, to: image.count - 16384, by: 4096).first {
            image[$0..<$0 + 16384].allSatisfy { $0 == 0xFF }
        })
    var page = [UInt8](repeating: 0, count: 4096)
    page.replaceSubrange(0..<4, with: Array("RSTR".utf8))
    page[24] = 48
    page.replaceSubrange(60..<62, with: [0xFF, 0xFF])
    try file.seek(toOffset: UInt64(start))
    try file.write(contentsOf: Data(page + page))
}
