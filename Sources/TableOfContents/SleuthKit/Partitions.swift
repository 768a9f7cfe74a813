import Blocks

/// The partitions of a volume: GPT (UEFI 2.10 §5.3), its backup where the first is damaged, or MBR with its chain of
/// logical ones. Read here and not by libtsk, which checks no checksum, so that a damaged first table wins over a
/// sound backup, and follows as many entries as a header says there are.
struct PartitionTable {
    enum Scheme: String {
        case gpt = "GPT"
        case mbr = "MBR"
    }

    var scheme: Scheme
    /// Within the volume, in the order of offsets, none empty.
    var ranges: [ByteRange]
    /// What was wrong; for people.
    var remarks: [String] = []

    private static let mostEntries = 1024

    /// The GPT of a volume; nil: there is none that is sound.
    static func gpt(_ store: any BlockStore, sectorSize: UInt64) throws(TocError) -> PartitionTable? {
        let whole = ByteRange(offset: 0, count: store.size)
        let sectors = store.size / sectorSize
        guard sectors > 3 else { return nil }
        let boot = try Probe.bytes(store, whole, 0, 512)
        let isProtected = (0..<4).contains { boot[446 + 16 * $0 + 4] == 0xEE }
        guard isProtected, boot[510] == 0x55, boot[511] == 0xAA else { return nil }
        if let table = try gpt(store, header: 1, sectorSize) { return table }
        guard var table = try gpt(store, header: sectors - 1, sectorSize) else { return nil }
        table.remarks.append("the primary GPT is damaged; its backup was read")
        return table
    }

    private static func gpt(
        _ store: any BlockStore, header sector: UInt64, _ sectorSize: UInt64
    ) throws(TocError) -> PartitionTable? {
        let whole = ByteRange(offset: 0, count: store.size)
        var header = try Probe.bytes(store, whole, sector * sectorSize, Int(sectorSize))
        let fields = header.withUnsafeBytes {
            (
                size: Int($0.littleEndian(at: 12, as: UInt32.self)),
                checksum: $0.littleEndian(at: 16, as: UInt32.self),
                own: $0.littleEndian(at: 24, as: UInt64.self),
                entries: $0.littleEndian(at: 72, as: UInt64.self),
                count: Int($0.littleEndian(at: 80, as: UInt32.self)),
                entrySize: Int($0.littleEndian(at: 84, as: UInt32.self)),
                entriesChecksum: $0.littleEndian(at: 88, as: UInt32.self)
            )
        }
        guard header[..<8].elementsEqual(Array("EFI PART".utf8)),
            (92...Int(sectorSize)).contains(fields.size),
            fields.own == sector, (1...mostEntries).contains(fields.count),
            (128...4096).contains(fields.entrySize),
            let start = fields.entries.checkedProduct(sectorSize),
            ByteRange(checking: start, UInt64(fields.count * fields.entrySize), within: store.size) != nil
        else { return nil }
        header.replaceSubrange(16..<20, with: [0, 0, 0, 0])
        let table = try Probe.bytes(store, whole, start, fields.count * fields.entrySize)
        guard crc32(header[..<fields.size]) == fields.checksum, crc32(table) == fields.entriesChecksum else {
            return nil
        }
        var found: [ByteRange] = []
        table.withUnsafeBytes { table in
            for index in 0..<fields.count {
                let entry = UnsafeRawBufferPointer(rebasing: table[(index * fields.entrySize)...].prefix(128))
                let first = entry.littleEndian(at: 32, as: UInt64.self)
                let last = entry.littleEndian(at: 40, as: UInt64.self)
                guard !entry[..<16].allSatisfy({ $0 == 0 }), last >= first, last < .max else { continue }
                if let range = clipped(first, last - first + 1, sectorSize, store.size) {
                    found.append(range)
                }
            }
        }
        return PartitionTable(scheme: .gpt, ranges: found.sorted { $0.offset < $1.offset })
    }

