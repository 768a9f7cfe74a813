/// Blocks of a file that lie one behind the other.
struct ExtRun: Hashable, Sendable {
    var logical: UInt64
    var physical: UInt64
    /// Blocks, more than 0.
    var count: UInt64
    /// Allocated, but reads as zeros.
    var isUnwritten: Bool
}

extension ExtReader {
    /// Where the content of a file lies, in the order of its offsets, up to `limit` blocks; holes are left out.
    ///
    /// A tree of extents cannot lead astray: each level is one less deep than the one above, and the blocks of the
    /// file only grow. What is wrong throws ``TocError/Kind/damaged``.
    func forEachRun(
        of inode: ExtInode, limit: UInt64, _ body: (ExtRun) throws(TocError) -> Void
    ) throws(TocError) {
        if inode.has(ExtInode.Flag.extents) {
            var walk = ExtentWalk(limit: limit)
            try extentNode(inode.blockField, depth: nil, within: 0..<(1 << 32), &walk, body)
        } else {
            var merge = RunMerge()
            try blockPointers(inode.blockField, limit: limit, &merge, body)
            if let last = merge.pending { try body(last) }
        }
    }

    private struct ExtentWalk {
        let limit: UInt64
        /// The file's block behind the last extent.
        var next: UInt64 = 0
    }

    /// - Parameters:
    ///   - depth: what the node must say; nil: the root's, which says it itself.
    ///   - range: of the file's blocks that the node above gave it.
    private func extentNode(
        _ node: [UInt8], depth: Int?, within range: Range<UInt64>, _ walk: inout ExtentWalk,
        _ body: (ExtRun) throws(TocError) -> Void
    ) throws(TocError) {
        let isRoot = depth == nil
        let entries = Int(node.little16(2))
        let ownDepth = Int(node.little16(6))
        guard node.little16(0) == 0xF30A, ownDepth == depth ?? ownDepth, ownDepth <= 5,
            entries <= (node.count - 12) / 12, entries > 0 || isRoot
        else { throw .damaged("a node of the extents is damaged") }
        for index in 0..<entries {
            let at = 12 + 12 * index
            let logical = UInt64(node.little32(at))
            if logical >= walk.limit { return }
            guard logical >= walk.next, range.contains(logical) else {
                throw .damaged("extents are out of order")
            }
            if ownDepth == 0 {
                var count = UInt64(node.little16(at + 4))
                let isUnwritten = count > 0x8000
                if isUnwritten { count -= 0x8000 }
                let physical = UInt64(node.little32(at + 8)) | UInt64(node.little16(at + 6)) << 32
                guard count > 0, logical + count <= range.upperBound, isValid(physical, count: count) else {
                    throw .damaged("an extent is not in the file system")
                }
                walk.next = logical + count
                try body(
                    ExtRun(
                        logical: logical, physical: physical, count: min(count, walk.limit - logical),
                        isUnwritten: isUnwritten))
            } else {
                let child = UInt64(node.little32(at + 4)) | UInt64(node.little16(at + 8)) << 32
                let end = index + 1 < entries ? UInt64(node.little32(at + 12)) : range.upperBound
                guard end > logical, end <= range.upperBound else {
                    throw .damaged("extents are out of order")
                }
                let block = try mapBlock(child)
                try extentNode(block, depth: ownDepth - 1, within: logical..<end, &walk, body)
                // The next child's blocks begin behind this one's range, even if this one ended early.
                walk.next = max(walk.next, min(end, walk.limit))
            }
        }
    }

    private struct RunMerge {
        var pending: ExtRun?

        mutating func add(
            _ logical: UInt64, _ physical: UInt64, _ body: (ExtRun) throws(TocError) -> Void
        ) throws(TocError) {
            if var run = pending {
                if run.logical + run.count == logical, run.physical + run.count == physical {
                    run.count += 1
                    pending = run
                    return
                }
                try body(run)
            }
            pending = ExtRun(logical: logical, physical: physical, count: 1, isUnwritten: false)
        }
    }

    /// The map of ext2 and ext3: twelve blocks, then pointers to blocks of pointers, one, two and three deep.
    private func blockPointers(
        _ field: [UInt8], limit: UInt64, _ merge: inout RunMerge,
        _ body: (ExtRun) throws(TocError) -> Void
    ) throws(TocError) {
        for index in 0..<12 where UInt64(index) < limit {
            try pointer(field.little32(4 * index), UInt64(index), &merge, body)
        }
        var logical: UInt64 = 12
        var span = UInt64(superblock.blockSize / 4)
        for level in 1...3 where logical < limit {
            try pointerBlock(field.little32(4 * (11 + level)), level, logical, limit, &merge, body)
            logical += span
            span *= UInt64(superblock.blockSize / 4)
        }
    }

    private func pointer(
        _ block: UInt32, _ logical: UInt64, _ merge: inout RunMerge,
        _ body: (ExtRun) throws(TocError) -> Void
    ) throws(TocError) {
        guard block != 0 else { return }
        guard isValid(UInt64(block)) else { throw .damaged("a block is not in the file system") }
        try merge.add(logical, UInt64(block), body)
    }

    private func pointerBlock(
        _ block: UInt32, _ level: Int, _ logical: UInt64, _ limit: UInt64, _ merge: inout RunMerge,
        _ body: (ExtRun) throws(TocError) -> Void
    ) throws(TocError) {
        guard block != 0 else { return }
        let pointers = try mapBlock(UInt64(block))
        let width = UInt64(pointers.count / 4)
        let span = level == 1 ? 1 : level == 2 ? width : width * width
        for index in 0..<pointers.count / 4 {
            let at = logical + UInt64(index) * span
            if at >= limit { return }
            if level == 1 {
                try pointer(pointers.little32(4 * index), at, &merge, body)
            } else {
                try pointerBlock(pointers.little32(4 * index), level - 1, at, limit, &merge, body)
            }
        }
    }
}
