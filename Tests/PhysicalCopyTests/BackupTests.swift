import Blocks
import Foundation
import Glibc
import TestSupport
import Testing

@testable import OriginalImage
@testable import PhysicalCopy

/// What a backup holds, read back: nothing of it is believed before its end.
private struct ReadBackup {
    var volume: [UInt8]
    var originals: UInt64
    var streamBytes: UInt64
    var toc: [UInt8]

    init(_ path: String) throws(CopyError) {
        let reader = try BackupReader(BackupInput(path) { () throws(CopyError) in })
        var volume = [UInt8](repeating: 0xA5, count: Int(reader.manifest.volume.size))
        var toc: [UInt8] = []
        _ = try reader.readToc { bytes throws(CopyError) in toc += bytes }
        try reader.readData { offset, passing throws(CopyError) in
            switch passing {
            case .bytes(let bytes):
                volume.replaceSubrange(Int(offset)..<Int(offset) + bytes.count, with: bytes)
            case .zeros(let count):
                volume.replaceSubrange(
                    Int(offset)..<Int(offset + count), with: repeatElement(0, count: Int(count)))
            }
        }
        streamBytes = try reader.finish()
        originals = reader.originals
        self.volume = volume
        self.toc = toc
    }
}

/// A store in memory that has holes.
private final class SparseStore: BlockStore {
    let size: UInt64
    let capabilities: StoreCapabilities = .knowsAllocation
    /// Data; holes lie between. In order.
    let extents: [ByteRange]
    /// The byte that all of an extent is.
    let byte: @Sendable (UInt64) -> UInt8

    init(size: UInt64, extents: [ByteRange], byte: @escaping @Sendable (UInt64) -> UInt8) {
        self.size = size
        self.extents = extents
        self.byte = byte
    }

    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
        let range = ByteRange(offset: offset, count: UInt64(buffer.count))
        requireWithin(range)
        buffer.initializeMemory(as: UInt8.self, repeating: 0)
        for index in firstExtent(from: offset)..<extents.count {
            guard let part = extents[index].intersection(range) else { break }
            memset(
                buffer.baseAddress! + Int(part.offset - offset), Int32(byte(extents[index].offset)),
                Int(part.count))
        }
    }

    private func firstExtent(from offset: UInt64) -> Int {
        var (low, high) = (0, extents.count)
        while low < high {
            let middle = (low + high) / 2
            if extents[middle].end <= offset { low = middle + 1 } else { high = middle }
        }
        return low
    }

    func allocation(of range: ByteRange, limit: Int) throws(StoreError) -> [AllocationExtent] {
        var result: [AllocationExtent] = []
        var (position, index) = (range.offset, firstExtent(from: range.offset))
        while position < range.end, result.count < limit {
            let next = index < extents.count ? extents[index] : nil
            if let next, next.offset <= position {
                let end = min(next.end, range.end)
                result.append(AllocationExtent(count: end - position, isHole: false, readsAsZeros: false))
                position = end
                index += 1
            } else {
                let end = min(next?.offset ?? range.end, range.end)
                result.append(AllocationExtent(count: end - position, isHole: true, readsAsZeros: true))
                position = end
            }
        }
        return result
    }

    func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64, durable: Bool) throws(StoreError) {
        throw StoreError(.readOnly)
    }
    func writeZeroes(_ range: ByteRange, options: ZeroOptions) throws(StoreError) {
        throw StoreError(.readOnly)
    }
    func flush() throws(StoreError) {}
}

@Suite struct BackupTests {
    @discardableResult
    private func backUp(
        _ directory: String, to path: String, integrated: Bool = false, recordBytes: Int = 10_240,
        force: Bool = false, _ opener: DataOpener = SampleCopy.open
    ) throws -> BackupSummary {
        let copy = try PhysicalCopy(directory)
        let output = try BackupOutput(path, recordBytes: recordBytes, force: force, backingUp: copy) {}
        return try copy.backUp(to: output, integrated: integrated, tool: "test 1", opener)
    }

