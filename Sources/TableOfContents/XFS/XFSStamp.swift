/// Where a structure of version 5 says how old it is, whose it is, and its checksum.
struct XFSStamp: Equatable {
    let sequenceAt: Int
    let uuidAt: Int
    let checksumAt: Int
    /// Whether it is as long as a directory block.
    private(set) var isOfDirectory = false

    private init(_ sequenceAt: Int, _ uuidAt: Int, _ checksumAt: Int) {
        self.sequenceAt = sequenceAt
        self.uuidAt = uuidAt
        self.checksumAt = checksumAt
    }

    /// By the magic numbers; nil for what has none, or one for each of its parts, as inodes and quotas.
    init?(_ view: XFSView, _ geometry: XFSGeometry) {
        // The longest header has less than a sector.
        guard view.count >= 512 else { return nil }
        switch view.u32(0) {
        case XFSGeometry.magic: self.init(240, geometry.metaUUIDAt, XFSGeometry.checksumOffset)
        case 0x5841_4746: self.init(208, 64, 216)  // XAGF
        case 0x5841_4749: self.init(320, 296, 312)  // XAGI
        case 0x5841_464C: self.init(24, 8, 32)  // XAFL
        // Trees of free space by block and by size, inodes, free inodes, reverse mappings, reference counts.
        case 0x4142_3342, 0x4142_3343, 0x4941_4233, 0x4649_4233, 0x524D_4233, 0x5233_4643:
            self.init(24, 32, 52)
        case 0x424D_4133: self.init(32, 40, 64)  // BMA3
        case 0x5853_4C4D: self.init(48, 16, 12)  // XSLM
        case 0x5844_4233, 0x5844_4433, 0x5844_4633:  // XDB3, XDD3, XDF3
            self.init(16, 24, 4)
            isOfDirectory = true
        default:
            switch view.u16(8) {
            // Leaves and nodes of directories and attributes.
            case 0x3DF1, 0x3DFF, 0x3EBE, 0x3BEE: self.init(24, 32, 12)
            default: return nil
            }
        }
    }
}
