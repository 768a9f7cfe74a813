import Blocks
import Foundation
import NIOCore
import TestSupport

@testable import NBD

/// Bytes of a client on a connection, from its flags on. The first byte says what TLS there is (bits 0 and 1: none,
/// offered, demanded), that negotiation is left out (bit 2; bit 3: with structured replies and `base:allocation`), and how
/// long the pieces are in which the bytes arrive (bits 4 to 7).
///
/// What must hold: no trap; in pieces the server answers as with all at once; never more held than the session may hold;
/// what is read is what was written; a read-only export stays as it is.
func fuzzNBD(_ input: [UInt8]) {
    var input = FuzzInput(input)
    let how = input.byte()
    let bytes = input.all()
    let step = Int(how >> 4) * 29 + 1
    guard how & 4 == 0 else {
        return transmit(bytes, step, structured: how & 8 != 0, FuzzedExports.shared.live())
    }
    let pieces = negotiate(how, bytes, step)
    let whole = negotiate(how, bytes, Int.max)
    // What comes behind STARTTLS was sent in the clear or through TLS, as the pieces have it.
    if !whole.asksForTLS {
        precondition(pieces.sent == whole.sent, "the answers depend on how the bytes were cut")
        precondition(pieces.rest == whole.rest, "another place where transmission begins")
    }
    for one in [pieces, whole] where one.agreement != nil {
        precondition(how & 3 < 2 || one.isTLS, "transmission without TLS where it is demanded")
    }
    if let agreement = whole.agreement {
        transmit(Array(bytes[(bytes.count - whole.rest)...]), step, agreement)
    }
}

private final class FuzzedExports: NBDExportProvider {
    static let shared = FuzzedExports()
    static let size = 64 << 10
    let readOnly = MemoryStore([UInt8](repeating: 0xA5, count: size), capabilities: .knowsAllocation)

    func live() -> NBDExport {
        NBDExport(name: "", description: "live", store: MemoryStore(size: Self.size))
    }
    func exports() -> [NBDExport] {
        [live(), NBDExport(name: "snapshot", description: "", store: readOnly)]
    }
    func export(named name: String) -> NBDExport? { exports().first { $0.name == name } }
}

private struct Negotiated {
    var sent: [UInt8] = []
    var agreement: Agreement?
    var asksForTLS = false
    var isTLS = false
    /// Bytes that came and were not taken.
    var rest = 0
}

private func negotiate(_ how: UInt8, _ bytes: [UInt8], _ step: Int) -> Negotiated {
    let policies: [Handshake.TLSPolicy] = [.unavailable, .offered, .required, .required]
    var handshake = Handshake(provider: FuzzedExports.shared, tlsPolicy: policies[Int(how & 3)])
    var result = Negotiated()
    var held: [UInt8] = []
    var next = 0
    while true {
        let (consumed, action) = held.withUnsafeBytes { handshake.receive($0) }
        precondition(consumed <= held.count)
        held.removeFirst(consumed)
        switch action {
        case nil:
            precondition(held.isEmpty, "bytes left and nothing to do")
            guard next < bytes.count else { return result }
            let end = step < bytes.count - next ? next + step : bytes.count
            held += bytes[next..<end]
            next = end
        case .send(let reply): result.sent += reply
        case .startTLS(let reply):
            result.sent += reply
            result.asksForTLS = true
            // As the socket does: what came in the clear behind it is never taken.
            guard held.isEmpty else { continue }
            // Whether more has come by then is a matter of pieces; here it has not.
            result.isTLS = true
            handshake.tlsStarted()
        case .transmit(let reply, let agreement):
            result.sent += reply
            result.agreement = agreement
            result.rest = held.count + bytes.count - next
            return result
        case .close(let reply, _):
            result.sent += reply
            return result
        }
    }
}

/// Workers of all inputs.
private let workers = WorkerPool(limit: 4)

private func transmit(_ bytes: [UInt8], _ step: Int, structured: Bool, _ export: NBDExport) {
    transmit(
        bytes, step, Agreement(export: export, structuredReplies: structured, allocationContext: structured))
}

private func transmit(_ bytes: [UInt8], _ step: Int, _ agreement: Agreement) {
    FuzzedClient(agreement).send(bytes, step)
    let store = agreement.export.store
    if !store.capabilities.contains(.writable) {
        let bytes = try? store.bytes(at: 0, count: Int(store.size))
        precondition(bytes?.allSatisfy { $0 == 0xA5 } == true, "a read-only export was written")
    }
    // It serves whoever comes next.
    var request = BigEndianWriter()
    request.integer(Magic.request)
    request.integer(UInt32(0))
    request.integer(UInt64(0xC00C1E))
    request.integer(UInt64(512))
    request.integer(UInt32(512))
    let next = FuzzedClient(agreement)
    next.send(request.bytes, Int.max)
    precondition(
        next.replies == RequestExecutor(agreement).readHeader + 512, "a client that comes after is not served"
    )
}

/// What the event loop does with a session.
private final class FuzzedClient {
    private let session: TransmissionSession
    private let done = Monitor(0)
    /// Bytes.
    private(set) var replies = 0

    init(_ agreement: Agreement) {
        let done = done
        session = TransmissionSession(
            agreement, pool: workers, mailbox: Mailbox(wake: { done.withLockAndNotify { $0 += 1 } }))
    }

    private func collect() {
        session.collect { replies += $0.readableBytes }
        replies += session.output.readableBytes
        session.output.clear()
    }

    /// Until a worker has done something.
    private func wait() {
        done.wait { count -> Void? in
            guard count > 0 else { return nil }
            count = 0
            return ()
        }
        collect()
    }

    /// To the end of what was sent, and of what was begun for it.
    func send(_ bytes: [UInt8], _ step: Int) {
        var held: [UInt8] = []
        var next = 0
        feeding: while true {
            let (consumed, state) = held.withUnsafeBytes { session.process($0) }
            held.removeFirst(consumed)
            precondition(session.inFlight <= NBDLimits.requestsInFlight, "more in flight than may be")
            switch state {
            case .flush: collect()
            case .blocked: wait()
            case .needsInput:
                collect()
                guard next < bytes.count else { break feeding }
                let end = step < bytes.count - next ? next + step : bytes.count
                held += bytes[next..<end]
                next = end
            case .disconnected, .violated: break feeding
            }
        }
        session.end()
        while session.inFlight > 0 { wait() }
        collect()
    }
}
