import Agent
import Blocks
import Foundation
import PhysicalCopy
import TableOfContents
import TestSupport
import Testing

/// What `verify` says of damage: in which file and where, and whether anything lies there.
@Suite(.serialized) struct VerifyTests {
    struct Output: Decodable {
        var ok: Bool
        var findings: [Finding]
        var moreFindings: UInt64
        var notes: [String]
    }

    static func verify(_ copy: String, _ options: [String] = [], status: Int32) throws -> Output {
        let result = try Outboard.run(["verify", copy, "--json"] + options)
        guard result.status == status else { throw TestFailure("not \(status): \(result)") }
        return try JSONDecoder().decode(Output.self, from: Data(result.output.utf8))
    }

    /// A volume with an ext4 that has a large file, small ones, and much free space; copied under overwriting.
    private struct Site {
        static let size = 24 << 20
        let scratch: ScratchDirectory
        let copy: String

        init(mode: String) throws {
            scratch = try ScratchDirectory()
            let tree = scratch("tree")
            try FileManager.default.createDirectory(
                atPath: tree + "/home", withIntermediateDirectories: true)
            try makePatternFile(tree + "/home/large", count: 3 << 20)
            try makePatternFile(tree + "/home/other", count: 300_000, seed: 2)
            try makeSparseFile(scratch("volume.img"), size: UInt64(Self.size))
            let made = try runProgram(
                "mkfs.ext4",
                ["-q", "-b", "4096", "-O", "metadata_csum,64bit", "-d", tree, scratch("volume.img")])
            guard made.isSuccess else { throw TestFailure("\(made)") }
            let host = try HostProcess(scratch, options: ["--chunk-size", "16KiB"])
            copy = scratch("copy")
            let copied = try Outboard.run([
                "copy", "--host", host.control, "--to", copy, "--mode", mode,
                // What is overwritten after the instant lies where nothing is, so that the same is in use in all of them.
                "--post-thaw",
                "qemu-io -f raw -c 'write -P 7 20M 1M' '\(host.uri)' > /dev/null",
            ])
            guard copied.isSuccess else { throw TestFailure("\(copied)") }
            host.stop()
        }

        /// Where the file's content begins on the volume.
        func place(of path: String) throws -> Int {
            let toc = try TocDatabase(copy + "/toc.sqlite")
            guard let key = try toc.resolve(path)?.key else { throw TestFailure("no \(path)") }
            var first: UInt64?
            try toc.forEachExtent(of: key) { first = first ?? $0.volumeOffset }
            guard let first else { throw TestFailure("\(path) has no extents") }
            return Int(first)
        }

        /// What is found with one byte of a file turned over.
        func found(_ name: String, at place: Int) throws -> [Finding] {
            try flipByte("\(copy)/\(name)", at: place)
            defer { try? flipByte("\(copy)/\(name)", at: place) }
            let output = try VerifyTests.verify(copy, status: 65)
            #expect(!output.ok && output.moreFindings == 0, "\(name) at \(place)")
            return output.findings
        }
    }

    @Test(arguments: ["overlay", "append", "integrated"])
    func aFlippedByteIsToldWithItsPlace(kind: String) throws {
        let site = try Site(mode: kind == "integrated" ? "append" : kind)
        if kind == "integrated" {
            let integrated = try Outboard.run(["integrate", site.copy])
            #expect(integrated.isSuccess, "\(integrated)")
        }
        let sums = kind == "integrated" ? "checksums.integrated" : "checksums"
        let names = try FileManager.default.contentsOfDirectory(atPath: site.copy).sorted()
        #expect(names == [sums, "data.img", "manifest.json", "toc.sqlite"])
        #expect(try Self.verify(site.copy, status: 0).notes == [])
        for name in names {
            let count = try contents("\(site.copy)/\(name)").count
            for place in [0, count / 2, count - 1] {
                let found = try site.found(name, at: place)
                #expect(
                    found.contains { $0.offset <= place && place < $0.range.end }
                        && found.allSatisfy { $0.file == name }, "\(name) at \(place): \(found)")
            }
        }
        // Metadata; a file's content; what is free.
        let places = [0, try site.place(of: "/home/large") + 1_000_000, Site.size - 70_000]
        let found = try places.map { try site.found("data.img", at: $0) }
        try #require(found.map(\.count) == [1, 1, 1], "\(found)")
        for (finding, place) in zip(found.map { $0[0] }, places) {
            let chunk = UInt64(place) / 65_536
            #expect(finding.part == .data && finding.chunk == chunk)
            #expect(finding.volume == ByteRange(offset: chunk * 65_536, count: 65_536))
        }
        #expect(found.map { $0[0].inUse } == [.unknown, .yes, .no], "\(found)")
        #expect(found[1][0].usedBy == ["/home/large"] && found[1][0].moreUsers == 0)

