import Bridge
import Metrics

/// A bridge's metrics, made of what its device counts.
enum BridgeMetrics {
    /// - Parameter started: when the bridge started, seconds since 1970.
    static func page(
        _ counters: BridgeCounters, units: [BridgeUnitSummary], target: String, started: Double
    ) -> MetricsPage {
        var page = MetricsPage(labels: [("target", target)])
        page.gauge("outboard_bridge_info", "The bridge; always 1.", [([("version", toolVersion)], 1)])
        page.gauge("outboard_bridge_start_time_seconds", "When the bridge started, since 1970.", started)
        page.gauge("outboard_bridge_sessions", "Sessions of initiators.", Double(counters.sessions))
        page.gauge(
            "outboard_bridge_unit_info", "The units; always 1.",
            units.map { unit in
                let access = unit.readOnly ? "read-only" : "writable"
                return ([("unit", "\(unit.number)"), ("path", unit.path), ("access", access)], 1)
            })
        func each(_ value: (BridgeUnitCounters) -> UInt64) -> [(labels: MetricsPage.Labels, value: UInt64)] {
            counters.units.map { ([("unit", "\($0.number)")], value($0)) }
        }
        page.counter("outboard_bridge_commands_total", "Commands that were executed.", each(\.commands))
        page.counter(
            "outboard_bridge_data_in_bytes_total", "Data of commands that initiators took, as by READ.",
            each(\.dataIn))
        page.counter(
            "outboard_bridge_data_out_bytes_total", "Data of commands that initiators sent, as by WRITE.",
            each(\.dataOut))
        page.counter(
            "outboard_bridge_copied_from_bytes_total", "Bytes that the copy manager read of the unit.",
            each(\.copiedFrom))
        page.counter(
            "outboard_bridge_copied_to_bytes_total", "Bytes that the copy manager wrote to the unit.",
            each(\.copiedTo))
        page.counter(
            "outboard_bridge_errors_total", "Commands that did not end well, by sense key or status.",
            counters.units.flatMap { unit in
                unit.errors.sorted { $0.key < $1.key }.map {
                    ([("unit", "\(unit.number)"), ("kind", $0.key)], $0.value)
                }
            })
        page.gauge(
            "outboard_bridge_copies_running", "Third-party copies that run.", Double(counters.copies.count))
        page.gauge(
            "outboard_bridge_copy_requests_in_flight", "Reads and writes of copies that the system has.",
            Double(counters.copies.reduce(0) { $0 + $1.requestsInFlight }))
        page.counter(
            "outboard_bridge_copies_total", "Third-party copies that ended.",
            [
                ([("result", "done")], counters.copiesDone), ([("result", "failed")], counters.copiesFailed),
                ([("result", "aborted")], counters.copiesAborted),
            ])
        return page
    }
}
