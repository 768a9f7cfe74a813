import Blocks
import Glibc
import Logging
import NIOCore
import NIOPosix
import NIOSSL

/// The one file that knows sockets: carries bytes between a connection and its ``Handshake``, then its
/// ``TransmissionSession``.
///
/// Reading is by demand: nothing is read from the socket while a request waits for room or replies wait for
/// the client, so that a client which does not keep up is held back by its own socket.
final class ConnectionHandler: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer
    typealias OutboundOut = ByteBuffer

    private enum Phase {
        case negotiating(Handshake)
        case transmitting(TransmissionSession)
        /// Nothing is taken any more.
        case ending(TransmissionSession?)
    }

    private let registry: ConnectionRegistry
    private let pool: WorkerPool
    private let tls: NIOSSLContext?
    private var logger: Logger
    private var phase: Phase
    private var context: ChannelHandlerContext?
    /// Bytes that came and were not taken yet.
    private var input = ByteBuffer()
    private var deadline: Scheduled<Void>?
    private var pumping = false
    private var closing = false
    private var reading = false
    private var transmissionBegan: UInt64?

    init(
        registry: ConnectionRegistry, pool: WorkerPool, provider: any NBDExportProvider,
        tls: NIOSSLContext?, tlsPolicy: Handshake.TLSPolicy, logger: Logger
    ) {
        self.registry = registry
        self.pool = pool
        self.tls = tls
        self.logger = logger
        phase = .negotiating(Handshake(provider: provider, tlsPolicy: tlsPolicy))
    }

    // MARK: events of the channel

    func channelActive(context: ChannelHandlerContext) {
        self.context = context
        switch registry.add(self, on: context.eventLoop) {
        case .added(let number):
            logger[metadataKey: "connection"] = .stringConvertible(number)
            logger.debug(
                "a connection", metadata: ["peer": "\(context.remoteAddress?.description ?? "local")"])
        case .refused(let isNews):
            if isNews {
                logger.warning("too many NBD connections, or the server ends: whoever comes now is sent away")
            }
            context.close(promise: nil)
            return
        }
        let limit = TimeAmount.seconds(Int64(NBDLimits.negotiationSeconds))
        deadline = context.eventLoop.assumeIsolated().scheduleTask(in: limit) { [self] in
            logger.info("a connection is closed: the negotiation took too long")
            context.close(promise: nil)
        }
        send(Handshake.greeting)
        demand()
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        reading = false
        var bytes = unwrapInboundIn(data)
        if input.readableBytes == 0 { input = bytes } else { input.writeBuffer(&bytes) }
        // Or the channel's buffer has two owners, and cannot be used for the next read.
        bytes = Self.nothing
        pump()
    }

    func channelReadComplete(context: ChannelHandlerContext) { demand() }

    func channelWritabilityChanged(context: ChannelHandlerContext) {
        if context.channel.isWritable { pump() }
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        // A client that has died is no event worth a line above debug.
        logger.debug("a connection has failed", metadata: ["error": "\(error)"])
        context.close(promise: nil)
    }

    func channelInactive(context: ChannelHandlerContext) {
        deadline?.cancel()
        deadline = nil
        self.context = nil
        input = Self.nothing
        if let transmissionBegan {
            logger.info(
                "a client is gone",
                metadata: [
                    "seconds": .stringConvertible((MonotonicClock.now &- transmissionBegan) / 1_000_000_000)
                ])
        }
        enterEnding()
    }

    // MARK: work

    private static let nothing = ByteBuffer()

    private func pump() {
        guard !pumping else { return }
        pumping = true
        defer { pumping = false }
        while let context, context.channel.isWritable {
            let again: Bool
            switch phase {
            case .negotiating: again = negotiate(context)
            case .transmitting(let session): again = transmit(session, context)
            case .ending: again = false
            }
            if !again { break }
        }
        if input.readableBytes == 0 { input = Self.nothing }
        demand()
    }

    /// Asks for more bytes if those that came are used up and the client takes its replies.
    private func demand() {
        guard let context, !reading, input.readableBytes == 0, context.channel.isWritable else { return }
        if case .ending = phase { return }
        reading = true
        context.read()
    }

    private func negotiate(_ context: ChannelHandlerContext) -> Bool {
        guard case .negotiating(var handshake) = phase else { return false }
        let (consumed, action) = input.withUnsafeReadableBytes { handshake.receive($0) }
        input.moveReaderIndex(forwardBy: consumed)
        phase = .negotiating(handshake)
        switch action {
        case nil:
            return false
        case .send(let bytes):
            send(bytes)
        case .startTLS(let bytes):
            send(bytes)
            guard input.readableBytes == 0 else { return true }
            return startTLS(handshake, context)
        case .transmit(let bytes, let agreement):
            if !bytes.isEmpty { send(bytes) }
            deadline?.cancel()
            deadline = nil
            logger[metadataKey: "export"] = "\(agreement.export.name)"
            logger.info("a client uses the export")
            transmissionBegan = MonotonicClock.now
            let mailbox = Mailbox(wake: wake(on: context.eventLoop))
            phase = .transmitting(TransmissionSession(agreement, pool: pool, mailbox: mailbox))
        case .close(let bytes, let reason):
            if !reason.isEmpty { logger.info("a negotiation has ended", metadata: ["reason": "\(reason)"]) }
            if !bytes.isEmpty { send(bytes) }
            enterEnding()
        }
        return true
    }

    private func startTLS(_ handshake: Handshake, _ context: ChannelHandlerContext) -> Bool {
        guard let tls else { preconditionFailure("STARTTLS was accepted without certificates") }
        do {
            try context.pipeline.syncOperations.addHandler(
                NIOSSLServerHandler(context: tls), position: .first)
        } catch {
            logger.error("TLS could not be started", metadata: ["error": "\(error)"])
            context.close(promise: nil)
            return false
        }
        var handshake = handshake
        handshake.tlsStarted()
        phase = .negotiating(handshake)
        return true
    }

    private func transmit(_ session: TransmissionSession, _ context: ChannelHandlerContext) -> Bool {
        let (consumed, state) = input.withUnsafeReadableBytes { session.process($0) }
        input.moveReaderIndex(forwardBy: consumed)
        flush(session)
        switch state {
        case .flush: return true
        case .needsInput, .blocked: return false
        case .violated:
            logger.info("a connection is closed: what the client sends is not the protocol")
            enterEnding()
        case .disconnected:
            enterEnding()
        }
        return false
    }

    /// Sends the gathered replies. What could be sent at once leaves its memory to the next replies.
    private func flush(_ session: TransmissionSession) {
        guard session.output.readableBytes > 0 else { return }
        if let context { context.writeAndFlush(wrapOutboundOut(session.output), promise: nil) }
        session.output.clear()
    }

    private func send(_ bytes: [UInt8]) {
        context?.writeAndFlush(wrapOutboundOut(ByteBuffer(bytes: bytes)), promise: nil)
    }

    private func wake(on loop: any EventLoop) -> @Sendable () -> Void {
        let bound = NIOLoopBound(self, eventLoop: loop)
        return { loop.execute { bound.value.collect() } }
    }

    /// Workers have done something.
    private func collect() {
        let session: TransmissionSession
        switch phase {
        case .transmitting(let current): session = current
        case .ending(let last?): session = last
        case .negotiating, .ending(nil): return
        }
        session.collect { buffer in
            // Replies to a client that is gone are for nobody.
            if let context { context.writeAndFlush(wrapOutboundOut(buffer), promise: nil) }
        }
        flush(session)
        if case .ending = phase { finishIfDone() } else { pump() }
    }

    // MARK: the end

    /// Takes nothing more, lets running requests finish, and closes.
    fileprivate func enterEnding() {
        switch phase {
        case .negotiating:
            deadline?.cancel()
            phase = .ending(nil)
        case .transmitting(let session):
            session.end()
            phase = .ending(session)
        case .ending: break
        }
        input = Self.nothing
        finishIfDone()
    }

    private func finishIfDone() {
        guard case .ending(let session) = phase, (session?.inFlight ?? 0) == 0 else { return }
        guard let context else {
            // The session's mailbox wakes this handler, which holds the session: the circle ends here.
            phase = .ending(nil)
            registry.remove(self)
            return
        }
        guard !closing else { return }
        closing = true
        // The last replies first; a client that does not take them has some seconds.
        let limit = TimeAmount.seconds(Int64(NBDLimits.lingerSeconds))
        deadline = context.eventLoop.assumeIsolated().scheduleTask(in: limit) { context.close(promise: nil) }
        context.writeAndFlush(wrapOutboundOut(Self.nothing)).assumeIsolated().whenComplete { _ in
            context.close(promise: nil)
        }
    }
}

