import Blocks
import NIOCore

/// The addresses that a target is reached at, as SendTargets tells them (RFC 7143 §13.8 and appendix C).
final class PortalList: Sendable {
    private let listening = Monitor<[SocketAddress]>([])

    func add(_ address: SocketAddress) { listening.withLock { $0.append(address) } }

    /// What to tell a peer that came by `local`.
    func addresses(toPeerBy local: SocketAddress?) -> [String] {
        listening.withLock { listening in
            Self.addresses(listening.compactMap(PortalAddress.init), local.flatMap(PortalAddress.init))
        }
    }

    /// All of `listening`, but for what is of no use to a peer that came by `local`: a loopback address, unless it
    /// came by one. For one that stands for all addresses of the machine the peer is told the one it came by.
    static func addresses(_ listening: [PortalAddress], _ local: PortalAddress?) -> [String] {
        var told: [PortalAddress] = []
        for var address in listening {
            if address.isWildcard {
                guard let local, local.isIPv6 == address.isIPv6 || address.isIPv6 else { continue }
                address.host = local.host
                address.isIPv6 = local.isIPv6
            }
            if address.isLoopback, local?.isLoopback == false { continue }
            if !told.contains(address) { told.append(address) }
        }
        return told.map(\.text)
    }
}

/// An address and port.
struct PortalAddress: Hashable {
    /// Numerical.
    var host: String
    var port: Int
    var isIPv6: Bool

    init(host: String, port: Int, isIPv6: Bool) {
        // An IPv4 peer of an IPv6 socket.
        let mapped = "::ffff:"
        let isMapped = isIPv6 && host.lowercased().hasPrefix(mapped) && host.contains(".")
        self.host = isMapped ? String(host.dropFirst(mapped.count)) : host
        self.port = port
        self.isIPv6 = isIPv6 && !isMapped
    }

    init?(_ address: SocketAddress) {
        guard let host = address.ipAddress, let port = address.port else { return nil }
        self.init(host: host, port: port, isIPv6: address.protocol == .inet6)
    }

    var isWildcard: Bool { host == "0.0.0.0" || host == "::" }
    var isLoopback: Bool { isIPv6 ? host == "::1" : host.hasPrefix("127.") }
    var text: String { isIPv6 ? "[\(host)]:\(port)" : "\(host):\(port)" }
}
