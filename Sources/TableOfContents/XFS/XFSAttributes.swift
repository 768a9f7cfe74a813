import Blocks

/// Reads extended attributes of all forms ("XFS Algorithms & Data Structures", chapter "Extended Attributes").
final class XFSAttributeReader {
    /// Name with its namespace, value.
    typealias Attribute = ([UInt8], [UInt8]) throws(TocError) -> Void
    typealias Damage = (TocError) throws(TocError) -> Void

    private enum Flags {
        static let local: UInt8 = 1 << 0
        static let root: UInt8 = 1 << 1
        static let secure: UInt8 = 1 << 2
        /// Parent pointers, Merkle trees: not the user's. Incomplete: was never there.
        static let hidden: UInt8 = 1 << 3 | 1 << 4 | 1 << 7
    }

    private enum Magic {
        static let node2: UInt16 = 0xFEBE
        static let node3: UInt16 = 0x3EBE
        static let leaf2: UInt16 = 0xFBEE
        static let leaf3: UInt16 = 0x3BEE
        static let remote: UInt32 = 0x5841_524D
    }

    private let geometry: XFSGeometry
    private let disk: XFSDisk
    private let forks: XFSForkReader
    private let budget: XFSBudget
    private let buffer: XFSBuffer
    private let remote: XFSBuffer

    init(_ geometry: XFSGeometry, _ disk: XFSDisk, _ forks: XFSForkReader, _ budget: XFSBudget) {
        self.geometry = geometry
        self.disk = disk
        self.forks = forks
        self.budget = budget
        buffer = XFSBuffer(count: geometry.blockSize)
        remote = XFSBuffer(count: geometry.blockSize)
    }

    func attributes(_ inode: XFSInode, damage: Damage, _ visit: Attribute) throws(TocError) {
        guard let fork = inode.fork(.attributes) else { return }
        switch try inode.format(.attributes) {
        case .local: try shortForm(fork, visit)
        case .extents, .tree:
            var map = Map()
            try forks.extents(inode, .attributes) { (extent) throws(TocError) in
                guard map.extents.count < XFSLimits.attributeExtents, !extent.isUnwritten else {
                    throw TocError(.damaged, "its attribute fork cannot be right")
                }
                map.extents.append(extent)
            }
            if !map.extents.isEmpty { try leaves(inode, map, damage: damage, visit) }
        case .device: throw TocError(.damaged, "its attribute fork has a format that does not fit")
        }
    }

    private func shortForm(_ fork: XFSView, _ visit: Attribute) throws(TocError) {
        guard fork.count >= 4, fork.int16(0) >= 4, let view = fork.slice(0, fork.int16(0)) else {
            throw TocError(.damaged, "its attributes are longer than its inode")
        }
        var position = 4
        for _ in 0..<view.u8(2) {
            guard view.count - position >= 3 else { throw Self.short }
            let nameLength = Int(view.u8(position))
            let valueLength = Int(view.u8(position + 1))
            let flags = view.u8(position + 2)
            guard let name = view.array(position + 3, nameLength),
                let value = view.array(position + 3 + nameLength, valueLength)
            else { throw Self.short }
            try tell(name, value, flags, visit)
            position += 3 + nameLength + valueLength
        }
    }

    private static let short = TocError(.damaged, "an extended attribute passes its block's end")

    /// Where blocks of the fork lie.
    private struct Map {
        var extents: [XFSExtent] = []

        func extent(_ block: UInt64) -> XFSExtent? {
            var low = 0
            var high = extents.count
            while low < high {
                let middle = (low + high) / 2
                if extents[middle].end <= block { low = middle + 1 } else { high = middle }
            }
            return low < extents.count && extents[low].start <= block ? extents[low] : nil
        }
    }

