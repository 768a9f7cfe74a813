import Blocks
import TestSupport
import Testing

@testable import NBD

/// A negotiation without a socket: bytes in, replies out.
private struct Negotiation {
    struct Reply: Equatable {
        var option: UInt32
        var type: UInt32
        var data: [UInt8]
    }

    var handshake: Handshake
    var sent: [UInt8] = []
    var agreement: Agreement?
    var closed: String?
    var tls = false

    init(
        _ exports: [NBDExport], tls: Handshake.TLSPolicy = .unavailable, flags: UInt32? = 3, step: Int = .max
    ) {
        handshake = Handshake(provider: TestProvider(exports), tlsPolicy: tls)
        if let flags { feed(bytes { $0.integer(flags) }, step: step) }
    }

    /// Feeds `input`, `step` bytes at a time.
    mutating func feed(_ input: [UInt8], step: Int = .max) {
        var rest = input[...]
        while !rest.isEmpty, closed == nil, agreement == nil {
            var piece = Array(rest.prefix(step))
            rest = rest.dropFirst(piece.count)
            while true {
                let (consumed, action) = piece.withUnsafeBytes { handshake.receive($0) }
                piece.removeFirst(consumed)
                switch action {
                case nil: break
                case .send(let bytes)?: sent += bytes
                case .startTLS(let bytes)?:
                    sent += bytes
                    tls = true
                case .transmit(let bytes, let agreed)?:
                    sent += bytes
                    agreement = agreed
                case .close(let bytes, let reason)?:
                    sent += bytes
                    closed = reason
                }
                if action == nil || closed != nil || agreement != nil { break }
                if tls && piece.isEmpty && rest.isEmpty { break }
            }
        }
    }

    mutating func option(_ number: UInt32, _ data: [UInt8] = [], step: Int = .max) {
        feed(
            bytes {
                $0.integer(UInt64(0x4948_4156_454f_5054))
                $0.integer(number)
                $0.integer(UInt32(data.count))
                $0.append(data)
            }, step: step)
    }

    /// The replies since the last call, cut out of what was sent.
    mutating func replies() throws -> [Reply] {
        defer { sent = [] }
        return try sent.withUnsafeBytes { buffer in
            var reader = BigEndianReader(buffer)
            var replies: [Reply] = []
            while reader.remaining > 0 {
                #expect(try reader.integer(UInt64.self) == 0x0003_e889_0455_65a9)
                let option = try reader.integer(UInt32.self)
                let type = try reader.integer(UInt32.self)
                let data = Array(try reader.bytes(Int(try reader.integer(UInt32.self))))
                replies.append(Reply(option: option, type: type, data: data))
            }
            return replies
        }
    }

    mutating func types() throws -> [UInt32] { try replies().map(\.type) }
}

func bytes(_ fill: (inout BigEndianWriter) -> Void) -> [UInt8] {
    var writer = BigEndianWriter()
    fill(&writer)
    return writer.bytes
}

private func string(_ text: String) -> [UInt8] {
    bytes {
        $0.integer(UInt32(text.utf8.count))
        $0.append(text.utf8)
    }
}

private func goData(_ name: String, _ info: [UInt16] = []) -> [UInt8] {
    string(name)
        + bytes {
            $0.integer(UInt16(info.count))
            for type in info { $0.integer(type) }
        }
}

private func contexts(_ name: String, _ queries: [String]) -> [UInt8] {
    string(name) + bytes { $0.integer(UInt32(queries.count)) } + queries.flatMap { string($0) }
}

private let errorUnsupported: UInt32 = 0x8000_0001
private let errorPolicy: UInt32 = 0x8000_0002
private let errorInvalid: UInt32 = 0x8000_0003
private let errorTLSRequired: UInt32 = 0x8000_0005
private let errorUnknown: UInt32 = 0x8000_0006
private let errorTooBig: UInt32 = 0x8000_0009

@Suite struct HandshakeTests {
    private let exports = [
        NBDExport(name: "", description: "the volume", store: MemoryStore(size: 1000)),
        NBDExport(name: "snapshot", description: "", store: MemoryStore([1, 2, 3], capabilities: [])),
    ]

