import Blocks
import SCSI

/// A representation of data (ROD): blocks of a unit that a token stands for, and that token's life.
///
/// A token lives until it was not used for its inactivity time-out, until it is deleted, or until it is revoked: its
/// unit is reset, or data change that it promised to keep. It is known in memory only.
final class RepresentedData: Sendable {
    /// All of its ``RODToken/length`` bytes.
    let token: [UInt8]
    let identifier: UInt64
    let type: RODType
    /// Whose blocks they are.
    let unit: LogicalUnit
    /// In the order in which the data lie in the ROD; no two share a byte, none is empty.
    let ranges: [ByteRange]
    /// Bytes.
    let count: UInt64
    /// The name in lower case of the initiator for which it was made.
    let initiator: String

    /// The same ranges by their offsets.
    private let sorted: [ByteRange]
    /// Nanoseconds.
    private let timeout: UInt64
    private let clock: DeviceClock
    private struct Life {
        /// WRITE USING TOKEN commands that run.
        var uses = 0
        var lastUse: UInt64
        /// Why it is no good any more.
        var end: AdditionalSenseCode?
    }
    private let life: Monitor<Life>

    /// - Parameter seconds: of its inactivity time-out.
    init(
        token: RODToken, unit: LogicalUnit, ranges: [ByteRange], seconds: UInt32, initiator: String,
        clock: DeviceClock
    ) {
        self.token = token.encoded()
        identifier = token.identifier
        type = token.type
        self.unit = unit
        self.ranges = ranges
        count = ranges.reduce(0) { $0 + $1.count }
        self.initiator = initiator
        sorted = ranges.sorted { $0.offset < $1.offset }
        timeout = UInt64(seconds) * 1_000_000_000
        self.clock = clock
        life = Monitor(Life(lastUse: clock.now()))
    }

    /// Why it is no good any more; nil: it is good.
    var end: AdditionalSenseCode? { life.withLock { self.end(&$0) } }

    private func end(_ life: inout Life) -> AdditionalSenseCode? {
        if life.end == nil, life.uses == 0, clock.now() >= life.lastUse + timeout { life.end = .tokenExpired }
        return life.end
    }

    /// Ends it, unless it has ended already.
    func end(_ code: AdditionalSenseCode) {
        life.withLock { if end(&$0) == nil { $0.end = code } }
    }

    /// - Returns: why it cannot be used; nil: it does not expire before ``endUse()``.
    fileprivate func beginUse() -> AdditionalSenseCode? {
        life.withLock { life in
            if let end = end(&life) { return end }
            life.uses += 1
            return nil
        }
    }

    fileprivate func endUse() {
        life.withLock {
            $0.uses -= 1
            $0.lastUse = clock.now()
        }
    }

    /// Whether a byte of `range` of its unit's storage is among its data.
    func represents(_ range: ByteRange) -> Bool {
        guard let first = sorted.first, let last = sorted.last, range.offset < last.end,
            first.offset < range.end
        else { return false }
        // The first that ends behind the start of `range`: they lie apart, so their ends ascend, too.
        var (low, high) = (0, sorted.count)
        while low < high {
            let middle = (low + high) / 2
            if sorted[middle].end > range.offset { high = middle } else { low = middle + 1 }
        }
        return low < sorted.count && sorted[low].overlaps(range)
    }

    /// Where `wanted` of its bytes from `offset` on lie, in their order.
    /// - Precondition: it has so many.
    func places(_ offset: UInt64, _ wanted: UInt64) -> [ByteRange] {
        var (skip, rest) = (offset, wanted)
        var places: [ByteRange] = []
        for range in ranges where rest > 0 {
            if skip >= range.count {
                skip -= range.count
                continue
            }
            let count = min(rest, range.count - skip)
            places.append(ByteRange(offset: range.offset + skip, count: count))
            rest -= count
            skip = 0
        }
        precondition(rest == 0, "more bytes than the token represents")
        return places
    }
}

/// One WRITE USING TOKEN's hold on a token, which does not expire meanwhile. Ends with the object.
final class TokenUse: Sendable {
    let data: RepresentedData

    /// - Throws: INVALID TOKEN OPERATION with the reason why it is no good.
    init(_ data: RepresentedData) throws(CheckCondition) {
        if let end = data.beginUse() { throw CheckCondition(SenseData(.illegalRequest, end)) }
        self.data = data
    }

    deinit { data.endUse() }
}