/// The connections that there are.
final class ConnectionRegistry: Sendable {
    private struct State {
        var connections: [ObjectIdentifier: NIOLoopBound<ConnectionHandler>] = [:]
        var stopping = false
        /// All that were added.
        var added: UInt64 = 0
        /// The last one that came was refused.
        var isRefusing = false
    }

    enum Admission {
        /// With its number, counted from 1.
        case added(UInt64)
        /// There are too many, or no more are wanted; whether the one before was not refused.
        case refused(isNews: Bool)
    }

    private let state = Monitor(State())

    var count: Int { state.withLock { $0.connections.count } }

    func add(_ handler: ConnectionHandler, on loop: any EventLoop) -> Admission {
        let bound = NIOLoopBound(handler, eventLoop: loop)
        return state.withLock { state in
            guard !state.stopping, state.connections.count < NBDLimits.maximumConnections else {
                defer { state.isRefusing = true }
                return .refused(isNews: !state.isRefusing)
            }
            state.isRefusing = false
            state.connections[ObjectIdentifier(handler)] = bound
            state.added += 1
            return .added(state.added)
        }
    }

    func remove(_ handler: ConnectionHandler) {
        state.withLockAndNotify { _ = $0.connections.removeValue(forKey: ObjectIdentifier(handler)) }
    }

