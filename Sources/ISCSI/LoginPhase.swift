/// What login needs to know of the target.
struct TargetIdentity: Sendable {
    /// The target's iSCSI name.
    var name: String
    /// Its names are in lower case.
    var access: ISCSIAccess
    /// Random bytes, as many as asked for.
    var random: @Sendable (Int) -> [UInt8] = { count in
        var generator = SystemRandomNumberGenerator()
        return (0..<count).map { _ in UInt8.random(in: .min ... .max, using: &generator) }
    }

    static let portalGroupTag = 1
}

/// Status-Class and Status-Detail of a Login Response (RFC 7143 §11.13.5).
enum LoginStatus: UInt16 {
    case success = 0x0000
    case initiatorError = 0x0200
    case authenticationFailure = 0x0201
    case authorizationFailure = 0x0202
    case notFound = 0x0203
    case unsupportedVersion = 0x0205
    case tooManyConnections = 0x0206
    case missingParameter = 0x0207
    case sessionTypeNotSupported = 0x0209
    case sessionDoesNotExist = 0x020A
    case invalidDuringLogin = 0x020B
    case serviceUnavailable = 0x0301
    case outOfResources = 0x0302
}

/// What a finished login has found out.
struct LoginResult: Hashable {
    var initiatorName: String
    /// 48 bits.
    var isid: UInt64
    /// Of the session to join; 0: a new one.
    var tsih: UInt16
    var isDiscovery: Bool
    var authenticatedName: String?
    var parameters: NegotiatedParameters
    var connectionID: UInt16
    /// The next CmdSN that the session expects.
    var expCmdSN: UInt32
}

/// The target's side of login (RFC 7143 §6 and §11.12) as a state machine: requests in, responses out.
struct LoginPhase {
    enum Step: Hashable {
        /// Send it and go on.
        case reply(PDU)
        /// Send it and close the connection.
        case fail(PDU, why: String)
        /// Login is over. The response goes out once the session exists; its TSIH is still to be set.
        case finish(PDU, LoginResult)
    }

    private struct Failure: Error {
        var status: LoginStatus
        var why: String
        init(_ status: LoginStatus, _ why: String) {
            self.status = status
            self.why = why
        }
    }

    /// CSG and NSG.
    private enum Stage: UInt8 {
        case security = 0
        case operational = 1
        case fullFeature = 3
    }

    private let target: TargetIdentity
    private var stage: Stage?
    private var requests = 0
    private var text: [UInt8] = []
    private var isid: UInt64 = 0
    private var tsih: UInt16 = 0
    private var connectionID: UInt16 = 0
    private var initiatorTaskTag: UInt32 = 0
    private var cmdSN: UInt32 = 0
    private var statSN: UInt32 = 0
    /// In lower case.
    private(set) var initiatorName: String?
    private var isDiscovery = false
    private var hasIdentified = false
    /// What the initiator of that name must prove; nil: nothing.
    private var credentials: CHAPCredentials?
    private var chap: CHAPExchange?
    private var methodAgreed = false
    private var negotiation = OperationalNegotiation()

    init(target: TargetIdentity) { self.target = target }

    /// Whether the initiator has proven who it is, or need not.
    private var isAuthenticated: Bool {
        hasIdentified && (credentials == nil || chap?.isProven == true)
    }

    mutating func handle(_ pdu: PDU) -> Step {
        do throws(Failure) {
            return try step(pdu)
        } catch {
            var response = response(to: pdu)
            response.flags = 0
            response[half: 36] = error.status.rawValue
            return .fail(response, why: error.why)
        }
    }

