import Blocks

/// Says by superblocks what file system of libtsk's begins a range. libtsk itself would try one after the other and
/// take what fits.
enum Probe {
    struct Found: Hashable {
        var kind: FileSystemKind
        /// Bytes that the file system says it has; 0: it does not say.
        var size: UInt64
        var label = ""
        var uuid = ""
    }

    /// - Parameter range: of `store`.
    static func look(_ store: any BlockStore, _ range: ByteRange) throws(TocError) -> Found? {
        let head = try bytes(store, range, 0, 512)
        let found = head.withUnsafeBytes { ntfs($0) ?? exfat($0) ?? fat($0) }
        if let found { return found }
        if let hfs = try bytes(store, range, 1024, 512).withUnsafeBytes({ hfsPlus($0) }) { return hfs }
        return try iso9660(store, range)
    }

    /// As many of the `count` bytes from `offset` of the range as there are, then zeros.
    static func bytes(
        _ store: any BlockStore, _ range: ByteRange, _ offset: UInt64, _ count: Int
    ) throws(TocError) -> [UInt8] {
        guard offset < range.count else { return [UInt8](repeating: 0, count: count) }
        let there = Int(min(UInt64(count), range.count - offset))
        do throws(StoreError) {
            let read = try store.bytes(at: range.offset + offset, count: there)
            return read + [UInt8](repeating: 0, count: count - there)
        } catch {
            throw TocError(.store(error), "the volume cannot be read: \(error.code)")
        }
    }

    static func hexadecimal(_ bytes: some Sequence<UInt8>) -> String {
        let digits = Array("0123456789abcdef")
        return bytes.reduce(into: "") { $0 += [digits[Int($1 >> 4)], digits[Int($1 & 15)]] }
    }

    /// `1234-abcd`, as mkfs.fat prints it.
    private static func serial(_ value: UInt32) -> String {
        let text = hexadecimal(withUnsafeBytes(of: value.bigEndian, Array.init))
        return "\(text.prefix(4))-\(text.suffix(4))"
    }

    private static func text(_ bytes: some Collection<UInt8>) -> String {
        var text = String(decoding: bytes, as: UTF8.self)
        while let last = text.last, last == " " || last == "\0" { text.removeLast() }
        return text
    }

    private static func isPowerOfTwo(_ value: UInt64, _ within: ClosedRange<UInt64>) -> Bool {
        within.contains(value) && value & (value - 1) == 0
    }

    private static func ntfs(_ head: UnsafeRawBufferPointer) -> Found? {
        let sector = UInt64(head.littleEndian(at: 11, as: UInt16.self))
        guard head[3..<11].elementsEqual(Array("NTFS    ".utf8)), isPowerOfTwo(sector, 256...4096) else {
            return nil
        }
        let sectors = head.littleEndian(at: 40, as: UInt64.self)
        return Found(
            // The boot sector's copy lies behind the file system.
            kind: .ntfs, size: sectors.multipliedReportingOverflow(by: sector).partialValue,
            uuid: hexadecimal(head[72..<80].reversed()))
    }

    private static func exfat(_ head: UnsafeRawBufferPointer) -> Found? {
        guard head[3..<11].elementsEqual(Array("EXFAT   ".utf8)), (9...12).contains(head[108]) else {
            return nil
        }
        let sectors = head.littleEndian(at: 72, as: UInt64.self)
        return Found(
            kind: .exfat, size: sectors.multipliedReportingOverflow(by: 1 << UInt64(head[108])).partialValue,
            uuid: serial(head.littleEndian(at: 100, as: UInt32.self)))
    }

    private static func fat(_ head: UnsafeRawBufferPointer) -> Found? {
        guard let geometry = FATGeometry(head) else { return nil }
        let extended = geometry.kind == .fat32 ? 64 : 36
        let isExtended = head[extended + 2] == 0x29
        let label = isExtended ? text(head[extended + 7..<extended + 18]) : ""
        return Found(
            kind: geometry.kind, size: geometry.sectorCount * geometry.sectorSize,
            label: label == "NO NAME" ? "" : label,
            uuid: isExtended ? serial(head.littleEndian(at: extended + 3, as: UInt32.self)) : "")
    }

