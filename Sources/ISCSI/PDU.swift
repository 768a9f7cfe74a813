import Blocks

/// Opcodes of RFC 7143 §11.2.1.2.
enum Opcode {
    static let nopOut: UInt8 = 0x00
    static let scsiCommand: UInt8 = 0x01
    static let taskManagementRequest: UInt8 = 0x02
    static let loginRequest: UInt8 = 0x03
    static let textRequest: UInt8 = 0x04
    static let dataOut: UInt8 = 0x05
    static let logoutRequest: UInt8 = 0x06
    static let snackRequest: UInt8 = 0x10
    static let nopIn: UInt8 = 0x20
    static let scsiResponse: UInt8 = 0x21
    static let taskManagementResponse: UInt8 = 0x22
    static let loginResponse: UInt8 = 0x23
    static let textResponse: UInt8 = 0x24
    static let dataIn: UInt8 = 0x25
    static let logoutResponse: UInt8 = 0x26
    static let r2t: UInt8 = 0x31
    static let asyncMessage: UInt8 = 0x32
    static let reject: UInt8 = 0x3F
}

/// Reasons of a Reject (RFC 7143 §11.17.1).
enum RejectReason: UInt8 {
    case dataDigestError = 0x02
    case snackReject = 0x03
    case protocolError = 0x04
    case commandNotSupported = 0x05
    case taskInProgress = 0x07
    case invalidPDUField = 0x09
    case negotiationReset = 0x0B
}

/// What a peer did against the protocol. At error recovery level 0 the connection ends with it.
struct ProtocolViolation: Error, Hashable {
    var reason: RejectReason
    var what: String

    init(_ what: String, _ reason: RejectReason = .protocolError) {
        self.what = what
        self.reason = reason
    }
}

/// Marks "no tag" in task and transfer tags.
let reservedTag: UInt32 = 0xFFFF_FFFF

/// A protocol data unit: basic header segment, additional header segments, data (RFC 7143 §11.1). Digests
/// and padding belong to the wire and are not in here.
struct PDU: Hashable {
    /// Bytes of a basic header segment.
    static let headerLength = 48

    /// 48 bytes; the lengths in it are set at encoding.
    private(set) var header: [UInt8]
    /// A multiple of four bytes.
    var additionalHeaders: [UInt8] = []
    var data: ArraySlice<UInt8> = []
    /// The data digest did not fit: the header is right, the data are not.
    var isDamaged = false

    init(_ opcode: UInt8, flags: UInt8 = 0x80) {
        header = [UInt8](repeating: 0, count: Self.headerLength)
        header[0] = opcode
        header[1] = flags
    }

    init(header: [UInt8]) {
        precondition(header.count == Self.headerLength)
        self.header = header
    }

    /// The opcode without the immediate bit.
    var opcode: UInt8 { header[0] & 0x3F }
    /// I: outside the order of commands (RFC 7143 §11.2.1.1).
    var isImmediate: Bool {
        get { header[0] & 0x40 != 0 }
        set { header[0] = header[0] & 0xBF | (newValue ? 0x40 : 0) }
    }
    var flags: UInt8 {
        get { header[1] }
        set { header[1] = newValue }
    }
    /// F, T of login.
    var isFinal: Bool { header[1] & 0x80 != 0 }
    var lun: UInt64 {
        get { self[long: 8] }
        set { self[long: 8] = newValue }
    }
    var initiatorTaskTag: UInt32 {
        get { self[word: 16] }
        set { self[word: 16] = newValue }
    }
    /// TARGET TRANSFER TAG; in a SCSI command its place holds the expected data transfer length.
    var targetTransferTag: UInt32 {
        get { self[word: 20] }
        set { self[word: 20] = newValue }
    }
    /// From the initiator.
    var cmdSN: UInt32 {
        get { self[word: 24] }
        set { self[word: 24] = newValue }
    }
    /// From the target.
    var statSN: UInt32 {
        get { self[word: 24] }
        set { self[word: 24] = newValue }
    }
    var expStatSN: UInt32 {
        get { self[word: 28] }
        set { self[word: 28] = newValue }
    }
    var expCmdSN: UInt32 {
        get { self[word: 28] }
        set { self[word: 28] = newValue }
    }
    var maxCmdSN: UInt32 {
        get { self[word: 32] }
        set { self[word: 32] = newValue }
    }
    /// DATASN, R2TSN.
    var dataSN: UInt32 {
        get { self[word: 36] }
        set { self[word: 36] = newValue }
    }
    var bufferOffset: UInt32 {
        get { self[word: 40] }
        set { self[word: 40] = newValue }
    }
    /// RESIDUAL COUNT, DESIRED DATA TRANSFER LENGTH.
    var residualCount: UInt32 {
        get { self[word: 44] }
        set { self[word: 44] = newValue }
    }

