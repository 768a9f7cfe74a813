import Blocks
import HostControl
import Synchronization

/// What the volume did since the host started.
final class Meters: Sendable {
    let reads = Atomic<UInt64>(0)
    let readBytes = Atomic<UInt64>(0)
    let writes = Atomic<UInt64>(0)
    let writtenBytes = Atomic<UInt64>(0)
    let zeroes = Atomic<UInt64>(0)
    let trims = Atomic<UInt64>(0)
    let trimsIgnored = Atomic<UInt64>(0)
    let flushes = Atomic<UInt64>(0)
    let chunksPreserved = Atomic<UInt64>(0)
    let zeroChunks = Atomic<UInt64>(0)
    let chunksSpared = Atomic<UInt64>(0)

    let readTime = LatencyMeter()
    let writeTime = LatencyMeter()
    let preserveTime = LatencyMeter()
    let flushTime = LatencyMeter()
    let gateTime = LatencyMeter()

    func counters(batches: UInt64) -> VolumeCounters {
        var counters = VolumeCounters()
        counters.reads = reads.load(ordering: .relaxed)
        counters.readBytes = readBytes.load(ordering: .relaxed)
        counters.writes = writes.load(ordering: .relaxed)
        counters.writtenBytes = writtenBytes.load(ordering: .relaxed)
        counters.zeroes = zeroes.load(ordering: .relaxed)
        counters.trims = trims.load(ordering: .relaxed)
        counters.trimsIgnored = trimsIgnored.load(ordering: .relaxed)
        counters.flushes = flushes.load(ordering: .relaxed)
        counters.chunksPreserved = chunksPreserved.load(ordering: .relaxed)
        counters.zeroChunks = zeroChunks.load(ordering: .relaxed)
        counters.chunksSpared = chunksSpared.load(ordering: .relaxed)
        counters.batches = batches
        return counters
    }

    var latencies: [String: LatencyHistogram] {
        [
            "read": readTime.histogram, "write": writeTime.histogram, "preserve": preserveTime.histogram,
            "flush": flushTime.histogram, "gate": gateTime.histogram,
        ]
    }
}

/// A histogram that many threads count in (``LatencyHistogram`` says how).
final class LatencyMeter: Sendable {
    private let buckets = InlineArray<26, Atomic<UInt64>> { _ in Atomic(0) }

    func count(since start: UInt64) {
        let bits = 64 - ((MonotonicClock.now &- start) >> 10).leadingZeroBitCount
        buckets[min(bits, HostLimits.latencyBuckets - 1)].wrappingAdd(1, ordering: .relaxed)
    }

    var histogram: LatencyHistogram {
        LatencyHistogram(
            buckets: (0..<HostLimits.latencyBuckets).map { buckets[$0].load(ordering: .relaxed) })
    }
}
