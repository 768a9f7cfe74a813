import Blocks
import SCSI
import Synchronization

/// What a unit did since its device was opened.
final class UnitMeters: Sendable {
    private let commands = Atomic<UInt64>(0)
    private let dataIn = Atomic<UInt64>(0)
    private let dataOut = Atomic<UInt64>(0)
    /// By sense key; then ``reservationConflict`` and ``others``.
    private let errors = InlineArray<18, Atomic<UInt64>> { _ in Atomic(0) }
    private static let reservationConflict = 16
    private static let others = 17
    /// Of copies that no engine made: an engine's are counted by the files.
    private let copiedFrom = Atomic<UInt64>(0)
    private let copiedTo = Atomic<UInt64>(0)

    func count(_ task: SCSITask, _ outcome: SCSIOutcome) {
        commands.wrappingAdd(1, ordering: .relaxed)
        dataIn.wrappingAdd(UInt64(min(outcome.dataIn.count, task.expectedDataIn)), ordering: .relaxed)
        dataOut.wrappingAdd(UInt64(min(outcome.dataOutUsed, task.dataOut.count)), ordering: .relaxed)
        guard let index = Self.errorIndex(outcome) else { return }
        errors[index].wrappingAdd(1, ordering: .relaxed)
    }

    func copiedFrom(_ bytes: UInt64) { copiedFrom.wrappingAdd(bytes, ordering: .relaxed) }
    func copiedTo(_ bytes: UInt64) { copiedTo.wrappingAdd(bytes, ordering: .relaxed) }

    private static func errorIndex(_ outcome: SCSIOutcome) -> Int? {
        switch outcome.status {
        case .good, .conditionMet: return nil
        case .reservationConflict: return reservationConflict
        case .checkCondition:
            // SPC-4 §4.5: the key is in byte 1 of descriptor format (72h, 73h), in byte 2 of fixed format.
            guard let first = outcome.sense.first, outcome.sense.count > 2 else { return others }
            return Int(outcome.sense[first & 0x7F >= 0x72 ? 1 : 2] & 0x0F)
        case .busy, .taskSetFull, .acaActive, .taskAborted: return others
        }
    }

    private static func errorName(_ index: Int) -> String {
        switch index {
        case reservationConflict: "reservation conflict"
        case others: "busy or aborted"
        default:
            SenseKey(rawValue: UInt8(index)).map { key in
                // As the standard has it: `mediumError` is MEDIUM ERROR.
                "\(key)".reduce(into: "") { $0 += $1.isUppercase ? " \($1.lowercased())" : "\($1)" }
            } ?? "sense key \(index)"
        }
    }

    /// - Parameter unit: whose they are; its file's counts come to them.
    func counters(of unit: LogicalUnit) -> BridgeUnitCounters {
        var found: [String: UInt64] = [:]
        for index in 0..<errors.count {
            let count = errors[index].load(ordering: .relaxed)
            if count > 0 { found[Self.errorName(index), default: 0] += count }
        }
        return BridgeUnitCounters(
            number: unit.number, commands: commands.load(ordering: .relaxed),
            dataIn: dataIn.load(ordering: .relaxed), dataOut: dataOut.load(ordering: .relaxed),
            copiedFrom: copiedFrom.load(ordering: .relaxed) + (unit.file?.copied.from ?? 0),
            copiedTo: copiedTo.load(ordering: .relaxed) + (unit.file?.copied.to ?? 0), errors: found)
    }
}

/// What a unit did since its device was opened.
public struct BridgeUnitCounters: Codable, Hashable, Sendable {
    public var number: Int
    /// Commands that were executed, whatever came of them.
    public var commands: UInt64
    /// Bytes of commands' data-in, which initiators took, and data-out.
    public var dataIn: UInt64
    public var dataOut: UInt64
    /// Bytes that the copy manager read of it and wrote to it.
    public var copiedFrom: UInt64
    public var copiedTo: UInt64
    /// Commands that did not end well, by the words of the sense key (SPC-4 table 49) or of the status.
    public var errors: [String: UInt64]
}

/// A third-party copy operation that runs.
public struct BridgeCopySummary: Codable, Hashable, Sendable {
    /// The initiator's name.
    public var initiator: String
    /// The numbers of the units that take part.
    public var sources: [Int]
    public var targets: [Int]
    /// Bytes written, and to be written in all.
    public var bytes: UInt64
    public var totalBytes: UInt64
    public var seconds: Double
    /// Requests of its engine that the system has at this moment.
    public var requestsInFlight: Int
}

/// What a device did since it was opened, and does.
public struct BridgeCounters: Codable, Sendable {
    public var units: [BridgeUnitCounters]
    /// Copies that run.
    public var copies: [BridgeCopySummary]
    /// Copies that ended, by result.
    public var copiesDone: UInt64
    public var copiesFailed: UInt64
    public var copiesAborted: UInt64
    /// Sessions that are open.
    public var sessions: Int
}

/// The copies of a device: those that run, and how many ended how.
final class CopyMeters: Sendable {
    private struct Running {
        var record: CopyRecord
        var initiator: String
        var plan: (sources: Set<Int>, targets: Set<Int>, bytes: UInt64)
        var since: UInt64
    }
    private struct State {
        var running: [ObjectIdentifier: Running] = [:]
        var done: UInt64 = 0
        var failed: UInt64 = 0
        var aborted: UInt64 = 0
    }
    private let state = Monitor(State())

    enum Result { case done, failed, aborted }

    func begin(_ record: CopyRecord, _ plan: CopyPlan, _ nexus: Nexus) {
        let running = Running(
            record: record, initiator: nexus.initiatorName,
            plan: (plan.sources, plan.targets, plan.totalBytes), since: MonotonicClock.now)
        state.withLock { $0.running[ObjectIdentifier(record)] = running }
    }

    func end(_ record: CopyRecord, _ result: Result) {
        state.withLock { state in
            state.running[ObjectIdentifier(record)] = nil
            switch result {
            case .done: state.done += 1
            case .failed: state.failed += 1
            case .aborted: state.aborted += 1
            }
        }
    }

    func counters(units: [BridgeUnitCounters], sessions: Int) -> BridgeCounters {
        let (running, done, failed, aborted) = state.withLock {
            (Array($0.running.values), $0.done, $0.failed, $0.aborted)
        }
        let now = MonotonicClock.now
        let copies = running.sorted { $0.since < $1.since }.map { copy in
            BridgeCopySummary(
                initiator: copy.initiator, sources: copy.plan.sources.sorted(),
                targets: copy.plan.targets.sorted(), bytes: copy.record.bytesWritten,
                totalBytes: copy.plan.bytes, seconds: Double(now &- copy.since) / 1e9,
                requestsInFlight: copy.record.requestsInFlight)
        }
        return BridgeCounters(
            units: units, copies: copies, copiesDone: done, copiesFailed: failed, copiesAborted: aborted,
            sessions: sessions)
    }
}

extension BridgeDevice {
    /// What it did since it was opened, and does. Waits for nothing but what takes a moment.
    public var counters: BridgeCounters {
        copies.counters(
            units: units.map { $0.meters.counters(of: $0) }, sessions: nexusStates.count)
    }
}
