import Blocks
import Foundation
import Testing

@testable import PhysicalCopy

/// The record by which a copy goes on.
@Suite struct ResumeRecordTests {
    private static func sample() -> ResumeRecord {
        ResumeRecord(
            tool: "outboard 0.1.0",
            volume: VolumeDescription(
                uuid: "78368191-CAF9-8997-B971-E192E98FA149", size: 20 << 20, chunkSize: 64 << 10,
                source: "/dev/vg0/data"),
            mode: .append, ending: .endedAfterCacheCopy, location: .usual, unit: nil, members: 2,
            frozen: ["/srv/data"],
            epoch: .init(
                begun: "C711C234-91B7-4A8B-A901-7A22714D24B5", uuid: "053FAEC1-B2B7-4E34-9374-C70F44B71708",
                number: 7, institutedAt: 1_795_249_377_480_778_224, restarts: 2, gateNanoseconds: 1),
            contents: .built(TocDescription(length: 3, checksum: 4), summary: "{}"), used: nil,
            durable: RangeList([ByteRange(offset: 0, count: 4096), ByteRange(offset: 1 << 20, count: 512)]))
    }

    @Test func roundTrip() throws {
        var decoded = try ResumeRecord(decoding: Self.sample().encoded())
        decoded.crc32c = SelfChecksum.blank
        #expect(decoded == Self.sample())
    }

    /// Made from the article's table by other means: what is read today must be readable for ever.
    @Test func recordOfVersion1() throws {
        let text = """
            {
              "contents" : { "built" : { "_0" : { "checksum" : "00000004", "length" : 3, "name" : "toc.sqlite" },
                                         "summary" : "{}" } },
              "crc32c" : "CRC",
              "durable" : "0+4096 1048576+512",
              "ending" : "endedAfterCacheCopy",
              "epoch" : { "begun" : "C711C234-91B7-4A8B-A901-7A22714D24B5", "gateNanoseconds" : 1,
                          "institutedAt" : 1795249377480778224, "number" : 7, "restarts" : 2,
                          "uuid" : "053FAEC1-B2B7-4E34-9374-C70F44B71708" },
              "format" : "outboard-resume",
              "formatVersion" : 1,
              "frozen" : ["/srv/data"],
              "location" : { "member" : { "name" : "data.img" } },
              "members" : 2,
              "mode" : "append",
              "tool" : "outboard 0.1.0",
              "volume" : { "chunkSize" : 65536, "size" : 20971520, "source" : "/dev/vg0/data",
                           "uuid" : "78368191-CAF9-8997-B971-E192E98FA149" }
            }

            """
        let blank = Array(text.replacingOccurrences(of: "CRC", with: "00000000").utf8)
        let sum = String(CRC32C.checksum(blank), radix: 16)
        let digits = String(repeating: "0", count: 8 - sum.count) + sum
        var decoded = try ResumeRecord(
            decoding: Array(text.replacingOccurrences(of: "CRC", with: digits).utf8))
        decoded.crc32c = SelfChecksum.blank
        #expect(decoded == Self.sample())
    }

