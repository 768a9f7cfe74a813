import Blocks

/// One export: a name and the store behind it. It is read-only iff the store lacks
/// ``Blocks/StoreCapabilities/writable``.
public struct NBDExport: Sendable {
    /// At most ``NBDLimits/maximumString`` bytes of UTF-8; empty for the default export.
    public var name: String
    /// For people; may be empty, at most ``NBDLimits/maximumString`` bytes.
    public var description: String
    public var store: any BlockStore

    public init(name: String, description: String, store: any BlockStore) {
        self.name = name
        self.description = description
        self.store = store
    }
}

/// Says what there is to export, at the moment a client asks. A connection keeps the store it got, also
/// when the export is gone for others; the store then answers ``Blocks/StoreError/Code/gone``.
///
/// Called on event loops: MUST NOT block.
public protocol NBDExportProvider: AnyObject, Sendable {
    /// All, in the order in which LIST tells them.
    func exports() -> [NBDExport]
    /// The export called `named` (the default one: ""), or nil.
    func export(named: String) -> NBDExport?
}

/// Certificates of a TCP server, PEM files.
public struct NBDTLSConfiguration: Sendable {
    /// The server's certificate, followed by its chain.
    public var certificateFile: String
    public var keyFile: String
    /// Certificates of the authorities that clients' certificates must come from; nil: clients need none.
    public var authorityFile: String?

    public init(certificateFile: String, keyFile: String, authorityFile: String?) {
        self.certificateFile = certificateFile
        self.keyFile = keyFile
        self.authorityFile = authorityFile
    }
}

/// Why a server could not start.
public enum NBDServerError: Error, Hashable, Sendable, CustomStringConvertible {
    /// Neither a unix socket nor a TCP address was given.
    case nothingToListenOn
    /// A TCP address without TLS.
    case tlsRequired
    /// The path does not fit a unix socket address (107 bytes).
    case pathTooLong(String)
    /// Something that is no socket is at the path; it was left alone.
    case notASocket(String)
    /// A running server listens at the path.
    case socketInUse(String)
    /// Another process keeps a lock on the directory of the unix socket.
    case directoryLocked(String)
    /// A system call failed; `errno` as of errno(3).
    case system(action: String, subject: String, errno: Int32)
    /// A certificate, key or authority file could not be read or used.
    case certificate(String)

    public var description: String {
        switch self {
        case .nothingToListenOn:
            "cannot serve NBD: give a unix socket, or a TCP address with TLS"
        case .tlsRequired:
            "cannot serve NBD on TCP without TLS: give a certificate and its key, or use a unix socket"
        case .pathTooLong(let path):
            "cannot listen on \(path): a socket's path has at most 107 bytes; choose a shorter one"
        case .notASocket(let path):
            "cannot listen on \(path): a file that is no socket is there; move it away or choose another path"
        case .socketInUse(let path):
            "cannot listen on \(path): a running server listens there; stop it or choose another path"
        case .directoryLocked(let path):
            "cannot listen in \(path): another process keeps that directory locked (flock); end it, or choose another"
        case .system(let action, let subject, let errno):
            "cannot \(action) \(subject): \(systemMessage(errno))"
        case .certificate(let reason):
            "cannot serve with TLS: \(reason)"
        }
    }
}
