import Blocks
import Glibc
import SCSI

/// The ROD tokens that a device has made. In memory: a device that starts anew knows none.
///
/// A token is a bearer secret, 256 random bits of it, and good only where two more things hold: it is the one that was
/// made, in all of its bytes, and the session that uses it may see the unit whose blocks it represents. To all other
/// sessions it does not exist.
final class TokenStore: Sendable {
    /// Of the secret in each token.
    static let secretBytes = 32
    /// What of an ended token is kept, so that its bearer is told why.
    private struct Ended {
        var token: [UInt8]
        var unit: Int
        var code: AdditionalSenseCode
    }
    private struct State {
        /// By identifier.
        var live: [UInt64: RepresentedData] = [:]
        var ended: [UInt64: Ended] = [:]
        /// The identifiers of the ended ones, the oldest first.
        var endedOrder: [UInt64] = []
    }
    private let state = Monitor(State())
    private let clock: DeviceClock
    /// Names this device in its tokens, while it runs.
    private let device: DesignationDescriptor

    init(clock: DeviceClock) {
        self.clock = clock
        var device = DesignationDescriptor.naaLocallyAssigned(.random(in: 0...UInt64.max))
        device.association = DesignationDescriptor.Association.targetDevice
        self.device = device
    }

    /// Makes a token.
    /// - Parameters:
    ///   - ranges: of `unit`; no two share a byte.
    ///   - seconds: of its inactivity time-out.
    ///   - watches: of all units on the same bytes as `unit`, for a type that promises an instant's data.
    /// - Throws: INSUFFICIENT RESOURCES TO CREATE ROD TOKEN at the limits.
    func make(
        _ type: RODType, _ unit: LogicalUnit, _ ranges: [ByteRange], seconds: UInt32, for nexus: Nexus,
        watches: [ChangeWatch]
    ) throws(CheckCondition) -> RepresentedData {
        let initiator = nexus.initiatorName.lowercased()
        guard let random = Self.random(8 + Self.secretBytes) else { throw Self.noResources }
        let identifier = random.withUnsafeBytes { $0.bigEndian(at: 0, as: UInt64.self) }
        let token = RODToken(
            type: type, identifier: identifier,
            creator: CSCDDescriptor(designation: unit.naa, diskBlockLength: unit.blockSize),
            bytesRepresented: ranges.reduce(0) { $0 + $1.count }, capacity: unit.capacity, device: device,
            extendedData: Array(random[8...]))
        let data = RepresentedData(
            token: token, unit: unit, ranges: ranges.filter { !$0.isEmpty }, seconds: seconds,
            initiator: initiator, clock: clock)
        try state.withLock { state throws(CheckCondition) in
            Self.sweep(&state)
            let own = state.live.values.reduce(0) { $0 + ($1.initiator == initiator ? 1 : 0) }
            guard state.live.count < BridgeLimits.tokens, own < BridgeLimits.tokensOfInitiator,
                state.live[identifier] == nil, state.ended[identifier] == nil
            else { throw Self.noResources }
            state.live[identifier] = data
        }
        for watch in watches { watch.add(data) }
        return data
    }

    /// Finds what `token` stands for and keeps it from expiring.
    /// - Parameter units: that the session which uses it may see.
    /// - Throws: ILLEGAL REQUEST, INVALID TOKEN OPERATION.
    func use(_ token: [UInt8], units: [LogicalUnit]) throws(CheckCondition) -> TokenUse {
        precondition(token.count == RODToken.length)
        let (type, length, identifier) = token.withUnsafeBytes {
            (
                RODType(rawValue: $0.bigEndian(at: 0)), $0.bigEndian(at: 6, as: UInt16.self),
                $0.bigEndian(at: 8, as: UInt64.self)
            )
        }
        guard Self.types.contains(type) else { throw Self.invalid(.unsupportedTokenType) }
        guard length == RODToken.lengthField else { throw Self.invalid(.invalidTokenLength) }
        let found = state.withLock { state -> Result<RepresentedData, CheckCondition> in
            Self.sweep(&state)
            let isVisible = { (number: Int) in units.contains { $0.number == number } }
            if let data = state.live[identifier], isVisible(data.unit.number) {
                return Self.areEqual(data.token, token)
                    ? .success(data) : .failure(Self.invalid(.tokenCorrupt))
            }
            if let ended = state.ended[identifier], isVisible(ended.unit) {
                return .failure(
                    Self.invalid(Self.areEqual(ended.token, token) ? ended.code : .tokenCorrupt))
            }
            return .failure(Self.invalid(.tokenUnknown))
        }
        return try TokenUse(try found.get())
    }

    /// Whole tokens that live and represent blocks of `units`.
    func all(of units: [LogicalUnit]) -> [[UInt8]] {
        state.withLock { state in
            Self.sweep(&state)
            return state.live.values.filter { data in units.contains { $0.number == data.unit.number } }
                .sorted { $0.identifier < $1.identifier }.map(\.token)
        }
    }

    /// A reset ends the tokens of the unit's blocks.
    func revoke(unit: LogicalUnit) {
        state.withLock { state in
            for data in state.live.values where data.unit.number == unit.number { data.end(.tokenRevoked) }
            Self.sweep(&state)
        }
    }

    /// Those that a device here makes, and so those that can come back.
    private static let types: Set<RODType> = [.accessUponReference, .pointInTimeChangeVulnerable]
    private static let noResources = CheckCondition(
        SenseData(.illegalRequest, .insufficientResourcesToCreateRODToken))

    static func invalid(_ code: AdditionalSenseCode) -> CheckCondition {
        CheckCondition(SenseData(.illegalRequest, code))
    }

    /// Sorts out what has ended.
    private static func sweep(_ state: inout State) {
        for (identifier, data) in state.live {
            guard let code = data.end else { continue }
            state.live[identifier] = nil
            if state.endedOrder.count == BridgeLimits.endedTokens {
                state.ended[state.endedOrder.removeFirst()] = nil
            }
            state.endedOrder.append(identifier)
            state.ended[identifier] = Ended(token: data.token, unit: data.unit.number, code: code)
        }
    }

    /// In a time that does not depend on where they differ.
    static func areEqual(_ one: [UInt8], _ other: [UInt8]) -> Bool {
        guard one.count == other.count else { return false }
        var difference: UInt8 = 0
        for (a, b) in zip(one, other) { difference |= a ^ b }
        return difference == 0
    }

    /// Nil when the system has no random bytes to give.
    private static func random(_ count: Int) -> [UInt8]? {
        var isWhole = false
        let bytes = [UInt8](unsafeUninitializedCapacity: count) { buffer, filled in
            // By getrandom(2), which gives up to 256 bytes whole.
            isWhole = getentropy(buffer.baseAddress, count) == 0
            filled = isWhole ? count : 0
        }
        return isWhole ? bytes : nil
    }
}
