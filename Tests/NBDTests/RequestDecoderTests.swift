import Blocks
import TestSupport
import Testing

@testable import NBD

func request(
    _ type: UInt16, flags: UInt16 = 0, cookie: UInt64 = 1, offset: UInt64 = 0, length: UInt32 = 0,
    magic: UInt32 = 0x2560_9513
) -> [UInt8] {
    RawNBDClient.request(
        type, flags: flags, cookie: cookie, offset: offset, length: length, magic: magic)
}

private enum Step: Hashable {
    case event(RequestDecoder.Event)
    case payload([UInt8])
}

@Suite struct RequestDecoderTests {
    private func rules(
        size: Int = 1 << 20, capabilities: StoreCapabilities = [.writable, .trims, .zeroesFast],
        structured: Bool = true, context: Bool = true
    ) -> RequestRules {
        let store = MemoryStore([UInt8](repeating: 0, count: size), capabilities: capabilities)
        return RequestRules(
            Agreement(
                export: NBDExport(name: "", description: "", store: store), structuredReplies: structured,
                allocationContext: context))
    }

    /// What a decoder makes of `input` when it comes `step` bytes at a time.
    private func decode(_ input: [UInt8], _ rules: RequestRules, step: Int) -> [Step] {
        var decoder = RequestDecoder(rules: rules)
        var steps: [Step] = []
        var payload: [UInt8] = []
        for start in stride(from: 0, to: input.count, by: step) {
            var piece = Array(input[start..<min(start + step, input.count)])
            while true {
                if decoder.payloadLeft > 0 {
                    let count = decoder.takePayload(available: piece.count)
                    payload += piece.prefix(count)
                    piece.removeFirst(count)
                    if decoder.payloadLeft > 0 { break }
                    steps.append(.payload(payload))
                    payload = []
                }
                let (consumed, event) = piece.withUnsafeBytes { decoder.next($0) }
                piece.removeFirst(consumed)
                if event == .needsMore { break }
                steps.append(.event(event))
                if event == .disconnect || event == .violation { return steps }
            }
        }
        return steps
    }

    private func refusal(_ bytes: [UInt8], _ rules: RequestRules) -> ErrorCode? {
        let payload = [UInt8](repeating: 0, count: 8)
        for step in decode(bytes + payload, rules, step: .max) {
            switch step {
            case .event(.refused(_, let error)): return error
            case .event(.request): return nil
            default: break
            }
        }
        return nil
    }

    @Test func everySplitGivesTheSame() {
        let data = pattern(300, seed: 4)
        let stream =
            request(0, cookie: 1, offset: 5, length: 10) + request(1, cookie: 2, offset: 6, length: 300)
            + data
            + request(1, cookie: 3, offset: (1 << 20) - 4, length: 5) + [1, 2, 3, 4, 5]
            + request(3, cookie: 4) + request(9, cookie: 5) + request(2)
        let whole = decode(stream, rules(), step: stream.count)
        #expect(
            whole == [
                .event(.request(RequestHeader(type: 0, cookie: 1, offset: 5, length: 10))),
                .event(.request(RequestHeader(type: 1, cookie: 2, offset: 6, length: 300))), .payload(data),
                .event(
                    .refused(RequestHeader(type: 1, cookie: 3, offset: (1 << 20) - 4, length: 5), .noSpace)),
                .event(.request(RequestHeader(type: 3, cookie: 4))),
                .event(.refused(RequestHeader(type: 9, cookie: 5), .invalid)), .event(.disconnect),
            ])
        for step in 1..<stream.count { #expect(decode(stream, rules(), step: step) == whole, "step \(step)") }
    }

    @Test func aWrongMagicIsAViolation() {
        #expect(decode(request(0, length: 1, magic: 0x2560_9514), rules(), step: 1) == [.event(.violation)])
    }

    @Test func limitsOfLengths() {
        let large = rules(size: 40 << 20)
        let limit = NBDLimits.maximumPayload
        #expect(refusal(request(0, length: limit), large) == nil)
        #expect(refusal(request(0, length: limit + 1), large) == .invalid)
        #expect(refusal(request(0, flags: 4, length: limit + 1), large) == .overflow)
        #expect(refusal(request(4, length: limit + 1), large) == nil)
        #expect(refusal(request(6, length: limit + 1), large) == nil)
        #expect(refusal(request(7, length: limit + 1), large) == nil)
        // The payload of a WRITE that is too long is taken all the same.
        var decoder = RequestDecoder(rules: large)
        let header = request(1, cookie: 9, length: limit + 1)
        #expect(header.withUnsafeBytes { decoder.next($0) }.event == .needsMore)
        let half = [UInt8](repeating: 0, count: Int(limit) / 2)
        #expect(half.withUnsafeBytes { decoder.next($0) }.event == .needsMore)
        #expect(half.withUnsafeBytes { decoder.next($0) }.event == .needsMore)
        let last = half.withUnsafeBytes { decoder.next($0) }
        #expect(last.consumed == 1)
        #expect(last.event == .refused(RequestHeader(type: 1, cookie: 9, length: limit + 1), .invalid))
    }

    @Test func rangesBeyondTheEnd() {
        let end: UInt64 = 1 << 20
        for (type, error) in [
            (UInt16(0), ErrorCode.invalid), (1, .noSpace), (4, .invalid), (5, .invalid), (6, .noSpace),
            (7, .invalid),
        ] {
            #expect(refusal(request(type, offset: end - 8, length: 8), rules()) == nil)
            #expect(refusal(request(type, offset: end - 7, length: 8), rules()) == error)
            #expect(refusal(request(type, offset: end, length: 8), rules()) == error)
            #expect(refusal(request(type, offset: .max, length: 8), rules()) == error)
            #expect(refusal(request(type, offset: 0, length: 0), rules()) == .invalid)
        }
    }

    @Test func readOnlyExportsPermitNoChange() {
        let readOnly = rules(capabilities: [])
        for type in [UInt16(1), 4, 6] {
            #expect(refusal(request(type, length: 8), readOnly) == .notPermitted)
        }
        #expect(refusal(request(3), readOnly) == .invalid)
        for type in [UInt16(0), 5, 7] { #expect(refusal(request(type, length: 8), readOnly) == nil) }
    }

    @Test func flagsAreThoseOfTheirCommands() {
        let fua: UInt16 = 1
        let allowed: [UInt16: UInt16] = [0: 4, 1: 0, 3: 0, 4: 0, 5: 0, 6: 2 | 16, 7: 8]
        for (type, more) in allowed {
            for bit in 0..<UInt16(16) {
                let flags: UInt16 = 1 << bit
                let length: UInt32 = type == 3 ? 0 : 8
                let expected: ErrorCode? = flags & (more | fua) != 0 ? nil : .invalid
                #expect(refusal(request(type, flags: flags, length: length), rules()) == expected)
            }
        }
        #expect(refusal(request(0, flags: 4, length: 8), rules(structured: false)) == .invalid)
    }

    @Test func blockStatusNeedsItsContextAndTrimItsStore() {
        #expect(refusal(request(7, length: 8), rules(context: false)) == .invalid)
        #expect(refusal(request(4, length: 8), rules(capabilities: .writable)) == .invalid)
        #expect(refusal(request(3, length: 1), rules()) == .invalid)
        #expect(refusal(request(3, offset: 1), rules()) == .invalid)
    }
}
