import AsyncIO
import Blocks
import Bridge
import Foundation
import Glibc
import ISCSI
import Logging

/// One running bridge: units, copy manager and iSCSI target put together.
final class BridgeService: Sendable {
    /// ADDRESS:PORT.
    let portals: [String]
    let target: String
    private let device: BridgeDevice
    private let server: ISCSITarget
    private let isPrivate: Bool
    private let startedAt = Date().timeIntervalSince1970
    private let logger: Logger
    private let telling = Telling()

    var metricsPlace: String? { telling.metricsPlace }
    var units: [BridgeUnitSummary] { device.summaries }

    private init(
        portals: [String], target: String, device: BridgeDevice, server: ISCSITarget, isPrivate: Bool,
        logger: Logger
    ) {
        self.logger = logger
        self.isPrivate = isPrivate
        self.portals = portals
        self.target = target
        self.device = device
        self.server = server
    }

    static func start(_ settings: BridgeSettings) async throws -> BridgeService {
        var logger = Console.logger("bridge")
        // The agent tells its user what a private bridge says: an audit is not for him.
        if settings.isPrivate { logger.logLevel = .warning }
        let access = try settings.access()
        try requireTrust(settings)
        let device = try open(settings.units, state: settings.stateDirectory, logger)
        do {
            let server = try await ISCSITarget.start(
                device: device,
                configuration: ISCSITargetConfiguration(
                    portals: settings.portals.map { ISCSIPortal(host: $0.host, port: $0.port) },
                    targetName: settings.target, access: access),
                logger: logger)
            return BridgeService(
                portals: server.portals.map { Endpoint(host: $0.host, port: $0.port).text },
                target: settings.target, device: device, server: server, isPrivate: settings.isPrivate,
                logger: logger)
        } catch {
            device.close()
            throw Self.failure(error)
        }
    }

    /// Whoever could put something else in a unit's place would have initiators read and write that.
    private static func requireTrust(_ settings: BridgeSettings) throws {
        // What a private one serves its agent has looked at.
        guard !settings.isPrivate else { return }
        for unit in settings.units { try Trust.require(unit.path, to: "serve unit \(unit.number),") }
        if let state = settings.stateDirectory {
            // What is in it, not the directory alone.
            try Trust.require(state + "/reservations", to: "keep reservations in")
        }
    }

    private static func failure(_ error: any Error) -> Failure {
        guard let error = error as? ISCSITarget.StartError else { return Failure(error) }
        switch error {
        case .invalidTargetName(let name):
            return Failure(
                .usage, "'\(name)' is not an iSCSI name; an example: \(BridgeSettings.defaultTarget)")
        case .noPortal: return Failure(.usage, "a bridge needs a portal; give --portal ADDRESS:PORT")
        case .cannotListen(let portal, let code, let reason):
            let text = Endpoint(host: portal.host, port: portal.port).text
            return Failure(
                code == EACCES || code == EPERM ? .notPermitted : .cannotCreate,
                "cannot listen on \(text): \(reason); choose another --portal")
        }
    }

    private static func open(
        _ units: [UnitArgument], state: String?, isCheck: Bool = false, _ logger: Logger
    ) throws -> BridgeDevice {
        do throws(BridgeError) {
            return try BridgeDevice(
                units: units.map { unit in
                    var made = BridgeUnit(
                        number: unit.number, path: unit.path, readOnly: unit.readOnly,
                        blockSize: unit.blockSize)
                    made.isLocked = unit.isLocked
                    made.physicalBlockSize = unit.physicalBlockSize
                    made.isThin = unit.isThin
                    made.initiators = unit.initiators.map(Set.init)
                    return made
                },
                stateDirectory: state, isCheck: isCheck, logger: logger)
        } catch {
            switch error {
            case .configuration: throw Failure(.usage, "\(error)")
            case .storage(_, let cause): throw Failure(cause.failure().status, "\(error)")
            case .state(let cause):
                let status: ExitStatus =
                    switch cause.kind {
                    case .missing: .missing
                    case .notPermitted: .notPermitted
                    case .inUse: .tryAgain
                    case .damaged: .damaged
                    case .system: .io
                    }
                throw Failure(status, "\(error)")
            }
        }
    }

    /// What `settings` would serve. Secrets are read and files and devices opened as for serving, but without a lock,
    /// and nothing is listened on or changed: it can be asked while another bridge serves. Devices are opened for
    /// reading only; files that are to be writable once more for writing, to find out whether they can be thin.
    static func check(_ settings: BridgeSettings) throws -> [BridgeUnitSummary] {
        _ = try settings.access()
        try requireTrust(settings)
        let device = try open(
            settings.units.map { unit in
                var unit = unit
                unit.readOnly = true
                unit.isThin = nil
                return unit
            }, state: settings.stateDirectory, isCheck: true, Console.logger("bridge"))
        defer { device.close() }
        let configured = Dictionary(
            settings.units.map { ($0.number, $0) }, uniquingKeysWith: { first, _ in first })
        return try device.summaries.map { summary in
            var summary = summary
            guard let unit = configured[summary.number] else { preconditionFailure("a unit from nowhere") }
            summary.readOnly = unit.readOnly
            guard summary.readOnly || access(summary.path, W_OK) == 0 else {
                let reason = String(cString: strerror(errno))
                throw Failure(
                    .notPermitted,
                    "cannot serve unit \(summary.number): \(summary.path) cannot be written: \(reason); make it "
                        + "read-only, or change the file's permissions")
            }
            if !summary.readOnly { summary.isThin = try isThin(unit) }
            return summary
        }
    }

    private static func isThin(_ unit: UnitArgument) throws -> Bool {
        guard unit.isThin != false else { return false }
        do throws(StorageError) {
            let canUnmap = try StorageFile.canUnmap(path: unit.path)
            let isDevice = try StorageIdentity.of(path: unit.path).isBlockDevice
            if canUnmap { return unit.isThin ?? !isDevice }
        } catch { throw Failure(error.failure().status, "cannot serve unit \(unit.number): \(error)") }
        guard unit.isThin == nil else {
            throw Failure(.usage, "cannot serve unit \(unit.number): \(BridgeUnit.cannotBeThin(unit.path))")
        }
        return false
    }

    /// From now on it tells what it does. A private bridge's agent does that.
    func tell(_ place: MetricsPlace?) async {
        guard !isPrivate else { return }
        let (device, target, portals, started) = (device, target, portals, startedAt)
        let metrics = await MetricsTeller.start(place, logger) {
            BridgeMetrics.page(device.counters, units: device.summaries, target: target, started: started)
        }
        let registered = Registered.enter(.bridge, subject: target, logger) {
            BridgeStatus(target: target, portals: portals, device.counters, device.summaries)
        }
        telling.begin(metrics, registered)
    }

    func stop() async {
        await telling.end()
        // Of a private bridge the agent is gone, or has no use for what is under way.
        await server.shutdown(drainSeconds: isPrivate ? 0 : ISCSILimits.drainSeconds)
        device.close()
    }
}
