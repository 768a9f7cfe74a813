import Agent
import Blocks
import Foundation
import Logging
import Metrics

/// Tells of a copy while it runs: its metrics, and `outboard status`.
final class CopyTeller: SequenceTeller {
    private let metrics: MetricsFile?
    private let registered: Registered?
    private let ending: Monitor<ExitStatus?>
    private let record: SequenceRecord

    init(
        _ request: CopyRequest, _ directory: String, _ file: String?, _ record: SequenceRecord,
        _ logger: Logger
    ) {
        self.record = record
        let to = absolutePath(directory)
        let started = Date().timeIntervalSince1970
        let ending = Monitor<ExitStatus?>(nil)
        self.ending = ending
        metrics = file.flatMap { path in
            do throws(MetricsFile.Unusable) {
                return try MetricsFile(absolutePath(path), logger: logger) {
                    CopyMetrics.page(
                        to: to, record, started: started, now: Date().timeIntervalSince1970,
                        ending: ending.withLock { $0 })
                }
            } catch {
                MetricsTeller.complain(of: path, error.description, logger)
                return nil
            }
        }
        let hosts = request.members.map { absolutePath($0.control) }
        registered = Registered.enter(.copy, subject: to, logger) {
            CopyStatus(
                to: to, hosts: hosts, seconds: Date().timeIntervalSince1970 - started, record)
        }
    }

    func ended(_ status: ExitStatus) async {
        record.finish()
        ending.withLock { $0 = status }
        registered?.leave()
        if let metrics { await onBlockingThread { metrics.stop() } }
    }
}
