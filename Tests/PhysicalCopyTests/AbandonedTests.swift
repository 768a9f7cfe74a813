import Blocks
import Foundation
import Glibc
import Testing

@testable import PhysicalCopy

/// What a failed copy leaves behind: told by everybody, in nobody's way, and never in place of a copy.
@Suite struct AbandonedTests {
    private func record(_ reason: String = "the epoch is void: the cache is full") -> AbandonedCopy {
        AbandonedCopy(
            tool: "outboard 0.1.0",
            volume: VolumeDescription(
                uuid: "78368191-CAF9-8997-B971-E192E98FA149", size: 20 << 20, chunkSize: 64 << 10,
                source: "/dev/vg0/data"),
            mode: .overlay,
            postMortem: PostMortem(
                abandonedAt: 1_795_249_417_792_879_936, phase: "copying", reason: reason, exitStatus: 75,
                epoch: 7, epochUUID: "C711C234-91B7-4A8B-A901-7A22714D24B5",
                institutedAt: 1_795_249_377_480_778_224, secondsSinceInstitution: 40.25,
                cacheUsed: 16_777_216, cacheCapacity: 16_781_312, bytesCopied: 4_194_304))
    }

    private func leave(at path: String, _ record: AbandonedCopy? = nil) throws -> Bool {
        let draft = try CopyDraft(destination: path, force: false)
        try Data(count: 9).write(to: URL(fileURLWithPath: draft.path(of: "data.img")))
        return try draft.abandon(leaving: record ?? self.record())
    }

    private func kind(_ body: () throws(CopyError) -> Void) -> CopyError.Kind? {
        do throws(CopyError) { try body() } catch { return error.kind }
        return nil
    }

    @Test func isRefusedWithItsReason() throws {
        let parent = TemporaryDirectory()
        #expect(try leave(at: parent.path + "/copy"))
        #expect(try Files().names(in: parent.path, "") == ["copy"])
        #expect(try Files().names(in: parent.path + "/copy", "") == ["manifest.json"])
        for use in [PhysicalCopy.Use.reading, .changing] {
            do throws(CopyError) {
                _ = try PhysicalCopy(parent.path + "/copy", for: use)
                Issue.record("it was opened")
            } catch {
                #expect(error.kind == .abandoned)
                #expect(error.description.contains("copying: the epoch is void: the cache is full"))
                #expect(error.description.contains("2026-11-21T08:23:37.792Z"), "\(error)")
            }
        }
        let found = try #require(try AbandonedCopy.find(parent.path + "/copy"))
        #expect(found.postMortem == record().postMortem && found.volume == record().volume)
    }

    @Test("Every flipped bit of it is found")
    func flips() throws {
        let bytes = record().encoded()
        for index in bytes.indices {
            for bit in 0..<8 {
                var flipped = bytes
                flipped[index] ^= 1 << bit
                #expect(throws: Manifest.Malformed.self) { try ManifestFile(decoding: flipped) }
            }
        }
    }

