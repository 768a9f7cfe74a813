import Blocks
import Logging
import NIOCore
import SCSI

/// Carries one ``TargetConnection`` over a socket.
///
/// Unchecked: all its state is touched on the channel's event loop only; other threads come in by `loop`.
final class ConnectionHandler: ChannelInboundHandler, RegisteredSession, @unchecked Sendable {
    typealias InboundIn = ByteBuffer
    typealias OutboundOut = ByteBuffer

    /// Bytes gathered into one write; that one is done is the sign of life of a peer that only takes.
    private static let writeBytes = 256 << 10

    private let channel: any Channel
    private let loop: any EventLoop
    private let shared: TargetShared
    private var logger: Logger
    private var connection: TargetConnection
    private var pool: WorkerPool?
    private var key: SessionRegistry.Key?
    private var nexus: Nexus?
    /// The units that the session saw at its last reset.
    private var seen: [LogicalUnitNumber] = []
    private var liveness: Liveness
    private var nextLook: Scheduled<Void>?
    /// A thread makes the session; it comes back by ``established(_:_:tsih:)`` or ``refused(_:)``.
    private var isEstablishing = false
    /// The device is ending the nexus because of a logout, or has done so.
    private var logout = Logout.none
    private enum Logout { case none, underWay, done }
    /// The peer is being held back.
    private var isReadPaused = false
    /// What is written now is written at once.
    private var isFlushing = false
    private var isInactive = false
    /// The target shuts down: the session ends when these are answered. What comes later does not prolong it.
    private var lastTags: Set<UInt32>?
    /// Who waits for tasks of this session to end, and for which.
    private var waiting: [(tags: Set<UInt32>, done: @Sendable () -> Void)] = []
    /// Who waits for the session to end as a whole.
    private let ending = Monitor<(isOver: Bool, waiting: [@Sendable () -> Void])>((false, []))
    private let completions = Monitor<[(tag: UInt32, outcome: SCSIOutcome)]>([])

    init(channel: any Channel, shared: TargetShared) {
        self.channel = channel
        self.shared = shared
        loop = channel.eventLoop
        logger = shared.logger
        logger[metadataKey: "peer"] = "\(channel.remoteAddress?.description ?? "unknown")"
        let local = channel.localAddress
        connection = TargetConnection(
            target: shared.identity, portals: { [shared] in shared.portals.addresses(toPeerBy: local) },
            budget: shared.budget)
        liveness = Liveness(shared.times, now: MonotonicClock.now)
    }

    // MARK: Channel

    func handlerAdded(context: ChannelHandlerContext) { shared.opened(self) }

    func channelActive(context: ChannelHandlerContext) {
        look()
        context.read()
    }

    /// Sees whether the peer is still there, and when to look again.
    private func look() {
        guard !isInactive else { return }
        let (verdict, next) = liveness.look(now: MonotonicClock.now, canPing: connection.wantsInput)
        switch verdict {
        case .alive: break
        case .ping: perform(connection.ping())
        case .dead(let why): return terminateOnLoop(why: why)
        }
        nextLook?.cancel()
        nextLook = loop.scheduleTask(in: .nanoseconds(Int64(clamping: next))) { [weak self] in self?.look() }
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        let buffer = unwrapInboundIn(data)
        let before = connection.requests
        perform(buffer.withUnsafeReadableBytes { connection.receive($0) })
        liveness.heard(isRequest: connection.requests != before, now: MonotonicClock.now)
    }

    func channelReadComplete(context: ChannelHandlerContext) {
        if connection.wantsInput { context.read() } else { isReadPaused = true }
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        logger.debug("connection error", metadata: ["error": "\(error)"])
        context.close(promise: nil)
    }

    func channelInactive(context: ChannelHandlerContext) { end() }

    /// A connection that is dropped while it is being accepted never becomes active, nor inactive.
    func handlerRemoved(context: ChannelHandlerContext) { end() }

    private func end() {
        guard !isInactive else { return }
        isInactive = true
        nextLook?.cancel()
        connection.disconnected()
        pool?.stop()
        // The tasks are forgotten, but what the device is at ends only with the threads.
        for waiter in waiting { whenOver(waiter.done) }
        waiting = []
        // The thread that makes the session, or ends its nexus, sees that it ends.
        if !isEstablishing, logout != .underWay { endNexus() }
    }

    /// Tells the device that the nexus is lost, on a thread of its own, since that may block.
    private func endNexus() {
        guard let nexus, let key else {
            isOver()
            return shared.ended(self)
        }
        let end: @Sendable () -> Void = { [self, shared, pool, logout] in
            // The device waits for what it is at, and only then gives others what was reserved. Nor does the end of
            // the threads come first: a command may wait for a copy in the background, which ends with the nexus.
            if logout == .none { shared.device.closeNexus(nexus) }
            // The session has ended when nothing of it runs any more.
            pool?.waitUntilEnded()
            isOver()
            shared.registry.leave(key, self)
            shared.ended(self)
        }
        // Without a thread to give, it is better told late for others than never.
        if !BlockingThread.start(end) { end() }
    }

