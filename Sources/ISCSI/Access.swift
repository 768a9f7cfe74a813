/// Whom a target lets in, and what each must prove.
public enum ISCSIAccess: Sendable {
    /// Any initiator; with credentials, any that proves them.
    case anybody(CHAPCredentials?)
    /// The initiators of these names and no others, each with its own credentials, or nil where its name is
    /// enough. So a name tells who is there only as far as its secret is that initiator's alone.
    case only([String: CHAPCredentials?])

    /// What an initiator must prove.
    enum Demand {
        case nothing
        case chap(CHAPCredentials)
        /// It is not let in whatever it proves.
        case refused
    }

    /// - Parameter initiatorName: in lower case (RFC 7143 §4.2.7.2).
    func demand(of initiatorName: String) -> Demand {
        let credentials: CHAPCredentials?
        switch self {
        case .anybody(let common): credentials = common
        case .only(let initiators):
            guard let own = initiators[initiatorName] else { return .refused }
            credentials = own
        }
        return credentials.map { .chap($0) } ?? .nothing
    }

    /// The same with its names in lower case, as logins are compared.
    var lowercased: ISCSIAccess {
        guard case .only(let initiators) = self else { return self }
        // Of names that differ in case only, the one with credentials counts.
        return .only(
            Dictionary(initiators.map { ($0.key.lowercased(), $0.value) }, uniquingKeysWith: { $0 ?? $1 }))
    }
}

/// Where a target listens.
public struct ISCSIPortal: Hashable, Sendable {
    /// A host name or address.
    public var host: String
    /// 0: any that is free.
    public var port: Int

    public init(host: String, port: Int) {
        self.host = host
        self.port = port
    }
}
