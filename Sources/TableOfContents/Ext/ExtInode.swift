/// An inode as it lies on disk.
struct ExtInode {
    enum Flag {
        static let encrypted: UInt32 = 0x800
        static let extents: UInt32 = 0x8_0000
        static let attributeValue: UInt32 = 0x20_0000
        static let inlineData: UInt32 = 0x1000_0000
    }

    static let blockFieldBytes = 60

    let number: UInt64
    private let chunk: [UInt8]
    private let offset: Int
    /// Bytes, at least 128.
    let size: Int

    /// - Parameter chunk: holds the inode at `offset`.
    init(number: UInt64, chunk: [UInt8], offset: Int, size: Int) {
        precondition(offset >= 0 && size >= 128 && offset + size <= chunk.count)
        self.number = number
        self.chunk = chunk
        self.offset = offset
        self.size = size
    }

    private func field16(_ at: Int) -> UInt16 { chunk.little16(offset + at) }
    private func field32(_ at: Int) -> UInt32 { chunk.little32(offset + at) }

    var mode: UInt16 { field16(0) }
    var links: UInt16 { field16(0x1A) }
    var flags: UInt32 { field32(0x20) }
    var owner: UInt32 { UInt32(field16(2)) | UInt32(field16(0x78)) << 16 }
    var group: UInt32 { UInt32(field16(0x18)) | UInt32(field16(0x7A)) << 16 }
    var byteCount: UInt64 { UInt64(field32(4)) | UInt64(field32(0x6C)) << 32 }
    var deletionTime: UInt32 { field32(0x14) }
    /// The block of extended attributes; 0: none.
    var attributeBlock: UInt64 { UInt64(field32(0x68)) | UInt64(field16(0x76)) << 32 }

    func has(_ flag: UInt32) -> Bool { flags & flag != 0 }

    /// i_block: block map, extents, a short target or inline data.
    var blockField: [UInt8] { Array(chunk[offset + 0x28..<offset + 0x28 + Self.blockFieldBytes]) }

    /// Bytes behind the first 128 that are fields; 0 when what it says does not fit.
    var extraSize: Int {
        guard size > 128 else { return 0 }
        let extra = Int(field16(0x80))
        return extra >= 4 && extra & 3 == 0 && extra <= size - 128 ? extra : 0
    }

    /// What lies behind the fields: extended attributes.
    var body: [UInt8] {
        guard extraSize > 0 else { return [] }
        return Array(chunk[offset + 128 + extraSize..<offset + size])
    }

    private func time(_ at: Int, extra: Int) -> FileTime {
        let seconds = Int64(Int32(bitPattern: field32(at)))
        guard extra + 4 <= 128 + extraSize else { return FileTime(seconds: seconds) }
        let more = field32(extra)
        let nanoseconds = more >> 2
        return FileTime(
            // Two more bits: 2^32 seconds each.
            seconds: seconds + Int64(more & 3) << 32,
            nanoseconds: nanoseconds < 1_000_000_000 ? nanoseconds : 0)
    }

    var accessed: FileTime { time(8, extra: 0x8C) }
    var changed: FileTime { time(0xC, extra: 0x84) }
    var modified: FileTime { time(0x10, extra: 0x88) }
    /// Nil where the inode has no room for it.
    var created: FileTime? { 0x94 <= 128 + extraSize ? time(0x90, extra: 0x94) : nil }

    var kind: FileNode.Kind {
        switch mode >> 12 {
        case 0o10: .regular
        case 0o4: .directory
        case 0o12: .symbolicLink
        case 0o6: .blockDevice
        case 0o2: .characterDevice
        case 0o1: .fifo
        case 0o14: .socket
        default: .other
        }
    }

    /// Of a device: 8 and 8 bits in the first word, or 12 and 20 in the second.
    var device: DeviceNumber {
        let old = field32(0x28)
        if old != 0 { return DeviceNumber(major: old >> 8 & 0xFF, minor: old & 0xFF) }
        let new = field32(0x2C)
        return DeviceNumber(major: new >> 8 & 0xFFF, minor: new & 0xFF | new >> 12 & 0xF_FF00)
    }
}
