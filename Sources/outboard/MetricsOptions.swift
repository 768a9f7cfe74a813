import ArgumentParser
import Logging
import Metrics

/// Where metrics are told.
enum MetricsPlace: ExpressibleByArgument, Sendable {
    case address(Endpoint)
    case file(String)

    /// What has a slash is a file, and what has no port.
    init?(argument: String) {
        guard !argument.isEmpty else { return nil }
        if !argument.contains("/"), let endpoint = Endpoint(argument: argument) {
            self = .address(endpoint)
        } else {
            self = .file(argument)
        }
    }
}

/// The metrics of what runs on.
struct MetricsOptions: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "Tell metrics to Prometheus: at http://ADDRESS:PORT/metrics, or in a FILE that is written every few seconds "
                + "for node_exporter's textfile collector. A name without a slash and with a port is an address.",
            valueName: "address:port|file"))
    var metrics: MetricsPlace?

    @Flag(
        help: "Let --metrics listen on an address that is no loopback address: whoever reaches it may read.")
    var metricsAnyAddress = false

    /// - Throws: 77 for an address that others reach, unless that is meant.
    func refuseOpenAddress() throws {
        guard case .address(let endpoint) = metrics, !endpoint.isLoopback, !metricsAnyAddress else { return }
        throw Failure(
            .notPermitted,
            "refusing to tell metrics on \(endpoint.text): it is no loopback address, so whoever reaches it could "
                + "read them; give --metrics-any-address if that is meant")
    }
}

/// What tells metrics while a process runs. That it cannot is logged and costs nothing else: applications come first.
enum MetricsTeller: Sendable {
    case server(MetricsServer)
    case file(MetricsFile)

    static func start(
        _ place: MetricsPlace?, _ logger: Logger, page: @escaping @Sendable () -> MetricsPage
    ) async -> MetricsTeller? {
        do {
            switch place {
            case nil: return nil
            case .address(let endpoint):
                let server = try await MetricsServer.start(
                    host: endpoint.host, port: endpoint.port, logger: logger, page: page)
                logger.info(
                    "metrics are told",
                    metadata: ["address": "\(Endpoint(host: server.host, port: server.port).text)"])
                return .server(server)
            case .file(let path):
                let file = try MetricsFile(absolutePath(path), logger: logger, page: page)
                return .file(file)
            }
        } catch {
            let reason =
                switch error {
                case let error as MetricsServer.CannotListen: error.reason
                case let error as MetricsFile.Unusable: error.description
                default: "\(error)"
                }
            let name =
                switch place {
                case .address(let endpoint): endpoint.text
                case .file(let path): path
                case nil: ""
                }
            complain(of: name, reason, logger)
            return nil
        }
    }

    static func complain(of place: String, _ reason: String, _ logger: Logger) {
        logger.error("no metrics are told", metadata: ["metrics": "\(place)", "error": "\(reason)"])
    }

    /// ADDRESS:PORT; nil of a file.
    var place: String? {
        switch self {
        case .server(let server): Endpoint(host: server.host, port: server.port).text
        case .file: nil
        }
    }

    func stop() async {
        switch self {
        case .server(let server): await server.shutdown()
        case .file(let file): await onBlockingThread { file.stop() }
        }
    }
}