    /// Has all connections end, each after its running requests.
    func stop() {
        let connections = state.withLock { state in
            state.stopping = true
            return Array(state.connections.values)
        }
        for bound in connections { bound.eventLoop.execute { bound.value.enterEnding() } }
    }

    func waitUntilEmpty() { state.wait { $0.connections.isEmpty ? () : nil } }
}

/// Serves block stores to NBD clients, over a unix socket or TCP with TLS (design §3).
///
/// Runs on its own event loops and worker threads from ``start(provider:unixSocket:tcp:tls:logger:)`` to
/// ``shutdown()``, which must be called.
public final class NBDServer: Sendable {
    private let group: MultiThreadedEventLoopGroup
    let registry = ConnectionRegistry()
    private let pool = WorkerPool()
    private let provider: any NBDExportProvider
    private let tls: NIOSSLContext?
    private let logger: Logger
    private let listeners = Monitor<[any Channel]>([])
    private let socket: Monitor<UnixSocket?> = Monitor(nil)
    private let ending = Monitor<Task<Void, Never>?>(nil)

    private init(provider: any NBDExportProvider, tls: NIOSSLContext?, logger: Logger) {
        self.provider = provider
        self.tls = tls
        self.logger = logger
        group = MultiThreadedEventLoopGroup(
            numberOfThreads: min(System.coreCount, NBDLimits.eventLoops))
    }

    /// Serves the exports of `provider` at `unixSocket` (mode 0600; the file of a dead server is replaced),
    /// at `tcp` (port 0: any that is free) with TLS from the first option on, or at both.
    ///
    /// On the unix socket TLS is offered but not demanded where `tls` is given.
    /// - Throws: ``NBDServerError``.
    public static func start(
        provider: any NBDExportProvider, unixSocket: String?, tcp: (host: String, port: Int)?,
        tls: NBDTLSConfiguration?, logger: Logger
    ) async throws -> NBDServer {
        guard unixSocket != nil || tcp != nil else { throw NBDServerError.nothingToListenOn }
        if tcp != nil, tls == nil { throw NBDServerError.tlsRequired }
        let context = try tls.map { try $0.context() }
        let server = NBDServer(provider: provider, tls: context, logger: logger)
        do {
            if let unixSocket { try await server.listen(unixSocket: unixSocket) }
            if let tcp { try await server.listen(host: tcp.host, port: tcp.port) }
        } catch {
            await server.shutdown()
            throw error
        }
        return server
    }

    /// The port of the TCP socket, if there is one.
    public var tcpPort: Int? { listeners.withLock { $0.lazy.compactMap { $0.localAddress?.port }.first } }

    /// Connections, and worker threads, at this moment.
    public var load: (connections: Int, workers: Int) { (registry.count, pool.threads) }

