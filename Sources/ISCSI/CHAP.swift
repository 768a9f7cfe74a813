import Crypto

/// Who must prove what with CHAP (RFC 7143 §12.1.3; RFC 1994).
public struct CHAPCredentials: Sendable {
    public enum Invalid: Error, Hashable, Sendable {
        /// Shorter than ``ISCSILimits/chapSecret``.
        case secretTooShort
        case nameMissing
        /// The two directions must not share a secret (RFC 7143 §9.2.1).
        case sameSecretBothWays
    }

    /// What the initiator presents.
    let name: String
    let secret: [UInt8]
    /// What the target presents when the initiator asks it to.
    let mutual: (name: String, secret: [UInt8])?

    /// - Parameters:
    ///   - secret: 12 bytes or more.
    ///   - mutual: the target's own name and secret, for initiators that want proof, too.
    public init(
        name: String, secret: [UInt8], mutual: (name: String, secret: [UInt8])? = nil
    ) throws(Invalid) {
        for (name, secret) in [(name, secret)] + (mutual.map { [$0] } ?? []) {
            if name.isEmpty { throw .nameMissing }
            if secret.count < ISCSILimits.chapSecret { throw .secretTooShort }
        }
        if mutual?.secret == secret { throw .sameSecretBothWays }
        self.name = name
        self.secret = secret
        self.mutual = mutual
    }
}

enum CHAP {
    /// CHAP_A value of MD5 (RFC 1994).
    static let md5 = "5"

    /// MD5 over identifier, secret, challenge (RFC 1994 §4.1).
    static func response(identifier: UInt8, secret: [UInt8], challenge: [UInt8]) -> [UInt8] {
        var hash = Insecure.MD5()
        hash.update(data: [identifier])
        hash.update(data: secret)
        hash.update(data: challenge)
        return Array(hash.finalize())
    }

    /// Whether both are equal, in a time that does not tell where they differ.
    static func equal(_ a: [UInt8], _ b: [UInt8]) -> Bool {
        guard a.count == b.count else { return false }
        return zip(a, b).reduce(UInt8(0)) { $0 | ($1.0 ^ $1.1) } == 0
    }
}

/// The target's side of one CHAP exchange.
struct CHAPExchange {
    enum Failure: Error { case authentication, missingKey }

    private enum State { case offered, challenged, proven }
    private let credentials: CHAPCredentials
    private let identifier: UInt8
    private let challenge: [UInt8]
    private var state = State.offered

    var isProven: Bool { state == .proven }
    var name: String { credentials.name }

    init(_ credentials: CHAPCredentials, random: (Int) -> [UInt8]) {
        self.credentials = credentials
        identifier = random(1)[0]
        challenge = random(ISCSILimits.chapChallenge)
    }

    /// Takes the CHAP keys of one request, in whatever order they stand in it.
    mutating func handle(_ keys: [String: String]) throws(Failure) -> [TextKey] {
        switch state {
        case .offered:
            guard let algorithms = keys["CHAP_A"] else { return [] }
            guard algorithms.split(separator: ",").contains(Substring(CHAP.md5)) else {
                throw .authentication
            }
            state = .challenged
            return [
                TextKey("CHAP_A", CHAP.md5), TextKey("CHAP_I", String(identifier)),
                TextKey("CHAP_C", TextKeys.hexadecimal(challenge)),
            ]
        case .challenged: return try prove(keys)
        case .proven:
            guard keys.isEmpty else { throw .authentication }
            return []
        }
    }

    private mutating func prove(_ keys: [String: String]) throws(Failure) -> [TextKey] {
        guard let name = keys["CHAP_N"], let response = keys["CHAP_R"] else { throw .missingKey }
        let expected = CHAP.response(identifier: identifier, secret: credentials.secret, challenge: challenge)
        let given = TextKeys.binary(response, limit: expected.count) ?? []
        // Both are always compared, so that a wrong name takes as long as a wrong secret.
        let nameFits = CHAP.equal(Array(name.utf8), Array(credentials.name.utf8))
        guard CHAP.equal(given, expected), nameFits else { throw .authentication }
        var answer: [TextKey] = []
        if keys["CHAP_I"] != nil || keys["CHAP_C"] != nil { answer = try proveOurselves(keys) }
        state = .proven
        return answer
    }

    private func proveOurselves(_ keys: [String: String]) throws(Failure) -> [TextKey] {
        guard let mutual = credentials.mutual,
            let identifier = keys["CHAP_I"].flatMap({ TextKeys.number($0) }).flatMap({ UInt8(exactly: $0) }),
            let foreign = keys["CHAP_C"].flatMap({
                TextKeys.binary($0, limit: ISCSILimits.chapForeignChallenge)
            })
        else { throw .authentication }
        // Our own challenge sent back would make us compute the initiator's answer for it.
        guard !CHAP.equal(foreign, challenge) else { throw .authentication }
        let response = CHAP.response(identifier: identifier, secret: mutual.secret, challenge: foreign)
        return [TextKey("CHAP_N", mutual.name), TextKey("CHAP_R", TextKeys.hexadecimal(response))]
    }
}
