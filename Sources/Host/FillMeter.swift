import Blocks
import Synchronization

/// How fast an epoch's cache fills: a few samples of the last seconds.
final class FillMeter: Sendable {
    private struct Sample {
        /// By the monotonic clock.
        var time: UInt64
        /// Bytes of the log.
        var used: UInt64
    }
    private let samples = Monitor<[Sample]>([])
    private let nextSample = Atomic<UInt64>(0)

    /// Called whenever something was preserved; but for one call in each ``HostLimits/fillInterval`` it costs a load.
    func note(at now: UInt64, used: () -> UInt64) {
        guard now >= nextSample.load(ordering: .relaxed) else { return }
        samples.withLock { samples in
            guard now >= nextSample.load(ordering: .relaxed) else { return }
            if samples.count == HostLimits.fillSamples { samples.removeFirst() }
            samples.append(Sample(time: now, used: used()))
            nextSample.store(now + HostLimits.fillInterval, ordering: .relaxed)
        }
    }

    /// Seconds until `capacity` is reached if it goes on as in the last seconds; nil: it does not fill, or that is not
    /// known yet.
    func secondsToFull(used: UInt64, capacity: UInt64, at now: UInt64) -> Double? {
        let span = UInt64(HostLimits.fillSamples) * HostLimits.fillInterval
        let first = samples.withLock { $0.first { now - min(now, $0.time) <= span } }
        guard let first, now >= first.time + HostLimits.fillInterval, used > first.used else { return nil }
        let rate = Double(used - first.used) / Double(now - first.time)
        return Double(capacity - min(used, capacity)) / rate / 1e9
    }
}
