import AsyncIO
import Blocks
import Bridge
import Glibc
import ISCSI
import Logging

/// One running bridge: units, copy manager and iSCSI target put together.
final class BridgeService: Sendable {
    /// ADDRESS:PORT.
    let portal: String
    let target: String
    private let device: BridgeDevice
    private let server: ISCSITarget

    var units: [BridgeUnitSummary] { device.summaries }

    private init(portal: String, target: String, device: BridgeDevice, server: ISCSITarget) {
        self.portal = portal
        self.target = target
        self.device = device
        self.server = server
    }

    static func start(_ settings: BridgeSettings) async throws -> BridgeService {
        var logger = Console.logger("bridge")
        // The agent tells its user what a private bridge says: an audit is not for him.
        if settings.isPrivate { logger.logLevel = .warning }
        guard ISCSITargetConfiguration.isValidName(settings.target) else {
            throw Failure(
                .usage,
                "'\(settings.target)' is not an iSCSI name; an example: \(BridgeSettings.defaultTarget)")
        }
        let credentials = try settings.credentials()
        let device = try open(settings.units, logger)
        do {
            let server = try await ISCSITarget.start(
                device: device,
                configuration: ISCSITargetConfiguration(
                    host: settings.portal.host, port: settings.portal.port, targetName: settings.target,
                    credentials: credentials),
                logger: logger)
            return BridgeService(
                portal: Endpoint(host: settings.portal.host, port: server.port).text, target: settings.target,
                device: device, server: server)
        } catch {
            device.close()
            throw Self.failure(error)
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

    private static func open(_ units: [UnitArgument], _ logger: Logger) throws -> BridgeDevice {
        do throws(BridgeError) {
            return try BridgeDevice(
                units: units.map { unit in
                    var made = BridgeUnit(number: unit.number, path: unit.path, readOnly: unit.readOnly)
                    made.isLocked = unit.isLocked
                    return made
                },
                logger: logger)
        } catch {
            switch error {
            case .configuration: throw Failure(.usage, "\(error)")
            case .storage(_, let cause): throw Failure(cause.failure().status, "\(error)")
            }
        }
    }

    func stop() async {
        await server.shutdown()
        device.close()
    }
}