    @Test("Every flipped bit of every byte is found, and every cut")
    func flips() throws {
        let bytes = Self.sample().encoded()
        for index in bytes.indices {
            for bit in 0..<8 {
                var flipped = bytes
                flipped[index] ^= 1 << bit
                #expect(throws: ResumeRecord.Malformed.self, "byte \(index), bit \(bit)") {
                    try ResumeRecord(decoding: flipped)
                }
            }
            #expect(throws: ResumeRecord.Malformed.self) {
                try ResumeRecord(decoding: Array(bytes.prefix(index)))
            }
        }
    }

    @Test("A well-summed record whose numbers disagree is refused")
    func nonsense() throws {
        func refused(_ change: (inout ResumeRecord) -> Void) {
            var record = Self.sample()
            change(&record)
            let bytes = record.encoded()
            #expect(throws: ResumeRecord.Malformed.self) { try ResumeRecord(decoding: bytes) }
        }
        refused { $0.format = "else" }
        refused { $0.formatVersion = 2 }
        refused { $0.volume.chunkSize = 5000 }
        refused { $0.volume.size = 0 }
        refused { $0.volume.size = 1 << 20 }
        refused { $0.epoch.begun = "x" }
        refused { $0.epoch.uuid = $0.epoch.begun }
        refused { $0.epoch.restarts = 0 }
        refused { $0.epoch.restarts = 7 }
        refused { $0.unit = "3:1" }
        refused { $0.location = .unit(target: "iscsi://a/b", number: 1) }
        refused { $0.location = .path("/etc/passwd") }
    }

    @Test func extentsHaveALimit() throws {
        func record(_ count: Int) -> ResumeRecord {
            var record = Self.sample()
            record.durable.list = RangeList(
                (0..<UInt64(count)).map { ByteRange(offset: $0 * 1024, count: 512) })
            return record
        }
        let most = record(CopyLimits.resumeExtents)
        #expect(try ResumeRecord(decoding: most.encoded()).durable == most.durable)
        #expect(most.encoded().count < CopyLimits.resumeBytes)
        #expect(throws: ResumeRecord.Malformed.self) {
            try ResumeRecord(decoding: record(CopyLimits.resumeExtents + 1).encoded())
        }
        #expect(throws: ResumeRecord.Malformed.self) {
            try ResumeRecord(decoding: [UInt8](repeating: 32, count: CopyLimits.resumeBytes + 1))
        }
        for text in ["x", "1", "1+", "+1", "1+0", "5+5 9+1", "0+18446744073709551615", "-1+2"] {
            #expect(throws: DecodingError.self, "\(text)") {
                try JSONDecoder().decode(ResumeRecord.Extents.self, from: Data("\"\(text)\"".utf8))
            }
        }
    }

    // MARK: Drafts

    /// What the first maker notes, the next one finds; a third one finds that somebody has it.
    @Test func aDraftThatWasLeft() throws {
        let parent = TemporaryDirectory()
        let path = parent.path + "/copy"
        func find() throws -> CopyDraft.Leftover { try CopyDraft.resume(path, force: false) { _ in true } }
        guard case .nothing = try find() else { throw Wrong() }
        var record = Self.sample()
        do {
            let draft = try CopyDraft(destination: path, force: false)
            try draft.makeData(size: 100)
            record.used = try draft.noteUsed(RangeList([ByteRange(offset: 512, count: 1024)]))
            try draft.note(record)
            // Its maker lives.
            guard case .alive = try find() else { throw Wrong() }
            draft.keep()
        }
        guard case .draft(let draft, var found) = try find() else { throw Wrong() }
        found.crc32c = SelfChecksum.blank
        #expect(found == record)
        #expect(try draft.used(of: found)?.ranges == [ByteRange(offset: 512, count: 1024)])
        try Data([1]).write(to: URL(fileURLWithPath: draft.path(of: "toc.sqlite")))
        try Data([1]).write(to: URL(fileURLWithPath: draft.path(of: "toc.sqlite.partial")))
        try draft.clearUp(hasToc: true)
        #expect(names(draft.directory) == ["data.img", "resume.json", "resume.used", "toc.sqlite"])
        try draft.clearUp(hasToc: false)
        #expect(names(draft.directory) == ["data.img", "resume.json", "resume.used"])
        // While a record is being written.
        for name in [".resume.json.new", "toc.sqlite", "toc.sqlite.partial"] {
            try Data([1]).write(to: URL(fileURLWithPath: draft.path(of: name)))
        }
        try draft.removeToc()
        #expect(names(draft.directory) == [".resume.json.new", "data.img", "resume.json", "resume.used"])
        // Another list than the one that the record names is none.
        _ = try draft.noteUsed(RangeList([ByteRange(offset: 512, count: 512)]))
        #expect(throws: CopyError.self) { try draft.used(of: found) }
        draft.keep()
        // A new copy to that name clears it away.
        let anew = try CopyDraft(destination: path, force: false)
        guard case .alive = try find() else { throw Wrong() }
        #expect(names(anew.directory) == [])
    }

    private struct Wrong: Error {}

    private func names(_ directory: String) -> [String] {
        ((try? FileManager.default.contentsOfDirectory(atPath: directory)) ?? []).sorted()
    }

    @Test func aFinishedCopyHasNoRecord() throws {
        let parent = TemporaryDirectory()
        let sample = try SampleCopy(in: parent.path, seed: 1)
        let draft = try CopyDraft(destination: parent.path + "/again", force: false)
        try draft.makeData(size: 100)
        try draft.note(Self.sample())
        _ = try draft.noteUsed(.whole(10))
        try draft.commit(sample.manifest)
        #expect(names(parent.path + "/again") == ["data.img", "manifest.json"])
    }

    @Test func aManifestOfACopyThatWasBegunAnew() throws {
        let parent = TemporaryDirectory()
        var manifest = try SampleCopy(in: parent.path, seed: 2).manifest
        manifest.group = nil
        manifest.epoch.number = 9
        manifest.epoch.restarts = 8
        #expect(try Manifest(decoding: manifest.encoded()).epoch.restarts == 8)
        for restarts: UInt64 in [0, 9] {
            manifest.epoch.restarts = restarts
            let bytes = manifest.encoded()
            #expect(throws: Manifest.Malformed.self) { try Manifest(decoding: bytes) }
        }
        // One of several volumes that begins anew has no instant in common with the others.
        manifest.epoch.restarts = 8
        manifest.group = GroupDescription(uuid: UUID().uuidString, members: 2)
        let bytes = manifest.encoded()
        #expect(throws: Manifest.Malformed.self) { try Manifest(decoding: bytes) }
    }
}
