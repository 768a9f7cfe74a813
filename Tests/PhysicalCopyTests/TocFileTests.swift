import Blocks
import Foundation
import Glibc
import Testing

@testable import PhysicalCopy

@Suite struct TocFileTests {
    private func attach(_ text: String, to copy: PhysicalCopy) throws {
        let draft = try copy.tocDraft()
        #expect(FileManager.default.createFile(atPath: draft.path, contents: Data(text.utf8)))
        try copy.attachToc(draft)
    }

    @Test func attachedAndReplaced() throws {
        let parent = TemporaryDirectory()
        let sample = try SampleCopy(in: parent.path, seed: 1)
        #expect(try PhysicalCopy(sample.directory).tocPath == nil)
        for text in ["one", "and another"] {
            try attach(text, to: PhysicalCopy(sample.directory))
            let copy = try PhysicalCopy(sample.directory)
            let path = try #require(copy.tocPath)
            #expect(FileManager.default.contents(atPath: path) == Data(text.utf8))
            #expect(copy.manifest.toc?.length == UInt64(text.utf8.count))
            #expect(try copy.verify(SampleCopy.open).isClean)
        }
    }

    @Test("It is attached when nobody else has the copy, and only to the copy that it was made of")
    func others() throws {
        let parent = TemporaryDirectory()
        let sample = try SampleCopy(in: parent.path, seed: 4)
        let copy = try PhysicalCopy(sample.directory)
        var reader: PhysicalCopy? = try PhysicalCopy(sample.directory)
        let draft = try copy.tocDraft()
        #expect(FileManager.default.createFile(atPath: draft.path, contents: Data("one".utf8)))
        var turns = 0
        try copy.attachToc(draft) { () throws(CopyError) in
            turns += 1
            #expect(copy.manifest.toc == nil)
            // Integrated while nobody holds it: what is attached then is attached to that.
            reader = nil
            if turns == 1 { try PhysicalCopy(sample.directory, for: .changing).integrate(SampleCopy.open) }
        }
        #expect(turns == 1 && reader == nil)
        #expect(copy.manifest.originals == nil && copy.manifest.toc?.length == 3)
        #expect(throws: CopyError.self, "it excludes others now") { try PhysicalCopy(sample.directory) }
        withExtendedLifetime(copy) {}
    }

    @Test func anotherOrNoneIsFound() throws {
        let parent = TemporaryDirectory()
        let sample = try SampleCopy(in: parent.path, seed: 2)
        try attach("what it was", to: PhysicalCopy(sample.directory))
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
