import Blocks

@testable import TableOfContents

/// Patches of a small real XFS. The first byte of all says (bit 0) that checksums are left as they are; else each
/// structure that a patch touches gets a right one. The patches are those of ``PatchedImage``.
///
/// What must hold: the reader ends, within the work that its budget allows; no trap; every record within the bounds
/// that the contract sets; what is in use is in order and within the volume.
func fuzzXFS(_ input: [UInt8]) {
    var input = FuzzInput(input)
    let isRaw = input.byte() & 1 != 0
    let store = PatchedImage(.xfs, &input)
    if !isRaw { store.fixChecksums() }
    let range = ByteRange(offset: 0, count: store.size)
    let sink = CheckingSink(range, [.xfs], mostProblems: XFSLimits.problems + 10)
    do throws(TocError) {
        _ = try ForeignKinds.recognize(store, range)
        guard let reader = try XFSReader(store, range, index: 0) else { return }
        try reader.read([.files, .use], into: sink)
        precondition(sink.isEnded, "no end was told")
    } catch {
        // Only the second look at what is in use may find it otherwise than the first, and the store stays as it is.
        preconditionFailure("the reader threw: \(error)")
    }
}

extension FuzzedImage {
    static let xfs = FuzzedImage("xfs", mebibytes: 300, xfsStructure)

    /// What begins with a sector, by magic numbers: sizes are those of this image (sectors and inodes of 512 bytes,
    /// blocks of 1024, directory blocks of 4096).
    fileprivate static func xfsStructure(_ bytes: [UInt8], _ sector: Int) -> Structure? {
        let magic = bytes[..<4].reduce(UInt32(0)) { $0 << 8 | UInt32($1) }
        switch magic {
        case 0x5846_5342: return Structure(first: sector, count: 1, checksumAt: 224)
        case 0x5841_4746: return Structure(first: sector, count: 1, checksumAt: 216)
        case 0x5841_4749: return Structure(first: sector, count: 1, checksumAt: 312)
        case 0x4142_3342, 0x4142_3343, 0x4941_4233: return Structure(first: sector, count: 2, checksumAt: 52)
        case 0x424D_4133: return Structure(first: sector, count: 2, checksumAt: 64)
        case 0x5844_4233, 0x5844_4433: return Structure(first: sector, count: 8, checksumAt: 4)
        case 0x5841_524D, 0x5853_4C4D: return Structure(first: sector, count: 2, checksumAt: 12)
        default: break
        }
        if magic >> 16 == 0x494E { return Structure(first: sector, count: 1, checksumAt: 100) }
        let half = UInt16(bytes[8]) << 8 | UInt16(bytes[9])
        if half == 0x3BEE || half == 0x3EBE { return Structure(first: sector, count: 2, checksumAt: 12) }
        return nil
    }
}