    @Test func aLaterVersionAndAnotherFormatAreRefused() throws {
        let text = String(decoding: record().encoded(), as: UTF8.self)
        for (old, new) in [
            (#""formatVersion" : 2"#, #""formatVersion" : 3"#),
            (#""format" : "outboard-copy""#, #""format" : "other""#),
        ] {
            let changed = SelfChecksumTests.resummed(text.replacingOccurrences(of: old, with: new))
            #expect(throws: Manifest.Malformed.self) { try ManifestFile(decoding: changed) }
        }
        #expect(throws: Never.self) { try ManifestFile(decoding: SelfChecksumTests.resummed(text)) }
    }

    @Test func theReasonHasALimit() throws {
        for (count, kept) in [
            (CopyLimits.reasonBytes, CopyLimits.reasonBytes), (CopyLimits.reasonBytes + 1, nil),
        ] {
            let bytes = record(String(repeating: "ä", count: count / 2) + (count % 2 == 0 ? "" : "x"))
                .encoded()
            guard case .abandoned(let found) = try ManifestFile(decoding: bytes) else {
                Issue.record("it is no abandoned copy")
                continue
            }
            let length = found.postMortem.reason.utf8.count
            if let kept { #expect(length == kept) } else { #expect(length <= CopyLimits.reasonBytes) }
        }
    }

    @Test func theNextCopyReplacesIt() throws {
        let parent = TemporaryDirectory()
        let sample = try SampleCopy(in: parent.path, seed: 21)
        for canExchange in [true, false] {
            let path = parent.path + "/of-\(canExchange)"
            #expect(try leave(at: path))
            // A second failure tells of itself.
            #expect(try leave(at: path, record("another reason")))
            #expect(try AbandonedCopy.find(path)?.postMortem.reason == "another reason")
            var calls = FileSystemCalls()
            if !canExchange { calls.lackFlags() }
            let draft = try CopyDraft(destination: path, force: false, files: calls)
            try sample.copyMembers(to: draft)
            try draft.commit(sample.manifest)
            #expect(try PhysicalCopy(path).verify(SampleCopy.open).isClean)
        }
        #expect(try Files().names(in: parent.path, "").sorted() == ["copy", "of-false", "of-true"])
    }

    @Test("Nothing that is there is harmed by a copy that failed", arguments: [false, true])
    func nothingElseIsReplaced(comesLater: Bool) throws {
        let parent = TemporaryDirectory()
        let sample = try SampleCopy(in: parent.path, seed: 22)
        func put(_ name: String, at path: String) throws {
            switch name {
            case "copy": try FileManager.default.copyItem(atPath: sample.directory, toPath: path)
            case "file": try Data([1]).write(to: URL(fileURLWithPath: path))
            default:
                try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: false)
            }
        }
        for name in ["copy", "file", "directory"] where comesLater || name == "copy" {
            let path = parent.path + "/there-" + name
            if !comesLater { try put(name, at: path) }
            let draft = try CopyDraft(destination: path, force: true)
            if comesLater { try put(name, at: path) }
            #expect(try !draft.abandon(leaving: record()))
            if name == "copy" {
                #expect(try PhysicalCopy(path).verify(SampleCopy.open).isClean)
            } else {
                #expect(try AbandonedCopy.find(path) == nil)
            }
            #expect(try !Files().names(in: parent.path, "").contains { $0.contains("partial") })
        }
    }

    @Test("A copy that is complete replaces what another left meanwhile, and never a copy")
    func twoAtOnce() throws {
        let parent = TemporaryDirectory()
        let sample = try SampleCopy(in: parent.path, seed: 23)
        func draft() throws -> CopyDraft {
            let draft = try CopyDraft(destination: parent.path + "/twice", force: false)
            try sample.copyMembers(to: draft)
            return draft
        }
        let first = try draft()
        let second = parent.path + "/.twice.partial-0"
        try FileManager.default.createDirectory(atPath: second, withIntermediateDirectories: false)
        try Data(record().encoded()).write(to: URL(fileURLWithPath: second + "/manifest.json"))
        #expect(rename(second, parent.path + "/twice") == 0)
        try first.commit(sample.manifest)
        #expect(try PhysicalCopy(parent.path + "/twice").verify(SampleCopy.open).isClean)

        // One that began when an abandoned one was there does not replace the copy that came since.
        try FileManager.default.removeItem(atPath: parent.path + "/twice")
        #expect(try leave(at: parent.path + "/twice"))
        let late = try draft()
        try FileManager.default.removeItem(atPath: parent.path + "/twice")
        try FileManager.default.copyItem(atPath: sample.directory, toPath: parent.path + "/twice")
        #expect(kind { () throws(CopyError) in try late.commit(sample.manifest) } == .cannotCreate)
        #expect(try !late.abandon(leaving: record()))
        #expect(try Files().names(in: parent.path, "").sorted() == ["copy", "twice"])
        #expect(try PhysicalCopy(parent.path + "/twice").verify(SampleCopy.open).isClean)
    }

    @Test func readersKeepItFromBeingReplaced() throws {
        let parent = TemporaryDirectory()
        #expect(try leave(at: parent.path + "/copy"))
        let reader = try DirectoryLock(parent.path + "/copy", exclusive: false, "")
        #expect(
            kind { () throws(CopyError) in _ = try self.leaveTyped(at: parent.path + "/copy") }
                == .cannotCreate)
        withExtendedLifetime(reader) {}
        #expect(try Files().names(in: parent.path, "") == ["copy"])
    }

    private func leaveTyped(at path: String) throws(CopyError) -> Bool {
        try CopyDraft(destination: path, force: false).abandon(leaving: record())
    }
}

enum SelfChecksumTests {
    /// A manifest's text with the checksum that fits it.
    static func resummed(_ text: String) -> [UInt8] {
        var bytes = Array(text.utf8)
        guard let key = bytes.firstRange(of: Array(#""crc32c" : ""#.utf8)) else { return bytes }
        let place = key.upperBound..<key.upperBound + 8
        bytes.replaceSubrange(place, with: "00000000".utf8)
        bytes.replaceSubrange(place, with: hexadecimal(CRC32C.checksum(bytes)).utf8)
        return bytes
    }
}