        // People are told the same in words.
        try flipByte(site.copy + "/data.img", at: places[1])
        let told = try Outboard.run(["verify", site.copy])
        #expect(told.status == 65 && told.output.isEmpty, "\(told)")
        let chunk = places[1] / 65_536
        #expect(told.errors.contains("data in data.img at \(chunk * 65_536), 65536 bytes"), "\(told)")
        #expect(told.errors.contains("(chunk \(chunk))"), "\(told)")
        #expect(told.errors.contains("in use by /home/large"), "\(told)")
    }

    /// Without a table of contents the file systems alone are asked; and where that one is damaged, it is not believed.
    @Test func withoutATableOfContents() throws {
        let site = try Site(mode: "overlay")
        let place = try site.place(of: "/home/large") + 1_000_000
        try flipByte(site.copy + "/data.img", at: place)
        let listed = try Self.verify(site.copy, status: 65).findings
        #expect(listed.map(\.usedBy) == [["/home/large"]])
        try flipByte(site.copy + "/toc.sqlite", at: 4000)
        let found = try Self.verify(site.copy, status: 65).findings
        try #require(found.map(\.part) == [.data, .toc], "\(found)")
        #expect(found[0].inUse == .yes && found[0].usedBy == nil, "\(found)")
        #expect(found[0].useReason?.contains("not listed") == true, "\(found)")
    }

    @Test func leftoversAreTold() throws {
        let scratch = try ScratchDirectory()
        try makePatternFile(scratch("volume.img"), count: 1 << 20)
        let host = try HostProcess(scratch)
        let copy = scratch("copy")
        let draft = scratch(".copy.partial-1")
        try FileManager.default.createDirectory(atPath: draft, withIntermediateDirectories: false)
        try Data([1]).write(to: URL(fileURLWithPath: draft + "/resume.json"))
        let missing = try Outboard.run(["verify", copy])
        #expect(missing.status == 66 && missing.errors.contains("--resume"), "\(missing)")
        #expect(missing.errors.contains(draft), "\(missing)")
        let inTheMaking = try Outboard.run(["verify", draft])
        #expect(inTheMaking.status == 66 && inTheMaking.errors.contains("in the making"), "\(inTheMaking)")

        #expect(try Outboard.run(["copy", "--host", host.control, "--to", copy]).isSuccess)
        #expect(try Self.verify(copy, status: 0).notes == [])
        try FileManager.default.createDirectory(atPath: draft, withIntermediateDirectories: false)
        try Data([1]).write(to: URL(fileURLWithPath: copy + "/resume.json"))
        let notes = try Self.verify(copy, status: 0).notes
        #expect(notes.count == 2 && notes[0].contains(draft) && notes[1].contains("resume.json"), "\(notes)")
        let told = try Outboard.run(["verify", copy])
        #expect(told.isSuccess && notes.allSatisfy(told.errors.contains), "\(told)")
    }

    /// A damaged manifest is told as other damage is.
    @Test func aDamagedManifestIsAFinding() throws {
        let crafted = try CraftedCopy(mode: "overlay", size: 4 << 20)
        try flipByte(crafted.copy + "/manifest.json", at: 100)
        let found = try Self.verify(crafted.copy, status: 65).findings
        #expect(found.map(\.part) == [.manifest] && found.map(\.file) == ["manifest.json"])
        let told = try Outboard.run(["verify", crafted.copy])
        #expect(told.errors.contains("manifest in manifest.json at 0"), "\(told)")
    }

    /// Of many files in one chunk some are named, and all are counted.
    @Test func theFilesOfAChunkHaveALimit() throws {
        let crafted = try CraftedCopy(mode: "overlay", size: 4 << 20)
        let chunk: UInt64 = 65_536
        for (place, count) in [(10, AgentLimits.listedUsers), (12, AgentLimits.listedUsers + 1)] {
            for number in 0..<count {
                let offset = UInt64(place) * chunk + UInt64(number) * 512
                crafted.file(
                    "\(place) \(number)", size: 512,
                    [FileExtent(fileOffset: 0, volumeOffset: offset, count: 512)])
            }
            try flipByte(crafted.copy + "/data.img", at: place * Int(chunk) + 40_000)
        }
        try crafted.finish()
        let found = try Self.verify(crafted.copy, status: 65).findings
        #expect(found.map(\.chunk) == [10, 12] && found.map(\.moreUsers) == [0, 1], "\(found)")
        #expect(found.map { $0.usedBy?.count } == [AgentLimits.listedUsers, AgentLimits.listedUsers])
        #expect(found.first?.usedBy?.first == "/10 0", "\(found)")
    }
}
