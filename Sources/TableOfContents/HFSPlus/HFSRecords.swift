import Blocks

/// Where something is in the catalog.
struct HFSCatalogKey {
    /// Of the directory.
    var parent: UInt32
    /// In UTF-16.
    var name: [UInt16]

    init?(_ key: UnsafeRawBufferPointer) {
        parent = key.bigEndian(at: 0, as: UInt32.self)
        let count = Int(key.bigEndian(at: 4, as: UInt16.self))
        guard count <= 255, key.count >= 6 + 2 * count else { return nil }
        name = (0..<count).map { key.bigEndian(at: 6 + 2 * $0, as: UInt16.self) }
    }

    /// As Linux' driver shows it: what may stand in no path is replaced.
    var shown: [UInt8] {
        utf8(
            name.lazy.map { unit in
                switch unit {
                case 0: 0x2400
                case 0x2F: 0x3A
                default: unit
                }
            })
    }
}

/// A directory or a file of the catalog.
struct HFSItem {
    private static let folderBytes = 88
    private static let fileBytes = 248
    /// 1904-01-01 to 1970-01-01 in seconds.
    private static let epoch: Int64 = 2_082_844_800

    var address: UInt32
    var isFolder: Bool
    var node: FileNode
    /// What the permissions say beyond owner and mode: a device's number, a link's, how many links there are.
    var special: UInt32
    /// The content is compressed, and lies in an attribute or in the resource fork.
    var isCompressed: Bool
    /// Type and creator, then more that the Finder keeps.
    var finder: [UInt8]
    var data: HFSDisk.Fork?
    var resources: HFSDisk.Fork?

    /// - Returns: nil when it is none: a thread, or damaged.
    init?(_ record: UnsafeRawBufferPointer) {
        guard record.count >= Self.folderBytes else { return nil }
        switch record.bigEndian(at: 0, as: UInt16.self) {
        case 1: isFolder = true
        case 2 where record.count >= Self.fileBytes: isFolder = false
        default: return nil
        }
        address = record.bigEndian(at: 8, as: UInt32.self)
        special = record.bigEndian(at: 44, as: UInt32.self)
        isCompressed = record[41] & 0x20 != 0 && !isFolder
        finder = [UInt8](record[48..<80])
        let mode = record.bigEndian(at: 42, as: UInt16.self)
        node = FileNode(
            address: UInt64(address), kind: Self.kind(mode) ?? (isFolder ? .directory : .regular))
        if mode != 0 {
            node.permissions = mode & 0o7777
            node.owner = record.bigEndian(at: 32, as: UInt32.self)
            node.group = record.bigEndian(at: 36, as: UInt32.self)
        }
        if isFolder != (node.kind == .directory) { node.kind = isFolder ? .directory : .regular }
        func time(_ offset: Int) -> FileTime? {
            let seconds = record.bigEndian(at: offset, as: UInt32.self)
            return seconds == 0 ? nil : FileTime(seconds: Int64(seconds) - Self.epoch)
        }
        node.created = time(12)
        node.modified = time(16)
        node.changed = time(20)
        node.accessed = time(24)
        guard !isFolder else { return }
        func fork(_ offset: Int) -> HFSDisk.Fork {
            HFSDisk.Fork(UnsafeRawBufferPointer(rebasing: record[offset..<offset + HFSDisk.Fork.bytes]))
        }
        data = fork(88)
        resources = fork(168)
        node.size = data?.size ?? 0
        if node.kind == .blockDevice || node.kind == .characterDevice {
            // As Linux keeps it: twelve bits, and twenty.
            node.device = DeviceNumber(major: special >> 20, minor: special & 0xF_FFFF)
        }
    }

    /// Another name of a file that is kept elsewhere, under ``special``.
    var isHardLink: Bool { !isFolder && finder[..<8].elementsEqual(Array("hlnkhfs+".utf8)) }

    /// What the Finder keeps, unless it says nothing.
    var finderAttribute: [UInt8]? {
        let type = finder[..<8]
        let isNothing = type.allSatisfy { $0 == 0 } || type.allSatisfy { $0 == UInt8(ascii: "?") }
        let isLink = node.kind == .symbolicLink && type.elementsEqual(Array("slnkrhap".utf8))
        return (isNothing || isLink) && finder[8...].allSatisfy { $0 == 0 } ? nil : finder
    }

    private static func kind(_ mode: UInt16) -> FileNode.Kind? {
        switch mode & 0o170000 {
        case 0o100000: .regular
        case 0o040000: .directory
        case 0o120000: .symbolicLink
        case 0o060000: .blockDevice
        case 0o020000: .characterDevice
        case 0o010000: .fifo
        case 0o140000: .socket
        default: nil
        }
    }
}
