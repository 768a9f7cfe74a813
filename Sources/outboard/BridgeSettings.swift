import Glibc
import ISCSI

/// What a bridge is told, by options and by `bridge.yaml`.
struct BridgeSettings {
    static let defaultTarget = "iqn.2026-01.net.outboard:bridge"

    struct Initiator {
        /// Its iSCSI name.
        var name: String
        /// Nil: its name is enough.
        var chapFile: String?
    }

    var portals = [Endpoint(host: "127.0.0.1", port: 3260)]
    var target = BridgeSettings.defaultTarget
    /// What all initiators share.
    var chapFile: String?
    /// Nil: all are let in.
    var initiators: [Initiator]?
    var units: [UnitArgument] = []
    /// Where reservations are kept that outlive the bridge; nil: none do.
    var stateDirectory: String?
    /// Whether it serves the agent that started it, and nobody else.
    var isPrivate = false
    /// Whether a portal may be on any address without CHAP.
    var isInsecure = false

    init() {}

    /// Reads `bridge.yaml`.
    init(readingFile path: String) throws { try BridgeFile.read(path, into: &self) }

    /// Whom the target lets in. Reads the secrets, and refuses what lets in everybody from everywhere.
    func access() throws -> ISCSIAccess {
        for name in [target] + (initiators ?? []).map(\.name)
        where !ISCSITargetConfiguration.isValidName(name) {
            throw Failure(.usage, "'\(name)' is not an iSCSI name; an example: \(Self.defaultTarget)")
        }
        if initiators != nil, chapFile != nil {
            throw Failure(
                .usage, "the configuration gives each initiator its own chap_file; leave --chap-file out")
        }
        let access: ISCSIAccess
        if let initiators {
            access = .only(
                Dictionary(
                    try initiators.map { ($0.name, try $0.chapFile.map(SecretFile.credentials)) },
                    uniquingKeysWith: { first, _ in first }))
        } else {
            access = .anybody(try chapFile.map(SecretFile.credentials))
        }
        try refuseOpenPortals()
        return access
    }

    /// Whoever reaches a portal can say any initiator's name.
    private func refuseOpenPortals() throws {
        guard !isInsecure, let portal = portals.first(where: { !$0.isLoopback }) else { return }
        let open: String
        if let initiators {
            guard let one = initiators.first(where: { $0.chapFile == nil }) else { return }
            open = "initiator \(one.name) has no chap_file"
        } else {
            guard chapFile == nil else { return }
            open = "there is no CHAP file"
        }
        throw Failure(
            .notPermitted,
            "refusing to listen on \(portal.text): it is no loopback address, and \(open), so whoever reaches it "
                + "could use the units; give a CHAP file, or --insecure if that is meant")
    }
}

extension Endpoint {
    /// Whether only this machine reaches it. A name other than `localhost` may mean anything.
    var isLoopback: Bool {
        if host.lowercased() == "localhost" { return true }
        var four = in_addr()
        if inet_pton(AF_INET, host, &four) == 1 { return UInt32(bigEndian: four.s_addr) >> 24 == 127 }
        var six = in6_addr()
        guard inet_pton(AF_INET6, host, &six) == 1 else { return false }
        return withUnsafeBytes(of: &six) { bytes in
            let isOne = bytes.dropLast().allSatisfy { $0 == 0 } && bytes[15] == 1
            let isMapped = bytes.prefix(10).allSatisfy { $0 == 0 } && bytes[10] == 0xFF && bytes[11] == 0xFF
            return isOne || isMapped && bytes[12] == 127
        }
    }
}
