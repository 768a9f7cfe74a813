import Blocks
import Foundation
import SCSI
import TestSupport
import Testing

@testable import Bridge

/// WRITE BUFFER and READ BUFFER: checksums of what is written to a unit.
@Suite struct ChecksumCommandTests {
    private static let size = 1 << 20
    private static let chunk = 64 << 10
    private static let usual = ChecksumKeeping(
        identifier: 7, length: UInt64(size), chunkSize: UInt64(chunk))

    private func keep(
        _ bench: Bench, _ unit: Int, _ keeping: ChecksumKeeping = usual, on nexus: Nexus? = nil
    ) -> SCSIOutcome {
        bench.send(ChecksumBuffer.write(), unit, data: keeping.encoded(), on: nexus)
    }

    private func ask(
        _ bench: Bench, _ unit: Int, from chunk: UInt32 = 0, length: Int = 1 << 20
    ) throws -> KeptChecksums {
        let outcome = bench.send(ChecksumBuffer.read(from: chunk, allocationLength: length), unit)
        try #require(outcome.isGood)
        return try KeptChecksums(decoding: outcome.dataIn)
    }

    /// Unit 0 full of data, unit 1 with checksums, unit 2 over the same file as 1.
    private func withFiles(_ body: (FileUnits, [UInt8]) throws -> Void) throws {
        let files = try FileUnits(bytes: Self.size)
        defer { files.end() }
        let data = pattern(Self.size, seed: 3)
        let whole = BlockTransfer(.sixteen, lba: LBA(0), count: BlockCount(UInt64(Self.size / 512)))
        try #require(files.bench.send(.write(whole), 0, data: data).isGood)
        try #require(keep(files.bench, 1).isGood)
        try body(files, data)
    }

    private func sum(_ bytes: [UInt8], _ chunk: Int) -> ChunkChecksums.Entry {
        .known(CRC32C.checksum(bytes[chunk * Self.chunk..<(chunk + 1) * Self.chunk]))
    }

    private var zeros: ChunkChecksums.Entry { sum([UInt8](repeating: 0, count: Self.chunk), 0) }

    private func copyAll(_ files: FileUnits) -> SCSIOutcome {
        files.bench.copy(files.list(1, from: (0, 0), to: (1, 0), blocks: UInt32(Self.size / 512)))
    }

    @Test func copiesAreSummedUpAsTheyPass() throws {
        try withFiles { files, data in
            #expect(try ask(files.bench, 1).entries == Array(repeating: .untouched, count: 16))
            // Half a chunk first: the rest of it is not known from that.
            let half = files.list(1, from: (0, 0), to: (1, 0), blocks: 64 + 128 * 3)
            try #require(files.bench.copy(half).isGood)
            let kept = try ask(files.bench, 1)
            #expect(kept.keeping == Self.usual && kept.first == 0)
            #expect(Array(kept.entries[..<4]) == [sum(data, 0), sum(data, 1), sum(data, 2), .unknown])
            #expect(kept.entries[4...].allSatisfy { $0 == .untouched })
            try #require(copyAll(files).isGood)
            #expect(try ask(files.bench, 1).entries == (0..<16).map { sum(data, $0) })
            // Of the source nobody asked.
            #expect(try ask(files.bench, 0).keeping == nil)
        }
    }

    /// What else writes, on any unit over the same storage.
    @Test func otherWritesMakeChunksUnknown() throws {
        try withFiles { files, data in
            let bench = files.bench
            let list = UnmapList([UnmapList.Range(lba: LBA(128 * 5), count: BlockCount(128))]).encoded()
            let (command, both) = compareAndWrite(0, 0, lba: 128 * 9, blocks: 1)
            let same = WriteSame(lba: LBA(128 * 6), count: BlockCount(129))
            let changes: [(String, Set<Int>, Set<Int>, () -> SCSIOutcome)] = [
                ("WRITE", [2], [], { files.write(1, 1, lba: 2 * 128, blocks: 1) }),
                ("WRITE at the other unit", [3], [], { files.write(2, 1, lba: 3 * 128 + 127, blocks: 1) }),
                (
                    "UNMAP", [], [5],
                    {
                        bench.send(
                            .block(.unmap(anchor: false, parameterListLength: list.count)), 1, data: list)
                    }
                ),
                (
                    "WRITE SAME of zeros", [7], [6],
                    { bench.send(.writeSame16(same), 1, data: [UInt8](repeating: 0, count: 512)) }
                ),
                (
                    "WRITE SAME of others", [6, 7], [],
                    { bench.send(.writeSame16(same), 1, data: [UInt8](repeating: 1, count: 512)) }
                ),
                (
                    "COMPARE AND WRITE", [9], [],
                    {
                        // It compares with zeros.
                        _ = bench.send(
                            .writeSame16(WriteSame(lba: LBA(128 * 9), count: BlockCount(1))), 1,
                            data: [UInt8](repeating: 0, count: 512))
                        return bench.send(command, 1, data: both)
                    }
                ),
                (
                    "a copy of a part", [10, 11], [],
                    { bench.copy(files.list(2, from: (0, 0), to: (1, 128 * 10 + 1), blocks: 128)) }
                ),
                (
                    "a copy of a part at the other unit", [10], [],
                    { bench.copy(files.list(2, from: (0, 0), to: (2, 128 * 10 + 1), blocks: 127)) }
                ),
            ]
            for (name, unknown, zeroed, change) in changes {
                try #require(copyAll(files).isGood)
                try #require(change().isGood, "\(name)")
                let entries = try ask(bench, 1).entries
                for chunk in 0..<16 {
                    let expected =
                        unknown.contains(chunk) ? .unknown : zeroed.contains(chunk) ? zeros : sum(data, chunk)
                    #expect(entries[chunk] == expected, "\(name): chunk \(chunk)")
                }
            }
        }
    }

