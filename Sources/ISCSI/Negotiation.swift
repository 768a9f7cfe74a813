/// What initiator and target agreed upon at login (RFC 7143 §13). Lengths are bytes. The values at the start
/// are the standard's defaults.
struct NegotiatedParameters: Hashable {
    var digests = Digests()
    var initialR2T = true
    var immediateData = true
    /// The initiator's MaxRecvDataSegmentLength.
    var initiatorReceiveSegment = 8192
    var maxBurst = 262_144
    var firstBurst = 65_536
}

/// Answers the operational keys of one login, each once.
struct OperationalNegotiation {
    private(set) var parameters = NegotiatedParameters()
    private var answered: Set<String> = []
    private var hasDeclared = false

    static let notUnderstood = "NotUnderstood"
    static let reject = "Reject"
    static let irrelevant = "Irrelevant"

    /// Answers one key.
    /// - Returns: nil for a key that takes no answer.
    mutating func answer(_ key: TextKey) throws(ProtocolViolation) -> TextKey? {
        guard answered.insert(key.key).inserted else {
            throw ProtocolViolation("\(key.key) negotiated twice")
        }
        return try value(for: key).map { TextKey(key.key, $0) }
    }

    /// What the target declares by itself, at the first answer of the operational stage.
    mutating func declarations() -> [TextKey] {
        if hasDeclared { return [] }
        hasDeclared = true
        return [TextKey("MaxRecvDataSegmentLength", String(ISCSILimits.receiveDataSegment))]
    }

    /// MaxRecvDataSegmentLength is declarative: it takes no answer, so one out of range cannot be answered with
    /// Reject.
    static func receiveSegment(_ text: String) throws(ProtocolViolation) -> Int {
        guard let length = TextKeys.number(text), (512...0xFF_FFFF).contains(length) else {
            throw ProtocolViolation("MaxRecvDataSegmentLength out of range")
        }
        return Int(length)
    }

    /// Keys that have no place in the security stage.
    static func isOperational(_ key: String) -> Bool {
        key == "MaxRecvDataSegmentLength" || (loginOnly.contains(key) && key != "AuthMethod")
    }

    /// Keys that have no place in full feature phase.
    static let loginOnly: Set<String> = [
        "AuthMethod", "HeaderDigest", "DataDigest", "MaxConnections", "InitiatorName", "TargetName",
        "SessionType",
        "TargetPortalGroupTag", "InitialR2T", "ImmediateData", "MaxBurstLength", "FirstBurstLength",
        "DefaultTime2Wait", "DefaultTime2Retain", "MaxOutstandingR2T", "DataPDUInOrder",
        "DataSequenceInOrder",
        "ErrorRecoveryLevel", "iSCSIProtocolLevel", "TaskReporting", "IFMarker", "OFMarker", "IFMarkInt",
        "OFMarkInt",
    ]

    private mutating func value(for key: TextKey) throws(ProtocolViolation) -> String? {
        switch key.key {
        case "HeaderDigest": return digest(key.value, \.digests.header)
        case "DataDigest": return digest(key.value, \.digests.data)
        case "MaxConnections":
            return number(key.value, 1...65535) { _ in 1 }
        case "InitialR2T":
            return boolean(key.value) { yes in
                parameters.initialR2T = yes
                return yes
            }
        case "ImmediateData":
            return boolean(key.value) { yes in
                parameters.immediateData = yes
                return yes
            }
        case "MaxRecvDataSegmentLength":
            parameters.initiatorReceiveSegment = try Self.receiveSegment(key.value)
            return nil
        case "MaxBurstLength":
            return number(key.value, 512...0xFF_FFFF) { value in
                parameters.maxBurst = min(Int(value), ISCSILimits.maxBurst)
                parameters.firstBurst = min(parameters.firstBurst, parameters.maxBurst)
                return UInt32(parameters.maxBurst)
            }
        case "FirstBurstLength":
            return number(key.value, 512...0xFF_FFFF) { value in
                // Never above MaxBurstLength (RFC 7143 §13.14), which is agreed upon first.
                parameters.firstBurst = min(Int(value), ISCSILimits.firstBurst, parameters.maxBurst)
                return UInt32(parameters.firstBurst)
            }
        // Its answer would stand beside the target's own declaration.
        case "TargetPortalGroupTag", "TargetAlias", "TargetAddress":
            throw ProtocolViolation("\(key.key) from an initiator")
        default: return valueOfFixed(key)
        }
    }

    /// Keys whose outcome changes nothing here.
    private func valueOfFixed(_ key: TextKey) -> String? {
        switch key.key {
        case "DefaultTime2Wait": return number(key.value, 0...3600) { $0 }
        case "DefaultTime2Retain": return number(key.value, 0...3600) { _ in 0 }
        case "MaxOutstandingR2T": return number(key.value, 1...65535) { _ in 1 }
        case "ErrorRecoveryLevel": return number(key.value, 0...2) { _ in 0 }
        case "iSCSIProtocolLevel": return number(key.value, 0...31) { min($0, 1) }
        case "DataPDUInOrder", "DataSequenceInOrder": return boolean(key.value) { _ in true }
        case "IFMarker", "OFMarker", "RDMAExtensions": return boolean(key.value) { _ in false }
        case "IFMarkInt", "OFMarkInt", "InitiatorRecvDataSegmentLength", "TargetRecvDataSegmentLength",
            "MaxOutstandingUnexpectedPDUs":
            return Self.irrelevant
        case "TaskReporting":
            return key.value.split(separator: ",").contains("RFC3720") ? "RFC3720" : Self.reject
        case "InitiatorAlias": return nil
        default: return Self.notUnderstood
        }
    }

    private mutating func digest(
        _ offered: String, _ path: WritableKeyPath<NegotiatedParameters, Bool>
    ) -> String {
        for value in offered.split(separator: ",") where value == "None" || value == "CRC32C" {
            parameters[keyPath: path] = value == "CRC32C"
            return String(value)
        }
        return Self.reject
    }

    private func number(
        _ text: String, _ range: ClosedRange<UInt32>, _ decide: (UInt32) -> UInt32
    ) -> String {
        guard let value = TextKeys.number(text), range.contains(value) else { return Self.reject }
        return String(decide(value))
    }

    private func boolean(_ text: String, _ decide: (Bool) -> Bool) -> String {
        switch text {
        case "Yes": decide(true) ? "Yes" : "No"
        case "No": decide(false) ? "Yes" : "No"
        default: Self.reject
        }
    }
}
