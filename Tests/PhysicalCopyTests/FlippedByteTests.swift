import Blocks
import Foundation
import OriginalImage
import TestSupport
import Testing

@testable import PhysicalCopy

/// Each flipped byte of each file of a copy is found, and told with its file and its place.
@Suite struct FlippedByteTests {
    /// What is found with a byte of a file turned over.
    private func findings(_ copy: String, _ name: String, at place: Int) throws -> [Finding] {
        let path = copy + "/" + name
        let file = open(path, O_RDWR)
        defer { close(file) }
        var byte: UInt8 = 0
        func turnOver() throws {
            guard pread(file, &byte, 1, place) == 1 else { throw Absent() }
            byte ^= 0x10
            guard pwrite(file, &byte, 1, place) == 1 else { throw Absent() }
        }
        try turnOver()
        defer { try? turnOver() }
        do throws(CopyError) {
            return try PhysicalCopy(copy).verify(SampleCopy.open).findings
        } catch {
            return PhysicalCopy.manifestFinding(error, in: copy).map { [$0] } ?? []
        }
    }
    private struct Absent: Error {}

    /// All bytes of what is small; of the data the ends of chunks, and some between.
    private func places(_ name: String, count: Int) -> [Int] {
        guard name == "data.img" else { return Array(0..<count) }
        var places: Set = [0, count - 1]
        for edge in stride(from: 65_536, to: count, by: 65_536) { places.formUnion([edge - 1, edge]) }
        for place in stride(from: 4_095, to: count, by: 20_011) { places.insert(place) }
        return places.sorted()
    }

    enum Kind: CaseIterable { case append, integrated, version1 }