    /// Before the answer to a logout. The connection and the session end behind that.
    private func logOut() {
        guard let nexus else {
            // On the next tick, since this stands in the middle of other actions.
            return loop.execute { [self] in perform(connection.nexusEnded()) }
        }
        logout = .underWay
        let end: @Sendable () -> Void = { [self, shared] in
            shared.device.closeNexus(nexus)
            loop.execute {
                self.logout = .done
                if self.isInactive { return self.endNexus() }
                self.perform(self.connection.nexusEnded())
            }
        }
        if !BlockingThread.start(end) {
            logout = .none
            terminateOnLoop(why: "no thread for a logout")
        }
    }

    /// Calls `done` when nothing of this session runs any more.
    private func whenOver(_ done: @escaping @Sendable () -> Void) {
        let isOver = ending.withLock { ending in
            if !ending.isOver { ending.waiting.append(done) }
            return ending.isOver
        }
        if isOver { done() }
    }

    private func isOver() {
        let waiting = ending.withLock { ending in
            defer { ending = (true, []) }
            return ending.waiting
        }
        for done in waiting { done() }
    }

    // MARK: Actions

    private func perform(_ actions: [TargetConnection.Action]) {
        guard !actions.isEmpty else { return }
        var gathered = channel.allocator.buffer(capacity: 0)
        var bytes = 0
        var cost = 0
        func flush() {
            guard bytes > 0 else { return }
            write(gathered, bytes: bytes, cost: cost)
            gathered = channel.allocator.buffer(capacity: 0)
            bytes = 0
            cost = 0
        }
        for action in actions {
            switch action {
            case .send(let pdu, let digests, let length, let itsCost):
                gathered.reserveCapacity(minimumWritableBytes: length)
                pdu.encode(digests) { gathered.writeBytes($0) }
                bytes += length
                cost += itsCost
                if bytes >= Self.writeBytes { flush() }
            case .establish(let result): establish(result)
            case .execute(let tag, let task): execute(tag, task)
            case .reset(let tag, let scope): reset(tag, scope)
            case .report(let refusal, let initiator):
                logger.notice(
                    "a login is refused",
                    metadata: ["initiator": "\(initiator ?? "unknown")", "reason": "\(refusal)"])
            case .endSessions:
                flush()
                endSessions()
            case .endNexus: logOut()
            case .close(let why):
                flush()
                logger.debug("closing", metadata: ["reason": "\(why)"])
                close(why)
            }
        }
        flush()
        let wasFlushing = isFlushing
        isFlushing = true
        channel.flush()
        isFlushing = wasFlushing
    }

    private func write(_ buffer: ByteBuffer, bytes: Int, cost: Int) {
        let promise = loop.makePromise(of: Void.self)
        // Written or failed: either way the memory is free again, and a failure closes the channel.
        promise.futureResult.whenComplete { [self] result in
            // What waited has gone because the peer took something. What went at once, a ping perhaps, only says that
            // the kernel had room.
            if case .success = result, !isFlushing {
                liveness.heard(isRequest: false, now: MonotonicClock.now)
            }
            perform(connection.written(bytes: bytes, cost: cost))
            if isReadPaused, connection.wantsInput {
                isReadPaused = false
                channel.read()
            }
        }
        channel.write(buffer, promise: promise)
    }

    /// Closes behind what has been written.
    private func close(_ why: String) {
        let promise = loop.makePromise(of: Void.self)
        promise.futureResult.whenComplete { [channel] _ in channel.close(promise: nil) }
        channel.writeAndFlush(channel.allocator.buffer(capacity: 0), promise: promise)
    }

    /// A cold reset: whoever sees a unit that this session does not see is none of its business.
    private func endSessions() {
        let end: @Sendable () -> Void = { [self, shared, seen] in
            shared.terminateSessions(within: seen, why: "cold reset", except: self)
        }
        if !BlockingThread.start(end) { logger.error("no thread to end the other sessions") }
    }

    private func establish(_ result: LoginResult) {
        shared.leftLogin(self)
        isEstablishing = true
        let nexus = Nexus(
            initiatorName: result.initiatorName, sessionIdentifier: result.isid,
            authenticatedName: result.authenticatedName)
        let key = SessionRegistry.Key(initiatorName: result.initiatorName, isid: result.isid)
        let started = BlockingThread.start { [self, shared] in
            // A discovery session is no nexus of the device, nor does it displace anybody.
            guard !result.isDiscovery else {
                return loop.execute { self.established(nexus, nil, tsih: 0xFFFF) }
            }
            switch shared.registry.enter(
                key, tsih: result.tsih, connectionID: result.connectionID, self)
            {
            case .failure(let refusal): loop.execute { self.refused(refusal.status) }
            case .success(let tsih):
                shared.device.openNexus(nexus)
                loop.execute { self.established(nexus, key, tsih: tsih) }
            }
        }
        if !started { refused(.outOfResources) }
    }

