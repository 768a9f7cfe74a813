import Blocks

/// What a connection has agreed on when transmission starts.
struct Agreement: Sendable {
    var export: NBDExport
    var structuredReplies: Bool
    /// Whether BLOCK_STATUS of `base:allocation` was selected, under ``AllocationState/contextID``.
    var allocationContext: Bool
}

/// The server's side of the fixed newstyle negotiation: bytes in, actions out. It knows no socket.
struct Handshake {
    enum TLSPolicy {
        /// STARTTLS is refused.
        case unavailable
        /// The client may.
        case offered
        /// Nothing but STARTTLS and ABORT is answered before.
        case required
    }

    enum Action {
        case send([UInt8])
        /// Send this in the clear, then talk TLS and say so with ``Handshake/tlsStarted()``.
        case startTLS([UInt8])
        /// Send this; the bytes that follow are requests.
        case transmit([UInt8], Agreement)
        /// Send this and close the connection.
        case close([UInt8], reason: String)
    }

    private enum State {
        case clientFlags
        case optionHeader
        case optionData(UInt32, count: Int)
        /// Data that are too long: `left` bytes to be thrown away, then the answer.
        case skipping(UInt32, left: Int)
        case startingTLS
        case finished
    }

    let provider: any NBDExportProvider
    let tlsPolicy: TLSPolicy
    private var state = State.clientFlags
    private var pending: [UInt8] = []
    private var options = 0
    var noZeroes = false
    private var fixedNewstyle = false
    var tlsActive = false
    var structuredReplies = false
    /// The export for which `base:allocation` was selected.
    var selectedContextExport: String?

    init(provider: any NBDExportProvider, tlsPolicy: TLSPolicy) {
        self.provider = provider
        self.tlsPolicy = tlsPolicy
    }

    /// What the server sends first.
    static var greeting: [UInt8] {
        var writer = BigEndianWriter()
        writer.integer(Magic.server)
        writer.integer(Magic.option)
        writer.integer(([.fixedNewstyle, .noZeroes] as HandshakeFlags).rawValue)
        return writer.bytes
    }

    /// TLS has begun: what comes now came through it.
    mutating func tlsStarted() {
        guard case .startingTLS = state else { preconditionFailure("TLS that nobody asked for") }
        tlsActive = true
        state = .optionHeader
    }

    /// Takes bytes until there is something to do or they are used up.
    /// - Returns: how many were taken, and the action; nil when more bytes are needed.
    mutating func receive(_ input: UnsafeRawBufferPointer) -> (consumed: Int, action: Action?) {
        var consumed = 0
        while true {
            switch state {
            case .skipping(let option, let left):
                let take = min(left, input.count - consumed)
                consumed += take
                guard take == left else {
                    state = .skipping(option, left: left - take)
                    return (consumed, nil)
                }
                state = .optionHeader
                return (consumed, refuse(option, .errorTooBig))
            case .startingTLS:
                // Bytes sent in the clear behind STARTTLS must never be taken for bytes sent through TLS.
                guard consumed < input.count else { return (consumed, nil) }
                return (input.count, end(reason: "data in the clear after STARTTLS"))
            case .finished:
                return (consumed, nil)
            case .clientFlags, .optionHeader, .optionData:
                let missing = needed - pending.count
                let count = min(missing, input.count - consumed)
                pending.append(contentsOf: input[consumed..<consumed + count])
                consumed += count
                guard count == missing else { return (consumed, nil) }
                let bytes = pending
                pending.removeAll(keepingCapacity: true)
                if let action = bytes.withUnsafeBytes({ take(whole: $0) }) { return (consumed, action) }
            }
        }
    }

    private var needed: Int {
        switch state {
        case .clientFlags: 4
        case .optionHeader: 16
        case .optionData(_, let count): count
        case .skipping, .startingTLS, .finished: 0
        }
    }

