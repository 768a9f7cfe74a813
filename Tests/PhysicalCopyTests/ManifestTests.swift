import Blocks
import Foundation
import Testing

@testable import PhysicalCopy

@Suite struct ManifestTests {
    @Test func roundTrip() throws {
        let parent = TemporaryDirectory()
        let sample = try SampleCopy(in: parent.path, seed: 1)
        #expect(throws: Never.self) { try Manifest(decoding: sample.manifest.encoded()) }
        var decoded = try Manifest(decoding: sample.manifest.encoded())
        decoded.crc32c = Manifest.blankChecksum
        #expect(decoded == sample.manifest)
    }

    @Test("Every flipped bit of every byte is found")
    func flips() throws {
        let parent = TemporaryDirectory()
        let bytes = try SampleCopy(in: parent.path, seed: 2).manifest.encoded()
        for index in bytes.indices {
            for bit in 0..<8 {
                var flipped = bytes
                flipped[index] ^= 1 << bit
                #expect(throws: Manifest.Malformed.self, "byte \(index), bit \(bit)") {
                    try Manifest(decoding: flipped)
                }
            }
        }
    }

    @Test func cutsAndAdditions() throws {
        let parent = TemporaryDirectory()
        let bytes = try SampleCopy(in: parent.path, seed: 3).manifest.encoded()
        for count in 0..<bytes.count {
            #expect(throws: Manifest.Malformed.self) { try Manifest(decoding: Array(bytes.prefix(count))) }
        }
        #expect(throws: Manifest.Malformed.self) { try Manifest(decoding: bytes + [10]) }
    }

    @Test("A well-summed manifest whose numbers disagree is refused")
    func nonsense() throws {
        let parent = TemporaryDirectory()
        let good = try SampleCopy(in: parent.path, seed: 4).manifest
        func refused(_ change: (inout Manifest) -> Void) {
            var manifest = good
            change(&manifest)
            let bytes = manifest.encoded()
            #expect(throws: Manifest.Malformed.self) { try Manifest(decoding: bytes) }
        }
        refused { $0.volume.chunkSize = 5000 }
        refused { $0.volume.chunkSize = 0 }
        refused { $0.volume.size = 0 }
        refused { $0.volume.size = .max }
        refused { $0.data.offset = 4096 }
        refused { manifest in manifest.data.change { $0.length += 4 } }
        refused { manifest in manifest.data.change { $0.chunkSize *= 2 } }
        refused { manifest in manifest.data.change { $0.chunkSize = 0 } }
        refused { manifest in manifest.data.change { $0.chunkSize = 32 << 10 } }
        for name in ["", "../checksums", "manifest.json", "data.img", "checksums.new"] {
            refused { manifest in manifest.data.change { $0.name = name } }
        }
        refused { $0.location = .member(name: "checksums") }
        refused { $0.originals?.checksums = $0.data.checksums }
        refused { $0.data.checksums = .slices(SliceChecksums(sliceSize: 16 << 20, values: [1])) }
        refused { $0.originals = nil }
        refused { $0.originals?.offset = 0 }
        refused { $0.originals?.offset = .max }
        refused { $0.state = .integrated }
        refused { $0.mode = .overlay }
        refused { $0.location = .member(name: "../x") }
        refused { $0.location = .member(name: Manifest.fileName) }
        refused { $0.format = "else" }
    }

    @Test func nonsenseOfVersion1() throws {
        let parent = TemporaryDirectory()
        let good = try SampleCopy(in: parent.path, seed: 4, version: 1).manifest
        #expect(throws: Never.self) { try Manifest(decoding: good.encoded()) }
        var manifest = good
        var slices = good.data.slices
        slices.values.append(1)
        manifest.data.checksums = .slices(slices)
        #expect(throws: Manifest.Malformed.self) { try Manifest(decoding: manifest.encoded()) }
        for version in [0, 2, 3] {
            // What a manifest of another version may not have.
            let text = String(decoding: good.encoded(), as: UTF8.self)
                .replacing("\"formatVersion\" : 1", with: "\"formatVersion\" : \(version)")
            let bytes = SelfChecksum.summed(Array(text.utf8))
            #expect(throws: Manifest.Malformed.self, "\(version)") { try Manifest(decoding: bytes) }
        }
    }

    @Test func chunkSizes() {
        for length: UInt64 in [1, 65_536, 1 << 38, (1 << 38) + 1, 1 << 42, 1 << 60] {
            let size = SliceChecksums.chunkSize(forLength: length)
            #expect(size >= CopyLimits.smallestChunk && size.nonzeroBitCount == 1)
            #expect((length - 1) / size + 1 <= CopyLimits.checksumChunks)
            #expect(
                size == CopyLimits.smallestChunk
                    || (length - 1) / (size / 2) + 1 > CopyLimits.checksumChunks)
        }
    }

    @Test func sliceSizes() {
        for length: UInt64 in [0, 1, 16 << 20, 1 << 40, (1 << 40) + 1, 1 << 60] {
            let size = SliceChecksums.sliceSize(forLength: length)
            #expect(size >= CopyLimits.smallestSlice && size.nonzeroBitCount == 1)
            #expect((length + size - 1) / size <= CopyLimits.slices)
            #expect(
                size == CopyLimits.smallestSlice || (length + size / 2 - 1) / (size / 2) > CopyLimits.slices)
        }
    }
}

extension Portion {
    /// Changes what the manifest says of the file of checksums.
    fileprivate mutating func change(_ body: (inout ChecksumDescription) -> Void) {
        guard case .file(var file) = checksums else { preconditionFailure("no file of checksums") }
        body(&file)
        checksums = .file(file)
    }
}
