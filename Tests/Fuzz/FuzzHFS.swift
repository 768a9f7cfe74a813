import Blocks

@testable import TableOfContents

/// Patches (see ``PatchedImage``) of a small HFS+, whose forks and B-trees are ours; what libtsk unpacks is left out.
///
/// What must hold: reading ends; no trap; every record within the bounds that the contract sets.
func fuzzHFS(_ input: [UInt8]) {
    var input = FuzzInput(input)
    let store = PatchedImage(.hfs, &input)
    let range = ByteRange(offset: 0, count: store.size)
    let sink = CheckingSink(range, [.hfsPlus], mostProblems: TocLimits.toldProblems + 1)
    do throws(TocError) {
        try sink.put(
            .fileSystem(
                FileSystemDescription(index: 0, kind: .hfsPlus, range: range, root: 2, isListed: true)))
        let telling = Telling(sink, range: range, blockSize: 512)
        do throws(TocError) { try HFSWalk(store, range, nil, telling).run() } catch {
            guard error.isDamage else { throw error }
        }
        try telling.end()
        precondition(sink.isEnded, "no end was told")
    } catch { preconditionFailure("the reader threw: \(error)") }
}

extension FuzzedImage {
    fileprivate static let hfs = FuzzedImage("hfs", mebibytes: 1)
}