    private func refused(_ status: LoginStatus) {
        isEstablishing = false
        if isInactive { return endNexus() }
        perform(connection.refused(status))
    }

    private func established(_ nexus: Nexus, _ key: SessionRegistry.Key?, tsih: UInt16) {
        isEstablishing = false
        if let key {
            self.nexus = nexus
            self.key = key
            shared.entered(self, nexus)
        }
        // The peer may have gone meanwhile: then the nexus ends at once.
        if isInactive { return endNexus() }
        pool = WorkerPool(limit: ISCSILimits.workersPerSession)
        liveness.loggedIn(isDiscovery: key == nil, now: MonotonicClock.now)
        look()
        logger.info(
            "logged in",
            metadata: [
                "initiator": "\(nexus.initiatorName)",
                "session": "\(String(nexus.sessionIdentifier, radix: 16))",
            ])
        perform(connection.established(nexus, tsih: tsih))
    }

    private func execute(_ tag: UInt32, _ task: SCSITask) {
        let accepted = pool?.submit { [self, shared] in
            let outcome =
                task.isAborted ? SCSIOutcome(status: .taskAborted) : shared.device.execute(task)
            complete(tag, outcome)
        }
        // On the next tick, since this may stand in the middle of other actions.
        if accepted != true { complete(tag, SCSIOutcome(status: .busy)) }
    }

    /// From any thread: hands an outcome to the event loop, many with one wake-up.
    private func complete(_ tag: UInt32, _ outcome: SCSIOutcome) {
        let isFirst = completions.withLock { list in
            list.append((tag, outcome))
            return list.count == 1
        }
        guard isFirst else { return }
        loop.execute { [self] in
            let batch = completions.withLock { list in
                defer { list = [] }
                return list
            }
            perform(batch.flatMap { connection.completed($0.tag, $0.outcome) })
            lastTags?.subtract(batch.map(\.tag))
            closeIfDone()
            guard !waiting.isEmpty else { return }
            for index in waiting.indices { waiting[index].tags.subtract(batch.map(\.tag)) }
            let ended = waiting.filter(\.tags.isEmpty)
            waiting.removeAll(where: \.tags.isEmpty)
            for waiter in ended { waiter.done() }
        }
    }

    private func reset(_ tag: UInt32, _ scope: ResetScope) {
        guard let nexus else { return }
        let work: @Sendable () -> Void = { [self, shared] in
            let seen = shared.units(seenBy: nexus)
            let answer = reset(scope, seen, nexus, shared)
            loop.execute {
                self.seen = seen
                self.perform(self.connection.resetDone(tag, answer))
            }
        }
        // Without a thread the function is not answered, and the initiator goes on to harder means.
        if !BlockingThread.start(work) { logger.error("no thread for a reset") }
    }

    /// Blocks.
    private func reset(
        _ scope: ResetScope, _ seen: [LogicalUnitNumber], _ nexus: Nexus, _ shared: TargetShared
    ) -> TaskManagement.Response {
        var concerned = seen
        if let unit = scope.unit {
            // What this session does not see is not there for it, whatever others do with it.
            concerned.removeAll { !$0.means(unit) }
            if concerned.isEmpty { return .logicalUnitDoesNotExist }
        }
        if case .ownTasks = scope { return .complete }
        guard shared.registry.abortTasks(on: concerned, except: self) else {
            shared.logger.error("a reset is rejected: a task of another session does not end")
            return .rejected
        }
        if case .taskSet = scope { return .complete }
        for unit in concerned { shared.device.resetLogicalUnit(unit, from: nexus) }
        return .complete
    }

    // MARK: From other threads

    func terminate(why: String) {
        loop.execute { self.terminateOnLoop(why: why) }
    }

    private func terminateOnLoop(why: String) {
        guard !isInactive else { return }
        logger.debug("terminating", metadata: ["reason": "\(why)"])
        channel.close(promise: nil)
    }

    func terminateWhenIdle() {
        loop.execute { [self] in
            lastTags = connection.executing()
            closeIfDone()
        }
    }

    private func closeIfDone() {
        // Behind the answers, which the peer shall have.
        if !isInactive, lastTags?.isEmpty == true { close("shutdown") }
    }

    func requestLogout() {
        loop.execute { [self] in
            let seconds = shared.times.logout.components.seconds
            perform(connection.requestLogout(seconds: UInt16(clamping: max(1, seconds))))
        }
    }

    func abortTasks(on units: [LogicalUnitNumber], done: @escaping @Sendable () -> Void) {
        loop.execute { [self] in
            if isInactive { return whenOver(done) }
            perform(connection.abortTasks(on: units))
            let tags = connection.executing(on: units)
            if tags.isEmpty { done() } else { waiting.append((tags, done)) }
        }
    }
}
