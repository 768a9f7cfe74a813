import Foundation

/// Name and secret of one-way CHAP (RFC 1994, RFC 7143 §12.1.3).
public struct InitiatorCredentials: Hashable, Sendable {
    public var name: String
    public var secret: String

    public init(name: String, secret: String) {
        self.name = name
        self.secret = secret
    }
}

/// Where a copy manager is: `iscsi://[user@]host[:port]/iqn…`. It holds no secret, because an address is given on the
/// command line, which all users of a machine can read.
public struct BridgeAddress: Hashable, Sendable, CustomStringConvertible {
    public var host: String
    public var port: Int
    public var targetName: String
    public var credentials: InitiatorCredentials?

    public init(host: String, port: Int = 3260, targetName: String, credentials: InitiatorCredentials? = nil)
    {
        self.host = host
        self.port = port
        self.targetName = targetName
        self.credentials = credentials
    }

    /// Reads the text form. An IPv6 address stands in brackets; a user must be the one of `credentials`, which an
    /// address without a user has, too.
    /// - Throws: 64, as well for `user%secret@`.
    public init(parsing text: String, credentials: InitiatorCredentials? = nil) throws(AgentError) {
        func bad(_ why: String) -> AgentError {
            // Whoever took the part before @ for user%secret wrote a secret, so the text is not told.
            AgentError(
                .usage, doing: "reading the bridge's address", to: "", because: why,
                advice:
                    "write iscsi://[user@]host[:port]/target-name, and give name and secret with --chap-file")
        }
        guard text.hasPrefix("iscsi://") else { throw bad("it does not begin with iscsi://") }
        var rest = text.dropFirst("iscsi://".count)
        self.credentials = credentials
        if let slash = rest.lastIndex(of: "/"), let at = rest[..<slash].lastIndex(of: "@") {
            let user = rest[..<at]
            rest = rest[rest.index(after: at)...]
            guard !user.contains("%"), !user.contains(":") else {
                throw bad(
                    "it holds a secret, which all users of this machine can see in the list of processes")
            }
            guard let credentials, credentials.name == user else {
                throw bad("the secret of the user before @ is in no file that was named")
            }
        }
        guard let slash = rest.firstIndex(of: "/") else { throw bad("it names no target") }
        let target = rest[rest.index(after: slash)...].removingPercentEncoding ?? ""
        guard !target.isEmpty, target.utf8.count <= 223, !target.contains("/") else {
            throw bad("what follows the host is not a target's name (units are named apart)")
        }
        targetName = target
        (host, port) = try Self.portal(rest[..<slash], bad)
    }

    private static func portal(
        _ text: Substring, _ bad: (String) -> AgentError
    ) throws(AgentError) -> (String, Int) {
        var host = text
        var digits: Substring?
        if text.hasPrefix("[") {
            guard let end = text.firstIndex(of: "]") else { throw bad("a bracket is not closed") }
            host = text[text.index(after: text.startIndex)..<end]
            let tail = text[text.index(after: end)...]
            guard tail.isEmpty || tail.hasPrefix(":") else { throw bad("it has no port after the bracket") }
            digits = tail.isEmpty ? nil : tail.dropFirst()
        } else if let colon = text.firstIndex(of: ":") {
            host = text[..<colon]
            digits = text[text.index(after: colon)...]
        }
        guard !host.isEmpty else { throw bad("it names no host") }
        guard let digits else { return (String(host), 3260) }
        guard let port = UInt16(digits), port > 0 else { throw bad("what follows the host is not a port") }
        return (String(host), Int(port))
    }

    /// `host:port`, an IPv6 address in brackets.
    public var portal: String { host.contains(":") ? "[\(host)]:\(port)" : "\(host):\(port)" }

    /// Without the credentials.
    public var description: String { "iscsi://\(portal)/\(targetName)" }
}