    /// The MBR's partitions; nil: the first sector is not one.
    static func mbr(_ store: any BlockStore, sectorSize: UInt64) throws(TocError) -> PartitionTable? {
        var table = PartitionTable(scheme: .mbr, ranges: [])
        guard let entries = try mbrEntries(store, 0, sectorSize), entries.contains(where: { $0.type != 0 })
        else {
            return nil
        }
        for entry in entries where entry.type != 0 && entry.type != 0xEE && entry.count > 0 {
            if entry.isExtended {
                try table.addLogical(store, entry.first, sectorSize)
            } else if let range = clipped(entry.first, entry.count, sectorSize, store.size) {
                table.ranges.append(range)
            } else {
                table.remarks.append("a partition lies beyond the volume's end")
            }
        }
        table.ranges.sort { $0.offset < $1.offset }
        return table
    }

    private struct Entry {
        var type: UInt8
        var first: UInt64
        var count: UInt64
        var isExtended: Bool { type == 0x05 || type == 0x0F || type == 0x85 }
    }

    private static func mbrEntries(
        _ store: any BlockStore, _ sector: UInt64, _ sectorSize: UInt64
    ) throws(TocError) -> [Entry]? {
        guard let offset = sector.checkedProduct(sectorSize), offset < store.size else { return nil }
        let bytes = try Probe.bytes(store, ByteRange(offset: 0, count: store.size), offset, 512)
        return bytes.withUnsafeBytes { bytes in
            guard bytes[510] == 0x55, bytes[511] == 0xAA,
                (0..<4).allSatisfy({ bytes[446 + 16 * $0] & 0x7F == 0 })
            else { return nil }
            return (0..<4).map {
                Entry(
                    type: bytes[446 + 16 * $0 + 4],
                    first: UInt64(bytes.littleEndian(at: 446 + 16 * $0 + 8, as: UInt32.self)),
                    count: UInt64(bytes.littleEndian(at: 446 + 16 * $0 + 12, as: UInt32.self)))
            }
        }
    }

    /// The chain of an extended partition: each sector has a logical one, counted from itself, and leads to the next,
    /// counted from the extended partition's start.
    private mutating func addLogical(
        _ store: any BlockStore, _ extended: UInt64, _ sectorSize: UInt64
    ) throws(TocError) {
        var sector = extended
        var seen: Set<UInt64> = []
        while seen.insert(sector).inserted, seen.count <= TocLimits.fileSystems {
            guard let entries = try Self.mbrEntries(store, sector, sectorSize) else {
                remarks.append("the chain of logical partitions is damaged")
                return
            }
            for entry in entries where entry.type != 0 && !entry.isExtended && entry.count > 0 {
                if let range = Self.clipped(sector + entry.first, entry.count, sectorSize, store.size) {
                    ranges.append(range)
                }
            }
            guard let next = entries.first(where: { $0.isExtended && $0.count > 0 }) else { return }
            sector = extended + next.first
        }
        remarks.append("the chain of logical partitions does not end")
    }

    private static func clipped(
        _ first: UInt64, _ count: UInt64, _ sectorSize: UInt64, _ size: UInt64
    ) -> ByteRange? {
        guard let offset = first.checkedProduct(sectorSize), offset < size, offset > 0 else { return nil }
        let bytes = count.multipliedReportingOverflow(by: sectorSize)
        return ByteRange(
            offset: offset, count: min(bytes.overflow ? .max : bytes.partialValue, size - offset))
    }

    /// CRC-32 of ISO 3309, which GPT uses.
    private static func crc32(_ bytes: some Sequence<UInt8>) -> UInt32 {
        ~bytes.reduce(UInt32.max) { crc, byte in
            var crc = crc ^ UInt32(byte)
            for _ in 0..<8 { crc = crc >> 1 ^ (crc & 1 == 0 ? 0 : 0xEDB8_8320) }
            return crc
        }
    }
}

extension UInt64 {
    /// Nil where it does not fit.
    func checkedProduct(_ other: UInt64) -> UInt64? {
        let (product, overflow) = multipliedReportingOverflow(by: other)
        return overflow ? nil : product
    }
}