    private mutating func step(_ pdu: PDU) throws(Failure) -> Step {
        try admit(pdu)
        let wantsTransit = pdu.isFinal
        let continues = pdu.flags & 0x40 != 0
        guard !(wantsTransit && continues) else { throw Failure(.invalidDuringLogin, "T and C bit together") }
        let current = try currentStage(pdu)
        let next = wantsTransit ? try nextStage(pdu, from: current) : nil

        guard text.count + pdu.data.count <= ISCSILimits.textBytes else {
            throw Failure(.initiatorError, "too much text")
        }
        text += pdu.data
        if continues { return .reply(reply(to: pdu, keys: [], next: nil)) }
        var keys: [TextKey] = []
        do throws(ProtocolViolation) { keys = try TextKeys.parse(text) } catch {
            throw Failure(.initiatorError, error.what)
        }
        text = []
        var answers = try identify(&keys)
        guard current == .security || isAuthenticated else {
            throw Failure(.authenticationFailure, "authentication is required")
        }
        answers += current == .security ? try negotiateSecurity(keys) : try negotiateOperation(keys)
        // Nobody leaves the security stage without having proven who they are.
        guard let next, isAuthenticated else {
            return .reply(reply(to: pdu, keys: answers, next: nil))
        }
        stage = next
        let response = reply(to: pdu, keys: answers, next: next, from: current)
        guard next == .fullFeature else { return .reply(response) }
        return .finish(response, try result())
    }

    /// What must hold of every login request.
    private mutating func admit(_ pdu: PDU) throws(Failure) {
        guard pdu.opcode == Opcode.loginRequest else {
            throw Failure(.invalidDuringLogin, "opcode \(pdu.opcode) during login")
        }
        requests += 1
        guard requests <= ISCSILimits.loginRequests else {
            throw Failure(.initiatorError, "login never ends")
        }
        guard pdu[byte: 3] == 0 else { throw Failure(.unsupportedVersion, "version above 0") }
        let isid = pdu.lun >> 16
        if requests == 1 {
            self.isid = isid
            connectionID = pdu[half: 20]
            initiatorTaskTag = pdu.initiatorTaskTag
            cmdSN = pdu.cmdSN
            statSN = pdu.expStatSN
            tsih = pdu[half: 14]
        } else {
            guard isid == self.isid, pdu[half: 20] == connectionID, pdu[half: 14] == tsih,
                pdu.initiatorTaskTag == initiatorTaskTag
            else { throw Failure(.invalidDuringLogin, "ISID, TSIH, CID or task tag changed") }
        }
    }

    private mutating func currentStage(_ pdu: PDU) throws(Failure) -> Stage {
        guard let named = Stage(rawValue: pdu.flags >> 2 & 3), named != .fullFeature else {
            throw Failure(.invalidDuringLogin, "no such stage")
        }
        if let stage {
            guard named == stage else { throw Failure(.invalidDuringLogin, "not the stage that is on") }
        }
        stage = named
        return named
    }

    private func nextStage(_ pdu: PDU, from current: Stage) throws(Failure) -> Stage {
        guard let next = Stage(rawValue: pdu.flags & 3), next.rawValue > current.rawValue else {
            throw Failure(.invalidDuringLogin, "no way to that stage")
        }
        return next
    }

    /// Takes the keys that say who talks to whom out of the first request's.
    private mutating func identify(_ keys: inout [TextKey]) throws(Failure) -> [TextKey] {
        let naming = ["InitiatorName", "TargetName", "SessionType"]
        let named = Dictionary(
            keys.filter { naming.contains($0.key) }.map { ($0.key, $0.value) },
            uniquingKeysWith: { a, _ in a })
        keys.removeAll { naming.contains($0.key) }
        if hasIdentified {
            guard named.isEmpty else { throw Failure(.initiatorError, "names told twice") }
            return []
        }
        guard let initiator = named["InitiatorName"], !initiator.isEmpty else {
            throw Failure(.missingParameter, "no InitiatorName")
        }
        guard initiator.utf8.count <= ISCSILimits.name else {
            throw Failure(.initiatorError, "name too long")
        }
        // It is going to stand in logs.
        let isPrintable = initiator.unicodeScalars.allSatisfy {
            !$0.properties.isWhitespace && $0.properties.generalCategory != .control
                && $0.properties.generalCategory != .format
        }
        guard isPrintable else { throw Failure(.initiatorError, "a name with blanks or control characters") }
        switch named["SessionType"] ?? "Normal" {
        case "Normal": isDiscovery = false
        case "Discovery": isDiscovery = true
        default: throw Failure(.sessionTypeNotSupported, "no such session type")
        }
        if isDiscovery, tsih != 0 { throw Failure(.sessionDoesNotExist, "a discovery session to join") }
        // iSCSI names compare in lower case (RFC 7143 §4.2.7.2).
        let name = initiator.lowercased()
        initiatorName = name
        switch target.access.demand(of: name) {
        case .nothing: break
        case .chap(let credentials): self.credentials = credentials
        case .refused: throw Failure(.authorizationFailure, "initiator \(name) is not among those let in")
        }
        hasIdentified = true
        if let name = named["TargetName"] {
            guard name.lowercased() == target.name.lowercased() else {
                throw Failure(.notFound, "no target of that name")
            }
        } else if !isDiscovery {
            throw Failure(.missingParameter, "no TargetName")
        }
        return isDiscovery ? [] : [TextKey("TargetPortalGroupTag", String(TargetIdentity.portalGroupTag))]
    }

