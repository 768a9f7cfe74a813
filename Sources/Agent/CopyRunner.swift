import Blocks
import SCSI

/// Spaces commands so that, on the average, no more than so many bytes a second are moved.
struct Pacer {
    /// Bytes a second; nil: as fast as it goes.
    let rate: UInt64?
    /// When the next command may start, by the monotonic clock.
    private var next: UInt64 = 0

    init(rate: UInt64?) { self.rate = rate }

    /// What one command shall move at most, so that a low rate is not a row of bursts.
    var commandBytes: UInt64 {
        guard let rate else { return AgentLimits.commandBytes }
        let quarter = max(rate / 4, AgentLimits.smallestCommandBytes)
        return min(AgentLimits.commandBytes, quarter.roundedDown(to: AgentLimits.smallestCommandBytes))
    }

    /// Takes the time that `bytes` need at the rate.
    /// - Returns: nanoseconds to wait before they are moved.
    mutating func take(_ bytes: UInt64, now: UInt64) -> UInt64 {
        guard let rate, rate > 0 else { return 0 }
        let start = max(next, now)
        next = start &+ UInt64(Double(bytes) / Double(rate) * 1e9)
        return start - now
    }
}

/// Who keeps account of what a runner's commands write. Called on any thread.
protocol CommandAccount: AnyObject, Sendable {
    /// A command is about to be sent.
    /// - Parameter number: one that no other running command has.
    func begin(_ number: UInt8, writing ranges: [ByteRange])
    /// It has ended, and nothing of it runs on.
    func end(_ number: UInt8, isDone: Bool)
}

/// Has a bridge execute a plan, with several EXTENDED COPY commands in flight.
final class CopyRunner: Sendable {
    private struct State {
        var plan: CommandPlan
        var pacer: Pacer
        var done: UInt64 = 0
        /// Commands in flight, by their list identifier.
        var running: Set<UInt8> = []
        var workers = 0
        var failure: AgentError?
    }
    private let state: Monitor<State>
    private let copier: any ThirdPartyCopier
    private let source: UnitDescription
    private let destination: UnitDescription
    private let account: (any CommandAccount)?
    private let cancellation: CancellationToken

    private init(
        _ plan: CommandPlan, _ pacer: Pacer, from source: UnitDescription, to destination: UnitDescription,
        by copier: any ThirdPartyCopier, _ account: (any CommandAccount)?, _ cancellation: CancellationToken
    ) {
        state = Monitor(State(plan: plan, pacer: pacer))
        self.copier = copier
        self.source = source
        self.destination = destination
        self.account = account
        self.cancellation = cancellation
    }

    /// - Parameters:
    ///   - runs: whole blocks; none overlaps another on the destination, so that any order will do.
    ///   - rate: bytes a second at most.
    ///   - account: told of each command.
    ///   - watch: called every ``AgentLimits/watchNanoseconds`` with the bytes done; may throw to stop.
    /// - Throws: the first failure, when nothing is in flight any more.
    static func run(
        _ runs: [CopyRun], from source: UnitDescription, to destination: UnitDescription,
        by copier: any ThirdPartyCopier, rate: UInt64?, account: (any CommandAccount)? = nil,
        cancellation: CancellationToken, watch: (UInt64) throws(AgentError) -> Void
    ) throws(AgentError) {
        let limits = try copier.planLimits(of: destination)
        let pacer = Pacer(rate: rate)
        guard
            let plan = CommandPlan(
                runs, sourceBlock: UInt64(source.capacity.blockLength),
                destinationBlock: UInt64(destination.capacity.blockLength), limits: limits,
                commandBytes: pacer.commandBytes)
        else {
            throw AgentError(
                .unavailable, doing: "planning the copy by", to: copier.name,
                because: "its copy manager has no segment type for these two units, or no room for one",
                advice: "use another bridge, or none: the private one can")
        }
        let runner = CopyRunner(
            plan, pacer, from: source, to: destination, by: copier, account, cancellation)
        try runner.run(workers: min(AgentLimits.commandsInFlight, limits.commands), watch)
    }

