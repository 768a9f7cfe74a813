/// Decides whether the store has lately been fast enough for the event loop: a moving average of what small
/// operations took, for reads and writes apart.
///
/// The average starts above the threshold, so that a store has to show on workers that it is fast. One sample
/// counts for little more than slow, however long it was: it may hold the thread's waiting for the processor,
/// and one such wait must not send a fast store's requests to workers. Two in short succession do.
struct StorePacer {
    private static let weight: UInt64 = 8
    private static let longest = NBDLimits.promptOperation * 4

    private var read = NBDLimits.promptOperation * 2
    private var write = NBDLimits.promptOperation * 2

    func isFast(_ command: Command?) -> Bool {
        (command == .read ? read : write) <= NBDLimits.promptOperation
    }

    mutating func record(_ command: Command?, nanoseconds: UInt64) {
        let sample = min(nanoseconds, Self.longest)
        if command == .read { Self.update(&read, sample) } else { Self.update(&write, sample) }
    }

    private static func update(_ average: inout UInt64, _ sample: UInt64) {
        average = (average * (weight - 1) + sample) / weight
    }
}