    @Test(arguments: Kind.allCases) func eachIsFound(kind: Kind) throws {
        let parent = TemporaryDirectory()
        let sample = try SampleCopy(in: parent.path, seed: 21, version: kind == .version1 ? 1 : 2)
        if kind == .integrated {
            try PhysicalCopy(sample.directory, for: .changing).integrate(SampleCopy.open)
        }
        let names = try Files().names(in: sample.directory, "").sorted()
        #expect(
            names
                == [
                    .append: ["checksums", "data.img", "manifest.json"],
                    .integrated: ["checksums.integrated", "data.img", "manifest.json"],
                    .version1: ["data.img", "manifest.json"],
                ][kind])
        let part: [String: Finding.Part] = [
            "manifest.json": .manifest, "checksums": .checksums, "checksums.integrated": .checksums,
        ]
        for name in names {
            let count = try Data(contentsOf: URL(fileURLWithPath: sample.path(name))).count
            for place in places(name, count: count) {
                let found = try findings(sample.directory, name, at: place)
                #expect(
                    !found.isEmpty && found.allSatisfy { $0.file == name }
                        && found.contains { $0.offset <= place && place < $0.range.end },
                    "\(name) at \(place): \(found)")
                if let part = part[name] {
                    #expect(found.map(\.part) == [part], "\(name) at \(place)")
                } else if place < 300_000, kind != .version1 {
                    #expect(found.map(\.chunk) == [UInt64(place / 65_536)], "\(place)")
                    #expect(found.map(\.volume) == found.map { $0.range })
                }
            }
        }
        #expect(try PhysicalCopy(sample.directory).verify(SampleCopy.open).isClean)
    }

    /// Of two original images that are damaged both are told, with what of the volume they are.
    @Test func damagedOriginalsAreToldByTheirChunks() throws {
        let parent = TemporaryDirectory()
        let sample = try SampleCopy(in: parent.path, seed: 22)
        let base = sample.manifest.originals!.offset
        let store = try SampleCopy.open(.path(sample.path("data.img")), true)
        let entries = try PhysicalCopy(sample.directory).logReader(in: store).index().entries
            .filter { !$0.isZero }
        let damaged = [entries[1], entries[entries.count - 2]]
        for entry in damaged {
            let place = base + entry.position + 77
            try store.write([~(try store.bytes(at: place, count: 1)[0])], at: place)
        }
        let report = try PhysicalCopy(sample.directory).verify(SampleCopy.open)
        let told = report.findings.filter { $0.volume != nil }
        #expect(told.map(\.part) == [.originals, .originals])
        #expect(told.map(\.volumeOffset) == damaged.map { $0.chunk * SampleCopy.chunkSize })
        #expect(told.map(\.offset) == damaged.map { base + $0.position })
        #expect(report.originals == sample.manifest.epoch.entries - 2)
    }

    /// Where original images lie over all of a chunk, it does not matter what the data have there.
    @Test func dataUnderOriginalsAreNotInUse() throws {
        let parent = TemporaryDirectory()
        for (preserved, isUnder) in [(1, true), (3, false)] {
            let place = try SampleCopy(in: parent.path, seed: 23, preserved: preserved)
            let found = try findings(place.directory, "data.img", at: 70_000)
            #expect(found.map(\.chunk) == [1])
            #expect(found.map(\.inUse) == [isUnder ? .no : nil], "\(found)")
            #expect(found.map { $0.useReason != nil } == [isUnder])
            try FileManager.default.removeItem(atPath: place.directory)
        }
    }

    /// Findings are listed up to their limit; beyond it they are counted.
    @Test(arguments: [0, 1]) func findingsHaveALimit(more: Int) throws {
        let count = CopyLimits.findings + more
        let parent = TemporaryDirectory()
        let draft = try CopyDraft(destination: parent.path + "/copy", force: false)
        let length = UInt64(count) * CopyLimits.smallestChunk
        try draft.makeData(size: length)
        var table = ChecksumTable(length: length)
        for chunk in 0..<table.count { table[chunk] = .known(1) }
        let other = TemporaryDirectory()
        var manifest = try SampleCopy(in: other.path, seed: 26).manifest
        manifest.volume.size = length
        (manifest.mode, manifest.originals) = (.overlay, nil)
        manifest.data = Portion(
            offset: 0, length: length,
            checksums: .file(try draft.write(try #require(table.complete), length: length)))
        try draft.commit(manifest)
        let report = try PhysicalCopy(parent.path + "/copy").verify(SampleCopy.open)
        #expect(report.findings.count == CopyLimits.findings && report.moreFindings == UInt64(more))
    }

    // MARK: What is no copy

    @Test func aCopyInTheMakingIsNone() throws {
        let parent = TemporaryDirectory()
        let sample = try SampleCopy(in: parent.path, seed: 24)
        for name in [".copy.partial-1", ".a.partial-3.partial-42"] {
            let path = parent.path + "/" + name
            try FileManager.default.moveItem(atPath: sample.directory, toPath: path)
            let error = #expect(throws: CopyError.self) { try PhysicalCopy(path) }
            #expect(error?.kind == .missing && error?.reason.contains("in the making") == true)
            try FileManager.default.moveItem(atPath: path, toPath: sample.directory)
        }
        for name in ["copy.partial-1", ".copy.partial-", ".copy.partial-1x", ".copy"] {
            let path = parent.path + "/" + name
            try FileManager.default.moveItem(atPath: sample.directory, toPath: path)
            #expect(try PhysicalCopy(path).verify(SampleCopy.open).isClean, "\(name)")
            try FileManager.default.moveItem(atPath: path, toPath: sample.directory)
        }
    }

    @Test func whatLiesBesideACopyIsKnown() throws {
        let parent = TemporaryDirectory()
        let sample = try SampleCopy(in: parent.path, seed: 25)
        #expect(try CopyDraft.remains(of: sample.directory) == [])
        for (name, hasRecord) in [(".copy.partial-1", true), (".copy.partial-2", false)] {
            let path = parent.path + "/" + name
            try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: false)
            if hasRecord { try Data([1]).write(to: URL(fileURLWithPath: path + "/resume.json")) }
        }
        let living = try CopyDraft(destination: parent.path + "/other", force: false)
        let found = try CopyDraft.remains(of: sample.directory)
        #expect(found.map(\.state) == [.resumable, .dead])
        #expect(found.map(\.path) == [1, 2].map { parent.path + "/.copy.partial-\($0)" })
        #expect(try CopyDraft.remains(of: parent.path + "/other").map(\.state) == [.alive])
        withExtendedLifetime(living) {}
        #expect(try PhysicalCopy(sample.directory).strangers() == [])
        try Data([1]).write(to: URL(fileURLWithPath: sample.path("letter")))
        try Data([1]).write(to: URL(fileURLWithPath: sample.path("resume.json")))
        #expect(try PhysicalCopy(sample.directory).strangers() == ["letter", "resume.json"])
    }
}
