import Blocks
import Glibc
import Logging
import NIOCore
import NIOPosix
import SCSI

/// What an iSCSI target listens on and whom it lets in.
public struct ISCSITargetConfiguration: Sendable {
    /// One or more.
    public var portals: [ISCSIPortal]
    /// The target's iSCSI name, e.g. `iqn.2026-01.net.example:outboard` (RFC 7143 §4.2.7).
    public var targetName: String
    public var access: ISCSIAccess
    public var times = ISCSITimes()
    /// Connections at once, of all portals together; more are closed as they come.
    public var connections = ISCSILimits.connections
    /// Those of them that are in login; one more ends the oldest of them.
    public var loginConnections = ISCSILimits.loginConnections

    public init(portals: [ISCSIPortal], targetName: String, access: ISCSIAccess) {
        self.portals = portals
        self.targetName = targetName
        self.access = access
    }

    /// One portal, and credentials that all initiators share; without, anybody may log in.
    public init(host: String, port: Int, targetName: String, credentials: CHAPCredentials? = nil) {
        self.init(
            portals: [ISCSIPortal(host: host, port: port)], targetName: targetName,
            access: .anybody(credentials))
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
        case noPortal
        /// A portal cannot be listened on. `code` is the errno, where the system gave one.
        case cannotListen(ISCSIPortal, code: Int32?, reason: String)
    }

    /// What is listened on, in the order of the configuration, with the ports that were had.
    public let portals: [ISCSIPortal]
    /// That of the first portal.
    public var port: Int { portals[0].port }

    private let group: MultiThreadedEventLoopGroup
    private let listeners: [any Channel]
    private let shared: TargetShared
    private let logger: Logger

    private init(
        portals: [ISCSIPortal], group: MultiThreadedEventLoopGroup, listeners: [any Channel],
        shared: TargetShared, logger: Logger
    ) {
        self.portals = portals
        self.group = group
        self.listeners = listeners
        self.shared = shared
        self.logger = logger
    }

    /// Listens, and serves `device` to whoever logs in.
    /// - Throws: ``StartError``; then nothing is listened on.
    public static func start(
        device: any SCSITargetDevice, configuration: ISCSITargetConfiguration, logger: Logger
    ) async throws -> ISCSITarget {
        guard ISCSITargetConfiguration.isValidName(configuration.targetName) else {
            throw StartError.invalidTargetName(configuration.targetName)
        }
        guard !configuration.portals.isEmpty else { throw StartError.noPortal }
        let identity = TargetIdentity(name: configuration.targetName, access: configuration.access.lowercased)
        let shared = TargetShared(device: device, identity: identity, configuration, logger: logger)
        let group = MultiThreadedEventLoopGroup(numberOfThreads: min(4, System.coreCount))
        var portals: [ISCSIPortal] = []
        var listeners: [any Channel] = []
        for var portal in configuration.portals {
            do {
                let listener = try await listen(group, portal, shared)
                portal.port = listener.localAddress?.port ?? portal.port
                if let address = listener.localAddress { shared.portals.add(address) }
                portals.append(portal)
                listeners.append(listener)
            } catch {
                // The first error is the one to tell. Who came by an earlier portal meanwhile has to go.
                for listener in listeners { try? await listener.close().get() }
                shared.registry.close()
                await shared.endConnections(on: group.next(), drainSeconds: 0)
                try? await group.shutdownGracefully()
                let code = (error as? IOError)?.errnoCode
                throw StartError.cannotListen(
                    portal, code: code, reason: code.map { String(cString: strerror($0)) } ?? "\(error)")
            }
        }
        return ISCSITarget(
            portals: portals, group: group, listeners: listeners, shared: shared, logger: logger)
    }

    private static func listen(
        _ group: MultiThreadedEventLoopGroup, _ portal: ISCSIPortal, _ shared: TargetShared
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
            .bind(host: portal.host, port: portal.port).get()
    }

    /// Stops listening, asks the initiators to log out, gives them ``ISCSITimes/logout``, and ends
    /// every session. One whose commands are being executed ends when the last of them is answered, or after
    /// `drainSeconds` more: then they are aborted. The device hears of each lost nexus before this returns.
    public func shutdown(drainSeconds: Int64 = ISCSILimits.drainSeconds) async {
        // It may have been closed by the system already.
        for listener in listeners { try? await listener.close().get() }
        shared.registry.close()
        await shared.endConnections(on: group.next(), drainSeconds: drainSeconds)
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
