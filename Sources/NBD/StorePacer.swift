/// Decides whether the store has lately been fast enough for the event loop: a moving average of what small
/// operations took, for reads and writes apart.
///
/// The average starts above the threshold, so that a store has to show on workers that it is fast. What
/// workers measured counts for little more than slow, as it holds their waiting for the processor and for
/// each other; what the event loop measured counts in full, as the loop stood still for it.
struct StorePacer {
    private static let weight: UInt64 = 8
    private static let ceiling = NBDLimits.promptOperation * 8

    private var read = NBDLimits.promptOperation * 2
    private var write = NBDLimits.promptOperation * 2

    func isFast(_ command: Command?) -> Bool {
        (command == .read ? read : write) <= NBDLimits.promptOperation
    }

    mutating func record(_ command: Command?, nanoseconds: UInt64, onWorker: Bool) {
        let limit = NBDLimits.promptOperation * 4
        let sample = onWorker ? min(nanoseconds, limit) : nanoseconds
        if command == .read { Self.update(&read, sample) } else { Self.update(&write, sample) }
    }

    private static func update(_ average: inout UInt64, _ sample: UInt64) {
        let (total, overflow) = (average * (weight - 1)).addingReportingOverflow(sample)
        average = min(overflow ? ceiling : total / weight, ceiling)
    }
}
