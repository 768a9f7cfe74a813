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
}
