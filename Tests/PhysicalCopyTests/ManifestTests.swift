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
        refused { $0.data.checksums.values.append(1) }
        refused { $0.originals = nil }
        refused { $0.originals?.offset = 0 }
        refused { $0.originals?.offset = .max }
        refused { $0.state = .integrated }
        refused { $0.mode = .overlay }
        refused { $0.location = .member(name: "../x") }
        refused { $0.location = .member(name: Manifest.fileName) }
        refused { $0.formatVersion = 2 }
        refused { $0.format = "else" }
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
