import Blocks

/// The fields of READ DEFECT DATA (10) and (12) (SBC-3 §5.17, §5.18).
public struct ReadDefectData: Hashable, Sendable {
    /// ``CDBForm/ten`` or ``CDBForm/twelve``.
    public var form: CDBForm
    /// REQ_PLIST: the defects that the manufacturer found.
    public var wantsPrimary: Bool
    /// REQ_GLIST: those that were found since.
    public var wantsGrown: Bool
    /// DEFECT LIST FORMAT, 0 to 6.
    public var format: UInt8
    /// Bytes.
    public var allocationLength: Int

    public init(
        _ form: CDBForm, wantsPrimary: Bool, wantsGrown: Bool, format: UInt8 = 0, allocationLength: Int
    ) {
        self.form = form
        self.wantsPrimary = wantsPrimary
        self.wantsGrown = wantsGrown
        self.format = format
        self.allocationLength = allocationLength
    }

    init(decoding cdb: [UInt8]) throws(CheckCondition) {
        let isTen = cdb.count == 10
        let flags = isTen ? cdb[2] : cdb[1]
        // 111b is reserved.
        guard flags & 7 != 7 else { throw .cdb(isTen ? 2 : 1, bit: 2) }
        self.init(
            isTen ? .ten : .twelve, wantsPrimary: flags & 0x10 != 0, wantsGrown: flags & 0x08 != 0,
            format: flags & 7,
            allocationLength: isTen
                ? Int(cdb.bigEndian(at: 7, as: UInt16.self)) : Int(cdb.bigEndian(at: 6, as: UInt32.self)))
    }

    private var flags: UInt8 { (wantsPrimary ? 0x10 : 0) | (wantsGrown ? 0x08 : 0) | format & 7 }

    func encoded() -> [UInt8] {
        if form == .ten {
            return Command.cdb(.readDefectData10) {
                $0.set(flags, at: 2)
                $0.set(UInt16(allocationLength), at: 7)
            }
        }
        return Command.cdb(.readDefectData12) {
            $0.set(flags, at: 1)
            $0.set(UInt32(allocationLength), at: 6)
        }
    }

    /// The lists that were asked for, both empty; an empty list is right in any format.
    public var nothingFound: [UInt8] {
        [0, flags, 0, 0] + (form == .ten ? [] : [0, 0, 0, 0])
    }
}
