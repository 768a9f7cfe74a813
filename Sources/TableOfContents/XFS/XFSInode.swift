/// An inode's core, and where its forks lie in it ("XFS Algorithms & Data Structures", chapter "On-disk Inode").
struct XFSInode {
    static let checksumOffset = 100

    enum Fork { case data, attributes }

    enum Format: UInt8 {
        case device = 0
        case local, extents, tree
    }

    private enum Flags2 {
        static let bigTime: UInt64 = 1 << 3
        static let largeExtentCounts: UInt64 = 1 << 4
        static let metadata: UInt64 = 1 << 5
    }

    let number: UInt64
    let mode: UInt16
    let links: UInt32
    let size: UInt64
    let isRealtime: Bool
    let isMetadata: Bool
    let dataExtents: UInt64
    let attributeExtents: UInt64
    private let view: XFSView
    private let literal: Int
    private let attributesAt: Int?
    private let hasBigTime: Bool
    private let isVersion3: Bool

    /// Throws `damaged` for what is no inode, or another one.
    init(_ view: XFSView, number: UInt64, _ geometry: XFSGeometry) throws(TocError) {
        self.view = view
        self.number = number
        let version = view.u8(4)
        guard view.u16(0) == 0x494E else { throw TocError(.damaged, "there is no inode in its place") }
        if geometry.isVersion5 {
            guard view.hasChecksum(at: Self.checksumOffset) else {
                throw TocError(.damaged, "the inode's checksum does not fit")
            }
            guard version == 3, view.u64(152) == number, view.equals(geometry.metaUUID, at: 160) else {
                throw TocError(.damaged, "there is another inode in its place")
            }
        } else if version != 1 && version != 2 {
            throw TocError(.damaged, "the inode is of version \(version)")
        }
        isVersion3 = version == 3
        mode = view.u16(2)
        links = version == 1 ? UInt32(view.u16(6)) : view.u32(16)
        size = view.u64(56)
        isRealtime = view.u16(90) & 1 != 0
        let flags2 = isVersion3 ? view.u64(120) : 0
        hasBigTime = flags2 & Flags2.bigTime != 0
        isMetadata = flags2 & Flags2.metadata != 0
        if flags2 & Flags2.largeExtentCounts != 0 {
            dataExtents = view.u64(24)
            attributeExtents = UInt64(view.u32(76))
        } else {
            dataExtents = UInt64(view.u32(76))
            attributeExtents = UInt64(view.u16(80))
        }
        literal = geometry.inodeCore
        let forkOffset = Int(view.u8(82)) * 8
        guard forkOffset < view.count - literal else {
            throw TocError(.damaged, "its attribute fork begins beyond the inode")
        }
        guard size <= UInt64(Int64.max) else { throw TocError(.damaged, "its size is negative") }
        attributesAt = forkOffset == 0 ? nil : literal + forkOffset
    }

    /// Nil: there is no such fork.
    func fork(_ which: Fork) -> XFSView? {
        switch which {
        case .data: view.slice(literal, (attributesAt ?? view.count) - literal)
        case .attributes: attributesAt.flatMap { view.slice($0, view.count - $0) }
        }
    }

    func format(_ which: Fork) throws(TocError) -> Format {
        guard let format = Format(rawValue: view.u8(which == .data ? 5 : 83)) else {
            throw TocError(.damaged, "a fork of it has an unknown format")
        }
        return format
    }

    var kind: FileNode.Kind {
        switch mode >> 12 {
        case 0o10: .regular
        case 0o04: .directory
        case 0o12: .symbolicLink
        case 0o06: .blockDevice
        case 0o02: .characterDevice
        case 0o01: .fifo
        case 0o14: .socket
        default: .other
        }
    }

    /// What it is without its target and its attributes.
    func node() -> FileNode {
        var node = FileNode(address: number, kind: kind)
        node.permissions = mode & 0o7777
        node.owner = view.u32(8)
        node.group = view.u32(12)
        node.links = links
        node.size = size
        node.accessed = time(32)
        node.modified = time(40)
        node.changed = time(48)
        if isVersion3 { node.created = time(144) }
        if node.kind == .blockDevice || node.kind == .characterDevice, view.u8(5) == Format.device.rawValue {
            // As System V packed it: 14 bits and 18.
            let device = view.u32(literal)
            node.device = DeviceNumber(major: device >> 18 & 0x3FFF, minor: device & 0x3FFFF)
        }
        return node
    }

    private func time(_ offset: Int) -> FileTime {
        if hasBigTime {
            let (seconds, nanoseconds) = view.u64(offset).quotientAndRemainder(dividingBy: 1_000_000_000)
            return FileTime(
                seconds: Int64(seconds) - XFSLimits.bigTimeOffset, nanoseconds: UInt32(nanoseconds))
        }
        return FileTime(
            seconds: Int64(Int32(bitPattern: view.u32(offset))),
            nanoseconds: min(view.u32(offset + 4), 999_999_999))
    }
}
