import Blocks
import TestSupport
import Testing

/// The judge must be right before it may judge.
@Suite struct PrefixOracleTests {
    private let region = ByteRange(offset: 4096, count: 300_001)

    private func run(_ oracle: PrefixOracle, _ store: MemoryStore, writes: Int) throws {
        var left = writes
        try oracle.run(on: store) {
            left -= 1
            return left < 0
        }
    }

    @Test(arguments: 0..<5 as Range<UInt64>)
    func theStateAfterAnyPrefixIsConsistent(seed: UInt64) throws {
        let oracle = PrefixOracle(seed: seed, region: region, maximumLength: 20_000)
        let store = MemoryStore(size: 400_000)
        try oracle.initialize(store)
        for k in stride(from: 0, through: 60, by: 10) {
            let bytes = try store.bytes(at: region.offset, count: Int(region.count))
            #expect(oracle.judge(bytes, within: k...k) == .consistent(k: k))
            try run(oracle, store, writes: 10)
        }
    }

    @Test func anyWrongByteIsFound() throws {
        let oracle = PrefixOracle(seed: 7, region: region, maximumLength: 20_000)
        let store = MemoryStore(size: 400_000)
        try oracle.initialize(store)
        try run(oracle, store, writes: 40)
        var bytes = try store.bytes(at: region.offset, count: Int(region.count))
        let written = oracle.operations.last { $0.kind == .write }!
        bytes[Int(written.range.offset - region.offset)] ^= 1
        #expect(!oracle.judge(bytes, within: 0...40).isConsistent)
    }

    /// A store that takes so many operations, and of the next only some bytes, if it is a write.
    private final class DyingStore: BlockStore {
        let inner: MemoryStore
        private let left: Monitor<Int>
        private let taken: Int
        private let failure: StoreError

        init(_ inner: MemoryStore, operations: Int, taken: Int, failure: StoreError = StoreError(.gone)) {
            self.inner = inner
            self.taken = taken
            self.failure = failure
            left = Monitor(operations)
        }

        var size: UInt64 { inner.size }
        var capabilities: StoreCapabilities { inner.capabilities }
        private func isLast() -> Bool {
            left.withLock { left in
                left -= 1
                return left < 0
            }
        }
        func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
            try inner.read(at: offset, into: buffer)
        }
        func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64, durable: Bool) throws(StoreError) {
            guard isLast() else { return try inner.write(buffer, at: offset, durable: durable) }
            try inner.write(
                UnsafeRawBufferPointer(rebasing: buffer.prefix(taken)), at: offset, durable: durable)
            throw failure
        }
        func writeZeroes(_ range: ByteRange, options: ZeroOptions) throws(StoreError) {
            guard !isLast() else { throw failure }
            try inner.writeZeroes(range, options: options)
        }
        func trim(_ range: ByteRange, durable: Bool) throws(StoreError) {
            guard !isLast() else { throw failure }
            try inner.trim(range, durable: durable)
        }
        func flush() {}
    }

    @Test(arguments: 0..<8 as Range<UInt64>, [0, 100, 100_000])
    func whatWasAnsweredMustBeInTheSource(seed: UInt64, taken: Int) throws {
        let memory = MemoryStore(size: 400_000)
        let first = seededBytes(Int(region.count), seed: seed)
        try memory.write(first, at: region.offset)
        let oracle = PrefixOracle(
            seed: seed, region: region, maximumLength: 20_000, found: first, flushInterval: 10)
        #expect(throws: StoreError.self) {
            try oracle.run(on: DyingStore(memory, operations: 35, taken: taken)) { false }
        }
        #expect(oracle.flushedCount == 30)
        let bytes = try memory.bytes(at: region.offset, count: Int(region.count))
        #expect(oracle.judgeSource(bytes).isConsistent)
        // The answered operations that nothing has hidden since.
        for index in [3, 33] {
            guard let lost = oracle.operations[..<35].last(where: { $0.kind == .write && $0.number <= index })
            else { continue }
            var wrong = bytes
            let place = Int(lost.range.offset - region.offset)
            let isHidden = oracle.operations[Int(lost.number)...].contains {
                $0.range.intersection(ByteRange(offset: lost.range.offset, count: 1)) != nil
            }
            wrong[place] ^= 0x55
            let verdict = oracle.judgeSource(wrong)
            #expect(!verdict.isConsistent)
            guard !isHidden, case .inconsistent(let text) = verdict else { continue }
            #expect(text.contains("and it was flushed") == (lost.number <= 30), "\(text)")
        }
    }

    @Test func aMissedWriteAndALaterOneAreFound() throws {
        let oracle = PrefixOracle(seed: 8, region: region, maximumLength: 20_000)
        let store = MemoryStore(size: 400_000)
        try oracle.initialize(store)
        let before = try store.bytes(at: region.offset, count: Int(region.count))
        try run(oracle, store, writes: 40)
        #expect(!oracle.judge(before, within: 30...40).isConsistent)
        #expect(oracle.judge(before, within: 0...40) == .consistent(k: 0))
        let instant = oracle.operations[19].finishedAt! + 1
        #expect(oracle.bounds(at: instant).contains(20))
    }

    /// A device that fails may have written a part: before the instant, that is in the copy; what nobody answered is not.
    @Test(arguments: [StoreError(.io, errno: 5), StoreError(.gone)])
    func aFailedWriteMayBeInACopyInPart(failure: StoreError) throws {
        // The first whose 36th operation is a write of more than is taken.
        for seed in UInt64(0)... {
            let memory = MemoryStore(size: 400_000)
            let oracle = PrefixOracle(seed: seed, region: region, maximumLength: 20_000)
            try oracle.initialize(memory)
            #expect(throws: StoreError.self) {
                try oracle.run(on: DyingStore(memory, operations: 35, taken: 500, failure: failure)) { false }
            }
            let last = oracle.operations[35]
            guard last.kind == .write else { continue }
            var bytes = try memory.bytes(at: region.offset, count: Int(region.count))
            #expect(oracle.judge(bytes, within: 35...36).isConsistent == (failure.code == .io))
            #expect(!oracle.judge(bytes, within: 34...35).isConsistent)
            bytes[Int(last.range.offset - region.offset)] ^= 0x55
            #expect(!oracle.judge(bytes, within: 35...36).isConsistent)
            return
        }
    }
}
