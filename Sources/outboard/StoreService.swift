import Agent
import Blocks
import Glibc
import Logging
import NBD
import PhysicalCopy

/// Serves one store read-only over NBD on a unix socket: to our own processes that read file systems, and to
/// whatever `outboard mount` is used with.
final class StoreService: Sendable {
    /// The socket's path, absolute.
    let socket: String
    /// For libnbd, qemu and others.
    let uri: String
    private let server: NBDServer
    /// Made for the socket, and removed with it.
    private let directory: String?

    private init(socket: String, server: NBDServer, directory: String?) {
        self.socket = socket
        uri = VolumeAddress(socket: socket).uri
        self.server = server
        self.directory = directory
    }

    /// - Parameters:
    ///   - store: writes are refused, whether it could be written or not.
    ///   - description: for people who list the exports.
    ///   - socket: where; nil: in a private directory, which nobody else may enter.
    static func start(
        _ store: any BlockStore, description: String, socket: String? = nil, logger: Logger
    ) async throws -> StoreService {
        let provider = SingleExport(PortionView(store, ByteRange(offset: 0, count: store.size)), description)
        if let socket {
            let server = try await NBDServer.start(
                provider: provider, unixSocket: socket, tcp: nil, tls: nil, logger: logger)
            return StoreService(socket: absolutePath(socket), server: server, directory: nil)
        }
        let directory = try makeDirectory()
        let path = directory + "/nbd"
        do {
            let server = try await NBDServer.start(
                provider: provider, unixSocket: path, tcp: nil, tls: nil, logger: logger)
            return StoreService(socket: path, server: server, directory: directory)
        } catch {
            rmdir(directory)
            throw error
        }
    }

    /// Ends all connections, and takes the socket away.
    func stop() async {
        await server.shutdown()
        guard let directory else { return }
        // The server has removed it unless it could not; then a file without a listener is left over.
        unlink(socket)
        rmdir(directory)
    }

    private static func makeDirectory() throws -> String {
        let base = getenv("TMPDIR").map { String(cString: $0) } ?? "/tmp"
        var template = Array("\(base)/outboard-nbd-XXXXXX".utf8CString)
        guard let made = mkdtemp(&template) else {
            throw Failure(
                .cannotCreate,
                "cannot make a private directory in \(base) (TMPDIR): \(String(cString: strerror(errno)))")
        }
        return String(cString: made)
    }
}

/// The default export, and no other.
private final class SingleExport: NBDExportProvider {
    private let store: any BlockStore
    private let description: String

    init(_ store: any BlockStore, _ description: String) {
        self.store = store
        self.description = String(decoding: description.utf8.prefix(1024), as: UTF8.self)
    }

    func exports() -> [NBDExport] { [NBDExport(name: "", description: description, store: store)] }

    func export(named name: String) -> NBDExport? { name.isEmpty ? exports()[0] : nil }
}