    /// From the leftmost leaf to the right.
    private func leaves(
        _ inode: XFSInode, _ map: Map, damage: Damage, _ visit: Attribute
    ) throws(TocError) {
        var block: UInt64 = 0
        var level = XFSLimits.attributeTreeLevels
        while try load(inode, map, block) == .node {
            let view = buffer.view
            let header = geometry.isVersion5 ? 56 : 12
            let its = view.int16(header + 2)
            guard view.int16(header) > 0, its > 0, its < level else {
                throw TocError(.damaged, "its attribute tree has a node of the wrong level")
            }
            level = its
            block = UInt64(view.u32((geometry.isVersion5 ? 64 : 16) + 4))
        }
        // A chain of siblings is no longer than the fork has blocks.
        var left = map.extents.reduce(0) { $0 + $1.count }
        while true {
            let next = UInt64(buffer.view.u32(0))
            try leaf(inode, map, damage: damage, visit)
            guard next != 0 else { return }
            guard left > 0 else { throw TocError(.damaged, "its attribute leaves form a ring") }
            left -= 1
            guard try load(inode, map, next) == .leaf else {
                throw TocError(.damaged, "its attribute leaves lead elsewhere")
            }
        }
    }

    private enum BlockKind { case node, leaf }

    private func load(_ inode: XFSInode, _ map: Map, _ block: UInt64) throws(TocError) -> BlockKind {
        try budget.take()
        guard let extent = map.extent(block) else {
            throw TocError(.damaged, "its attribute tree points into a hole")
        }
        let offset = extent.offset + (block - extent.start) << geometry.blockLog
        try disk.read(offset, buffer.memory)
        let view = buffer.view
        let isNode = view.u16(8) == (geometry.isVersion5 ? Magic.node3 : Magic.node2)
        guard isNode || view.u16(8) == (geometry.isVersion5 ? Magic.leaf3 : Magic.leaf2) else {
            throw TocError(.damaged, "a block of its attribute tree is something else")
        }
        if geometry.isVersion5 {
            guard view.hasChecksum(at: 12) else {
                throw TocError(.damaged, "a checksum in its attribute tree does not fit")
            }
            guard view.u64(16) == offset >> 9, view.equals(geometry.metaUUID, at: 32),
                view.u64(48) == inode.number
            else { throw TocError(.damaged, "a block of its attribute tree belongs elsewhere") }
        }
        return isNode ? .node : .leaf
    }

    private func leaf(
        _ inode: XFSInode, _ map: Map, damage: Damage, _ visit: Attribute
    ) throws(TocError) {
        let view = buffer.view
        let count = view.int16(geometry.isVersion5 ? 56 : 12)
        let entries = geometry.isVersion5 ? 80 : 32
        guard count <= (view.count - entries) / 8 else {
            throw TocError(.damaged, "an attribute leaf has more entries than bytes")
        }
        // Each takes room of its own, so together they are no longer than the block.
        var bytes = 0
        for index in 0..<count {
            let entry = entries + index * 8
            let place = view.int16(entry + 4)
            let flags = view.u8(entry + 6)
            do throws(TocError) {
                guard place >= entries + count * 8, place <= view.count - 12 || flags & Flags.local != 0,
                    place <= view.count - 4
                else { throw Self.short }
                let isLocal = flags & Flags.local != 0
                let nameLength = Int(view.u8(place + (isLocal ? 2 : 8)))
                let nameAt = place + (isLocal ? 3 : 9)
                guard let name = view.array(nameAt, nameLength) else { throw Self.short }
                bytes += nameLength + (isLocal ? view.int16(place) : 0)
                guard bytes <= view.count else { throw Self.short }
                if flags & Flags.hidden != 0 { continue }
                let value: [UInt8]
                if isLocal {
                    guard let local = view.array(nameAt + nameLength, view.int16(place)) else {
                        throw Self.short
                    }
                    value = local
                } else {
                    value = try remoteValue(
                        inode, map, block: UInt64(view.u32(place)), length: view.u32(place + 4))
                }
                try tell(name, value, flags, visit)
            } catch {
                try damage(error)
            }
        }
    }

