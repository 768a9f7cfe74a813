import Blocks
import NIOCore

/// The transmission phase of one connection: takes the bytes that came, executes the requests in them or
/// hands them to workers, and gathers the replies. It belongs to the connection's event loop and knows no
/// socket.
///
/// Bounds: at most ``NBDLimits/requestsInFlight`` requests with ``NBDLimits/bytesInFlight`` bytes are held;
/// when the next one does not fit, ``process(_:)`` takes no byte more until some are done.
final class TransmissionSession {
    enum State {
        /// All bytes are used up.
        case needsInput
        /// Enough replies are gathered: send them, then go on.
        case flush
        /// The next request waits for others to be done: go on after ``collect(_:)``.
        case blocked
        /// The client has said goodbye.
        case disconnected
        /// The client does not speak the protocol.
        case violated
    }

    /// Replies that are ready to be sent; the owner empties it.
    var output = ByteBuffer()

    private let executor: RequestExecutor
    private let pool: WorkerPool
    private let mailbox: Mailbox
    private var decoder: RequestDecoder
    private var pacer = StorePacer()
    private var free: [RequestSlot] = []
    private var made = 0
    /// Requests that a slot is taken for.
    private(set) var inFlight = 0
    /// Those of them that workers have.
    var running: Int { inFlight - (filling == nil ? 0 : 1) }
    private var bytesInFlight = 0
    /// A request whose header was taken and for which there was no room.
    private var held: RequestHeader?
    /// A WRITE whose payload is coming.
    private var filling: RequestSlot?
    /// Set when the session executes nothing new.
    private var ended: State?
    /// Requests executed on the event loop, for tests and for the curious.
    private(set) var executedInline = 0

    /// - Parameter mailbox: where workers leave what they have done; its wake leads to ``collect(_:)``.
    init(_ agreement: Agreement, pool: WorkerPool, mailbox: Mailbox) {
        executor = RequestExecutor(agreement)
        self.pool = pool
        self.mailbox = mailbox
        decoder = RequestDecoder(rules: RequestRules(agreement))
        free.reserveCapacity(NBDLimits.requestsInFlight)
    }

    /// Takes requests from `input`.
    /// - Returns: how many bytes were taken and why no more.
    func process(_ input: UnsafeRawBufferPointer) -> (consumed: Int, state: State) {
        var position = 0
        while true {
            if let ended { return (input.count, ended) }
            if output.readableBytes >= NBDLimits.gatheredReplies { return (position, .flush) }
            if let filling {
                position += fill(filling, UnsafeRawBufferPointer(rebasing: input[position...]))
                if self.filling != nil { return (position, .needsInput) }
                continue
            }
            if let request = held {
                guard let taken = begin(request, UnsafeRawBufferPointer(rebasing: input[position...])) else {
                    return (position, .blocked)
                }
                held = nil
                position += taken
                continue
            }
            let (consumed, event) = decoder.next(UnsafeRawBufferPointer(rebasing: input[position...]))
            position += consumed
            switch event {
            case .needsMore: return (position, .needsInput)
            case .request(let request): held = request
            case .refused(let request, let error): executor.reply(request, error: error, &output)
            case .disconnect: ended = .disconnected
            case .violation: ended = .violated
            }
        }
    }

    /// Takes what workers have done: small replies are gathered, large ones given to `send` as they are.
    /// `send` is called, too, when enough was gathered.
    func collect(_ send: (ByteBuffer) -> Void) {
        var done = mailbox.takeAll()
        while let slot = done.popFirst() {
            if slot.request.length <= NBDLimits.inlinePayload {
                pacer.record(slot.request.command, nanoseconds: slot.elapsed)
            }
            if slot.buffer.bytes.readableBytes > NBDLimits.gatheredReply {
                send(slot.buffer.bytes)
            } else {
                gather(slot)
                if output.readableBytes >= NBDLimits.gatheredReplies {
                    send(output)
                    output.clear()
                }
            }
            release(slot)
        }
    }

    /// Takes no request any more, not even one that is half here.
    func end() {
        if ended == nil { ended = .disconnected }
        held = nil
        if let slot = filling {
            filling = nil
            release(slot)
        }
    }

    /// Starts `request`, with the part of its payload that is in `input`.
    /// - Returns: bytes of payload taken, or nil when there is no room.
    private func begin(_ request: RequestHeader, _ input: UnsafeRawBufferPointer) -> Int? {
        let count = Int(request.payload)
        if isInline(request), input.count >= count {
            let start = MonotonicClock.now
            let payload = UnsafeRawBufferPointer(rebasing: input[..<count])
            if executor.executePromptly(request, payload: payload, output: &output) {
                executedInline += 1
                pacer.record(request.command, nanoseconds: MonotonicClock.now &- start)
                return decoder.takePayload(available: count)
            }
        }
        guard let slot = takeSlot(for: request) else { return nil }
        guard count > 0 else {
            submit(slot)
            return 0
        }
        slot.buffer.begin(payload: count)
        filling = slot
        return fill(slot, input)
    }

    private func isInline(_ request: RequestHeader) -> Bool {
        switch request.command {
        case .read: break
        case .write: if request.flags.contains(.fua) { return false }
        default: return false
        }
        return request.length <= NBDLimits.inlinePayload && pacer.isFast(request.command)
            && executor.store.isPrompt
    }

    private func fill(_ slot: RequestSlot, _ input: UnsafeRawBufferPointer) -> Int {
        let count = decoder.takePayload(available: input.count)
        slot.buffer.append(UnsafeRawBufferPointer(rebasing: input[..<count]))
        guard decoder.payloadLeft == 0 else { return count }
        filling = nil
        if isInline(slot.request), slot.writePromptly() {
            executedInline += 1
            pacer.record(slot.request.command, nanoseconds: slot.elapsed)
            gather(slot)
            release(slot)
        } else {
            submit(slot)
        }
        return count
    }

    private func submit(_ slot: RequestSlot) {
        guard !pool.submit(slot) else { return }
        executor.reply(slot.request, error: .noMemory, &output)
        release(slot)
    }

    private func gather(_ slot: RequestSlot) {
        slot.buffer.bytes.withUnsafeReadableBytes { _ = output.writeBytes($0) }
    }

    private func takeSlot(for request: RequestHeader) -> RequestSlot? {
        let memory = executor.memory(request)
        guard inFlight < NBDLimits.requestsInFlight,
            inFlight == 0 || bytesInFlight + memory <= NBDLimits.bytesInFlight
        else { return nil }
        let slot: RequestSlot
        if let last = free.popLast() {
            slot = last
        } else {
            precondition(made < NBDLimits.requestsInFlight)
            made += 1
            slot = RequestSlot(executor: executor, mailbox: mailbox)
        }
        inFlight += 1
        bytesInFlight += memory
        slot.memory = memory
        slot.request = request
        return slot
    }

    private func release(_ slot: RequestSlot) {
        slot.buffer.end()
        inFlight -= 1
        bytesInFlight -= slot.memory
        free.append(slot)
    }
}
