import Agent
import Blocks
import Foundation
import Host
import HostControl
import Logging
import NBD
import OriginalImage

/// One running host: storage, volume, NBD server and control server, put together and taken apart.
final class HostService: Sendable {
    /// What the ready line says.
    struct Place: Encodable {
        var uris: [String]
        var socket: String
        var control: String
        var source: String
        var cache: String
        var volume: String
        var size: UInt64
        var chunkSize: UInt64
        var tcpPort: Int?
        /// Where metrics are told, ADDRESS:PORT; absent: nowhere, or in a file.
        var metrics: String?
    }

    var place: Place {
        var place = fixedPlace
        place.metrics = telling.metricsPlace
        return place
    }
    private let fixedPlace: Place
    private let descriptor: HostDescriptor
    private let startedAt = Date().timeIntervalSince1970
    private let telling = Telling()
    private let storage: HostStorage
    private let volume: CopyOnWriteVolume
    private let nbd: NBDServer
    private let control: ControlServer
    private let stopRequested: Monitor<Bool>
    private let logger: Logger

    private init(
        place: Place, descriptor: HostDescriptor, storage: HostStorage, volume: CopyOnWriteVolume,
        nbd: NBDServer, control: ControlServer,
        stopRequested: Monitor<Bool>, logger: Logger
    ) {
        self.logger = logger
        fixedPlace = place
        self.descriptor = descriptor
        self.storage = storage
        self.volume = volume
        self.nbd = nbd
        self.control = control
        self.stopRequested = stopRequested
    }

    static func start(_ options: HostOptions) async throws -> HostService {
        var logger = Console.logger("host")
        try Trust.require(options.socket, to: "serve NBD at")
        try Trust.require(options.control, to: "serve the control socket")
        let storage = try HostStorage(options)
        logger[metadataKey: "volume"] = "\(storage.volume.uuidString)"
        do {
            if let notice = storage.notice { logger.warning("\(notice)") }
            let volume = try makeVolume(storage, options, logger)
            tell(volume.log, of: options.cache, logger)
            let nbd = try await startNBD(volume, options, logger)
            do {
                return try await start(options, storage, volume, nbd, logger)
            } catch {
                await nbd.shutdown()
                throw error
            }
        } catch {
            storage.abandon()
            throw error
        }
    }

    private static func makeVolume(
        _ storage: HostStorage, _ options: HostOptions, _ logger: Logger
    ) throws -> CopyOnWriteVolume {
        do throws(LogError) {
            return try CopyOnWriteVolume(
                source: storage.source, cache: storage.cache,
                settings: VolumeSettings(
                    uuid: storage.volume, chunkSize: storage.chunkSize, durability: options.durability,
                    cacheCapacity: options.cacheSize?.bytes, onCacheFull: options.onCacheFull,
                    boot: try bootIdentity(), logger: logger))
        } catch { throw error.failure(cache: options.cache) }
    }

    private static func startNBD(
        _ volume: CopyOnWriteVolume, _ options: HostOptions, _ logger: Logger
    ) async throws -> NBDServer {
        var tls: NBDTLSConfiguration?
        if let certificate = options.tlsCertificate, let key = options.tlsKey, let authority = options.tlsCa {
            try SecretFile.requireTrust(in: key, for: "the private key", nobodyElseMay: .readAsOther)
            try SecretFile.requireTrust(in: authority, for: "the authorities", nobodyElseMay: .write)
            tls = NBDTLSConfiguration(certificateFile: certificate, keyFile: key, authorityFile: authority)
        }
        return try await NBDServer.start(
            provider: HostExports(volume), unixSocket: options.socket,
            tcp: options.listen.map { (host: $0.host, port: $0.port) }, tls: tls, logger: logger)
    }

