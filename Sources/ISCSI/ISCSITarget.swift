import Blocks
import Logging
import NIOCore
import NIOPosix
import SCSI

/// What an iSCSI target listens on and whom it lets in.
public struct ISCSITargetConfiguration: Sendable {
    /// A host name or address.
    public var host: String
    /// 0: any that is free; see ``ISCSITarget/port``.
    public var port: Int
    /// The target's iSCSI name, e.g. `iqn.2026-01.net.example:outboard` (RFC 7143 §4.2.7).
    public var targetName: String
    /// Nil: anybody may log in.
    public var credentials: CHAPCredentials?

    public init(host: String, port: Int, targetName: String, credentials: CHAPCredentials? = nil) {
        self.host = host
        self.port = port
        self.targetName = targetName
        self.credentials = credentials
    }

    /// Whether `name` is an iSCSI name (RFC 7143 §4.2.7: `iqn.`, `eui.` or `naa.`, at most 223 bytes of
    /// letters, digits, `.`, `-`, `:`).
    public static func isValidName(_ name: String) -> Bool {
        guard (5...ISCSILimits.name).contains(name.utf8.count),
            ["iqn.", "eui.", "naa."].contains(where: { name.hasPrefix($0) })
        else { return false }
        return name.utf8.allSatisfy { byte in
            (0x30...0x39).contains(byte) || (0x61...0x7A).contains(byte) || (0x41...0x5A).contains(byte)
                || byte == 0x2D || byte == 0x2E || byte == 0x3A
        }
    }
}

/// An iSCSI target (RFC 7143) in front of a ``SCSITargetDevice``.
public final class ISCSITarget: Sendable {
    public enum StartError: Error, Hashable, Sendable {
        /// The target name is none (see ``ISCSITargetConfiguration/isValidName(_:)``).
        case invalidTargetName(String)
    }

    /// The port that is listened on.
    public let port: Int

    private let group: MultiThreadedEventLoopGroup
    private let listener: any Channel
    private let shared: TargetShared
    private let logger: Logger

    private init(
        port: Int, group: MultiThreadedEventLoopGroup, listener: any Channel, shared: TargetShared,
        logger: Logger
    ) {
        self.port = port
        self.group = group
        self.listener = listener
        self.shared = shared
        self.logger = logger
    }

    /// Listens, and serves `device` to whoever logs in.
    /// - Throws: ``StartError``, or what the system says about address and port.
    public static func start(
        device: any SCSITargetDevice, configuration: ISCSITargetConfiguration, logger: Logger
    ) async throws -> ISCSITarget {
        guard ISCSITargetConfiguration.isValidName(configuration.targetName) else {
            throw StartError.invalidTargetName(configuration.targetName)
        }
        let identity = TargetIdentity(name: configuration.targetName, credentials: configuration.credentials)
        let shared = TargetShared(device: device, identity: identity, logger: logger)
        let group = MultiThreadedEventLoopGroup(numberOfThreads: min(4, System.coreCount))
        do {
            let listener = try await listen(group, configuration, shared)
            let port = listener.localAddress?.port ?? configuration.port
            return ISCSITarget(port: port, group: group, listener: listener, shared: shared, logger: logger)
        } catch {
            // The first error is the one to tell; nothing runs on the group yet.
            try? await group.shutdownGracefully()
            throw error
        }
    }

    private static func listen(
        _ group: MultiThreadedEventLoopGroup, _ configuration: ISCSITargetConfiguration,
        _ shared: TargetShared
    ) async throws -> any Channel {
        let userTimeout = ChannelOptions.Types.SocketOption(
            level: .tcp, name: NIOBSDSocket.Option(rawValue: TCPOption.userTimeout))
        return try await ServerBootstrap(group: group)
            .serverChannelOption(.backlog, value: 64)
            .serverChannelOption(.socketOption(.so_reuseaddr), value: 1)
            .childChannelOption(.autoRead, value: false)
            .childChannelOption(.tcpOption(.tcp_nodelay), value: 1)
            .childChannelOption(.socketOption(.so_keepalive), value: 1)
            .childChannelOption(TCPOption.option(TCPOption.keepIdle), value: TCPOption.keepIdleSeconds)
            .childChannelOption(userTimeout, value: SocketOptionValue(ISCSILimits.deadPeerSeconds * 1000))
            .childChannelOption(
                .recvAllocator,
                value: AdaptiveRecvByteBufferAllocator(minimum: 4096, initial: 65536, maximum: 262_144)
            )
            .childChannelInitializer { channel in
                guard shared.admitConnection() else { return channel.close() }
                return channel.eventLoop.makeCompletedFuture {
                    do {
                        try channel.pipeline.syncOperations.addHandler(
                            ConnectionHandler(channel: channel, shared: shared))
                    } catch {
                        shared.withdrawConnection()
                        throw error
                    }
                }
            }
            .bind(host: configuration.host, port: configuration.port).get()
    }

    /// Stops listening, asks the initiators to log out, gives them ``ISCSILimits/shutdownSeconds``, and ends
    /// every session: commands are aborted, the device hears of each lost nexus before this returns.
    public func shutdown() async {
        // It may have been closed by the system already.
        try? await listener.close().get()
        shared.registry.close()
        await shared.endConnections(on: group.next())
        do { try await group.shutdownGracefully() } catch {
            logger.error("event loops did not stop", metadata: ["error": "\(error)"])
        }
    }
}

/// Linux socket options that SwiftNIO has no names for (tcp(7)).
private enum TCPOption {
    static let keepIdle: CInt = 4
    static let userTimeout: CInt = 18
    static let keepIdleSeconds: SocketOptionValue = 30

    static func option(_ name: CInt) -> ChannelOptions.Types.SocketOption {
        ChannelOptions.Types.SocketOption(level: .tcp, name: NIOBSDSocket.Option(rawValue: name))
    }
}
