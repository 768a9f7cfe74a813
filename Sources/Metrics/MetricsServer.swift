import Blocks
import Logging
import NIOCore
import NIOHTTP1
import NIOPosix
import Synchronization

/// Answers `GET /metrics` over HTTP/1.1, and nothing else: one request a connection, of a bounded length, in a bounded
/// time, on few connections. Whoever reaches the port may ask: it belongs on a loopback address.
public final class MetricsServer: Sendable {
    /// Why it does not listen.
    public struct CannotListen: Error, Sendable {
        /// The system's error number; nil where it gave none.
        public var errno: Int32?
        public var reason: String
    }

    /// Where it listens.
    public let host: String
    public let port: Int
    private let group: MultiThreadedEventLoopGroup
    private let listener: any Channel

    private init(host: String, port: Int, group: MultiThreadedEventLoopGroup, listener: any Channel) {
        self.host = host
        self.port = port
        self.group = group
        self.listener = listener
    }

    /// Listens and answers.
    /// - Parameters:
    ///   - port: 0: any that is free.
    ///   - page: called for each request, on a thread of its own: it may wait a moment.
    public static func start(
        host: String, port: Int, connectionSeconds: Int = MetricsLimits.connectionSeconds, logger: Logger,
        page: @escaping @Sendable () -> MetricsPage
    ) async throws(CannotListen) -> MetricsServer {
        let group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
        let count = ConnectionCount()
        let bootstrap = ServerBootstrap(group: group)
            .serverChannelOption(.backlog, value: 16)
            .serverChannelOption(.socketOption(.so_reuseaddr), value: 1)
            .childChannelOption(.maxMessagesPerRead, value: 1)
            .childChannelInitializer { channel in
                guard count.enter() else { return channel.close() }
                channel.closeFuture.whenComplete { _ in count.leave() }
                return channel.eventLoop.makeCompletedFuture {
                    let pipeline = channel.pipeline.syncOperations
                    try pipeline.addHandler(RequestBound(seconds: connectionSeconds))
                    try pipeline.configureHTTPServerPipeline(
                        withPipeliningAssistance: false, withErrorHandling: true)
                    try pipeline.addHandler(MetricsHandler(page, logger))
                }
            }
        do {
            let listener = try await bootstrap.bind(host: host, port: port).get()
            return MetricsServer(
                host: host, port: listener.localAddress?.port ?? port, group: group, listener: listener)
        } catch {
            try? await group.shutdownGracefully()
            let number = (error as? IOError)?.errnoCode
            throw CannotListen(
                errno: number, reason: number.map { String(cString: strerror($0)) } ?? "\(error)")
        }
    }

    /// Stops listening and closes all connections.
    public func shutdown() async {
        // It may have been closed by the system already.
        try? await listener.close()
        try? await group.shutdownGracefully()
    }
}

private final class ConnectionCount: Sendable {
    private let count = Atomic<Int>(0)

    func enter() -> Bool {
        if count.wrappingAdd(1, ordering: .relaxed).newValue <= MetricsLimits.connections { return true }
        leave()
        return false
    }

    func leave() { count.wrappingSubtract(1, ordering: .relaxed) }
}

/// Cuts whoever sends too much, or takes too long to send or to take.
private final class RequestBound: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer

    private let seconds: Int
    private var bytes = 0
    private var deadline: Scheduled<Void>?

    init(seconds: Int) { self.seconds = seconds }

    func channelActive(context: ChannelHandlerContext) {
        let channel = context.channel
        deadline = context.eventLoop.scheduleTask(in: .seconds(Int64(seconds))) {
            channel.close(promise: nil)
        }
        context.fireChannelActive()
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        bytes += unwrapInboundIn(data).readableBytes
        guard bytes <= MetricsLimits.requestBytes else { return context.close(promise: nil) }
        context.fireChannelRead(data)
    }

    func channelInactive(context: ChannelHandlerContext) {
        deadline?.cancel()
        context.fireChannelInactive()
    }
}

private final class MetricsHandler: ChannelInboundHandler {
    typealias InboundIn = HTTPServerRequestPart
    typealias OutboundOut = HTTPServerResponsePart

    private let page: @Sendable () -> MetricsPage
    private let logger: Logger
    private var head: HTTPRequestHead?
    private var hasBody = false
    /// One request was taken; what else comes is nobody's.
    private var isAnswered = false

    init(_ page: @escaping @Sendable () -> MetricsPage, _ logger: Logger) {
        self.page = page
        self.logger = logger
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        guard !isAnswered else { return }
        switch unwrapInboundIn(data) {
        case .head(let head): self.head = head
        case .body: hasBody = true
        case .end:
            guard let head else { return }
            isAnswered = true
            answer(head, context)
        }
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) { context.close(promise: nil) }

    private func answer(_ head: HTTPRequestHead, _ context: ChannelHandlerContext) {
        let path = head.uri.prefix { $0 != "?" }
        logger.debug("metrics are asked for", metadata: ["path": "\(path.prefix(64))"])
        guard !hasBody else { return send(.badRequest, "a request for metrics has no body\n", context) }
        guard path == "/metrics" else { return send(.notFound, "only /metrics is here\n", context) }
        guard head.method == .GET else {
            return send(.methodNotAllowed, "only GET is answered\n", context, [("Allow", "GET")])
        }
        let me = NIOLoopBound((self, context), eventLoop: context.eventLoop)
        let (loop, page) = (context.eventLoop, page)
        let isStarted = BlockingThread.start {
            let text = page().text
            loop.execute {
                let (handler, context) = me.value
                handler.send(.ok, text, context, [("Content-Type", MetricsPage.mediaType)])
            }
        }
        if !isStarted { send(.serviceUnavailable, "the system has no thread to give\n", context) }
    }

    private func send(
        _ status: HTTPResponseStatus, _ text: String, _ context: ChannelHandlerContext,
        _ more: [(String, String)] = []
    ) {
        var headers = HTTPHeaders([
            ("Content-Length", "\(text.utf8.count)"), ("Connection", "close"), ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
        ])
        headers.add(contentsOf: more)
        if !headers.contains(name: "Content-Type") {
            headers.add(name: "Content-Type", value: "text/plain; charset=utf-8")
        }
        let channel = context.channel
        context.write(
            wrapOutboundOut(.head(HTTPResponseHead(version: .http1_1, status: status, headers: headers))),
            promise: nil)
        context.write(wrapOutboundOut(.body(.byteBuffer(ByteBuffer(string: text)))), promise: nil)
        context.writeAndFlush(wrapOutboundOut(.end(nil))).whenComplete { _ in channel.close(promise: nil) }
    }
}