    /// Accepts nothing more, lets running requests finish, sends their replies, closes all connections, and
    /// returns when no thread of the server is left. May be called more than once.
    public func shutdown() async {
        let task = ending.withLock { task in
            if let task { return task }
            let new = Task { await self.end() }
            task = new
            return new
        }
        await task.value
    }

    private func end() async {
        socket.withLock { socket in
            socket?.remove()
            socket = nil
        }
        // A listener that is closed already is as good.
        for channel in listeners.withLock({ $0 }) { try? await channel.close() }
        registry.stop()
        await withCheckedContinuation { continuation in
            let wait: @Sendable () -> Void = { [registry, pool] in
                registry.waitUntilEmpty()
                pool.stop()
                continuation.resume()
            }
            if !BlockingThread.start(wait) { wait() }
        }
        do { try await group.shutdownGracefully() } catch {
            logger.warning("event loops did not stop cleanly", metadata: ["error": "\(error)"])
        }
    }

    private func listen(unixSocket path: String) async throws {
        let (file, descriptor) = try UnixSocket.listen(at: path)
        socket.withLock { $0 = file }
        let policy: Handshake.TLSPolicy = tls == nil ? .unavailable : .offered
        let channel = try await bootstrap(policy).withBoundSocket(descriptor).get()
        listeners.withLock { $0.append(channel) }
    }

    private func listen(host: String, port: Int) async throws {
        do {
            let channel = try await bootstrap(.required)
                .serverChannelOption(.socketOption(.so_reuseaddr), value: 1)
                .childChannelOption(.tcpOption(.tcp_nodelay), value: 1)
                .bind(host: host, port: port).get()
            listeners.withLock { $0.append(channel) }
        } catch let error as IOError {
            throw NBDServerError.system(
                action: "listen on", subject: "\(host):\(port)", errno: error.errnoCode)
        }
    }

    private func bootstrap(_ policy: Handshake.TLSPolicy) -> ServerBootstrap {
        ServerBootstrap(group: group)
            .serverChannelOption(.backlog, value: 128)
            .childChannelOption(.autoRead, value: false)
            // One read brings up to a whole buffer; a second before replies are sent would only delay those.
            .childChannelOption(.maxMessagesPerRead, value: 1)
            .childChannelOption(
                .recvAllocator, value: FixedSizeRecvByteBufferAllocator(capacity: NBDLimits.receiveBuffer)
            )
            .childChannelOption(
                .writeBufferWaterMark,
                value: .init(low: NBDLimits.outputLowWatermark, high: NBDLimits.outputHighWatermark)
            )
            .childChannelInitializer { [registry, pool, provider, tls, logger] channel in
                channel.eventLoop.makeCompletedFuture {
                    let handler = ConnectionHandler(
                        registry: registry, pool: pool, provider: provider, tls: tls, tlsPolicy: policy,
                        logger: logger)
                    try channel.pipeline.syncOperations.addHandler(handler)
                }
            }
    }
}

extension NBDTLSConfiguration {
    fileprivate func context() throws(NBDServerError) -> NIOSSLContext {
        let chain = try certificates(certificateFile)
        let key = try read(keyFile, "private key") { try NIOSSLPrivateKey(file: $0, format: .pem) }
        var configuration = TLSConfiguration.makeServerConfiguration(
            certificateChain: chain.map { .certificate($0) }, privateKey: .privateKey(key))
        configuration.minimumTLSVersion = .tlsv12
        if let authorityFile {
            // Clients have no host name that could be compared with their certificate.
            configuration.certificateVerification = .noHostnameVerification
            configuration.trustRoots = .certificates(try certificates(authorityFile))
        }
        do { return try NIOSSLContext(configuration: configuration) } catch {
            throw .certificate("\(certificateFile) and \(keyFile) do not go together (\(error))")
        }
    }

    private func read<Content>(
        _ file: String, _ what: String, _ body: (String) throws -> Content
    ) throws(NBDServerError) -> Content {
        guard access(file, R_OK) == 0 else {
            throw .certificate("\(file): \(String(cString: strerror(errno)))")
        }
        do { return try body(file) } catch { throw .certificate("\(file) holds no \(what) in PEM format") }
    }

    private func certificates(_ file: String) throws(NBDServerError) -> [NIOSSLCertificate] {
        let found = try read(file, "certificate", NIOSSLCertificate.fromPEMFile)
        guard !found.isEmpty else { throw .certificate("\(file) holds no certificate in PEM format") }
        return found
    }
}
