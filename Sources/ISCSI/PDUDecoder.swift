import Blocks

/// Takes bytes as they come and gives the PDUs in them. Holds at most one PDU, whose data segment is never
/// longer than the limit.
struct PDUDecoder {
    var digests = Digests()
    /// The longest data segment that is taken, bytes.
    var maximumDataSegment = ISCSILimits.loginDataSegment

    private var head: [UInt8] = []
    private var body: [UInt8] = []
    private var headIsWhole = false

    /// Whether a PDU has begun and not ended.
    var isWithinPDU: Bool { !head.isEmpty }

    private var additionalLength: Int { head.count > 4 ? Int(head[4]) * 4 : 0 }
    private var dataLength: Int { Int(head[5]) << 16 | Int(head[6]) << 8 | Int(head[7]) }
    private var paddedLength: Int { (dataLength + 3) & ~3 }

    /// Consumes bytes from the front of `input` until one PDU is whole. One whose data digest does not fit comes
    /// marked as damaged; after a header digest that does not, nobody knows where the next PDU begins.
    /// - Returns: nil when `input` is used up before.
    mutating func next(_ input: inout UnsafeRawBufferPointer) throws(ProtocolViolation) -> PDU? {
        if !headIsWhole {
            guard Self.fill(&head, to: PDU.headerLength, &input) else { return nil }
            guard dataLength <= maximumDataSegment else {
                throw ProtocolViolation("a data segment of \(dataLength) bytes", .invalidPDUField)
            }
            let length = PDU.headerLength + additionalLength
            guard Self.fill(&head, to: length + (digests.header ? 4 : 0), &input) else { return nil }
            if digests.header {
                let sent = Array(head[length...])
                head.removeLast(4)
                guard PDU.digest(CRC32C.checksum(head)) == sent else {
                    throw ProtocolViolation("header digest error")
                }
            }
            headIsWhole = true
            if dataLength > 0 { body.reserveCapacity(paddedLength + 4) }
        }
        let length = dataLength
        var isDamaged = false
        if length > 0 {
            let digestLength = digests.data ? 4 : 0
            guard Self.fill(&body, to: paddedLength + digestLength, &input) else { return nil }
            isDamaged =
                digests.data
                && PDU.digest(CRC32C.checksum(body[..<paddedLength])) != Array(body[paddedLength...])
        }
        var pdu = PDU(header: Array(head[..<PDU.headerLength]))
        pdu.additionalHeaders = Array(head[PDU.headerLength...])
        pdu.data = body[..<length]
        pdu.isDamaged = isDamaged
        head.removeAll(keepingCapacity: true)
        body = []
        headIsWhole = false
        return pdu
    }

    private static func fill(
        _ bytes: inout [UInt8], to count: Int, _ input: inout UnsafeRawBufferPointer
    ) -> Bool {
        let wanted = count - bytes.count
        guard wanted > 0 else { return true }
        let taken = min(wanted, input.count)
        bytes.append(contentsOf: input.prefix(taken))
        input = UnsafeRawBufferPointer(rebasing: input.dropFirst(taken))
        return taken == wanted
    }
}
