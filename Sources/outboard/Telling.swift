import Synchronization

/// What tells of a service while it serves: its metrics, and its entry among the processes that `outboard status` finds.
final class Telling: Sendable {
    private let tellers = Mutex<(metrics: MetricsTeller?, registered: Registered?)>((nil, nil))

    /// Where metrics are told, ADDRESS:PORT; nil: nowhere, or in a file.
    var metricsPlace: String? { tellers.withLock { $0.metrics?.place } }

    /// Once, when it serves.
    func begin(_ metrics: MetricsTeller?, _ registered: Registered?) {
        tellers.withLock { $0 = (metrics, registered) }
    }

    /// Before what it tells of is taken apart.
    func end() async {
        let (metrics, registered) = tellers.withLock { tellers in
            defer { tellers = (nil, nil) }
            return tellers
        }
        registered?.leave()
        await metrics?.stop()
    }
}
