import Foundation
import Glibc
import Testing

@testable import PhysicalCopy

/// Who can write into a copy's directory cannot lead us out of it.
@Suite struct LinkTests {
    private func kind(_ body: () throws(CopyError) -> Void) -> CopyError.Kind? {
        do throws(CopyError) { try body() } catch { return error.kind }
        return nil
    }

    /// Moves a member out of the copy and puts a link to it in its place.
    private func lead(_ name: String, of sample: SampleCopy, to place: TemporaryDirectory) throws {
        let outside = place.path + "/" + name
        try FileManager.default.moveItem(atPath: sample.directory + "/" + name, toPath: outside)
        try FileManager.default.createSymbolicLink(
            atPath: sample.directory + "/" + name, withDestinationPath: outside)
    }

    @Test func membersAreNoLinks() throws {
        let (parent, elsewhere) = (TemporaryDirectory(), TemporaryDirectory())
        let sample = try SampleCopy(in: parent.path, seed: 91)
        do {
            let copy = try PhysicalCopy(sample.directory)
            let draft = try copy.tocDraft()
            try Data("contents".utf8).write(to: URL(fileURLWithPath: draft.path))
            try copy.attachToc(draft)
        }
        for (name, part) in [
            (TocDescription.fileName, Finding.Part.toc), (ChecksumDescription.fileName, .checksums),
        ] {
            try lead(name, of: sample, to: elsewhere)
            let findings = try PhysicalCopy(sample.directory).verify(SampleCopy.open).findings
            #expect(findings.map(\.part) == [part] && findings[0].problem.contains("symbolic link"))
            let path = sample.directory + "/" + name
            try FileManager.default.removeItem(atPath: path)
            try FileManager.default.moveItem(atPath: elsewhere.path + "/" + name, toPath: path)
        }
        try lead(DataLocation.usualName, of: sample, to: elsewhere)
        for use in [PhysicalCopy.Use.reading, .changing] {
            #expect(
                kind { () throws(CopyError) in
                    _ = try PhysicalCopy(sample.directory, for: use).openData(SampleCopy.open)
                } == .damaged)
        }
        try lead(Manifest.fileName, of: sample, to: elsewhere)
        #expect(kind { () throws(CopyError) in _ = try PhysicalCopy(sample.directory) } == .damaged)
        // It is not taken for a copy any more, and so never replaced.
        #expect(
            kind { () throws(CopyError) in
                _ = try CopyDraft(destination: sample.directory, force: true)
            } == .cannotCreate)
    }

    @Test("A directory that a link leads to is a copy as any other")
    func theCopyItself() throws {
        let parent = TemporaryDirectory()
        let sample = try SampleCopy(in: parent.path, seed: 92)
        try FileManager.default.createSymbolicLink(
            atPath: parent.path + "/latest", withDestinationPath: "copy")
        #expect(try PhysicalCopy(parent.path + "/latest").verify(SampleCopy.open).isClean)
        #expect(
            kind { () throws(CopyError) in
                _ = try CopyDraft(destination: parent.path + "/latest", force: true)
            } == .cannotCreate)
        _ = sample
    }

    @Test("What lies under the manifest's temporary name is never written through")
    func theTemporaryName() throws {
        let (parent, elsewhere) = (TemporaryDirectory(), TemporaryDirectory())
        let sample = try SampleCopy(in: parent.path, seed: 93)
        let victim = elsewhere.path + "/victim"
        try Data("mine".utf8).write(to: URL(fileURLWithPath: victim))
        let temporary = sample.directory + "/" + Files.temporaryName(of: Manifest.fileName)
        for make in [symlink, link] {
            #expect(make(victim, temporary) == 0)
            let copy = try PhysicalCopy(sample.directory, for: .changing)
            try copy.replaceManifest(copy.manifest)
            #expect(FileManager.default.contents(atPath: victim) == Data("mine".utf8))
        }
    }
}
