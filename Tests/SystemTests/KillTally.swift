/// What was counted over all rounds.
struct KillTally: CustomStringConvertible {
    var rounds = 0
    /// Processes that were killed while they ran.
    var kills: [String: Int] = [:]
    /// What the copy's epoch was right before: how far the copy had come.
    var phases: [String: Int] = [:]
    var completeCopies = 0
    /// Of those: that went on after a kill, and that were of a later instant, since the cache was full.
    var resumedCopies = 0
    var restartedCopies = 0
    /// Copies that went on from more than nothing, and from how many bytes.
    var resumedFromMore = 0
    var resumedBytes: UInt64 = 0
    /// Kills by kind of lane.
    var kinds: [String: Int] = [:]
    /// By policy: in how many rounds the cache, or the disk that it lies on, was full at the kill or the copy's end.
    var fills: [String: Int] = [:]
    /// Copies that found no room on their disk.
    var fullDisks = 0
    var judgedSnapshots = 0
    var judgedSources = 0
    var answeredWrites = 0
    var flushedWrites = 0
    var refusals = 0
    /// Exit statuses of copies that were not killed themselves, with the victim.
    var endings: [String: Int] = [:]
    var openEpochs = 0
    /// Seconds that hosts took to serve again.
    var restarts: [Double] = []
    /// What writers were told that the source itself failed with, where it does so on purpose.
    var sourceErrors = 0
    /// Hosts that were started anew since such a source had failed a flush.
    var failedFlushes = 0

    var wrongCopies: [String] = []
    var lostWrites: [String] = []
    var stuck: [String] = []
    var foregroundErrors: [String] = []

    var killCount: Int { kills.values.reduce(0, +) }
    var medianRestart: Double { restarts.isEmpty ? 0 : restarts.sorted()[restarts.count / 2] }
    var failures: [String] { wrongCopies + lostWrites + stuck + foregroundErrors }

    mutating func add(_ other: KillTally) {
        rounds += other.rounds
        kills.merge(other.kills, uniquingKeysWith: +)
        phases.merge(other.phases, uniquingKeysWith: +)
        completeCopies += other.completeCopies
        resumedCopies += other.resumedCopies
        restartedCopies += other.restartedCopies
        resumedFromMore += other.resumedFromMore
        resumedBytes += other.resumedBytes
        kinds.merge(other.kinds, uniquingKeysWith: +)
        fills.merge(other.fills, uniquingKeysWith: +)
        fullDisks += other.fullDisks
        judgedSnapshots += other.judgedSnapshots
        judgedSources += other.judgedSources
        answeredWrites += other.answeredWrites
        flushedWrites += other.flushedWrites
        refusals += other.refusals
        endings.merge(other.endings, uniquingKeysWith: +)
        openEpochs += other.openEpochs
        restarts += other.restarts
        sourceErrors += other.sourceErrors
        failedFlushes += other.failedFlushes
        wrongCopies += other.wrongCopies
        lostWrites += other.lostWrites
        stuck += other.stuck
        foregroundErrors += other.foregroundErrors
    }

    private static func list(_ counts: [String: Int]) -> String {
        counts.isEmpty
            ? "none"
            : counts.sorted { $0.key < $1.key }.map { "\($0.key) \($0.value)" }.joined(separator: ", ")
    }

    private static func milliseconds(_ seconds: Double) -> String {
        "\(Int((seconds * 1000).rounded())) ms"
    }

    var description: String {
        """
        \(killCount) kills (\(Self.list(kills))) in \(rounds) rounds, with the copy's epoch \(Self.list(phases)): \
        \(wrongCopies.count) wrong copies, \(lostWrites.count) lost writes, \(stuck.count) stuck, \
        \(foregroundErrors.count) foreground errors (and \(sourceErrors) of sources that fail on purpose, \
        \(failedFlushes) hosts started anew after such a one had failed a flush); \
        kinds \(Self.list(kinds)); caches full \(Self.list(fills)), disks \(fullDisks); \
        \(completeCopies) complete copies (\(resumedCopies) resumed, \(restartedCopies) of a later instant), \
        \(resumedFromMore) went on from more than nothing (\(resumedBytes) bytes in all), \
        \(judgedSnapshots) snapshots and \(judgedSources) sources judged, \
        \(answeredWrites) answered writes (\(flushedWrites) flushed), \(refusals) refusals, \
        \(openEpochs) epochs open after a host's death; a host served again within \
        \(Self.milliseconds(medianRestart)) (median of \(restarts.count)), \
        \(Self.milliseconds(restarts.max() ?? 0)) at most; copies ended \(Self.list(endings))
        """
    }
}