    /// A copy piece by piece, through the store, sums nothing up.
    @Test func serialCopiesMakeChunksUnknown() throws {
        let stores = (0..<2).map { MemoryStore(pattern: Self.size, seed: UInt64($0)) }
        let bench = try Bench([Bench.unit(0, stores[0]), Bench.unit(1, stores[1])])
        try #require(keep(bench, 1).isGood)
        let segment = SegmentDescriptor(
            source: 0, sourceLBA: LBA(0), destination: 1, destinationLBA: LBA(0),
            amount: .bytes(UInt32(Self.chunk), sourceOffset: 0, destinationOffset: 0))
        let list = CopyParameterList(
            listIdentifier: 1, cscds: [bench.cscd(0), bench.cscd(1)], segments: [segment])
        try #require(bench.copy(list).isGood)
        #expect(try Array(ask(bench, 1).entries[..<2]) == [.unknown, .untouched])
    }

    @Test func whoAsksAgainBeginsAnewAndWhoWantsNoneHasNone() throws {
        try withFiles { files, _ in
            try #require(copyAll(files).isGood)
            var other = Self.usual
            other.identifier = .max
            other.chunkSize *= 2
            try #require(keep(files.bench, 1, other).isGood)
            let kept = try ask(files.bench, 1)
            #expect(kept.keeping == other && kept.entries == Array(repeating: .untouched, count: 8))
            // Both units over the file have the same.
            #expect(try ask(files.bench, 2) == kept)
            other.length = 0
            try #require(keep(files.bench, 1, other).isGood)
            #expect(try ask(files.bench, 1) == KeptChecksums(keeping: nil))
        }
    }

    @Test func aPartOfTheAnswer() throws {
        try withFiles { files, data in
            try #require(copyAll(files).isGood)
            // Room for three chunks and a little.
            for (length, count) in [(39, 0), (40, 0), (47, 0), (48, 1), (KeptChecksums.length(chunks: 3), 3)]
            {
                let outcome = files.bench.send(
                    ChecksumBuffer.read(from: 5, allocationLength: length), 1)
                try #require(outcome.isGood && outcome.dataIn.count <= length)
                guard length >= KeptChecksums.headerLength else { continue }
                let kept = try KeptChecksums(decoding: outcome.dataIn)
                #expect(kept.first == 5 && kept.entries == (5..<5 + count).map { sum(data, $0) })
            }
            #expect(try ask(files.bench, 1, from: 15).entries == [sum(data, 15)])
            for beyond: UInt32 in [16, 0xFF_FFFF] {
                #expect(try ask(files.bench, 1, from: beyond).entries.isEmpty)
            }
        }
    }

    /// What is under way was not told to what is kept from now on, so it is waited for.
    @Test func waitsForWritesUnderWay() throws {
        try withFiles { files, _ in
            let ranges = files.device.units[1].ranges
            let held = ByteRange(offset: 4096, count: 512)
            ranges.lock(held, exclusive: false)
            let task = files.bench.task(
                ChecksumBuffer.write().encoded(), 1, data: Self.usual.encoded())
            let outcome = Monitor<SCSIOutcome?>(nil)
            BlockingThread.start {
                let result = files.device.execute(task)
                outcome.withLockAndNotify { $0 = result }
            }
            // Again and again: a lock tells nobody that it is waited for.
            while ranges.waiting == 0 { sched_yield() }
            #expect(outcome.withLock { $0 } == nil)
            task.abort()
            #expect(outcome.wait { $0 }.status == .taskAborted)
            ranges.unlock(held, exclusive: false)
            #expect(keep(files.bench, 1).isGood)
        }
    }

