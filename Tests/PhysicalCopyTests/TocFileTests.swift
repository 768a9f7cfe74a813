import Blocks
import Foundation
import Glibc
import Testing

@testable import PhysicalCopy

@Suite struct TocFileTests {
    /// Into the file that is there.
    private func write(_ text: String, to path: String) throws {
        let handle = try FileHandle(forWritingTo: URL(fileURLWithPath: path))
        try handle.write(contentsOf: Data(text.utf8))
        try handle.close()
    }

    private func attach(_ text: String, to copy: PhysicalCopy) throws {
        let draft = try copy.tocDraft()
        try write(text, to: draft.path)
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
        try write("one", to: draft.path)
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

    @Test(
        "Drafts of the dead are cleared, those of the living and other files are not, whatever their names say"
    )
    func drafts() throws {
        let parent = TemporaryDirectory()
        let sample = try SampleCopy(in: parent.path, seed: 5)
        let before = Set(try Files().names(in: sample.directory, ""))
        let prefix = FileDraft.prefix(of: TocDescription.fileName)
        let dead = prefix + "0123456789abcdef"
        let others = [prefix + "1", prefix + "0123456789abcdeg", prefix + "0123456789abcdef.partial"]
        for name in others + [dead] {
            try Data([1]).write(to: URL(fileURLWithPath: "\(sample.directory)/\(name)"))
        }
        let copy = try PhysicalCopy(sample.directory)
        var drafts = [try copy.tocDraft(), try copy.tocDraft()]
        let own = drafts.map { String($0.path.split(separator: "/").last ?? "") }
        #expect(Set(own).count == 2)
        #expect(Set(try Files().names(in: sample.directory, "")) == before.union(others).union(own))
        // flock(2) is left to who writes it.
        let descriptor = open(drafts[0].path, O_RDWR | O_CLOEXEC)
        #expect(flock(descriptor, LOCK_EX | LOCK_NB) == 0)
        close(descriptor)
        drafts = []
        #expect(Set(try Files().names(in: sample.directory, "")) == before.union(others))
    }

    @Test(
        "A draft whose name is gone, or leads to another file, costs the copy nothing",
        arguments: [false, true])
    func stolen(isReplaced: Bool) throws {
        let parent = TemporaryDirectory()
        let sample = try SampleCopy(in: parent.path, seed: 6)
        try attach("the first", to: PhysicalCopy(sample.directory))
        let copy = try PhysicalCopy(sample.directory)
        let draft = try copy.tocDraft()
        try write("the second", to: draft.path)
        var reader: PhysicalCopy? = try PhysicalCopy(sample.directory)
        #expect(throws: CopyError.self) {
            try copy.attachToc(draft) {
                unlink(draft.path)
                if isReplaced {
                    #expect(FileManager.default.createFile(atPath: draft.path, contents: Data("other".utf8)))
                }
                reader = nil
            }
        }
        #expect(reader == nil && copy.manifest.toc?.length == 9)
        let manifest = try Files().read(sample.directory + "/" + Manifest.fileName, limit: 1 << 20, "")
        #expect(try Manifest(decoding: manifest).toc == copy.manifest.toc)
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