    private mutating func take(whole bytes: UnsafeRawBufferPointer) -> Action? {
        switch state {
        case .clientFlags:
            let known: UInt32 = 3
            let flags = bytes.bigEndian(at: 0, as: UInt32.self)
            guard flags & ~known == 0 else { return end(reason: "unknown client flags \(flags)") }
            fixedNewstyle = flags & 1 != 0
            noZeroes = flags & 2 != 0
            state = .optionHeader
            return nil
        case .optionHeader:
            guard bytes.bigEndian(at: 0, as: UInt64.self) == Magic.option else {
                return end(reason: "wrong option magic")
            }
            options += 1
            guard options <= NBDLimits.maximumOptions else { return end(reason: "too many options") }
            let option = bytes.bigEndian(at: 8, as: UInt32.self)
            let count = Int(bytes.bigEndian(at: 12, as: UInt32.self))
            guard fixedNewstyle || option == Option.exportName.rawValue else {
                return end(reason: "an option of the fixed newstyle from a client that does not know it")
            }
            if count > NBDLimits.maximumOptionData {
                guard option != Option.exportName.rawValue else {
                    return end(reason: "an export name of \(count) bytes")
                }
                state = .skipping(option, left: count)
            } else {
                state = .optionData(option, count: count)
            }
            return nil
        case .optionData(let option, _):
            state = .optionHeader
            return answer(option, bytes)
        case .skipping, .startingTLS, .finished:
            preconditionFailure("no whole element is awaited")
        }
    }

    private mutating func answer(_ number: UInt32, _ data: UnsafeRawBufferPointer) -> Action {
        let option = Option(rawValue: number)
        if tlsPolicy == .required && !tlsActive && option != .startTLS && option != .abort {
            return refuse(number, .errorTLSRequired)
        }
        guard let option else { return refuse(number, .errorUnsupported) }
        do throws(OptionError) {
            switch option {
            case .exportName: return try exportName(data)
            case .abort: return end(sending: Self.reply(option, .ack), reason: nil)
            case .list: return .send(try list(data))
            case .startTLS: return try startTLS(data)
            case .info, .go: return try infoOrGo(option, data)
            case .structuredReply:
                guard data.isEmpty else { throw .invalid("STRUCTURED_REPLY takes no data") }
                structuredReplies = true
                return .send(Self.reply(option, .ack))
            case .listMetaContext, .setMetaContext: return .send(try metaContext(option, data))
            }
        } catch {
            return refuse(number, error.reply, error.message)
        }
    }

    private func startTLSAllowed(_ data: UnsafeRawBufferPointer) throws(OptionError) {
        guard tlsPolicy != .unavailable else {
            throw OptionError(.errorPolicy, "this server has no TLS")
        }
        guard data.isEmpty else { throw .invalid("STARTTLS takes no data") }
        guard !tlsActive else { throw .invalid("TLS is on already") }
    }

    private mutating func startTLS(_ data: UnsafeRawBufferPointer) throws(OptionError) -> Action {
        try startTLSAllowed(data)
        state = .startingTLS
        // What was agreed on in the clear may have been forged.
        structuredReplies = false
        selectedContextExport = nil
        return .startTLS(Self.reply(.startTLS, .ack))
    }

    /// An error reply; EXPORT_NAME has none, there the connection ends.
    private mutating func refuse(_ option: UInt32, _ reply: OptionReply, _ message: String = "") -> Action {
        guard option != Option.exportName.rawValue else { return end(reason: "EXPORT_NAME refused") }
        return .send(Self.reply(number: option, reply, Array(message.utf8)))
    }

    private mutating func end(sending bytes: [UInt8] = [], reason: String?) -> Action {
        state = .finished
        return .close(bytes, reason: reason ?? "")
    }

    mutating func begin(_ bytes: [UInt8], _ export: NBDExport) -> Action {
        state = .finished
        let agreement = Agreement(
            export: export, structuredReplies: structuredReplies,
            allocationContext: structuredReplies && selectedContextExport == export.name)
        return .transmit(bytes, agreement)
    }

    static func reply(_ option: Option, _ type: OptionReply, _ data: [UInt8] = []) -> [UInt8] {
        reply(number: option.rawValue, type, data)
    }

    static func reply(number: UInt32, _ type: OptionReply, _ data: [UInt8]) -> [UInt8] {
        var writer = BigEndianWriter(reserving: 20 + data.count)
        writer.integer(Magic.optionReply)
        writer.integer(number)
        writer.integer(type.rawValue)
        writer.integer(UInt32(data.count))
        writer.append(data)
        return writer.bytes
    }
}
