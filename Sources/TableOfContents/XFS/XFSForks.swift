import Blocks

/// Blocks of a fork that lie one behind the other. Offsets in the fork are counted in blocks.
struct XFSExtent: Equatable {
    var start: UInt64
    /// Bytes from the file system's beginning; checked to lie in one allocation group.
    var offset: UInt64
    var count: UInt64
    var isUnwritten: Bool

    var end: UInt64 { start + count }
}

/// Reads the extent lists of forks.
final class XFSForkReader {
    typealias Visit = (XFSExtent) throws(TocError) -> Void

    private let geometry: XFSGeometry
    private let walker: XFSTreeWalker

    init(_ geometry: XFSGeometry, _ disk: XFSDisk, _ budget: XFSBudget) {
        self.geometry = geometry
        walker = XFSTreeWalker(.extents, geometry, disk, budget)
    }

    /// Hands on each extent in order. Throws `damaged` at the first that cannot be right.
    func extents(_ inode: XFSInode, _ which: XFSInode.Fork, _ visit: Visit) throws(TocError) {
        guard let fork = inode.fork(which) else { return }
        let expected = which == .data ? inode.dataExtents : inode.attributeExtents
        var order = Order()
        switch try inode.format(which) {
        case .extents:
            guard expected <= UInt64(fork.count / 16) else {
                throw TocError(.damaged, "it claims \(expected) extents, more than its inode can hold")
            }
            for index in 0..<Int(expected) {
                try visit(try order.next(fork, index * 16, geometry))
            }
        case .tree:
            try tree(fork, owner: inode.number) { (records, count) throws(TocError) in
                for index in 0..<count { try visit(try order.next(records, index * 16, geometry)) }
            }
            guard order.count == expected else {
                throw TocError(.damaged, "it claims \(expected) extents and has \(order.count)")
            }
        case .local, .device: throw TocError(.damaged, "a fork of it has a format that does not fit")
        }
    }

    /// The root lies in the inode: level, number of entries, keys, pointers behind room for as many keys as fit.
    private func tree(_ fork: XFSView, owner: UInt64, _ visit: XFSTreeWalker.Visit) throws(TocError) {
        guard fork.count >= 20 else { throw TocError(.damaged, "its extent tree has no room in the inode") }
        let level = fork.int16(0)
        let count = fork.int16(2)
        let capacity = (fork.count - 4) / 16
        guard (1..<XFSLimits.treeLevels).contains(level), count > 0, count <= capacity else {
            throw TocError(.damaged, "the root of its extent tree cannot be right")
        }
        var least: UInt64 = 0
        for index in 0..<count {
            let key = fork.u64(4 + index * 8)
            let next = index + 1 < count ? fork.u64(4 + (index + 1) * 8) : .max
            guard key >= least, key < next else {
                throw TocError(.damaged, "the root of its extent tree is not in order")
            }
            least = key
            try walker.descend(
                fork.u64(4 + capacity * 8 + index * 8), level: level - 1, bounds: key..<next, group: nil,
                owner: owner, damage: { (error) throws(TocError) in throw error }, visit: visit)
        }
    }

    /// Decodes records, which must rise and not overlap.
    private struct Order {
        var end: UInt64 = 0
        var count: UInt64 = 0

        mutating func next(
            _ view: XFSView, _ place: Int, _ geometry: XFSGeometry
        ) throws(TocError) -> XFSExtent {
            let high = view.u64(place)
            let low = view.u64(place + 8)
            let start = (high << 1) >> 10
            let block = (high & 0x1FF) << 43 | low >> 21
            let length = low & 0x1F_FFFF
            guard length > 0, start >= end, let offset = geometry.offset(ofBlock: block, count: length) else {
                throw TocError(
                    .damaged, "it has an extent that cannot be right (\(length) blocks from \(block))")
            }
            end = start + length
            count += 1
            return XFSExtent(start: start, offset: offset, count: length, isUnwritten: high >> 63 != 0)
        }
    }
}
