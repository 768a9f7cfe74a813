import Blocks
import Foundation
import HostControl
import OriginalImage
import TestSupport
import Testing

@testable import Host

/// Copies made as an agent has them made, under writers that number what they write: raw reads of the source, the
/// watermark behind them, changes copied again when the host has begun anew, and in the end the cache laid over all.
private struct CopyUnderLoad {
    let seed: UInt64
    /// Originals that the cache takes, each in a batch of its own; nil: all.
    var cacheChunks: Int?
    var usesWatermark = false
    /// Raw reads for each operation that a writer may do; more with each restart, so that it comes to an end.
    var readsPerOperation = 3
    /// Of how many restarts the agent does not ask for the changes before another has come.
    var hesitates = false
    var defects: Defects = []

    static let size = 240_000
    private static let writers = 2
    private static let chunk: UInt64 = 4096

    enum Outcome {
        /// It is as of one instant, after so many restarts, with so many bytes in the cache.
        case consistent(restarts: UInt64, logBytes: UInt64)
        case abandoned
        case wrong(String)
    }

    /// Lets writers do so many operations.
    private final class Credit: Sendable {
        private let state = Monitor<(granted: Int, done: Int, isOver: Bool)>((0, 0, false))
        func grant(_ count: Int) { state.withLockAndNotify { $0.granted += count } }
        func end() { state.withLockAndNotify { $0.isOver = true } }
        /// - Returns: false when it is over.
        func take() -> Bool { state.wait { $0.isOver ? false : $0.done < $0.granted ? true : nil } }
        func spend() { state.withLockAndNotify { $0.done += 1 } }
        func waitUntilSpent() { state.wait { $0.isOver || $0.done >= $0.granted ? () : nil } }
    }

    func run() throws -> Outcome {
        let source = FaultyStore(size: Self.size)
        let half = UInt64(Self.size / Self.writers)
        let oracles = (0..<UInt64(Self.writers)).map {
            PrefixOracle(
                seed: seed * 10 + $0, region: ByteRange(offset: $0 * half, count: half),
                maximumLength: 3 * Self.chunk)
        }
        for oracle in oracles { try oracle.initialize(source) }
        let cacheSize = cacheChunks.map { 8192 + $0 * 8192 } ?? Self.size * 2 + (1 << 20)
        let credits = oracles.map { _ in Credit() }
        let marking = Monitor(0)
        let volume = try CopyOnWriteVolume(
            source: source, cache: FaultyStore(size: cacheSize),
            settings: Fixture.settings(chunk: Self.chunk, policy: .restartFrom), defects: defects,
            hook: { checkpoint in
                for _ in 0..<3 { sched_yield() }
                // While the host begins anew writers go on, and mark.
                guard checkpoint == .begunAnew else { return }
                marking.withLock { $0 += 1 }
                for credit in credits { credit.grant(2) }
                for credit in credits { credit.waitUntilSpent() }
            })
        let threads = zip(oracles, credits).map { oracle, credit in
            Worker {
                var isFirst = true
                try oracle.run(on: volume) {
                    if !isFirst { credit.spend() }
                    isFirst = false
                    return !credit.take()
                }
            }
        }
        defer {
            for credit in credits { credit.end() }
            for thread in threads { thread.join() }
        }
        var agent = Agent(copy: self, volume: volume, source: source)
        let finished = try agent.run {
            for credit in credits { credit.grant(1) }
            if $0 { for credit in credits { credit.waitUntilSpent() } }
        }
        guard let (status, image, logBytes) = finished else { return .abandoned }
        for credit in credits { credit.end() }
        for thread in threads { thread.join() }
        for oracle in oracles {
            let region = Int(oracle.region.offset)..<Int(oracle.region.end)
            let verdict = oracle.judge(Array(image[region]), within: oracle.bounds(at: status.institutedAt))
            if case .inconsistent(let text) = verdict { return .wrong(text) }
        }
        return .consistent(restarts: status.restarts ?? 0, logBytes: logBytes)
    }

    private struct Agent {
        let copy: CopyUnderLoad
        let volume: CopyOnWriteVolume
        let source: FaultyStore
        var image = [UInt8](repeating: 0, count: CopyUnderLoad.size)
        var random: SeededGenerator
        private var reads = 0
        /// Kept for the last epoch; what was overwritten since is not.
        var kept: [ByteRange] = []

        init(copy: CopyUnderLoad, volume: CopyOnWriteVolume, source: FaultyStore) {
            (self.copy, self.volume, self.source) = (copy, volume, source)
            random = SeededGenerator(seed: copy.seed)
        }

        /// - Parameter grant: lets the writers go on; with true also waits for what they may do.
        /// - Returns: nil when the epoch became void.
        mutating func run(
            _ grant: (Bool) -> Void
        ) throws -> (status: EpochStatus, image: [UInt8], logBytes: UInt64)? {
            grant(true)
            var epoch = try volume.begin(holder: EpochHolder())
            let first = epoch.uuid
            try read([ByteRange(offset: 0, count: UInt64(CopyUnderLoad.size))], epoch, grant)
            while true {
                do throws(ControlError) {
                    let marker = try volume.end(epoch: UUID(uuidString: epoch.uuid)!)
                    try overlay()
                    return (epoch, image, marker.position)
                } catch {
                    guard error.code == .noSuchEpoch else { return nil }
                }
                if copy.hesitates, let now = volume.epochStatus, now.state == .open, now.restarts ?? 0 < 4 {
                    for _ in 0..<4 { grant(true) }
                }
                guard let now = volume.epochStatus, now.state == .open else { return nil }
                #expect(now.restartedFrom == first)
                epoch = now
                kept = []
                guard let changes = try changes(epoch) else { continue }
                try read(changes, epoch, grant)
            }
        }

