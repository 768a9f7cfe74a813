import Blocks
import Logging
import NIOCore
import SCSI

/// What all connections of a target share.
final class TargetShared: Sendable {
    let device: any SCSITargetDevice
    let identity: TargetIdentity
    let logger: Logger
    let registry: SessionRegistry
    let budget = DataBudget()
    let portals = PortalList()
    let times: ISCSITimes
    private let limits: (connections: Int, inLogin: Int)
    private let connections = Monitor(Connections())

    private struct Connections {
        /// Those that are being accepted included.
        var count = 0
        var open: [ObjectIdentifier: ConnectionHandler] = [:]
        /// Of those that have one.
        var nexuses: [ObjectIdentifier: Nexus] = [:]
        /// In the order in which they came.
        var inLogin: [ConnectionHandler] = []
        /// The last one that came was one too many.
        var isFull = false
    }

    init(
        device: any SCSITargetDevice, identity: TargetIdentity, _ configuration: ISCSITargetConfiguration,
        logger: Logger
    ) {
        self.device = device
        self.identity = identity
        self.logger = logger
        times = configuration.times
        registry = SessionRegistry(patience: configuration.times.reinstatement)
        limits = (configuration.connections, configuration.loginConnections)
    }

    /// Counts a new connection, if there may be one more.
    func admitConnection() -> Bool {
        let (admitted, isNews) = connections.withLock { state -> (Bool, Bool) in
            guard state.count < limits.connections else {
                defer { state.isFull = true }
                return (false, !state.isFull)
            }
            state.isFull = false
            state.count += 1
            return (true, false)
        }
        if isNews { logger.warning("too many connections: whoever comes now is sent away") }
        return admitted
    }

    /// One that was admitted never came to be.
    func withdrawConnection() { connections.withLock { $0.count -= 1 } }

    func opened(_ handler: ConnectionHandler) {
        let tooMuch = connections.withLock { state -> ConnectionHandler? in
            state.open[ObjectIdentifier(handler)] = handler
            state.inLogin.append(handler)
            return state.inLogin.count > limits.inLogin ? state.inLogin.removeFirst() : nil
        }
        tooMuch?.terminate(why: "too many connections in login, of which this is the oldest")
    }

    /// It has proven who it is, or has ended.
    func leftLogin(_ handler: ConnectionHandler) {
        connections.withLock { $0.inLogin.removeAll { $0 === handler } }
    }

    /// It has a nexus from now on.
    func entered(_ handler: ConnectionHandler, _ nexus: Nexus) {
        connections.withLock { $0.nexuses[ObjectIdentifier(handler)] = nexus }
    }

    /// Ends all sessions.
    func terminateAll(why: String) {
        for handler in connections.withLock({ Array($0.open.values) }) { handler.terminate(why: why) }
    }

    /// Ends the other sessions that see nothing but these units. Blocks.
    func terminateSessions(within units: [LogicalUnitNumber], why: String, except own: ConnectionHandler) {
        let others = connections.withLock { state in
            state.nexuses.compactMap { id, nexus in state.open[id].map { ($0, nexus) } }
        }
        for (handler, nexus) in others where handler !== own {
            let seen = self.units(seenBy: nexus)
            let isWithin = seen.allSatisfy { unit in units.contains(where: unit.means) }
            if isWithin, !seen.isEmpty { handler.terminate(why: why) }
        }
    }

    /// The units that a session sees, as the device reports them.
    func units(seenBy nexus: Nexus) -> [LogicalUnitNumber] {
        let cdb = Command.reportLUNs(select: ReportLUNs.selectAll, allocationLength: 1 << 17).encoded()
        let task = SCSITask(
            nexus: nexus, lun: LogicalUnitNumber(rawValue: 0), cdb: cdb, dataOut: [], expectedDataIn: 1 << 17,
            expectedDataOut: 0)
        let outcome = device.execute(task)
        // The session has ended meanwhile: it sees nothing any more.
        if outcome.status == .taskAborted { return [] }
        do throws(MalformedParameterData) { return try ReportLUNs.decode(outcome.dataIn).units } catch {
            logger.error("the device does not report its units", metadata: ["error": "\(error)"])
            return []
        }
    }

    func ended(_ handler: ConnectionHandler) {
        connections.withLockAndNotify { state in
            if state.open.removeValue(forKey: ObjectIdentifier(handler)) != nil { state.count -= 1 }
            state.nexuses[ObjectIdentifier(handler)] = nil
            state.inLogin.removeAll { $0 === handler }
        }
    }

    /// Asks all to log out, then closes who has not, those with commands under way last, then waits until every
    /// nexus is closed.
    func endConnections(on loop: any EventLoop, drainSeconds: Int64) async {
        for handler in connections.withLock({ Array($0.open.values) }) { handler.requestLogout() }
        if await isEmpty(within: times.logout, on: loop) { return }
        for handler in connections.withLock({ Array($0.open.values) }) { handler.terminateWhenIdle() }
        if await !isEmpty(within: .seconds(drainSeconds), on: loop) {
            terminateAll(why: "shutdown")
            // Longer than any device should take to notice that its commands are aborted.
            if await !isEmpty(within: .seconds(30), on: loop) { logger.error("a session does not end") }
        }
    }

    private func isEmpty(within duration: Duration, on loop: any EventLoop) async -> Bool {
        let promise = loop.makePromise(of: Bool.self)
        let wait: @Sendable () -> Void = { [self] in
            let empty = connections.wait(nanoseconds: Liveness.nanoseconds(duration)) {
                $0.open.isEmpty ? true : nil
            }
            promise.succeed(empty ?? false)
        }
        if !BlockingThread.start(wait) { promise.succeed(false) }
        // The promise is never failed.
        return (try? await promise.futureResult.get()) ?? false
    }
}
