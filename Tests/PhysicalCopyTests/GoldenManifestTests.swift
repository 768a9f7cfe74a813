import Testing

@testable import PhysicalCopy

/// A manifest of each version as text, made from the article's table by other means than this module: what is read today
/// must be readable for ever.
@Suite struct GoldenManifestTests {
    private static let text = """
        {
          "completedAt" : 1795249377792879936,
          "crc32c" : "19a7b495",
          "data" : {
            "checksums" : { "crc32cs" : "8eac683c0123abcd", "sliceSize" : 16777216 },
            "length" : 20971520,
            "offset" : 0
          },
          "epoch" : {
            "batches" : 2,
            "ending" : "endedAfterCacheCopy",
            "entries" : 3,
            "institutedAt" : 1795249377480778224,
            "logBytes" : 212992,
            "number" : 7,
            "uuid" : "C711C234-91B7-4A8B-A901-7A22714D24B5"
          },
          "format" : "outboard-copy",
          "formatVersion" : 1,
          "frozen" : ["/srv/data"],
          "group" : { "members" : 2, "uuid" : "4E4D8354-B4C2-4CC1-A87B-02E91D0BC920" },
          "location" : { "unit" : { "number" : 2, "target" : "iscsi://192.0.2.1:3260/iqn.2026-01.net.example:b" } },
          "mode" : "append",
          "originals" : {
            "checksums" : { "crc32cs" : "b4bafb53", "sliceSize" : 16777216 },
            "length" : 212992,
            "offset" : 20971520
          },
          "state" : "complete",
          "tool" : "outboard 0.1.0",
          "uuid" : "053FAEC1-B2B7-4E34-9374-C70F44B71708",
          "volume" : {
            "chunkSize" : 65536,
            "size" : 20971520,
            "source" : "/dev/vg0/data",
            "uuid" : "78368191-CAF9-8997-B971-E192E98FA149"
          }
        }

        """

    @Test func manifestOfVersion1() throws {
        let manifest = try Manifest(decoding: Array(Self.text.utf8))
        var expected = Manifest(
            tool: "outboard 0.1.0", uuid: "053FAEC1-B2B7-4E34-9374-C70F44B71708",
            completedAt: 1_795_249_377_792_879_936,
            volume: VolumeDescription(
                uuid: "78368191-CAF9-8997-B971-E192E98FA149", size: 20 << 20, chunkSize: 64 << 10,
                source: "/dev/vg0/data"),
            mode: .append,
            epoch: EpochDescription(
                number: 7, uuid: "C711C234-91B7-4A8B-A901-7A22714D24B5",
                institutedAt: 1_795_249_377_480_778_224, ending: .endedAfterCacheCopy, logBytes: 212_992,
                batches: 2, entries: 3),
            group: GroupDescription(uuid: "4E4D8354-B4C2-4CC1-A87B-02E91D0BC920", members: 2),
            frozen: ["/srv/data"],
            location: .unit(target: "iscsi://192.0.2.1:3260/iqn.2026-01.net.example:b", number: 2),
            data: Portion(
                offset: 0, length: 20 << 20,
                checksums: SliceChecksums(sliceSize: 16 << 20, values: [0x8EAC_683C, 0x0123_ABCD])),
            originals: Portion(
                offset: 20 << 20, length: 212_992,
                checksums: SliceChecksums(sliceSize: 16 << 20, values: [0xB4BA_FB53])))
        expected.crc32c = "19a7b495"
        #expect(manifest == expected)
    }

    private static let textOfVersion2 = """
        {
          "completedAt" : 1795249377792879936,
          "crc32c" : "180f8dd8",
          "data" : {
            "checksumFile" : { "checksum" : "8f38e377", "chunkSize" : 65536, "length" : 76, "name" : "checksums" },
            "length" : 150016,
            "offset" : 0
          },
          "epoch" : {
            "batches" : 2,
            "ending" : "endedBeforeCacheCopy",
            "entries" : 3,
            "institutedAt" : 1795249377480778224,
            "logBytes" : 212992,
            "number" : 7,
            "uuid" : "C711C234-91B7-4A8B-A901-7A22714D24B5"
          },
          "format" : "outboard-copy",
          "formatVersion" : 2,
          "frozen" : [],
          "location" : { "member" : { "name" : "data.img" } },
          "mode" : "overlay",
          "state" : "complete",
          "tool" : "outboard 0.1.0",
          "uuid" : "053FAEC1-B2B7-4E34-9374-C70F44B71708",
          "volume" : {
            "chunkSize" : 65536,
            "size" : 150016,
            "source" : "/dev/vg0/data",
            "uuid" : "78368191-CAF9-8997-B971-E192E98FA149"
          }
        }

        """

    /// The file of checksums that it names.
    private static let checksums = """
        4f55544253554d5300000001000000000000000000024a000000000000010000000000000000000300000000000000000000000000000000\
        03bb59cd6df8a7658eac683c0123abcdffffffff
        """
    /// The same with the second not written and the third not known.
    private static let partial = """
        4f55544253554d5300000001000000010000000000024a000000000000010000000000000000000300000000000000000000000000000000\
        df584e3122c1a2b8020001008eac683c0123abcdffffffff
        """

    private static func bytes(_ text: String) -> [UInt8] {
        let digits = Array(text.utf8).map { $0 < 58 ? $0 - 48 : $0 - 87 }
        return stride(from: 0, to: digits.count, by: 2).map { digits[$0] << 4 | digits[$0 + 1] }
    }

    @Test func manifestOfVersion2() throws {
        let manifest = try Manifest(decoding: Array(Self.textOfVersion2.utf8))
        var expected = Manifest(
            tool: "outboard 0.1.0", uuid: "053FAEC1-B2B7-4E34-9374-C70F44B71708",
            completedAt: 1_795_249_377_792_879_936,
            volume: VolumeDescription(
                uuid: "78368191-CAF9-8997-B971-E192E98FA149", size: 150_016, chunkSize: 64 << 10,
                source: "/dev/vg0/data"),
            mode: .overlay,
            epoch: EpochDescription(
                number: 7, uuid: "C711C234-91B7-4A8B-A901-7A22714D24B5",
                institutedAt: 1_795_249_377_480_778_224, ending: .endedBeforeCacheCopy, logBytes: 212_992,
                batches: 2, entries: 3),
            group: nil, frozen: [], location: .usual,
            data: Portion(
                offset: 0, length: 150_016,
                checksums: .file(
                    ChecksumDescription(chunkSize: 65_536, length: 76, checksum: "8f38e377"))),
            originals: nil)
        expected.crc32c = "180f8dd8"
        #expect(manifest == expected && manifest.formatVersion == 2)
        guard case .file(let description) = manifest.data.checksums else { return }
        let file = Self.bytes(Self.checksums)
        let sums = SliceChecksums(sliceSize: 65_536, values: [0x8EAC_683C, 0x0123_ABCD, 0xFFFF_FFFF])
        #expect(try ChecksumFile.decode(file, as: description, length: 150_016) == sums)
        #expect(ChecksumFile.encode(sums, length: 150_016) == file)
    }

    @Test func partialChecksumsOfVersion1() throws {
        let file = Self.bytes(Self.partial)
        var table = try ChecksumTable(decoding: file)
        #expect(table.length == 150_016 && table.chunkSize == 65_536 && table.count == 3)
        #expect((0..<3).map { table[$0] } == [.known(0x8EAC_683C), .untouched, .unknown])
        table[2] = .untouched
        #expect(table.complete == nil && table.unknownBytes == 150_016 - 65_536)
    }
}