    @Test("What a backup holds is the volume as of the instant", arguments: [false, true], [1, 2])
    func roundTrip(integrated: Bool, version: Int) throws {
        let parent = TemporaryDirectory()
        let sample = try SampleCopy(in: parent.path, seed: 3, version: version)
        let path = parent.path + "/backup.tar"
        let summary = try backUp(sample.directory, to: path, integrated: integrated)
        let bytes = try Data(contentsOf: URL(fileURLWithPath: path))
        #expect(summary.streamBytes == UInt64(bytes.count))
        #expect(bytes.count % 10_240 == 0)
        let read = try ReadBackup(path)
        #expect(read.volume == sample.instant)
        #expect(read.streamBytes == summary.streamBytes)
        #expect(read.originals == (integrated ? 0 : sample.manifest.epoch.entries))
        #expect(
            try FileManager.default.contentsOfDirectory(atPath: parent.path).sorted() == [
                "backup.tar", "copy",
            ])
    }

    @Test("Each flipped byte of a stream is found, and told with its place", arguments: [1, 2])
    func flips(version: Int) throws {
        let parent = TemporaryDirectory()
        let sample = try SampleCopy(in: parent.path, seed: 4, size: 50_000, version: version)
        let path = parent.path + "/backup.tar"
        try backUp(sample.directory, to: path, recordBytes: 512)
        let whole = try Data(contentsOf: URL(fileURLWithPath: path))
        var random = SeededGenerator(seed: 4)
        // Every byte of the first members and of the end; the data at random.
        let step = version == 1 ? 31 : 1
        var places = Array(stride(from: 0, to: 5_500, by: step))
        places += Array(stride(from: whole.count - 2_600, to: whole.count, by: step))
        places += (0..<300).map { _ in Int.random(in: 0..<whole.count, using: &random) }
        var damaged = whole
        for place in places {
            damaged[place] ^= 1 << UInt8.random(in: 0..<8, using: &random)
            try damaged.write(to: URL(fileURLWithPath: path))
            let error = #expect(throws: CopyError.self, "byte \(place) of \(whole.count)") {
                _ = try ReadBackup(path)
            }
            #expect(
                error?.kind == .damaged && error?.reason.contains("of the stream") == true,
                "\(place): \(error!)")
            damaged[place] = whole[place]
        }
    }

    @Test("A stream that ends too early, wherever, is found")
    func truncations() throws {
        let parent = TemporaryDirectory()
        let sample = try SampleCopy(in: parent.path, seed: 5, size: 50_000)
        let path = parent.path + "/backup.tar"
        try backUp(sample.directory, to: path)
        let whole = try Data(contentsOf: URL(fileURLWithPath: path))
        for length in Array(stride(from: 0, to: whole.count, by: 2_039)) + [whole.count - 1] {
            try whole.prefix(length).write(to: URL(fileURLWithPath: path))
            let error = #expect(throws: CopyError.self, "\(length) of \(whole.count)") {
                _ = try ReadBackup(path)
            }
            #expect(error?.kind == .damaged, "\(length): \(error!)")
        }
        try (whole + [0, 0, 1]).write(to: URL(fileURLWithPath: path))
        #expect(throws: CopyError.self) { _ = try ReadBackup(path) }
        try (whole + Data(count: 100)).write(to: URL(fileURLWithPath: path))
        #expect(try ReadBackup(path).volume == sample.instant)
    }

    @Test func aDamagedCopyIsNotBackedUp() throws {
        let parent = TemporaryDirectory()
        let sample = try SampleCopy(in: parent.path, seed: 6)
        let image = sample.directory + "/data.img"
        let whole = try Data(contentsOf: URL(fileURLWithPath: image))
        for place in [0, 299_999, whole.count - 1] {
            var damaged = whole
            damaged[place] ^= 4
            try damaged.write(to: URL(fileURLWithPath: image))
            for integrated in [false, true] where place != whole.count - 1 || !integrated {
                let error = #expect(throws: CopyError.self) {
                    try backUp(sample.directory, to: parent.path + "/backup.tar", integrated: integrated)
                }
                #expect(error?.kind == .damaged)
            }
            #expect(try FileManager.default.contentsOfDirectory(atPath: parent.path) == ["copy"])
        }
    }

    /// What reads a pipe must not take for whole what was given up.
    @Test func whatIsGivenUpHasNoEnd() throws {
        let parent = TemporaryDirectory()
        let sample = try SampleCopy(in: parent.path, seed: 8)
        let path = parent.path + "/stream"
        let descriptor = open(path, O_WRONLY | O_CREAT, 0o600)
        #expect(descriptor >= 0)
        defer { close(descriptor) }
        let output = BackupOutput(descriptor: descriptor, name: "stream", recordBytes: 512) {}
        var written: UInt64 = 0
        let error = #expect(throws: CopyError.self) {
            try PhysicalCopy(sample.directory).backUp(
                to: output, integrated: false, tool: "test 1", SampleCopy.open
            ) { step, _ throws(CopyError) in
                guard step == .writing else { return }
                written = output.position
                throw CopyError(.cancelled, "back up", "it was given up")
            }
        }
        #expect(error?.kind == .cancelled)
        #expect(written > 0 && output.position == written)
        #expect(throws: CopyError.self) { try ReadBackup(path) }
    }

    @Test func whatIsThereIsReplacedByForceOnly() throws {
        let parent = TemporaryDirectory()
        let sample = try SampleCopy(in: parent.path, seed: 7)
        let path = parent.path + "/backup.tar"
        try backUp(sample.directory, to: path)
        let first = try Data(contentsOf: URL(fileURLWithPath: path))
        let error = #expect(throws: CopyError.self) { try backUp(sample.directory, to: path) }
        #expect(error?.kind == .cannotCreate)
        #expect(try Data(contentsOf: URL(fileURLWithPath: path)) == first)
        try backUp(sample.directory, to: path, integrated: true, force: true)
        #expect(try Data(contentsOf: URL(fileURLWithPath: path)) != first)
        #expect(throws: CopyError.self) {
            try backUp(sample.directory, to: sample.directory + "/data.img", force: true)
        }
        #expect(throws: CopyError.self) { try backUp(sample.directory, to: parent.path, force: true) }
        #expect(throws: CopyError.self) { try backUp(sample.directory, to: parent.path + "/no/such") }
    }

    /// More extents than one member may have: several members, each with its own map, and no hole is stored.
    @Test func manyHoles() throws {
        let parent = TemporaryDirectory()
        let count = UInt64(MediaLimits.extentsPerMember) * 2 + 17
        let extents = (0..<count).map { ByteRange(offset: ($0 * 3 + 1) * 8_192, count: 4_096) }
        let size = (count * 3 + 1_000_000_000) * 8_192 + 512
        let store = SparseStore(size: size, extents: extents) { UInt8(truncatingIfNeeded: $0 >> 12) | 1 }
        let directory = parent.path + "/copy"
        do {
            let draft = try CopyDraft(destination: directory, force: false)
            let sums = try Self.sums(of: store)
            try draft.commit(Self.manifest(size: size, checksums: sums))
        }
        let path = parent.path + "/backup.tar"
        let summary = try backUp(directory, to: path) { _, _ throws(CopyError) in store }
        #expect(summary.dataMembers == 3)
        #expect(summary.storedBytes == count * 4_096)
        #expect(summary.streamBytes < summary.storedBytes * 103 / 100 + (4 << 20))
        let reader = try BackupReader(BackupInput(path) { () throws(CopyError) in })
        var stored: UInt64 = 0
        try reader.readData { offset, passing throws(CopyError) in
            guard case .bytes(let bytes) = passing else { return }
            stored += UInt64(bytes.count)
            for index in stride(from: 0, to: bytes.count, by: 512) {
                let place = offset + UInt64(index)
                precondition(bytes[index] == UInt8(truncatingIfNeeded: place >> 12) | 1, "at \(place)")
            }
        }
        try reader.finish()
        #expect(stored == summary.storedBytes)
    }

    /// Those of a volume whose slices need not be read where they are holes.
    private static func sums(of store: SparseStore) throws -> SliceChecksums {
        let size = SliceChecksums.sliceSize(forLength: store.size)
        var result = SliceChecksums(sliceSize: size, values: [])
        var next = 0
        for start in stride(from: 0, to: store.size, by: Int(size)) {
            let end = min(start + size, store.size)
            var crc = CRC32C()
            var position = start
            while next < store.extents.count, store.extents[next].offset < end {
                let extent = store.extents[next]
                crc.update(zeros: extent.offset - position)
                crc.update([UInt8](repeating: store.byte(extent.offset), count: Int(extent.count)))
                position = extent.end
                next += 1
            }
            crc.update(zeros: end - position)
            result.values.append(crc.value)
        }
        return result
    }

    private static func manifest(size: UInt64, checksums: SliceChecksums) -> Manifest {
        Manifest(
            tool: "test", uuid: UUID().uuidString, completedAt: 2,
            volume: VolumeDescription(uuid: UUID().uuidString, size: size, chunkSize: 65_536, source: "/s"),
            mode: .overlay,
            epoch: EpochDescription(
                number: 1, uuid: UUID().uuidString, institutedAt: 1, ending: .endedBeforeCacheCopy,
                logBytes: 8_192, batches: 0, entries: 0),
            group: nil, frozen: [], location: .usual,
            data: Portion(offset: 0, length: size, checksums: checksums), originals: nil)
    }

    @Test("A sum over zeros is that of as many zero bytes", arguments: [0, 1, 511, 4_096, 100_003])
    func zeros(count: Int) {
        let head: [UInt8] = [1, 2, 3, 250]
        var expected = CRC32C()
        expected.update(head + [UInt8](repeating: 0, count: count) + head)
        var found = CRC32C()
        found.update(head)
        found.update(zeros: UInt64(count))
        found.update(head)
        #expect(found == expected)
    }
}