    private static func start(
        _ options: HostOptions, _ storage: HostStorage, _ volume: CopyOnWriteVolume, _ nbd: NBDServer,
        _ logger: Logger
    ) async throws -> HostService {
        let socket = absolutePath(options.socket)
        var uris = [VolumeAddress(socket: socket).uri]
        if let listen = options.listen, let port = nbd.tcpPort {
            uris.append("nbds://\(Endpoint(host: listen.host, port: port).text)")
        }
        let stop = Monitor(false)
        let descriptor = HostDescriptor(
            source: storage.sourcePath, cache: storage.cachePath, uris: uris, socket: socket,
            clients: { nbd.load.connections })
        let control: ControlServer
        do {
            control = try await ControlServer.start(
                volume: volume,
                place: descriptor,
                socket: options.control, logger: logger,
                onShutdown: { stop.withLockAndNotify { $0 = true } })
        } catch let error as SocketPathError {
            throw error.failure(control: options.control)
        }
        return HostService(
            place: Place(
                uris: uris, socket: socket, control: absolutePath(options.control),
                source: storage.sourcePath, cache: storage.cachePath,
                volume: storage.volume.uuidString, size: volume.size,
                chunkSize: volume.geometry.chunkSize, tcpPort: nbd.tcpPort),
            descriptor: descriptor, storage: storage, volume: volume, nbd: nbd, control: control,
            stopRequested: stop,
            logger: logger)
    }

    /// From now on it tells what it does.
    func tell(_ place: MetricsPlace?) async {
        let (volume, descriptor, started) = (volume, descriptor, startedAt)
        let metrics = await MetricsTeller.start(place, logger) {
            HostMetrics.page(volume.status(of: descriptor), started: started)
        }
        let registered = Registered.enter(
            .host, subject: descriptor.source, control: fixedPlace.control, logger)
        telling.begin(metrics, registered)
    }

    func requestStop() { stopRequested.withLockAndNotify { $0 = true } }

    func waitForStop() async {
        await onBlockingThread { [stopRequested] in stopRequested.wait { $0 ? () : nil } }
    }

    /// Stops serving, finishes what was begun, flushes. An open epoch stays open in the cache.
    func stop() async throws {
        await telling.end()
        // Writers that wait at a closed gate would never finish.
        try volume.endStandstills(force: true)
        await nbd.shutdown()
        try await control.shutdown()
        defer { storage.close() }
        do throws(StoreError) { try volume.close() } catch {
            tellOfUnrecorded()
            throw Failure(.io, "cannot flush \(storage.sourcePath): \(error); the last writes may be lost")
        }
        tellOfUnrecorded()
    }

    /// The next host must not take the log of a void epoch for a whole one.
    private func tellOfUnrecorded() {
        guard !volume.log.isRecorded else { return }
        logger.error(
            "the cache took no record of its last epoch's end; remove it before the next start",
            metadata: [
                "cache": "\(storage.cachePath)",
                "state": "\(volume.log.epoch?.state.description ?? "none")",
            ])
    }

    private static func tell(_ log: OriginalImageLog, of cache: String, _ logger: Logger) {
        switch log.finding {
        case .blank, .unused: break
        case .retained:
            logger.notice(
                "the cache \(cache) retains the originals of an earlier copy until that is released")
        case .resumed(let entries):
            logger.notice(
                "an epoch that was open goes on with \(entries) originals", metadata: ["cache": "\(cache)"])
        case .lost:
            logger.warning(
                "the epoch that was open is void: \(log.epoch?.voidReason ?? "")",
                metadata: ["cache": "\(cache)"])
        }
    }

    private static func bootIdentity() throws(LogError) -> UUID {
        // No such file, no way to tell two boots apart: then each start counts as one.
        let text = try? String(contentsOfFile: "/proc/sys/kernel/random/boot_id", encoding: .utf8)
        let trimmed = text?.trimmingCharacters(in: .whitespacesAndNewlines)
        return trimmed.flatMap { UUID(uuidString: $0) } ?? UUID()
    }
}

/// The live volume as the default export, and the logical snapshot while there is one.
private final class HostExports: NBDExportProvider {
    private let volume: CopyOnWriteVolume

    init(_ volume: CopyOnWriteVolume) { self.volume = volume }

    func exports() -> [NBDExport] {
        [export(named: ""), export(named: "snapshot")].compactMap { $0 }
    }

    func export(named name: String) -> NBDExport? {
        switch name {
        case "": NBDExport(name: "", description: "the live volume", store: volume)
        case "snapshot":
            volume.snapshot.map {
                NBDExport(
                    name: "snapshot", description: "the volume as of the running copy's instant", store: $0)
            }
        default: nil
        }
    }
}
