import Blocks

extension OperationCode {
    public static let modeSelect6 = OperationCode(rawValue: 0x15)
    public static let modeSelect10 = OperationCode(rawValue: 0x55)
}

/// The fields of MODE SELECT (SPC-4 §6.11, §6.12).
public struct ModeSelect: Hashable, Sendable {
    /// ``CDBForm/six`` or ``CDBForm/ten``.
    public var form: CDBForm
    /// PF: the pages have the format of the standard. A unit whose pages have no other refuses 0.
    public var isPageFormat = true
    /// SP: the values are to be saved.
    public var saves = false
    /// Bytes; 0 changes nothing.
    public var parameterListLength: Int

    public init(_ form: CDBForm, parameterListLength: Int) {
        self.form = form
        self.parameterListLength = parameterListLength
    }

    init(decoding cdb: [UInt8]) {
        if cdb.count == 6 {
            self.init(.six, parameterListLength: Int(cdb[4]))
        } else {
            self.init(.ten, parameterListLength: Int(cdb.bigEndian(at: 7, as: UInt16.self)))
        }
        isPageFormat = cdb[1] & 0x10 != 0
        saves = cdb[1] & 0x01 != 0
    }

    func encoded() -> [UInt8] {
        let flags: UInt8 = (isPageFormat ? 0x10 : 0) | (saves ? 0x01 : 0)
        switch form {
        case .six:
            return Command.cdb(.modeSelect6) {
                $0.set(flags, at: 1)
                $0.set(UInt8(parameterListLength), at: 4)
            }
        case .ten:
            return Command.cdb(.modeSelect10) {
                $0.set(flags, at: 1)
                $0.set(UInt16(parameterListLength), at: 7)
            }
        case .twelve, .sixteen: preconditionFailure("MODE SELECT has no such form")
        }
    }
}

/// The parameter list of MODE SELECT (SPC-4 §7.5.3 … §7.5.7): at most one block descriptor, then pages. Every
/// part knows its offset in the list, for the field pointer of a refusal.
public struct ModeParameterList: Hashable, Sendable {
    public struct BlockDescriptor: Hashable, Sendable {
        /// Of the block descriptor's first byte.
        public var offset: Int
        /// NUMBER OF LOGICAL BLOCKS. 0 keeps it; all ones is the most there is.
        public var count: UInt64
        /// LOGICAL BLOCK LENGTH in bytes.
        public var blockLength: UInt32
        /// Whether it is the one of 16 bytes (LONGLBA).
        public var isLong: Bool

        /// All ones in NUMBER OF LOGICAL BLOCKS.
        public var asksForMaximum: Bool { count == (isLong ? UInt64.max : UInt64(UInt32.max)) }
        /// Where LOGICAL BLOCK LENGTH stands in the list.
        public var blockLengthOffset: Int { offset + (isLong ? 12 : 5) }
    }
    public struct Page: Hashable, Sendable {
        /// Of the page's first byte.
        public var offset: Int
        public var code: UInt8
        /// What follows PAGE LENGTH.
        public var body: ArraySlice<UInt8>
    }

    public var blockDescriptor: BlockDescriptor?
    public var pages: [Page] = []

    /// MODE DATA LENGTH, WP, DPOFUA and PS are reserved here and ignored: initiators send back what they got.
    /// - Throws: PARAMETER LIST LENGTH ERROR where the list ends within a header, descriptor or page; INVALID
    ///   FIELD IN PARAMETER LIST for a medium type, for lengths of descriptors that there are not, and for
    ///   subpages.
    public init(decoding bytes: [UInt8], form: CDBForm) throws(CheckCondition) {
        let isTen = form == .ten
        let header = isTen ? 8 : 4
        guard bytes.count >= header else { throw CheckCondition(.parameterListLengthError) }
        let medium = isTen ? 2 : 1
        guard bytes[medium] == 0 else { throw CheckCondition(.invalidFieldInParameterList(byte: medium)) }
        let isLong = isTen && bytes[4] & 1 != 0
        let length = isTen ? Int(bytes.bigEndian(at: 6, as: UInt16.self)) : Int(bytes[3])
        guard length == 0 || length == (isLong ? 16 : 8) else {
            throw CheckCondition(.invalidFieldInParameterList(byte: isTen ? 6 : 3))
        }
        guard bytes.count >= header + length else { throw CheckCondition(.parameterListLengthError) }
        if length > 0 {
            blockDescriptor = BlockDescriptor(
                offset: header,
                count: isLong
                    ? bytes.bigEndian(at: header) : UInt64(bytes.bigEndian(at: header, as: UInt32.self)),
                blockLength: isLong
                    ? bytes.bigEndian(at: header + 12)
                    : bytes.bigEndian(at: header + 4, as: UInt32.self) & 0xFF_FFFF,
                isLong: isLong)
        }
        var offset = header + length
        while offset < bytes.count {
            guard bytes.count >= offset + 2 else { throw CheckCondition(.parameterListLengthError) }
            // SPF: a subpage; none of ours has any.
            guard bytes[offset] & 0x40 == 0 else {
                throw CheckCondition(.invalidFieldInParameterList(byte: offset, bit: 6))
            }
            let end = offset + 2 + Int(bytes[offset + 1])
            guard bytes.count >= end else { throw CheckCondition(.parameterListLengthError) }
            pages.append(Page(offset: offset, code: bytes[offset] & 0x3F, body: bytes[(offset + 2)..<end]))
            offset = end
        }
    }

    /// The list that sets `pages`, without a block descriptor.
    public static func encode(_ pages: [ModePage], form: CDBForm) -> [UInt8] {
        [UInt8](repeating: 0, count: form == .ten ? 8 : 4) + pages.flatMap { $0.encoded() }
    }
}
