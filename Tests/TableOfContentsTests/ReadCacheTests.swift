import Blocks
import TestSupport
import Testing

@testable import TableOfContents

struct ReadCacheTests {
    /// Counts, and fails where it is told to.
    private final class Source: BlockStore {
        let bytes: MemoryStore
        let reads = Monitor<[ByteRange]>([])
        let bad: ByteRange?

        init(_ content: [UInt8], bad: ByteRange? = nil) {
            bytes = MemoryStore(content)
            self.bad = bad
        }
        var size: UInt64 { bytes.size }
        var capabilities: StoreCapabilities { [] }
        func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
            let range = ByteRange(offset: offset, count: UInt64(buffer.count))
            reads.withLock { $0.append(range) }
            if let bad, bad.overlaps(range) { throw StoreError(.io) }
            try bytes.read(at: offset, into: buffer)
        }
        func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64, durable: Bool) throws(StoreError) {
            throw StoreError(.readOnly)
        }
        func writeZeroes(_ range: ByteRange, options: ZeroOptions) throws(StoreError) {
            throw StoreError(.readOnly)
        }
        func flush() throws(StoreError) {}
    }

    @Test func readsEqualWithinBoundedMemoryAndFewReads() throws {
        let content = seededBytes(5_000_001, seed: 7)
        let source = Source(content)
        let cache = ReadCache(source, slots: 6)
        var generator = SeededGenerator(seed: 9)
        for _ in 0..<200 {
            let count = Int.random(in: 0...600_000, using: &generator)
            let offset = Int.random(in: 0...content.count - count, using: &generator)
            let found = try cache.bytes(at: UInt64(offset), count: count)
            #expect(found == Array(content[offset..<offset + count]))
        }
        // One behind the other in small pieces: a read of the store for many of them.
        let fresh = Source(content)
        let other = ReadCache(fresh)
        for offset in stride(from: 0, to: 5_000_000, by: 500) {
            _ = try other.bytes(at: UInt64(offset), count: 500)
        }
        #expect(fresh.reads.withLock { $0.count } < 10)
        #expect(other.capabilities.isEmpty)
        #expect(throws: StoreError(.readOnly)) { try other.write([1], at: 0) }
    }

    /// What goes round in circles, however wide, comes to nothing new.
    @Test func onlyNewPartsAreAnAdvance() throws {
        let advances = Monitor(0)
        let cache = ReadCache(MemoryStore(size: 40 << 20), slots: 4) { advances.withLock { $0 += 1 } }
        for _ in 0..<3 {
            for offset in stride(from: 0, to: 40 << 20, by: 1 << 18) {
                _ = try cache.bytes(at: UInt64(offset), count: 512)
            }
        }
        #expect(advances.withLock { $0 } == 10)
    }

    @Test func aBadSectorHidesNothingBeside() throws {
        let content = seededBytes(1 << 20, seed: 3)
        let bad = ByteRange(offset: 300_000, count: 512)
        let cache = ReadCache(Source(content, bad: bad))
        #expect(try cache.bytes(at: 299_000, count: 1000) == Array(content[299_000..<300_000]))
        #expect(try cache.bytes(at: 300_512, count: 100_000) == Array(content[300_512..<400_512]))
        #expect(throws: StoreError(.io)) { try cache.bytes(at: 300_100, count: 1) }
    }

    @Test func aVolumeThatFailsIsNoDamage() throws {
        let source = Source([UInt8](repeating: 0, count: 1 << 20), bad: ByteRange(offset: 1024, count: 512))
        #expect {
            _ = try VolumeReader.places(source)
        } throws: { error in
            (error as? TocError)?.kind == .store(StoreError(.io))
        }
    }
}
