import Blocks

extension OperationCode {
    public static let writeBuffer = OperationCode(rawValue: 0x3B)
    public static let readBuffer = OperationCode(rawValue: 0x3C)
}

/// READ BUFFER and WRITE BUFFER. What a unit does with modes and buffers is the device server's business.
public enum BufferCommand: Hashable, Sendable {
    /// What both address.
    public struct Place: Hashable, Sendable {
        /// 5 bits.
        public var mode: UInt8
        public var buffer: UInt8
        /// 24 bits.
        public var offset: UInt32

        public init(mode: UInt8, buffer: UInt8, offset: UInt32 = 0) {
            self.mode = mode
            self.buffer = buffer
            self.offset = offset
        }
    }

    /// MODE 01h: vendor specific, in both.
    public static let vendorSpecific: UInt8 = 0x01
    /// The greatest length that the CDB can say, bytes.
    public static let greatestLength = 1 << 24 - 1

    /// SPC-4 §6.18.
    case read(Place, allocationLength: Int)
    /// SPC-4 §6.49.
    case write(Place, parameterListLength: Int)

    /// Nil for an operation code that is neither.
    init?(_ code: OperationCode, _ cdb: [UInt8]) {
        guard code == .readBuffer || code == .writeBuffer else { return nil }
        let place = Place(
            mode: cdb[1] & 0x1F, buffer: cdb[2], offset: cdb.bigEndian(at: 2, as: UInt32.self) & 0xFF_FFFF)
        let length = Int(cdb.bigEndian(at: 5, as: UInt32.self) & 0xFF_FFFF)
        self =
            code == .readBuffer
            ? .read(place, allocationLength: length) : .write(place, parameterListLength: length)
    }

    func encoded() -> [UInt8] {
        let (code, place, length) =
            switch self {
            case .read(let place, let length): (OperationCode.readBuffer, place, length)
            case .write(let place, let length): (OperationCode.writeBuffer, place, length)
            }
        precondition(place.mode < 0x20 && place.offset <= 0xFF_FFFF && length <= Self.greatestLength)
        return Command.cdb(code) {
            // Each field of 24 bits behind a byte that is set after it.
            $0.set(UInt32(length), at: 5)
            $0.set(place.offset, at: 2)
            $0.set(place.buffer, at: 2)
            $0.set(place.mode, at: 1)
        }
    }
}
