import Blocks

/// What resident NTFS attributes hold, beyond what libtsk makes of them (its times end in 2106, its names at 512
/// bytes). All numbers are little-endian.
enum NTFSAttributes {
    struct StandardInformation {
        var created, modified, changed, accessed: FileTime
        var isSystem: Bool

        init?(_ bytes: UnsafeRawBufferPointer) {
            guard bytes.count >= 36 else { return nil }
            created = NTFSAttributes.time(bytes, 0)
            modified = NTFSAttributes.time(bytes, 8)
            changed = NTFSAttributes.time(bytes, 16)
            accessed = NTFSAttributes.time(bytes, 24)
            isSystem = bytes.littleEndian(at: 32, as: UInt32.self) & 4 != 0
        }
    }

    struct Name {
        var parent: UInt64
        var parentSequence: UInt16
        var name: [UInt8]
        /// The short one that goes with a long one: not a name of its own.
        var isShort: Bool

        init?(_ bytes: UnsafeRawBufferPointer) {
            guard bytes.count >= 66 else { return nil }
            let reference = bytes.littleEndian(at: 0, as: UInt64.self)
            parent = reference & 0xFFFF_FFFF_FFFF
            parentSequence = UInt16(reference >> 48)
            let count = Int(bytes[64])
            guard count > 0, bytes.count >= 66 + 2 * count else { return nil }
            name = utf8((0..<count).lazy.map { bytes.littleEndian(at: 66 + 2 * $0, as: UInt16.self) })
            isShort = bytes[65] == 2
        }
    }

    /// What a reparse point makes of its file.
    enum Reparse: Equatable {
        case symbolicLink([UInt8])
        case fifo, socket, characterDevice, blockDevice
        /// The content lies elsewhere, or in another form.
        case unavailable(String)
        case other
    }

    static func reparse(_ bytes: UnsafeRawBufferPointer) -> Reparse {
        guard bytes.count >= 8 else { return .unavailable("its reparse point is damaged") }
        let tag = bytes.littleEndian(at: 0, as: UInt32.self)
        let data = UnsafeRawBufferPointer(rebasing: bytes[8...])
        switch tag {
        case 0xA000_000C, 0xA000_0003: return link(data, isSymbolic: tag == 0xA000_000C) ?? .other
        case 0xA000_001D:
            // Windows' subsystem for Linux: a version, then the target.
            guard data.count > 4 else { return .other }
            return .symbolicLink([UInt8](data[4...].prefix(TocLimits.targetBytes)))
        case 0x8000_0023: return .socket
        case 0x8000_0024: return .fifo
        case 0x8000_0025: return .characterDevice
        case 0x8000_0026: return .blockDevice
        case 0x8000_0017: return .unavailable("compressed by the system (WOF)")
        case 0x8000_0013: return .unavailable("deduplicated")
        case 0x9000_001A...0x9000_F01A: return .unavailable("kept in the cloud")
        case 0x8000_0014, 0xC000_0004, 0x8000_0006: return .unavailable("kept elsewhere")
        default: return .other
        }
    }

    /// A symbolic link or a junction. What is relative becomes a path of this side's; what is absolute stays, with
    /// its drive letter, since what that letter stands for nobody here knows.
    private static func link(_ data: UnsafeRawBufferPointer, isSymbolic: Bool) -> Reparse? {
        let header = isSymbolic ? 12 : 8
        guard data.count >= header else { return nil }
        func text(_ at: Int) -> [UInt16]? {
            let offset = header + Int(data.littleEndian(at: at, as: UInt16.self))
            let count = Int(data.littleEndian(at: at + 2, as: UInt16.self)) / 2
            guard offset + 2 * count <= data.count else { return nil }
            return (0..<count).map { data.littleEndian(at: offset + 2 * $0, as: UInt16.self) }
        }
        guard let substitute = text(0), let print = text(4) else { return nil }
        let isRelative = isSymbolic && data.littleEndian(at: 8, as: UInt32.self) & 1 != 0
        let shown = isRelative || print.isEmpty ? substitute : print
        let backslash = UInt16(UInt8(ascii: "\\"))
        let slash = UInt16(UInt8(ascii: "/"))
        return .symbolicLink(utf8(isRelative ? shown.map { $0 == backslash ? slash : $0 } : shown))
    }

    /// What ntfs-3g and Windows' old subsystem for Unix write for what NTFS has no kind for: small files with the
    /// system flag.
    static func interix(_ content: UnsafeRawBufferPointer) -> (kind: FileNode.Kind, [UInt8]?, DeviceNumber?)?
    {
        if content.isEmpty { return (.fifo, nil, nil) }
        if content.count == 1 { return (.socket, nil, nil) }
        guard content.count >= 8 else { return nil }
        func device() -> DeviceNumber? {
            guard content.count == 24 else { return nil }
            return DeviceNumber(
                major: UInt32(truncatingIfNeeded: content.littleEndian(at: 8, as: UInt64.self)),
                minor: UInt32(truncatingIfNeeded: content.littleEndian(at: 16, as: UInt64.self)))
        }
        switch [UInt8](content[..<8]) {
        case Array("IntxLNK\u{1}".utf8):
            let count = (content.count - 8) / 2
            return (
                .symbolicLink,
                utf8((0..<count).lazy.map { content.littleEndian(at: 8 + 2 * $0, as: UInt16.self) }), nil
            )
        case Array("IntxCHR\0".utf8): return device().map { (.characterDevice, nil, $0) }
        case Array("IntxBLK\0".utf8): return device().map { (.blockDevice, nil, $0) }
        default: return nil
        }
    }

    /// Tenths of microseconds since 1601.
    private static func time(_ bytes: UnsafeRawBufferPointer, _ offset: Int) -> FileTime {
        let ticks = Int64(bitPattern: bytes.littleEndian(at: offset, as: UInt64.self))
        let (seconds, rest) = ticks.quotientAndRemainder(dividingBy: 10_000_000)
        let floor = rest < 0 ? seconds - 1 : seconds
        let part = rest < 0 ? rest + 10_000_000 : rest
        return FileTime(seconds: floor - 11_644_473_600, nanoseconds: UInt32(part) * 100)
    }
}

extension UnsafeRawBufferPointer {
    /// The little-endian integer at `offset`. Traps beyond the end.
    func littleEndian<T: FixedWidthInteger>(at offset: Int, as: T.Type = T.self) -> T {
        T(littleEndian: loadUnaligned(fromByteOffset: offset, as: T.self))
    }
}