    @Test func greetingIsFixedNewstyle() {
        #expect(
            Handshake.greeting == Array("NBDMAGICIHAVEOPT".utf8) + [0, 3])
    }

    @Test(arguments: [1, 2, 3, 7, Int.max]) func goTellsWhatWasAskedFor(step: Int) throws {
        var client = Negotiation(exports, step: step)
        client.option(8, step: step)
        client.option(10, contexts("", ["base:allocation", "qemu:dirty-bitmap:x"]), step: step)
        client.option(7, goData("", [1, 2, 3, 99]), step: step)
        let replies = try client.replies()
        #expect(replies.map(\.option) == [8, 10, 10, 7, 7, 7, 7, 7])
        #expect(replies.map(\.type) == [1, 4, 1, 3, 3, 3, 3, 1])
        #expect(replies[1].data == [0, 0, 0, 1] + Array("base:allocation".utf8))
        // HAS_FLAGS, FLUSH, FUA, TRIM, WRITE_ZEROES, DF, MULTI_CONN, CACHE, FAST_ZERO
        #expect(replies[3].data == [0, 0] + [0, 0, 0, 0, 0, 0, 0x03, 0xe8] + [0b1101, 0b1110_1101])
        #expect(replies[4].data == [0, 1])
        #expect(replies[5].data == [0, 2] + Array("the volume".utf8))
        #expect(replies[6].data == [0, 3] + [0, 0, 0, 1] + [0, 0, 16, 0] + [2, 0, 0, 0])
        let agreement = try #require(client.agreement)
        #expect(agreement.structuredReplies && agreement.allocationContext)
    }

    @Test func readOnlyExportOffersNoWrites() throws {
        var client = Negotiation(exports)
        client.option(6, goData("snapshot"))
        let replies = try client.replies()
        #expect(replies.map(\.type) == [3, 1])
        // HAS_FLAGS, READ_ONLY, MULTI_CONN, CACHE
        #expect(replies[0].data == [0, 0] + [0, 0, 0, 0, 0, 0, 0, 3] + [0b0101, 0b0000_0011])
        #expect(client.agreement == nil && client.closed == nil)
    }

    @Test func exportNameEndsWithOrWithoutZeroes() {
        for (flags, zeroes) in [(UInt32(3), 0), (1, 124), (0, 124), (2, 0)] {
            var client = Negotiation(exports, flags: flags)
            client.option(1, Array("snapshot".utf8))
            #expect(client.sent.count == 10 + zeroes)
            #expect(client.agreement?.export.name == "snapshot")
            #expect(client.agreement?.structuredReplies == false)
        }
        var client = Negotiation(exports)
        client.option(1, Array("absent".utf8))
        #expect(client.closed != nil && client.sent.isEmpty)
    }

    @Test func listTellsNamesAndDescriptions() throws {
        var client = Negotiation(exports)
        client.option(3)
        let replies = try client.replies()
        #expect(replies.map(\.type) == [2, 2, 1])
        #expect(replies[0].data == [0, 0, 0, 0] + Array("the volume".utf8))
        #expect(replies[1].data == [0, 0, 0, 8] + Array("snapshot".utf8))
        client.option(3, [0])
        #expect(try client.types() == [errorInvalid])
    }

    @Test func abortIsAcknowledged() throws {
        var client = Negotiation(exports)
        client.option(2)
        #expect(try client.types() == [1])
        #expect(client.closed == "")
    }

    @Test func unknownOptionsAreUnsupportedAndTheTalkGoesOn() throws {
        var client = Negotiation(exports)
        for number in [UInt32(0), 4, 11, 12, 0xffff_ffff] {
            client.option(number, [1, 2, 3])
            #expect(try client.replies().map { [$0.option, $0.type] } == [[number, errorUnsupported]])
        }
        client.option(7, goData(""))
        #expect(client.agreement != nil)
    }

    @Test func contextsAreListedBySelector() throws {
        var client = Negotiation(exports)
        for (queries, found) in [
            ([], true), (["base:"], true), (["base:allocation"], true), (["base:other"], false),
            (["qemu:"], false), (["x:y", "base:allocation", "base:"], true),
        ] as [([String], Bool)] {
            client.option(9, contexts("", queries))
            let replies = try client.replies()
            #expect(replies.map(\.type) == (found ? [4, 1] : [1]), "\(queries)")
            if found { #expect(replies[0].data == [0, 0, 0, 0] + Array("base:allocation".utf8)) }
        }
    }

    @Test func contextsAreSelectedOnlyWithStructuredRepliesAndForTheirExport() throws {
        var client = Negotiation(exports)
        client.option(10, contexts("", ["base:allocation"]))
        #expect(try client.types() == [errorInvalid])
        client.option(8)
        client.option(10, contexts("absent", ["base:allocation"]))
        client.option(10, contexts("", ["base:"]))
        client.option(10, contexts("", []))
        #expect(try client.types() == [1, errorUnknown, 1, 1])
        client.option(10, contexts("snapshot", ["base:allocation"]))
        client.option(7, goData(""))
        #expect(client.agreement?.allocationContext == false)

        // A later SET ends what an earlier one selected, also when it fails.
        var other = Negotiation(exports)
        other.option(8)
        other.option(10, contexts("", ["base:allocation"]))
        other.option(10, contexts("absent", ["base:allocation"]))
        other.option(7, goData(""))
        #expect(other.agreement?.allocationContext == false)
    }

    @Test func malformedDataAreInvalid() throws {
        var client = Negotiation(exports)
        let malformed: [(UInt32, [UInt8])] = [
            (7, []), (7, [0, 0, 0, 1]), (7, [0, 0, 0, 0, 0]), (7, goData("", [1]).dropLast()),
            (7, goData("") + [0]), (6, [0xff, 0xff, 0xff, 0xff, 0, 0]), (7, [0, 0, 0, 1, 0xff, 0, 0]),
            (8, [1]), (9, string("")), (9, contexts("", ["a"]).dropLast()), (9, contexts("", ["a"]) + [0]),
            (9, string("") + [0xff, 0xff, 0xff, 0xff]),
        ]
        for (number, data) in malformed {
            client.option(number, Array(data))
            #expect(try client.types() == [errorInvalid], "option \(number) with \(data)")
        }
        client.option(7, goData("absent"))
        #expect(try client.types() == [errorUnknown])
        client.option(7, goData(""))
        #expect(client.agreement != nil)
    }

    @Test(arguments: [1000, Int.max]) func limitsOfOptions(step: Int) throws {
        let limit = NBDLimits.maximumOptionData
        var client = Negotiation(exports)
        client.option(77, [UInt8](repeating: 0, count: limit), step: step)
        client.option(77, [UInt8](repeating: 0, count: limit + 1), step: step)
        #expect(try client.types() == [errorUnsupported, errorTooBig])
        let name = String(repeating: "n", count: NBDLimits.maximumString)
        client.option(7, goData(name), step: step)
        client.option(7, goData(name + "n"), step: step)
        #expect(try client.types() == [errorUnknown, errorTooBig])
        client.option(1, [UInt8](repeating: 0, count: limit + 1))
        #expect(client.closed != nil)

        var many = Negotiation(exports)
        for _ in 0..<NBDLimits.maximumOptions { many.option(3) }
        #expect(many.closed == nil)
        many.option(3)
        #expect(many.closed != nil)
    }

    @Test func badBeginningsAreClosed() {
        #expect(Negotiation(exports, flags: 4).closed != nil)
        var magic = Negotiation(exports)
        magic.feed([UInt8](repeating: 0x49, count: 16))
        #expect(magic.closed != nil)
        // A client of the plain newstyle understands no reply to an option.
        var plain = Negotiation(exports, flags: 0)
        plain.option(3)
        #expect(plain.closed != nil && plain.sent.isEmpty)
    }

    @Test func beforeTLSOnlyStartTLSAndAbortAreAnswered() throws {
        var client = Negotiation(exports, tls: .required)
        for number in [UInt32(3), 6, 7, 8, 9, 10, 99] {
            client.option(number, [1])
            #expect(try client.types() == [errorTLSRequired])
        }
        client.option(5, [0])
        #expect(try client.types() == [errorInvalid])
        client.option(5)
        #expect(try client.types() == [1])
        #expect(client.tls)
        client.handshake.tlsStarted()
        client.option(5)
        client.option(3)
        #expect(try client.types() == [errorInvalid, 2, 2, 1])
        client.option(7, goData(""))
        #expect(client.agreement != nil)

        var name = Negotiation(exports, tls: .required)
        name.option(1, [])
        #expect(name.closed != nil && name.sent.isEmpty)
        var abort = Negotiation(exports, tls: .required)
        abort.option(2)
        #expect(try abort.types() == [1])
    }

    @Test func whatWasAgreedInTheClearIsForgotten() throws {
        var client = Negotiation(exports, tls: .offered)
        client.option(8)
        client.option(10, contexts("", ["base:allocation"]))
        client.option(5)
        client.handshake.tlsStarted()
        client.option(7, goData(""))
        let agreement = try #require(client.agreement)
        #expect(!agreement.structuredReplies && !agreement.allocationContext)
    }

    @Test func bytesInTheClearBehindStartTLSEndTheConnection() {
        var client = Negotiation(exports, tls: .required)
        client.feed(
            bytes {
                $0.integer(UInt64(0x4948_4156_454f_5054))
                $0.integer(UInt32(5))
                $0.integer(UInt32(0))
                $0.integer(UInt64(0x4948_4156_454f_5054))
            })
        #expect(client.closed != nil)
    }

    @Test func startTLSWithoutCertificatesIsRefused() throws {
        var client = Negotiation(exports)
        client.option(5)
        #expect(try client.types() == [errorPolicy])
    }
}
