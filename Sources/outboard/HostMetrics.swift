import Foundation
import HostControl
import Metrics

/// A host's metrics, made of what `volume.status` tells.
enum HostMetrics {
    /// - Parameter started: when the host started, seconds since 1970.
    static func page(_ status: VolumeStatus, started: Double) -> MetricsPage {
        var page = MetricsPage(labels: [("volume", status.volumeUUID)])
        page.gauge(
            "outboard_host_info", "What the host serves; always 1.",
            [
                (
                    [
                        ("source", status.source), ("cache", status.cache), ("version", toolVersion),
                        ("durability", status.durability.rawValue),
                        ("on_cache_full", status.onCacheFull.rawValue),
                    ], 1
                )
            ])
        page.gauge("outboard_host_start_time_seconds", "When the host started, since 1970.", started)
        page.gauge("outboard_host_volume_size_bytes", "Size of the volume.", Double(status.size))
        page.gauge("outboard_host_clients", "Connections of NBD clients.", status.clients.map(Double.init))
        page.gauge(
            "outboard_host_frozen", "Whether writes wait at the gate for a freeze.", status.isFrozen ? 1 : 0)
        page.gauge(
            "outboard_host_flush_failed",
            "Whether a flush of the source has failed: what was written before may be lost.",
            status.flushFailure == nil ? 0 : 1)
        operations(status.counters, &page)
        latencies(status.latencies, &page)
        cache(status, &page)
        epoch(status.epoch, &page)
        return page
    }

    private static func operations(_ counters: VolumeCounters, _ page: inout MetricsPage) {
        page.counter(
            "outboard_host_operations_total", "What applications asked for.",
            [
                ([("op", "read")], counters.reads), ([("op", "write")], counters.writes),
                ([("op", "zero")], counters.zeroes), ([("op", "trim")], counters.trims),
                ([("op", "flush")], counters.flushes),
            ])
        page.counter("outboard_host_read_bytes_total", "Bytes that applications read.", counters.readBytes)
        page.counter(
            "outboard_host_written_bytes_total", "Bytes that applications wrote.", counters.writtenBytes)
        page.counter(
            "outboard_host_trims_ignored_total",
            "Trims of chunks whose originals are needed, in part or all.",
            counters.trimsIgnored)
        page.counter(
            "outboard_host_chunks_preserved_total",
            "Chunks whose original was preserved before their first write.",
            counters.chunksPreserved)
        page.counter(
            "outboard_host_zero_chunks_preserved_total",
            "Those of them that were all zeros and take no cache.",
            counters.zeroChunks)
        page.counter(
            "outboard_host_chunks_spared_total",
            "Chunks first written in an epoch whose originals nobody needed: the copy had them already, or the cache was "
                + "full and the host began anew.",
            counters.chunksSpared ?? 0)
    }

    private static func latencies(_ latencies: [String: LatencyHistogram], _ page: inout MetricsPage) {
        let sorted = latencies.sorted { $0.key < $1.key }
        guard let count = sorted.first?.value.buckets.count, count > 1 else { return }
        // The last bucket has no bound (``LatencyHistogram``).
        let bounds = (0..<count - 1).map { Double(UInt64(1) << UInt64($0 + 10)) / 1e9 }
        page.histogram(
            "outboard_host_latency_seconds",
            "What applications waited: for reads, writes and flushes; in writes for preserving originals; and at the "
                + "closed gate. No sum is kept.",
            bounds: bounds,
            sorted.filter { $0.value.buckets.count == count }.map { ([("op", $0.key)], $0.value.buckets) })
    }

    private static func cache(_ status: VolumeStatus, _ page: inout MetricsPage) {
        page.gauge(
            "outboard_host_cache_capacity_bytes", "Size of the original image cache.",
            Double(status.cacheCapacity))
        page.gauge("outboard_host_cache_used_bytes", "What of it is used.", Double(status.cacheUsed))
        page.gauge(
            "outboard_host_cache_fill_ratio", "The same as a part of the whole, 0 to 1.",
            status.cacheCapacity == 0 ? 0 : Double(status.cacheUsed) / Double(status.cacheCapacity))
        page.gauge(
            "outboard_host_cache_seconds_to_full",
            "Until the cache is full, if it goes on as in the last seconds; absent when nothing fills it.",
            status.secondsToFull)
        page.gauge(
            "outboard_host_cache_batches", "Batches in the original image log of the last epoch.",
            Double(status.counters.batches))
    }

    private static let states = ["none"] + [EpochState.open, .ended, .void, .released].map(\.rawValue)

    private static func epoch(_ epoch: EpochStatus?, _ page: inout MetricsPage) {
        page.state(
            "outboard_host_epoch_state", "The state of the last epoch.", label: "state",
            epoch?.state.rawValue ?? "none", of: states)
        page.gauge(
            "outboard_host_epoch_number", "The last epoch's number.", epoch.map { Double($0.number) })
        page.gauge(
            "outboard_host_epoch_instituted_timestamp_seconds", "The last epoch's instant, since 1970.",
            epoch.map { Double($0.institutedAt) / 1e9 })
        page.gauge(
            "outboard_host_epoch_held", "Whether the agent that began it is there.",
            epoch.map { $0.isHeld ? 1 : 0 })
        page.gauge(
            "outboard_host_epoch_gate_seconds",
            "For how long applications stood still when it was instituted.",
            epoch.map { Double($0.gateNanoseconds) / 1e9 })
        page.gauge(
            "outboard_host_epoch_restarts", "How often the host has begun it anew since the cache was full.",
            epoch.map { Double($0.restarts ?? 0) })
    }
}
