import Blocks
import Foundation
import TestSupport
import Testing

@testable import TableOfContents

/// HFS+ as xorriso makes it, sound and damaged. What Linux' driver makes of one is in the system tests.
@Suite struct HFSPlusTests {
    /// A small tree as HFS+, from its boot blocks to its second header.
    private static func image() throws -> [UInt8] {
        let scratch = try ScratchDirectory()
        let tree = scratch("tree")
        try FileManager.default.createDirectory(atPath: tree + "/many", withIntermediateDirectories: true)
        for index in 0..<120 {
            let bytes = seededBytes(index == 0 ? 100_000 : index * 7, seed: UInt64(index))
            try Data(bytes).write(to: URL(filePath: "\(tree)/many/a-name-of-some-length-\(index)"))
        }
        try FileManager.default.createSymbolicLink(
            atPath: tree + "/link", withDestinationPath: "many/nothing")
        let made = try runProgram(
            "xorriso", ["-as", "mkisofs", "-quiet", "-hfsplus", "-o", scratch("image"), tree])
        #expect(made.isSuccess, "\(made)")
        let bytes = [UInt8](try Data(contentsOf: URL(filePath: scratch("image"))))
        for place in stride(from: 1024, to: bytes.count - 512, by: 512)
        where bytes[place..<place + 4].elementsEqual([0x48, 0x2B, 0, 4]) {
            let count = bytes.withUnsafeBytes {
                Int($0.bigEndian(at: place + 40, as: UInt32.self))
                    * Int($0.bigEndian(at: place + 44, as: UInt32.self))
            }
            if place - 1024 + count <= bytes.count { return Array(bytes[(place - 1024)...].prefix(count)) }
        }
        Issue.record("xorriso has made no HFS+")
        return []
    }

    private static func read(_ bytes: [UInt8]) throws -> ListedVolume {
        let store = MemoryStore(bytes, capabilities: [])
        let range = ByteRange(offset: 0, count: store.size)
        let listed = ListedVolume(store)
        try listed.put(
            .fileSystem(
                FileSystemDescription(index: 0, kind: .hfsPlus, range: range, root: 2, isListed: true)))
        let telling = Telling(listed, range: range, blockSize: 512)
        do throws(TocError) { try HFSWalk(store, range, nil, telling).run() } catch {
            guard error.kind == .damaged else { throw error }
            try telling.problem(nil, error.description)
        }
        try telling.end()
        return listed
    }

    @Test func filesAreWhereTheyAre() throws {
        let listed = try Self.read(Self.image())
        #expect(listed.problems == [])
        let paths = listed.paths
        #expect(paths.count == 122)
        let link = try #require(listed.node("/link"))
        #expect(link.kind == .symbolicLink && link.target == Array("many/nothing".utf8))
        for index in 0..<120 {
            let address = try #require(paths["/many/a-name-of-some-length-\(index)"])
            let bytes = seededBytes(index == 0 ? 100_000 : index * 7, seed: UInt64(index))
            #expect(try listed.content(StreamIdentifier(node: address)) == bytes)
        }
    }

    @Test func mutatedImagesEnd() throws {
        let original = try Self.image()
        var used: [Int] = []
        for start in stride(from: 0, to: original.count, by: 512) {
            let isEmpty = original.withUnsafeBytes { bytes in
                UnsafeRawBufferPointer(rebasing: bytes[start..<start + 512]).isAllZeros
            }
            if !isEmpty { used.append(start) }
        }
        var generator = SeededGenerator(seed: 1904)
        var damaged = 0
        for round in 0..<(Tier.isFull ? 500 : 100) {
            var bytes = original
            for _ in 0..<Int.random(in: 1...(round % 3 == 0 ? 100 : 4), using: &generator) {
                let sector = used[Int.random(in: 0..<used.count, using: &generator)]
                let place = sector + Int.random(in: 0..<512, using: &generator)
                bytes[place] =
                    [0, 0xFF, bytes[place] ^ 1, .random(in: 0...255, using: &generator)][
                        Int.random(in: 0..<4, using: &generator)]
            }
            if try !Self.read(bytes).problems.isEmpty { damaged += 1 }
        }
        #expect(damaged > 10)
    }
}