    @Test func limits() throws {
        let gigabyte: UInt64 = 1 << 30
        let most = UInt64(BridgeLimits.checksumChunks) * (64 << 10)
        let units = try (0..<6).map { try Bench.unit($0, SparseStore(size: most + gigabyte)) }
        let bench = try Bench(units)
        func keeping(_ length: UInt64, _ chunkSize: UInt64) -> ChecksumKeeping {
            ChecksumKeeping(identifier: 1, length: length, chunkSize: chunkSize)
        }
        let sizes = BridgeLimits.checksumChunkSizes
        for size in [sizes.lowerBound, sizes.upperBound] {
            #expect(keep(bench, 0, keeping(512, size)).isGood)
        }
        for size in [
            0, sizes.lowerBound / 2, sizes.lowerBound + 1, sizes.upperBound * 2, 1 << 63, UInt64.max,
        ] {
            let outcome = keep(bench, 0, keeping(512, size))
            #expect(outcome.failed(.illegalRequest, .invalidFieldInParameterList), "\(size)")
        }
        #expect(keep(bench, 0, keeping(most + gigabyte, 1 << 20)).isGood)
        let beyond = keep(bench, 0, keeping(most + gigabyte + 1, 1 << 20))
        #expect(beyond.failed(.illegalRequest, .invalidFieldInParameterList))
        // So many chunks of one unit, and so many of all.
        #expect(
            keep(bench, 0, keeping(most + 1, 64 << 10)).failed(.illegalRequest, .insufficientResources))
        for unit in 0..<4 { #expect(keep(bench, unit, keeping(most, 64 << 10)).isGood) }
        #expect(keep(bench, 4, keeping(1, 64 << 10)).failed(.illegalRequest, .insufficientResources))
        #expect(keep(bench, 3, keeping(most, 64 << 10)).isGood)
        #expect(keep(bench, 3, keeping(most - (64 << 10), 64 << 10)).isGood)
        #expect(keep(bench, 4, keeping(1, 64 << 10)).isGood)
        // One answer has so many.
        let longest = KeptChecksums.length(chunks: BridgeLimits.checksumsAtOnce)
        #expect(try ask(bench, 0, length: longest).entries.count == BridgeLimits.checksumsAtOnce)
        #expect(
            try ask(bench, 0, length: BufferCommand.greatestLength).entries.count
                == BridgeLimits.checksumsAtOnce)
    }

    @Test func refusesWhatItDoesNotKnow() throws {
        let bench = try Bench([
            Bench.unit(0, MemoryStore(pattern: Self.size, seed: 1)),
            Bench.unit(1, MemoryStore(pattern: Self.size, seed: 1), readOnly: true),
        ])
        #expect(keep(bench, 1).failed(.dataProtect, .writeProtected))
        #expect(try ask(bench, 1).keeping == nil)
        let list = Self.usual.encoded()
        func send(_ place: BufferCommand.Place, _ length: Int, data: [UInt8]) -> SCSIOutcome {
            bench.send(.buffer(.write(place, parameterListLength: length)), data: data)
        }
        let buffer = ChecksumBuffer.identifier
        for mode: UInt8 in [0, 2, 5, 0x1F] {
            #expect(send(.init(mode: mode, buffer: buffer), 32, data: list).refused(cdbByte: 1))
            let command = Command.buffer(.read(.init(mode: mode, buffer: buffer), allocationLength: 255))
            #expect(bench.send(command).refused(cdbByte: 1))
        }
        #expect(send(.init(mode: 1, buffer: 0), 32, data: list).refused(cdbByte: 2))
        #expect(send(.init(mode: 1, buffer: buffer, offset: 1), 32, data: list).refused(cdbByte: 3))
        for length in [0, 31, 33] {
            let outcome = send(.init(mode: 1, buffer: buffer), length, data: list + [0])
            #expect(outcome.failed(.illegalRequest, .parameterListLengthError))
        }
        #expect(
            send(.init(mode: 1, buffer: buffer), 32, data: Array(list.dropLast()))
                .failed(.illegalRequest, .parameterListLengthError))
        for byte in [0, 3, 4] {
            var other = list
            other[byte] ^= 1
            #expect(
                send(.init(mode: 1, buffer: buffer), 32, data: other)
                    .failed(.illegalRequest, .invalidFieldInParameterList))
        }
        #expect(try ask(bench, 0).keeping == nil)
    }

    /// A reservation of somebody else shuts both out.
    @Test func reservationsShutOut() throws {
        let bench = try Bench([Bench.unit(0, MemoryStore(pattern: Self.size, seed: 1))])
        let second = try bench.secondRegistrant(at: 0)
        let parameters = ReservationParameters(key: 2, serviceActionKey: 0)
        let reserve = PersistentReserveOut(.reserve, type: .writeExclusive)
        try #require(
            bench.send(
                .reservation(.persistentOut(reserve)), data: parameters.encoded(), on: second
            ).isGood)
        #expect(keep(bench, 0).status == .reservationConflict)
        #expect(
            bench.send(ChecksumBuffer.read(from: 0, allocationLength: 255)).status == .reservationConflict)
        #expect(keep(bench, 0, on: second).isGood)
    }
}

/// A large store of zeros.
private final class SparseStore: BlockStore {
    let size: UInt64
    let capabilities: StoreCapabilities = .writable
    init(size: UInt64) { self.size = size }
    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) {
        buffer.initializeMemory(as: UInt8.self, repeating: 0)
    }
    func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64, durable: Bool) {}
    func writeZeroes(_ range: ByteRange, options: ZeroOptions) {}
    func flush() {}
}
