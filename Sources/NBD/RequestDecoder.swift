import Blocks

/// A request as it came, its numbers checked by nobody yet.
struct RequestHeader: Hashable, Sendable {
    static let size = 28

    var flags: CommandFlags = []
    var type: UInt16 = 0
    var cookie: UInt64 = 0
    var offset: UInt64 = 0
    var length: UInt32 = 0

    var command: Command? { Command(rawValue: type) }
    /// Bytes that follow the header.
    var payload: UInt32 { command == .write ? length : 0 }
}

extension CommandFlags: Hashable {}

/// What requests of one connection may ask.
struct RequestRules: Sendable {
    let size: UInt64
    let flags: TransmissionFlags
    let allocationContext: Bool

    init(_ agreement: Agreement) {
        let store = agreement.export.store
        size = store.size
        flags = TransmissionFlags(
            of: store.capabilities, structuredReplies: agreement.structuredReplies)
        allocationContext = agreement.allocationContext
    }

    /// Why `request` is refused, or nil.
    func refusal(of request: RequestHeader) -> ErrorCode? {
        guard let command = request.command else { return .invalid }
        guard request.flags.isSubset(of: allowedFlags(command)) else { return .invalid }
        switch command {
        case .read:
            // EOVERFLOW is for a DF that cannot be kept, and for nothing else.
            if request.length > NBDLimits.maximumPayload {
                return request.flags.contains(.df) ? .overflow : .invalid
            }
            return outside(request) ? .invalid : nil
        case .write:
            if flags.contains(.readOnly) { return .notPermitted }
            if request.length > NBDLimits.maximumPayload || request.length == 0 { return .invalid }
            return outside(request) ? .noSpace : nil
        case .writeZeroes:
            if flags.contains(.readOnly) { return .notPermitted }
            if request.length == 0 { return .invalid }
            return outside(request) ? .noSpace : nil
        case .trim:
            if flags.contains(.readOnly) { return .notPermitted }
            return !flags.contains(.sendTrim) || outside(request) ? .invalid : nil
        case .flush:
            return !flags.contains(.sendFlush) || request.offset != 0 || request.length != 0 ? .invalid : nil
        case .cache:
            return outside(request) ? .invalid : nil
        case .blockStatus:
            return !allocationContext || outside(request) ? .invalid : nil
        case .disconnect:
            return nil
        }
    }

    /// Ranges without bytes are refused, too: the protocol leaves them undefined.
    private func outside(_ request: RequestHeader) -> Bool {
        request.length == 0
            || ByteRange(checking: request.offset, UInt64(request.length), within: size) == nil
    }

    private func allowedFlags(_ command: Command) -> CommandFlags {
        // A negotiated FUA must be accepted with every command.
        var allowed: CommandFlags = flags.contains(.sendFUA) || flags.contains(.readOnly) ? .fua : []
        switch command {
        case .read: if flags.contains(.sendDF) { allowed.insert(.df) }
        case .writeZeroes: allowed.formUnion([.noHole, .fastZero])
        case .blockStatus: allowed.insert(.reqOne)
        case .write, .disconnect, .flush, .trim, .cache: break
        }
        return allowed
    }
}

/// Cuts the bytes of the transmission phase into requests: bytes in, events out, nothing allocated.
///
/// After ``Event/request(_:)`` of a WRITE its payload is taken with ``takePayload(available:)``, before the
/// next event is asked for. The payload of a refused WRITE the decoder throws away itself.
struct RequestDecoder {
    enum Event: Hashable {
        /// All bytes are used up and no request is complete.
        case needsMore
        /// A request that may be executed.
        case request(RequestHeader)
        /// A request to be answered with this error; its payload is behind us.
        case refused(RequestHeader, ErrorCode)
        /// NBD_CMD_DISC.
        case disconnect
        /// What comes is not the protocol; nothing after it can be understood.
        case violation
    }

    private typealias Words = (UInt64, UInt64, UInt64, UInt64)

    private let rules: RequestRules
    /// The first bytes of a header whose rest has not come yet.
    private var partial: Words = (0, 0, 0, 0)
    private var partialCount = 0
    private var skipped: (request: RequestHeader, error: ErrorCode, left: UInt32)?
    /// Bytes of the last request's payload that were not taken yet.
    private(set) var payloadLeft = 0

    init(rules: RequestRules) { self.rules = rules }

    /// - Returns: how many bytes of `input` were taken, and what they were.
    mutating func next(_ input: UnsafeRawBufferPointer) -> (consumed: Int, event: Event) {
        precondition(payloadLeft == 0, "the payload comes first")
        if let skipped { return skip(skipped, input, consumed: 0) }
        if partialCount == 0, input.count >= RequestHeader.size {
            return accept(
                UnsafeRawBufferPointer(rebasing: input[..<RequestHeader.size]), input, RequestHeader.size)
        }
        let take = min(RequestHeader.size - partialCount, input.count)
        withUnsafeMutableBytes(of: &partial) { target in
            UnsafeMutableRawBufferPointer(rebasing: target[partialCount...])
                .copyMemory(from: UnsafeRawBufferPointer(rebasing: input[..<take]))
        }
        partialCount += take
        guard partialCount == RequestHeader.size else { return (take, .needsMore) }
        partialCount = 0
        let words = partial
        return withUnsafeBytes(of: words) {
            accept(UnsafeRawBufferPointer(rebasing: $0[..<RequestHeader.size]), input, take)
        }
    }

    /// Takes as much of the awaited payload as there is among `available` bytes.
    mutating func takePayload(available: Int) -> Int {
        let take = min(payloadLeft, available)
        payloadLeft -= take
        return take
    }

    private mutating func accept(
        _ header: UnsafeRawBufferPointer, _ input: UnsafeRawBufferPointer, _ consumed: Int
    ) -> (consumed: Int, event: Event) {
        guard header.bigEndian(at: 0, as: UInt32.self) == Magic.request else { return (consumed, .violation) }
        let request = RequestHeader(
            flags: CommandFlags(rawValue: header.bigEndian(at: 4)), type: header.bigEndian(at: 6),
            cookie: header.bigEndian(at: 8), offset: header.bigEndian(at: 16),
            length: header.bigEndian(at: 24))
        if request.command == .disconnect { return (consumed, .disconnect) }
        if let error = rules.refusal(of: request) {
            return skip((request, error, request.payload), input, consumed: consumed)
        }
        payloadLeft = Int(request.payload)
        return (consumed, .request(request))
    }

    private mutating func skip(
        _ pending: (request: RequestHeader, error: ErrorCode, left: UInt32), _ input: UnsafeRawBufferPointer,
        consumed: Int
    ) -> (consumed: Int, event: Event) {
        let take = min(Int(pending.left), input.count - consumed)
        guard take == Int(pending.left) else {
            skipped = (pending.request, pending.error, pending.left - UInt32(take))
            return (consumed + take, .needsMore)
        }
        skipped = nil
        return (consumed + take, .refused(pending.request, pending.error))
    }
}
