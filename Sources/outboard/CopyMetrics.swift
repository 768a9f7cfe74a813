import Agent
import Metrics

/// Metrics of one run of `outboard copy`: while it runs, and of its end.
enum CopyMetrics {
    /// - Parameters:
    ///   - started: seconds since 1970, as is `now`.
    ///   - ending: its exit status, when it has ended.
    static func page(
        to destination: String, _ record: SequenceRecord, started: Double, now: Double, ending: ExitStatus?
    ) -> MetricsPage {
        let current = record.current
        let phases = record.phases
        var page = MetricsPage(labels: [("to", destination)])
        page.gauge("outboard_copy_info", "The copy; always 1.", [([("version", toolVersion)], 1)])
        page.gauge("outboard_copy_start_time_seconds", "When it began, since 1970.", started)
        page.gauge("outboard_copy_running", "Whether it runs.", ending == nil ? 1 : 0)
        page.gauge("outboard_copy_duration_seconds", "For how long it has run, or ran.", now - started)
        page.gauge(
            "outboard_copy_phase", "What it does, or did last: 1; what it did before: 0.",
            phases.map { ([("phase", $0.name)], $0.name == current.phaseName ? 1 : 0) })
        page.gauge(
            "outboard_copy_phase_duration_seconds", "The time of each phase.",
            phases.map { ([("phase", $0.name)], $0.seconds) })
        page.gauge(
            "outboard_copy_phase_done_bytes", "Bytes of the current phase that are done.",
            Double(current.done))
        page.gauge(
            "outboard_copy_phase_size_bytes", "Bytes of the current phase in all; absent when not known.",
            current.total == 0 ? nil : Double(current.total))
        page.counter(
            "outboard_copy_copied_bytes_total", "Bytes that the bridge has copied.", record.copiedBytes)
        page.gauge(
            "outboard_copy_cache_fill_ratio", "How full the host's cache is, 0 to 1, as last seen.",
            current.cacheFill)
        page.gauge(
            "outboard_copy_cache_seconds_to_full",
            "Until it is full, if it goes on as in the last seconds; absent when nothing fills it.",
            ending == nil ? current.secondsToFull : nil)
        page.gauge(
            "outboard_copy_exit_status", "With which it ended; absent while it runs.",
            ending.map { Double($0.rawValue) })
        page.gauge(
            "outboard_copy_end_time_seconds", "When it ended, since 1970; absent while it runs.",
            ending == nil ? nil : now)
        return page
    }
}