        private func changes(_ epoch: EpochStatus) throws -> [ByteRange]? {
            do throws(ControlError) {
                let part = try volume.changes(before: UUID(uuidString: epoch.uuid)!, from: 0)
                #expect(part.next == nil)
                return part.extents.map { ByteRange(offset: $0.offset, count: $0.count) }
            } catch {
                guard error.code == .noSuchEpoch || error.code == .epochVoid else { throw error }
                return nil
            }
        }

        /// In order and in pieces that fit no chunks.
        private mutating func read(
            _ ranges: [ByteRange], _ epoch: EpochStatus, _ grant: (Bool) -> Void
        ) throws {
            for range in ranges {
                var position = range.offset
                while position < range.end {
                    let count = min(7000, range.end - position)
                    let part = ByteRange(offset: position, count: count)
                    image.replaceSubrange(
                        Int(part.offset)..<Int(part.end),
                        with: try source.bytes(at: position, count: Int(count)))
                    position = part.end
                    if copy.usesWatermark { pass(part, epoch) }
                    reads += 1
                    let pace = copy.readsPerOperation * Int(1 + (epoch.restarts ?? 0))
                    if reads % pace == 0 { grant(Bool.random(using: &random)) }
                }
            }
        }

        private mutating func pass(_ part: ByteRange, _ epoch: EpochStatus) {
            kept.append(part)
            // An epoch that is over, or another by now, is found out at its end.
            try? volume.passed(
                RangeList(merging: kept).ranges.map { VolumeExtent(offset: $0.offset, count: $0.count) },
                epoch: UUID(uuidString: epoch.uuid)!)
        }

        private mutating func overlay() throws(ControlError) {
            do {
                let reader = try LogReader(volume.log.store, wantsBothSuperblocks: true)
                for entry in try reader.index().entries {
                    let range = reader.geometry.range(of: entry.chunk)
                    try image.withUnsafeMutableBytes { bytes in
                        try reader.read(
                            entry,
                            into: UnsafeMutableRawBufferPointer(
                                rebasing: bytes[Int(range.offset)..<Int(range.end)]))
                    }
                }
            } catch { throw ControlError(.io, "\(error)") }
        }
    }
}

@Suite struct RestartOracleTests {
    /// With tiny caches of several sizes, with the watermark and without.
    @Test func theCopyIsOfTheLastInstant() throws {
        var restarts: [UInt64: Int] = [:]
        var abandoned = 0
        for seed: UInt64 in 0..<(Tier.isFull ? 200 : 40) {
            let copy = CopyUnderLoad(
                seed: seed, cacheChunks: [8, 12, 20, 30][Int(seed % 4)], usesWatermark: seed % 3 == 0,
                hesitates: seed % 5 == 0)
            switch try copy.run() {
            case .consistent(let count, _): restarts[count, default: 0] += 1
            case .abandoned: abandoned += 1
            case .wrong(let text): Issue.record("seed \(seed): \(text)")
            }
        }
        print("restarts of copies: \(restarts.sorted { $0.key < $1.key }), abandoned: \(abandoned)")
        #expect(restarts.filter { $0.key >= 2 }.values.reduce(0, +) >= 8, "\(restarts), \(abandoned)")
    }

    @Test func theCopyWithTheWatermarkIsOneInstant() throws {
        var bytes: (with: UInt64, without: UInt64) = (0, 0)
        for seed: UInt64 in 0..<(Tier.isFull ? 60 : 12) {
            for usesWatermark in [false, true] {
                let copy = CopyUnderLoad(
                    seed: seed, usesWatermark: usesWatermark, readsPerOperation: 1)
                switch try copy.run() {
                case .consistent(_, let count):
                    if usesWatermark { bytes.with += count } else { bytes.without += count }
                case .abandoned: Issue.record("seed \(seed): abandoned")
                case .wrong(let text): Issue.record("seed \(seed): \(text)")
                }
            }
        }
        #expect(bytes.with < bytes.without)
    }

    /// Each defect must be noticed within some seeds, or the oracle is worth nothing.
    @Test(arguments: [Defects.passesParts, .forgetsMarked, .forgetsEarlierChanges])
    func defectsAreNoticed(defect: Defects) throws {
        for seed: UInt64 in 0..<60 {
            let copy = CopyUnderLoad(
                seed: seed, cacheChunks: defect == .passesParts ? nil : [8, 12, 20, 30][Int(seed % 4)],
                usesWatermark: defect == .passesParts,
                readsPerOperation: defect == .passesParts ? 1 : 3,
                hesitates: defect == .forgetsEarlierChanges, defects: defect)
            if case .wrong = try copy.run() { return }
        }
        Issue.record("the defect \(defect.rawValue) passed 60 seeds")
    }
}
