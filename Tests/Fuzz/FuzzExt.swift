import Blocks

@testable import TableOfContents

/// Patches of small real ext file systems, read without libtsk: the journal's replay, inodes, block maps, directories,
/// extended attributes, inline data, and what is in use. The first byte says which one (modulo their number);
/// the patches are those of ``PatchedImage``. Only the third has checksums.
///
/// What must hold: reading ends; no trap; every record within the bounds that the contract sets.
func fuzzExt(_ input: [UInt8]) {
    var input = FuzzInput(input)
    let image = FuzzedImage.ext[Int(input.byte()) % FuzzedImage.ext.count]
    let store = PatchedImage(image, &input)
    let range = ByteRange(offset: 0, count: store.size)
    let sink = CheckingSink(
        range, [.ext2, .ext3, .ext4],
        mostProblems: TocLimits.toldProblems + TocLimits.extProblems + Int(store.size >> 10))
    do throws(TocError) {
        guard let system = try ExtFileSystem(store, range) else { return }
        guard system.description.isListed else { return }
        try sink.put(.fileSystem(system.description))
        let telling = Telling(sink, range: range, blockSize: 1024)
        let superblock = try Probe.bytes(system.replayed, range, 1024, 1024)
        let layout = superblock.withUnsafeBytes { InodeWalk.Layout($0) }
        do throws(TocError) { try InodeWalk.run(system, layout, telling) } catch {
            precondition(error.isDamage, "the reader threw: \(error)")
        }
        if system.description.knowsUse { try system.readUse(into: sink) }
        try telling.end()
    } catch { preconditionFailure("the reader threw: \(error)") }
}

extension FuzzedImage {
    fileprivate static let ext = [
        FuzzedImage("ext-extents", mebibytes: 8), FuzzedImage("ext-maps", mebibytes: 8),
        FuzzedImage("ext-clusters", mebibytes: 24),
    ]
}
