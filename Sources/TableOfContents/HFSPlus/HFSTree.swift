import Blocks

/// One of HFS+'s B-trees, whose leaves hang together in the order of their keys. What is read is bounded by the nodes
/// that the tree's file has room for.
struct HFSTree {
    /// A record of a leaf: its key without the length, and what belongs to it.
    struct Record {
        let key: UnsafeRawBufferPointer
        let data: UnsafeRawBufferPointer
    }

    private enum Kind {
        static let leaf: UInt8 = 0xFF
        static let index: UInt8 = 0
    }

    private let disk: HFSDisk
    private let extents: [FileExtent]
    private let nodeSize: Int
    private let nodes: UInt64
    private let root: UInt32
    private let firstLeaf: UInt32

    /// - Parameters:
    ///   - extents: of its file.
    ///   - size: of its file.
    init(_ disk: HFSDisk, _ extents: [FileExtent], size: UInt64) throws(TocError) {
        self.disk = disk
        self.extents = extents
        let header = try disk.read(extents, 0, 512)
        (root, firstLeaf, nodeSize) = header.withUnsafeBytes {
            (
                $0.bigEndian(at: 16, as: UInt32.self), $0.bigEndian(at: 24, as: UInt32.self),
                Int($0.bigEndian(at: 32, as: UInt16.self))
            )
        }
        guard nodeSize >= 512, nodeSize & (nodeSize - 1) == 0 else {
            throw TocError(.damaged, "a tree's nodes have \(nodeSize) bytes")
        }
        nodes = size / UInt64(nodeSize)
    }

    /// Hands on the records of a leaf and of those behind it, until the body says that it has enough.
    /// - Parameter leaf: the first; nil: the tree's first.
    func visit(
        from leaf: UInt32? = nil, _ body: (Record) throws(TocError) -> Bool
    ) throws(TocError) {
        var number = leaf ?? firstLeaf
        // Of the leaf before; each names both neighbours, so that leaves from the first on cannot go round.
        var previous: UInt32? = leaf == nil ? 0 : nil
        var steps: UInt64 = 0
        while number != 0 {
            steps += 1
            guard steps <= nodes else { throw TocError(.damaged, "a tree's leaves go round in circles") }
            let node = try node(number)
            guard node[8] == Kind.leaf else {
                throw TocError(.damaged, "node \(number) of a tree is no leaf")
            }
            if let previous, node.withUnsafeBytes({ $0.bigEndian(at: 4, as: UInt32.self) }) != previous {
                throw TocError(.damaged, "node \(number) of a tree follows another leaf than it names")
            }
            previous = number
            for index in 0..<Self.count(of: node) {
                guard let bounds = Self.bounds(of: index, in: node) else {
                    throw TocError(.damaged, "a record of node \(number) of a tree is damaged")
                }
                let isMore = try Self.with(node, bounds, body)
                if !isMore { return }
            }
            number = node.withUnsafeBytes { $0.bigEndian(at: 0, as: UInt32.self) }
        }
    }

    /// The leaf in which what is searched for would be; nil: the tree is empty.
    /// - Parameter isAtMost: whether a key comes before what is searched for, or is it.
    func leaf(where isAtMost: (UnsafeRawBufferPointer) -> Bool) throws(TocError) -> UInt32? {
        var number = root
        guard number != 0 else { return nil }
        // A tree of more levels has more nodes than there are numbers.
        for _ in 0..<64 {
            let node = try node(number)
            if node[8] == Kind.leaf { return number }
            guard node[8] == Kind.index else {
                throw TocError(.damaged, "node \(number) of a tree is no part of it")
            }
            var low = 0
            var high = Self.count(of: node)
            while low < high {
                let middle = (low + high) / 2
                guard let bounds = Self.bounds(of: middle, in: node) else {
                    throw TocError(.damaged, "a record of node \(number) of a tree is damaged")
                }
                if node.withUnsafeBytes({ isAtMost(UnsafeRawBufferPointer(rebasing: $0[bounds.key])) }) {
                    low = middle + 1
                } else {
                    high = middle
                }
            }
            guard let bounds = Self.bounds(of: max(low, 1) - 1, in: node), bounds.data.count >= 4 else {
                throw TocError(.damaged, "a record of node \(number) of a tree is damaged")
            }
            number = node.withUnsafeBytes { $0.bigEndian(at: bounds.data.lowerBound, as: UInt32.self) }
        }
        throw TocError(.damaged, "a tree is too deep")
    }

    private func node(_ number: UInt32) throws(TocError) -> [UInt8] {
        guard UInt64(number) < nodes else {
            throw TocError(.damaged, "node \(number) of a tree lies beyond its end")
        }
        return try disk.read(extents, UInt64(number) * UInt64(nodeSize), nodeSize)
    }

    private static func count(of node: [UInt8]) -> Int { Int(node[10]) << 8 | Int(node[11]) }

    /// Where in a node a record's key and its data are.
    private static func bounds(of index: Int, in node: [UInt8]) -> (key: Range<Int>, data: Range<Int>)? {
        func offset(_ index: Int) -> Int? {
            let place = node.count - 2 * (index + 1)
            return place >= 14 ? Int(node[place]) << 8 | Int(node[place + 1]) : nil
        }
        guard let start = offset(index), let end = offset(index + 1), start >= 14, start + 2 <= end,
            end <= node.count
        else { return nil }
        let key = start + 2..<start + 2 + (Int(node[start]) << 8 | Int(node[start + 1]))
        // Data begin at an even offset.
        let data = key.upperBound + (key.upperBound & 1)
        guard key.count >= 6, data <= end else { return nil }
        return (key, data..<end)
    }

    private static func with(
        _ node: [UInt8], _ bounds: (key: Range<Int>, data: Range<Int>),
        _ body: (Record) throws(TocError) -> Bool
    ) throws(TocError) -> Bool {
        try node.withUnsafeBufferPointer { buffer throws(TocError) in
            let bytes = UnsafeRawBufferPointer(buffer)
            return try body(
                Record(
                    key: UnsafeRawBufferPointer(rebasing: bytes[bounds.key]),
                    data: UnsafeRawBufferPointer(rebasing: bytes[bounds.data])))
        }
    }
}
