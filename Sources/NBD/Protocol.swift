import Blocks

/// Numbers of the NBD protocol, by the protocol's names (proto.md).
enum Magic {
    static let server: UInt64 = 0x4e42_444d_4147_4943
    static let option: UInt64 = 0x4948_4156_454f_5054
    static let optionReply: UInt64 = 0x0003_e889_0455_65a9
    static let request: UInt32 = 0x2560_9513
    static let simpleReply: UInt32 = 0x6744_6698
    static let structuredReply: UInt32 = 0x668e_33ef
}

/// NBD_FLAG_* of the handshake.
struct HandshakeFlags: OptionSet {
    let rawValue: UInt16
    static let fixedNewstyle = HandshakeFlags(rawValue: 1 << 0)
    static let noZeroes = HandshakeFlags(rawValue: 1 << 1)
}

/// NBD_FLAG_* of an export.
struct TransmissionFlags: OptionSet {
    let rawValue: UInt16
    static let hasFlags = TransmissionFlags(rawValue: 1 << 0)
    static let readOnly = TransmissionFlags(rawValue: 1 << 1)
    static let sendFlush = TransmissionFlags(rawValue: 1 << 2)
    static let sendFUA = TransmissionFlags(rawValue: 1 << 3)
    static let sendTrim = TransmissionFlags(rawValue: 1 << 5)
    static let sendWriteZeroes = TransmissionFlags(rawValue: 1 << 6)
    static let sendDF = TransmissionFlags(rawValue: 1 << 7)
    static let canMultiConn = TransmissionFlags(rawValue: 1 << 8)
    static let sendCache = TransmissionFlags(rawValue: 1 << 10)
    static let sendFastZero = TransmissionFlags(rawValue: 1 << 11)

    /// What `store` can do. FAST_ZERO is offered wherever zeroes are: asking costs nothing where the answer
    /// is ENOTSUP.
    init(of capabilities: StoreCapabilities, structuredReplies: Bool) {
        self = [.hasFlags, .canMultiConn, .sendCache]
        if structuredReplies { insert(.sendDF) }
        if capabilities.contains(.writable) {
            formUnion([.sendFlush, .sendFUA, .sendWriteZeroes, .sendFastZero])
            if capabilities.contains(.trims) { insert(.sendTrim) }
        } else {
            insert(.readOnly)
        }
    }

    init(rawValue: UInt16) { self.rawValue = rawValue }
}

/// NBD_OPT_*.
enum Option: UInt32 {
    case exportName = 1
    case abort = 2
    case list = 3
    case startTLS = 5
    case info = 6
    case go = 7
    case structuredReply = 8
    case listMetaContext = 9
    case setMetaContext = 10
}

/// NBD_REP_*.
enum OptionReply: UInt32 {
    case ack = 1
    case server = 2
    case info = 3
    case metaContext = 4
    case errorUnsupported = 0x8000_0001
    case errorPolicy = 0x8000_0002
    case errorInvalid = 0x8000_0003
    case errorTLSRequired = 0x8000_0005
    case errorUnknown = 0x8000_0006
    case errorTooBig = 0x8000_0009
}

/// NBD_INFO_*.
enum InfoType: UInt16 {
    case export = 0
    case name = 1
    case description = 2
    case blockSize = 3
}

/// NBD_CMD_*.
enum Command: UInt16 {
    case read = 0
    case write = 1
    case disconnect = 2
    case flush = 3
    case trim = 4
    case cache = 5
    case writeZeroes = 6
    case blockStatus = 7
}

/// NBD_CMD_FLAG_*.
struct CommandFlags: OptionSet {
    let rawValue: UInt16
    static let fua = CommandFlags(rawValue: 1 << 0)
    static let noHole = CommandFlags(rawValue: 1 << 1)
    static let df = CommandFlags(rawValue: 1 << 2)
    static let reqOne = CommandFlags(rawValue: 1 << 3)
    static let fastZero = CommandFlags(rawValue: 1 << 4)
}

/// NBD_REPLY_TYPE_*, with NBD_REPLY_FLAG_DONE as all our chunks are the only ones of their reply.
enum ChunkType: UInt16 {
    case none = 0
    case offsetData = 1
    case blockStatus = 5
    case error = 0x8001
    static let done: UInt16 = 1
}

/// NBD_E*: the errors of the protocol.
enum ErrorCode: UInt32, Error {
    case notPermitted = 1
    case io = 5
    case noMemory = 12
    case invalid = 22
    case noSpace = 28
    case overflow = 75
    case notSupported = 95
    case shutdown = 108

    /// What a client is told about a store's failure.
    init(_ error: StoreError, fastZero: Bool) {
        switch error.code {
        case .io, .corrupt: self = .io
        case .noSpace: self = .noSpace
        case .readOnly: self = .notPermitted
        // ENOTSUP has its meaning in FAST_ZERO alone.
        case .notSupported: self = fastZero ? .notSupported : .invalid
        case .gone: self = .shutdown
        }
    }
}

/// States of `base:allocation`.
enum AllocationState {
    static let hole: UInt32 = 1 << 0
    static let zero: UInt32 = 1 << 1
    static let context = "base:allocation"
    static let contextID: UInt32 = 1
}
