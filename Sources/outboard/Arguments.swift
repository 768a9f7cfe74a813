import ArgumentParser
import Blocks
import Glibc
import HostControl

extension ByteCount: ExpressibleByArgument {
    public init?(argument: String) { self.init(parsing: argument) }
}

extension Durability: ExpressibleByArgument {}
extension CacheFullPolicy: ExpressibleByArgument {}

/// `ADDRESS:PORT`; an IPv6 address stands in brackets.
struct Endpoint: ExpressibleByArgument, Sendable {
    var host: String
    var port: Int

    init?(argument: String) {
        guard let colon = argument.lastIndex(of: ":"),
            let port = UInt16(argument[argument.index(after: colon)...])
        else { return nil }
        var host = argument[..<colon]
        if host.hasPrefix("["), host.hasSuffix("]") { host = host.dropFirst().dropLast() }
        guard !host.isEmpty else { return nil }
        self.host = String(host)
        self.port = Int(port)
    }

    init(host: String, port: Int) {
        self.host = host
        self.port = port
    }

    /// As it stands in a URI.
    var text: String { host.contains(":") ? "[\(host)]:\(port)" : "\(host):\(port)" }
}

/// `N=PATH[,ro][,thin][,thick]`. A path that ends in one of these itself can stand in a configuration file.
struct UnitArgument: ExpressibleByArgument, Sendable {
    var number: Int
    var path: String
    var readOnly: Bool
    var isLocked = true
    /// Bytes.
    var blockSize: UInt32 = 512
    /// Nil: the block size.
    var physicalBlockSize: UInt32?
    /// Nil: where the storage can.
    var isThin: Bool?
    /// Nil: all.
    var initiators: [String]?

    init?(argument: String) {
        let parts = argument.split(separator: "=", maxSplits: 1)
        guard parts.count == 2, let number = Int(parts[0]), (0...16383).contains(number) else { return nil }
        readOnly = false
        var rest = parts[1]
        flags: while let comma = rest.lastIndex(of: ",") {
            switch rest[comma...] {
            case ",ro": readOnly = true
            case ",thin": isThin = true
            case ",thick": isThin = false
            default: break flags
            }
            rest = rest[..<comma]
        }
        path = String(rest)
        guard !path.isEmpty else { return nil }
        self.number = number
    }

    init(number: Int, path: String, readOnly: Bool) {
        self.number = number
        self.path = path
        self.readOnly = readOnly
    }
}

/// `N:PATH` with flags in between, as the agent gives a private bridge its units: `N::PATH`; `N:ro:PATH`; and
/// `N:nolock:PATH` for what the host of a live restore keeps locked. Whatever the path, it is taken as it is.
struct PrivateUnitArgument: ExpressibleByArgument, Sendable {
    var unit: UnitArgument

    init?(argument: String) {
        let parts = argument.split(separator: ":", maxSplits: 2, omittingEmptySubsequences: false)
        guard parts.count == 3, let number = Int(parts[0]), (0...16383).contains(number),
            ["", "ro", "nolock"].contains(parts[1]), !parts[2].isEmpty
        else { return nil }
        unit = UnitArgument(number: number, path: String(parts[2]), readOnly: parts[1] == "ro")
        unit.isLocked = parts[1] != "nolock"
    }
}

/// `path` from the root on, with links followed where it exists.
func absolutePath(_ path: String) -> String {
    if let resolved = realpath(path, nil) {
        defer { free(resolved) }
        return String(cString: resolved)
    }
    if path.hasPrefix("/") { return path }
    guard let current = getcwd(nil, 0) else { return path }
    defer { free(current) }
    return String(cString: current) + "/" + path
}
