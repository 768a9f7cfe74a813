import Blocks
import Foundation
import Glibc
import Testing

@testable import PhysicalCopy

@Suite struct TocFileTests {
    private func put(_ text: String, into sample: SampleCopy) {
        let path = sample.directory + "/" + TableOfContentsFile.temporaryName
        #expect(FileManager.default.createFile(atPath: path, contents: Data(text.utf8)))
    }

    @Test func attachedAndReplaced() throws {
        let parent = TemporaryDirectory()
        let sample = try SampleCopy(in: parent.path, seed: 1)
        #expect(try PhysicalCopy(sample.directory).tocPath == nil)
        for text in ["one", "and another"] {
            put(text, into: sample)
            try PhysicalCopy(sample.directory, for: .changing).attachToc()
            let copy = try PhysicalCopy(sample.directory)
            let path = try #require(copy.tocPath)
            #expect(FileManager.default.contents(atPath: path) == Data(text.utf8))
            #expect(copy.manifest.toc?.length == UInt64(text.utf8.count))
            #expect(try copy.verify(SampleCopy.open).isClean)
        }
    }

    @Test func anotherOrNoneIsFound() throws {
        let parent = TemporaryDirectory()
        let sample = try SampleCopy(in: parent.path, seed: 2)
        put("what it was", into: sample)
        try PhysicalCopy(sample.directory, for: .changing).attachToc()
        let path = try #require(try PhysicalCopy(sample.directory).tocPath)
        #expect(FileManager.default.createFile(atPath: path, contents: Data("what it is".utf8)))
        let findings = try PhysicalCopy(sample.directory).verify(SampleCopy.open).findings
        #expect(findings.map(\.part) == [.toc])
        unlink(path)
        #expect(try PhysicalCopy(sample.directory).verify(SampleCopy.open).findings.map(\.part) == [.toc])
    }

    /// Nothing but its own file is taken from a manifest.
    @Test func namesOfOtherFilesAreRefused() throws {
        let parent = TemporaryDirectory()
        var manifest = try SampleCopy(in: parent.path, seed: 3).manifest
        manifest.toc = TocDescription(length: 1, checksum: 2)
        #expect(throws: Never.self) { try Manifest(decoding: manifest.encoded()) }
        for name in ["../toc.sqlite", "data.img", "", "/etc/passwd"] {
            manifest.toc?.name = name
            #expect(throws: Manifest.Malformed.self) { try Manifest(decoding: manifest.encoded()) }
        }
        manifest.toc = nil
        manifest.usedBytes = manifest.volume.size + 1
        #expect(throws: Manifest.Malformed.self) { try Manifest(decoding: manifest.encoded()) }
    }
}
