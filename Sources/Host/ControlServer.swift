import Blocks
import Glibc
import HostControl
import Logging
import NIOCore
import NIOPosix
import Synchronization

/// Serves the control socket. The one file that knows of its sockets.
public final class ControlServer: Sendable {
    private let group: MultiThreadedEventLoopGroup
    private let listener: any Channel
    let connections: ControlConnections
    private let path: String
    private let identity: [UInt64]?

    /// Binds `socket` (mode 0600; a dead socket there is replaced) and serves it.
    /// - Parameter onShutdown: called once a `host.shutdown` was granted and answered.
    /// - Throws: ``SocketPathError`` when the path cannot be had.
    public static func start(
        volume: CopyOnWriteVolume, place: HostDescriptor, socket: String, logger: Logger,
        onShutdown: @escaping @Sendable () -> Void
    ) async throws -> ControlServer {
        let descriptor = try SocketPath.bind(socket)
        let group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
        let connections = ControlConnections()
        let dispatcher = ControlDispatcher(volume: volume, place: place)
        let bootstrap = ServerBootstrap(group: group)
            .childChannelOption(.allowRemoteHalfClosure, value: true)
            // What is read at a time waits as requests.
            .childChannelOption(.maxMessagesPerRead, value: 1)
            .childChannelOption(
                .writeBufferWaterMark,
                value: .init(low: HostLimits.unsentAnswerBytes / 4, high: HostLimits.unsentAnswerBytes)
            )
            .childChannelInitializer { channel in
                Self.admit(channel, connections, logger).flatMapThrowing { refusal in
                    try channel.pipeline.syncOperations.addHandler(
                        ControlConnection(dispatcher, connections, refusal, onShutdown))
                }
            }
        do {
            let listener = try await bootstrap.withBoundSocket(descriptor).get()
            return ControlServer(group, listener, connections, socket)
        } catch {
            try await group.shutdownGracefully()
            throw error
        }
    }

    private init(
        _ group: MultiThreadedEventLoopGroup, _ listener: any Channel, _ connections: ControlConnections,
        _ path: String
    ) {
        self.group = group
        self.listener = listener
        self.connections = connections
        self.path = path
        identity = SocketPath.identity(path)
    }

    /// Why the peer is turned away, if it is.
    private static func admit(
        _ channel: any Channel, _ connections: ControlConnections, _ logger: Logger
    ) -> EventLoopFuture<ControlError?> {
        guard let options = channel as? any SocketOptionProvider else {
            return channel.eventLoop.makeSucceededFuture(
                ControlError(.notPermitted, "the peer's identity is not known"))
        }
        let credentials: EventLoopFuture<PeerCredentials> = options.unsafeGetSocketOption(
            level: .init(rawValue: CInt(SOL_SOCKET)), name: .init(rawValue: CInt(SO_PEERCRED)))
        return credentials.map { peer in
            guard peer.uid == geteuid() || peer.uid == 0 else {
                logger.warning(
                    "control: a process of another user was turned away", metadata: ["uid": "\(peer.uid)"])
                return ControlError(.notPermitted, "the control socket is for the host's user and root")
            }
            guard connections.isRoomLeft else {
                return ControlError(.internalError, "too many connections to the control socket")
            }
            return nil
        }
    }

    /// Stops serving, closes all connections and removes the socket, if it is still ours.
    public func shutdown() async throws {
        try await listener.close()
        if let identity, SocketPath.identity(path) == identity { unlink(path) }
        try await group.shutdownGracefully()
    }
}

/// The kernel's `struct ucred`, which the C library shows only to GNU sources.
private struct PeerCredentials: Sendable {
    var pid: pid_t
    var uid: uid_t
    var gid: gid_t
}

/// How many connections there are.
final class ControlConnections: Sendable {
    private let count = Atomic<Int>(0)
    var isRoomLeft: Bool { count.load(ordering: .relaxed) < Limits.connections }
    func opened() { count.wrappingAdd(1, ordering: .relaxed) }
    func closed() { count.wrappingSubtract(1, ordering: .relaxed) }

    private let resting = Atomic<Int>(0)
    /// Those whose requests wait until the client takes the answers that it has.
    var atRest: Int { resting.load(ordering: .relaxed) }
    func rest(_ rests: Bool) { resting.wrappingAdd(rests ? 1 : -1, ordering: .relaxed) }
}