    private func run(
        workers: Int, _ watch: (UInt64) throws(AgentError) -> Void
    ) throws(AgentError) {
        let wakeUp = cancellation.watch { [state] in state.withLockAndNotify { _ in } }
        defer { cancellation.forget(wakeUp) }
        for number in 1...UInt8(workers) {
            state.withLock { $0.workers += 1 }
            if !BlockingThread.start({ [self] in work(listIdentifier: number) }) {
                state.withLockAndNotify { state in
                    state.workers -= 1
                    state.failure = AgentError(
                        .io, doing: "copying", to: "", because: "the system has no thread to give")
                }
            }
        }
        var next = MonotonicClock.now
        while true {
            let isOver: Bool? = state.wait(nanoseconds: AgentLimits.watchNanoseconds) {
                [cancellation] state in
                if state.workers == 0 { return true }
                return cancellation.isCancelled && state.failure == nil ? false : nil
            }
            if isOver == true { break }
            guard isOver == false || MonotonicClock.now >= next, state.withLock({ $0.failure == nil })
            else { continue }
            next = MonotonicClock.now &+ AgentLimits.watchNanoseconds
            do throws(AgentError) {
                try cancellation.check()
                try watch(bytesDone())
            } catch { fail(error) }
        }
        let (failure, done) = state.withLock { ($0.failure, $0.done) }
        if let failure { throw failure }
        try watch(done)
    }

    private func fail(_ error: AgentError) {
        state.withLockAndNotify { $0.failure = $0.failure ?? error }
    }

    /// Of whole commands, and what the copy manager says of those in flight, as far as that can be.
    private func bytesDone() -> UInt64 {
        let (done, running) = state.withLock { ($0.done, $0.running) }
        return running.reduce(done) {
            $0 + min(copier.copiedBytes(of: $1, at: destination) ?? 0, AgentLimits.commandBytes)
        }
    }

    private func work(listIdentifier: UInt8) {
        defer { state.withLockAndNotify { $0.workers -= 1 } }
        do throws(AgentError) {
            while let command = try nextCommand(listIdentifier) {
                let list = CopyParameterList(
                    listIdentifier: listIdentifier, usage: .discard,
                    cscds: [try descriptor(of: source), try descriptor(of: destination)],
                    segments: command.segments)
                defer { state.withLock { _ = $0.running.remove(listIdentifier) } }
                account?.begin(listIdentifier, writing: command.destinations)
                var isDone = false
                defer { account?.end(listIdentifier, isDone: isDone) }
                try copier.copy(to: destination, list) { [self] in
                    cancellation.isCancelled || state.withLock { $0.failure != nil }
                }
                isDone = true
                state.withLock { $0.done += command.bytes }
            }
        } catch { fail(error) }
    }

    private func nextCommand(_ listIdentifier: UInt8) throws(AgentError) -> PlannedCommand? {
        let (command, nanoseconds) = state.withLock { state -> (PlannedCommand?, UInt64) in
            guard state.failure == nil, let command = state.plan.next() else { return (nil, 0) }
            return (command, state.pacer.take(command.bytes, now: MonotonicClock.now))
        }
        try cancellation.check()
        guard let command else { return nil }
        // Its turn comes at that time; or never, when the copy has failed or is to stop.
        let isInVain: Bool? = state.wait(nanoseconds: nanoseconds) { [cancellation] state in
            state.failure != nil || cancellation.isCancelled ? true : nil
        }
        try cancellation.check()
        guard isInVain == nil else { return nil }
        state.withLock { _ = $0.running.insert(listIdentifier) }
        return command
    }

    private func descriptor(of unit: UnitDescription) throws(AgentError) -> CSCDDescriptor {
        guard let designator = unit.copyDesignator else {
            throw AgentError(
                .inputMissing, doing: "naming unit \(unit.number) to", to: copier.name,
                because: "it has no designator that EXTENDED COPY can use")
        }
        return CSCDDescriptor(designation: designator, diskBlockLength: unit.capacity.blockLength)
    }
}