    private func remoteValue(
        _ inode: XFSInode, _ map: Map, block: UInt64, length: UInt32
    ) throws(TocError) -> [UInt8] {
        guard length <= TocLimits.attributeBytes else {
            throw TocError(.damaged, "an extended attribute has \(length) bytes")
        }
        var value: [UInt8] = []
        value.reserveCapacity(Int(length))
        var block = block
        while value.count < length {
            try budget.take()
            guard let extent = map.extent(block) else {
                throw TocError(.damaged, "an extended attribute lies in a hole")
            }
            let offset = extent.offset + (block - extent.start) << geometry.blockLog
            try disk.read(offset, remote.memory)
            let view = remote.view
            var start = 0
            var count = min(Int(length) - value.count, view.count)
            if geometry.isVersion5 {
                start = 56
                count = min(count, view.count - 56)
                guard view.u32(0) == Magic.remote, view.hasChecksum(at: 12) else {
                    throw TocError(.damaged, "the checksum of an extended attribute does not fit")
                }
                guard view.u32(4) == value.count, view.u32(8) == count, view.u64(32) == inode.number,
                    view.u64(40) == offset >> 9, view.equals(geometry.metaUUID, at: 16)
                else { throw TocError(.damaged, "a block of an extended attribute belongs elsewhere") }
            }
            value += view.bytes[start..<start + count]
            block += 1
        }
        return value
    }

    private func tell(
        _ name: [UInt8], _ value: [UInt8], _ flags: UInt8, _ visit: Attribute
    ) throws(TocError) {
        guard flags & Flags.hidden == 0 else { return }
        guard !name.isEmpty, !name.contains(0) else {
            throw TocError(.damaged, "an extended attribute has no name")
        }
        guard flags & Flags.root != 0 else {
            return try visit((flags & Flags.secure != 0 ? Self.security : Self.user) + name, value)
        }
        switch name {
        case Self.accessList: try visit(Self.systemAccess, try PosixACL.fromXFS(value))
        case Self.defaultList: try visit(Self.systemDefault, try PosixACL.fromXFS(value))
        default: try visit(Self.trusted + name, value)
        }
    }

    private static let user = Array("user.".utf8)
    private static let trusted = Array("trusted.".utf8)
    private static let security = Array("security.".utf8)
    private static let accessList = Array("SGI_ACL_FILE".utf8)
    private static let defaultList = Array("SGI_ACL_DEFAULT".utf8)
    private static let systemAccess = Array("system.posix_acl_access".utf8)
    private static let systemDefault = Array("system.posix_acl_default".utf8)
}

/// Access control lists in the form of setxattr(2): version 2, then tag, permissions and id of each, little-endian.
enum PosixACL {
    private static let version: UInt32 = 2
    private static let user: UInt32 = 0x02
    private static let group: UInt32 = 0x08
    private static let noID = UInt32.max

    /// XFS's own form: a count, then tag, id and permissions, big-endian, 12 bytes each.
    static func fromXFS(_ value: [UInt8]) throws(TocError) -> [UInt8] {
        var result: [UInt8]?
        value.withUnsafeBytes { bytes in
            let view = XFSView(bytes)
            guard view.count >= 4, view.u32(0) <= (view.count - 4) / 12 else { return }
            var entries: [UInt8] = []
            func append(_ number: some FixedWidthInteger) {
                withUnsafeBytes(of: number.littleEndian) { entries += $0 }
            }
            append(version)
            for index in 0..<Int(view.u32(0)) {
                let place = 4 + index * 12
                let tag = view.u32(place)
                append(UInt16(truncatingIfNeeded: tag))
                append(view.u16(place + 8))
                append(tag == user || tag == group ? view.u32(place + 4) : noID)
            }
            result = entries
        }
        guard let result else { throw TocError(.damaged, "an access control list cannot be right") }
        return result
    }
}