/// One connection: lines in, lines out, one request at a time, each on a thread of its own, because methods
/// block.
private final class ControlConnection: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer
    typealias OutboundOut = ByteBuffer

    private let dispatcher: ControlDispatcher
    private let connections: ControlConnections
    private let refusal: ControlError?
    private let onShutdown: @Sendable () -> Void
    private let holder = EpochHolder()
    private var lines = ControlLines()
    private var waiting = CircularBuffer<[UInt8]>()
    private var isBusy = false
    /// The client leaves its answers where they are.
    private var isResting = false
    private var isClosing = false
    /// Nothing more is read; close when all is answered.
    private var isEnding = false
    private var tooLong = false
    private var context: ChannelHandlerContext?

    init(
        _ dispatcher: ControlDispatcher, _ connections: ControlConnections, _ refusal: ControlError?,
        _ onShutdown: @escaping @Sendable () -> Void
    ) {
        self.dispatcher = dispatcher
        self.connections = connections
        self.refusal = refusal
        self.onShutdown = onShutdown
    }

    func handlerAdded(context: ChannelHandlerContext) {
        self.context = context
        connections.opened()
    }

    func handlerRemoved(context: ChannelHandlerContext) {
        self.context = nil
        setResting(false)
        dispatcher.volume.disconnect(holder)
        connections.closed()
    }

    func channelActive(context: ChannelHandlerContext) {
        if let refusal {
            isEnding = true
            send(ControlDispatcher.failure(.null, refusal))
            proceed()
        }
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        guard !isEnding else { return }
        do throws(ControlLines.TooLong) {
            waiting.append(contentsOf: try lines.feed(unwrapInboundIn(data).readableBytesView))
        } catch {
            isEnding = true
            tooLong = true
        }
        proceed()
    }

    func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
        if case .some(ChannelEvent.inputClosed) = event as? ChannelEvent {
            isEnding = true
            proceed()
        }
        context.fireUserInboundEventTriggered(event)
    }

    func channelInactive(context: ChannelHandlerContext) {
        dispatcher.volume.disconnect(holder)
        context.fireChannelInactive()
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) { context.close(promise: nil) }

    func channelWritabilityChanged(context: ChannelHandlerContext) {
        proceed()
        context.fireChannelWritabilityChanged()
    }

    private func send(_ line: [UInt8]) {
        guard let context else { return }
        context.writeAndFlush(wrapOutboundOut(context.channel.allocator.buffer(bytes: line)), promise: nil)
    }

    /// Starts the next request, or ends the connection; reading rests while requests wait, and requests wait while
    /// the client does not take the answers that it has.
    private func proceed() {
        guard let context, !isBusy, !isClosing else { return }
        setResting(!context.channel.isWritable)
        guard !isResting else { return read(false, context) }
        guard let line = waiting.popFirst() else {
            if isEnding { return end(context) }
            return read(true, context)
        }
        isBusy = true
        read(false, context)
        let me = NIOLoopBound(self, eventLoop: context.eventLoop)
        let (loop, dispatcher, holder) = (context.eventLoop, dispatcher, holder)
        let started = BlockingThread.start {
            let answer = dispatcher.answer(to: line, holder: holder)
            loop.execute { me.value.finish(answer) }
        }
        if !started {
            finish(
                ControlDispatcher.Answer(
                    line: ControlDispatcher.failure(
                        .null, ControlError(.internalError, "the system has no thread to run the method"))))
        }
    }

    private func read(_ isWanted: Bool, _ context: ChannelHandlerContext) {
        context.channel.setOption(.autoRead, value: isWanted).whenFailure { _ in }
    }

    private func setResting(_ resting: Bool) {
        guard resting != isResting else { return }
        isResting = resting
        connections.rest(resting)
    }

    /// All is answered: closes when the answers have gone out.
    private func end(_ context: ChannelHandlerContext) {
        isClosing = true
        if tooLong {
            send(
                ControlDispatcher.failure(
                    .null, ControlError(.lineTooLong, "a line is longer than \(Limits.lineBytes) bytes")))
        }
        let channel = context.channel
        context.writeAndFlush(wrapOutboundOut(ByteBuffer())).whenComplete { _ in
            channel.close(promise: nil)
        }
    }

    private func finish(_ answer: ControlDispatcher.Answer) {
        isBusy = false
        if let line = answer.line { send(line) }
        if answer.endsHost { onShutdown() }
        proceed()
    }
}