    subscript(byte offset: Int) -> UInt8 {
        get { header[offset] }
        set { header[offset] = newValue }
    }

    subscript(half offset: Int) -> UInt16 {
        get { UInt16(header[offset]) << 8 | UInt16(header[offset + 1]) }
        set {
            header[offset] = UInt8(newValue >> 8)
            header[offset + 1] = UInt8(truncatingIfNeeded: newValue)
        }
    }

    subscript(word offset: Int) -> UInt32 {
        get { header.withUnsafeBytes { $0.bigEndian(at: offset) } }
        set { header.withUnsafeMutableBytes { $0.storeBigEndian(newValue, at: offset) } }
    }

    subscript(long offset: Int) -> UInt64 {
        get { header.withUnsafeBytes { $0.bigEndian(at: offset) } }
        set { header.withUnsafeMutableBytes { $0.storeBigEndian(newValue, at: offset) } }
    }
}

/// Which digests a connection uses (RFC 7143 §13.1).
struct Digests: Hashable {
    var header = false
    var data = false
}

extension PDU {
    /// Bytes on the wire.
    func encodedLength(_ digests: Digests) -> Int {
        let padded = (data.count + 3) & ~3
        let digestBytes = (digests.header ? 4 : 0) + (digests.data && padded > 0 ? 4 : 0)
        return Self.headerLength + additionalHeaders.count + padded + digestBytes
    }

    /// The basic header segment with the lengths in it.
    var encodedHeader: [UInt8] {
        var head = header
        head[4] = UInt8(additionalHeaders.count / 4)
        head[5] = UInt8(data.count >> 16)
        head[6] = UInt8(truncatingIfNeeded: data.count >> 8)
        head[7] = UInt8(truncatingIfNeeded: data.count)
        return head
    }

    /// Hands the bytes of the PDU to `sink`, piece after piece.
    func encode(_ digests: Digests, to sink: (UnsafeRawBufferPointer) -> Void) {
        precondition(additionalHeaders.count % 4 == 0 && additionalHeaders.count <= 255 * 4)
        precondition(data.count < 1 << 24)
        var head = encodedHeader + additionalHeaders
        if digests.header { head += Self.digest(CRC32C.checksum(head)) }
        head.withUnsafeBytes(sink)
        guard !data.isEmpty else { return }
        data.withUnsafeBytes(sink)
        var tail = [UInt8](repeating: 0, count: (4 - data.count % 4) % 4)
        if digests.data {
            var crc = CRC32C()
            data.withUnsafeBytes { crc.update($0) }
            crc.update(tail)
            tail += Self.digest(crc.value)
        }
        if !tail.isEmpty { tail.withUnsafeBytes(sink) }
    }

    /// A digest goes out least significant byte first (RFC 7143 §13.1 and appendix A of RFC 3720's examples).
    static func digest(_ value: UInt32) -> [UInt8] { withUnsafeBytes(of: value.littleEndian) { Array($0) } }

    func encoded(_ digests: Digests = Digests()) -> [UInt8] {
        var bytes: [UInt8] = []
        bytes.reserveCapacity(encodedLength(digests))
        encode(digests) { bytes.append(contentsOf: $0) }
        return bytes
    }
}