    private mutating func negotiateSecurity(_ keys: [TextKey]) throws(Failure) -> [TextKey] {
        var answers: [TextKey] = []
        var chapKeys: [String: String] = [:]
        for key in keys {
            switch key.key {
            case "AuthMethod": answers.append(try agreeOnMethod(key.value))
            case _ where key.key.hasPrefix("CHAP_"): chapKeys[key.key] = key.value
            case "InitiatorAlias": break
            case _ where OperationalNegotiation.isOperational(key.key):
                throw Failure(.initiatorError, "\(key.key) in the security stage")
            default: answers.append(TextKey(key.key, OperationalNegotiation.notUnderstood))
            }
        }
        if chap != nil {
            do throws(CHAPExchange.Failure) { answers += try chap?.handle(chapKeys) ?? [] } catch {
                throw error == .missingKey
                    ? Failure(.missingParameter, "CHAP keys are missing")
                    : Failure(.authenticationFailure, "CHAP failed")
            }
        } else if !chapKeys.isEmpty {
            throw Failure(.initiatorError, "CHAP keys without CHAP agreed")
        }
        return answers
    }

    private mutating func agreeOnMethod(_ offered: String) throws(Failure) -> TextKey {
        guard !methodAgreed else { throw Failure(.initiatorError, "AuthMethod twice") }
        methodAgreed = true
        let wanted = credentials == nil ? "None" : "CHAP"
        guard offered.split(separator: ",").contains(Substring(wanted)) else {
            throw Failure(.authenticationFailure, "AuthMethod \(wanted) was not offered")
        }
        if let credentials { chap = CHAPExchange(credentials, random: target.random) }
        return TextKey("AuthMethod", wanted)
    }

    private mutating func negotiateOperation(_ keys: [TextKey]) throws(Failure) -> [TextKey] {
        var answers = negotiation.declarations()
        // FirstBurstLength depends on MaxBurstLength, in whatever order they stand.
        let isBurst = { (key: TextKey) in key.key == "FirstBurstLength" }
        for key in keys.filter({ !isBurst($0) }) + keys.filter(isBurst) {
            do throws(ProtocolViolation) {
                if let answer = try negotiation.answer(key) { answers.append(answer) }
            } catch {
                throw Failure(.initiatorError, error.what)
            }
        }
        return answers
    }

    private func result() throws(Failure) -> LoginResult {
        guard let initiatorName, isAuthenticated else {
            throw Failure(.authenticationFailure, "not authenticated")
        }
        return LoginResult(
            initiatorName: initiatorName, isid: isid, tsih: tsih, isDiscovery: isDiscovery,
            authenticatedName: chap?.name, parameters: negotiation.parameters, connectionID: connectionID,
            expCmdSN: cmdSN)
    }

    private mutating func response(to pdu: PDU) -> PDU {
        var response = PDU(Opcode.loginResponse, flags: 0)
        response.lun = pdu.lun & ~0xFFFF
        response.initiatorTaskTag = pdu.initiatorTaskTag
        response.statSN = statSN
        response.expCmdSN = cmdSN
        response.maxCmdSN = cmdSN
        statSN &+= 1
        return response
    }

    private mutating func reply(
        to pdu: PDU, keys: [TextKey], next: Stage?, from current: Stage? = nil
    ) -> PDU {
        var response = response(to: pdu)
        let stageBits = (current ?? stage ?? .security).rawValue << 2
        response.flags = stageBits | (next.map { 0x80 | $0.rawValue } ?? 0)
        response.data = TextKeys.encode(keys)[...]
        return response
    }
}