    private static func hfsPlus(_ header: UnsafeRawBufferPointer) -> Found? {
        let signature = header.bigEndian(at: 0, as: UInt16.self)
        let block = UInt64(header.bigEndian(at: 40, as: UInt32.self))
        guard signature == 0x482B || signature == 0x4858, isPowerOfTwo(block, 512...1 << 30) else {
            return nil
        }
        let uuid = header[104..<112]
        return Found(
            kind: .hfsPlus, size: block * UInt64(header.bigEndian(at: 44, as: UInt32.self)),
            uuid: uuid.allSatisfy { $0 == 0 } ? "" : hexadecimal(uuid))
    }

    private static func iso9660(_ store: any BlockStore, _ range: ByteRange) throws(TocError) -> Found? {
        let volume = try bytes(store, range, 32768, 2048)
        return volume.withUnsafeBytes { volume in
            guard volume[0] == 1, volume[1..<6].elementsEqual(Array("CD001".utf8)) else { return nil }
            let block = UInt64(volume.littleEndian(at: 128, as: UInt16.self))
            guard isPowerOfTwo(block, 512...32768) else { return nil }
            return Found(
                kind: .iso9660, size: block * UInt64(volume.littleEndian(at: 80, as: UInt32.self)),
                label: text(volume[40..<72]))
        }
    }
}

/// Where things lie on FAT12, FAT16 and FAT32, by its boot sector.
struct FATGeometry {
    let kind: FileSystemKind
    let sectorSize: UInt64
    let sectorCount: UInt64
    let sectorsPerCluster: UInt64
    /// The first sector behind the tables: of FAT12's and FAT16's root directory, on FAT32 of cluster 2.
    let firstDataSector: UInt64
    /// Of cluster 2.
    let firstClusterSector: UInt64
    let clusterCount: UInt64
    let firstTableSector: UInt64
    /// Whether it was not unmounted since it was last written, as far as the boot sector says.
    let isDirty: Bool

    /// - Parameter head: its first 512 bytes.
    init?(_ head: UnsafeRawBufferPointer) {
        func field16(_ at: Int) -> UInt64 { UInt64(head.littleEndian(at: at, as: UInt16.self)) }
        func field32(_ at: Int) -> UInt64 { UInt64(head.littleEndian(at: at, as: UInt32.self)) }
        sectorSize = field16(11)
        sectorsPerCluster = UInt64(head[13])
        let reserved = field16(14)
        let tables = UInt64(head[16])
        let rootEntries = field16(17)
        sectorCount = field16(19) != 0 ? field16(19) : field32(32)
        let tableSectors = field16(22) != 0 ? field16(22) : field32(36)
        guard [512, 1024, 2048, 4096].contains(sectorSize), sectorsPerCluster > 0,
            sectorsPerCluster & (sectorsPerCluster - 1) == 0, reserved > 0, (1...2).contains(tables),
            tableSectors > 0, head[21] == 0xF0 || head[21] >= 0xF8,
            (head[510] == 0x55 && head[511] == 0xAA) || head[0] == 0xEB || head[0] == 0xE9
        else { return nil }
        firstTableSector = reserved
        firstDataSector = reserved + tables * tableSectors
        firstClusterSector = firstDataSector + (rootEntries * 32 + sectorSize - 1) / sectorSize
        guard sectorCount > firstClusterSector else { return nil }
        clusterCount = (sectorCount - firstClusterSector) / sectorsPerCluster
        if rootEntries == 0 {
            kind = .fat32
        } else {
            kind = clusterCount < 4085 ? .fat12 : .fat16
        }
        guard kind == .fat32 || field16(22) != 0, clusterCount < 0x0FFF_FFF5 else { return nil }
        isDirty = head[kind == .fat32 ? 65 : 37] & 1 != 0
    }
}
