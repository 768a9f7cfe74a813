import Blocks

/// What Rock Ridge's entries say of a file.
struct RockRidge {
    var name: [UInt8]?
    var mode: UInt32?
    var links: UInt32?
    var owner: UInt32?
    var group: UInt32?
    var device: DeviceNumber?
    var target: [UInt8]?
    var created, modified, accessed, changed: FileTime?
    /// Where the directory really is that stands here (CL).
    var childBlock: UInt64?
    /// Bytes of the content of a compressed file (zisofs) when it is unpacked.
    var unpackedSize: UInt64?
    /// Moved here from elsewhere, where it is shown (RE).
    var isRelocated = false

    init(_ entries: [ISODisk.Entry]) {
        var link = LinkText()
        for entry in entries {
            switch String(decoding: entry.signature, as: UTF8.self) {
            case "NM" where !entry.data.isEmpty && entry.data[0] & 6 == 0:
                name = (name ?? []) + entry.data.dropFirst()
            case "PX": posix(entry.data)
            case "PN" where entry.data.count >= 16:
                let high = Self.number(entry.data, 0)
                let low = Self.number(entry.data, 8)
                // Linux' way: both in the low word where the high one is empty, and what a device's number there
                // has room for.
                device =
                    high == 0
                    ? DeviceNumber(major: low >> 8 & 0xFFF, minor: low & 0xFF)
                    : DeviceNumber(major: (high | low >> 20) & 0xFFF, minor: low & 0xF_FFFF)
            case "SL": link.add(entry.data)
            case "TF": times(entry.data)
            case "CL" where entry.data.count >= 4: childBlock = UInt64(Self.number(entry.data, 0))
            case "ZF" where entry.data.count >= 8: unpackedSize = UInt64(Self.number(entry.data, 4))
            case "RE": isRelocated = true
            default: break
            }
        }
        target = link.text
    }

    private static func number(_ bytes: [UInt8], _ offset: Int) -> UInt32 {
        bytes.withUnsafeBytes { $0.littleEndian(at: offset, as: UInt32.self) }
    }

    private mutating func posix(_ data: [UInt8]) {
        guard data.count >= 32 else { return }
        mode = Self.number(data, 0)
        links = Self.number(data, 8)
        owner = Self.number(data, 16)
        group = Self.number(data, 24)
    }

    private mutating func times(_ data: [UInt8]) {
        guard let flags = data.first else { return }
        let isLong = flags & 0x80 != 0
        let width = isLong ? 17 : 7
        var offset = 1
        let places: [WritableKeyPath<RockRidge, FileTime?>] = [\.created, \.modified, \.accessed, \.changed]
        for (bit, place) in places.enumerated() where flags & 1 << bit != 0 {
            guard offset + width <= data.count else { return }
            let field = data[offset..<offset + width]
            self[keyPath: place] = isLong ? ISORecord.longTime(field) : ISORecord.time(field)
            offset += width
        }
    }

    /// A target in components, over several entries.
    private struct LinkText {
        private(set) var text: [UInt8]?
        private var needsSlash = false

        mutating func add(_ data: [UInt8]) {
            var target = text ?? []
            var offset = 1
            while offset + 2 <= data.count {
                let flags = data[offset]
                let count = Int(data[offset + 1])
                guard offset + 2 + count <= data.count else { break }
                let content = data[offset + 2..<offset + 2 + count]
                if needsSlash { target.append(UInt8(ascii: "/")) }
                needsSlash = flags & 1 == 0
                if flags & 8 != 0 {
                    target = [UInt8(ascii: "/")]
                    needsSlash = false
                } else if flags & 2 != 0 {
                    target.append(UInt8(ascii: "."))
                } else if flags & 4 != 0 {
                    target += Array("..".utf8)
                } else {
                    target += content
                }
                offset += 2 + count
            }
            text = Array(target.prefix(TocLimits.targetBytes))
        }
    }

    var kind: FileNode.Kind? {
        guard let mode else { return nil }
        switch mode >> 12 & 15 {
        case 0o10: return .regular
        case 0o4: return .directory
        case 0o12: return .symbolicLink
        case 0o6: return .blockDevice
        case 0o2: return .characterDevice
        case 0o1: return .fifo
        case 0o14: return .socket
        default: return .other
        }
    }
}
