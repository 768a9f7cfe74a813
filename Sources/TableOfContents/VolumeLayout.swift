import Blocks

/// The ranges of a volume that may hold a file system each.
struct VolumeLayout {
    /// In the order of offsets; at most ``TocLimits/fileSystems``.
    private(set) var ranges: [ByteRange]
    private(set) var remarks: [String] = []

    init(_ store: any BlockStore) throws(TocError) {
        let whole = ByteRange(offset: 0, count: store.size)
        ranges = [whole]
        guard let table = try Self.table(store), !table.ranges.isEmpty else { return }
        ranges = Array(table.ranges.prefix(TocLimits.fileSystems))
        remarks = table.remarks
        if table.ranges.count > ranges.count {
            remarks.append("only the first \(ranges.count) of \(table.ranges.count) partitions are looked at")
        }
    }

    /// Whether a range shares bytes with another.
    func overlaps(_ index: Int) -> Bool {
        ranges.indices.contains { $0 != index && ranges[$0].overlaps(ranges[index]) }
    }

    /// The partitions; nil: the volume is one file system, or none.
    ///
    /// What is left of earlier uses must not win: a GPT has checksums; boot sectors of file systems take the MBR's
    /// place; other file systems leave that place alone, so that an MBR there is the later of the two. Images of
    /// ISO 9660 may have a table beside (isohybrid): there the file system is the volume.
    private static func table(_ store: any BlockStore) throws(TocError) -> PartitionTable? {
        let whole = ByteRange(offset: 0, count: store.size)
        let found = try Probe.look(store, whole)
        var table: PartitionTable?
        for size: UInt64 in [512, 4096] where table == nil {
            table = try PartitionTable.gpt(store, sectorSize: size)
        }
        if table == nil {
            if let found, found.kind != .iso9660, found.kind != .hfsPlus { return nil }
            table = try PartitionTable.mbr(store, sectorSize: 512)
            // A disk with sectors of 4096 bytes counts in those.
            if let small = table, try !hasFileSystem(store, small),
                let large = try PartitionTable.mbr(store, sectorSize: 4096), try hasFileSystem(store, large)
            {
                table = large
            }
            // A boot sector that looks like one, before a file system that has the volume to itself.
            if let small = table, try !hasFileSystem(store, small),
                try hasFileSystem(store, PartitionTable(scheme: .mbr, ranges: [whole]))
            {
                return nil
            }
        }
        if found?.kind == .iso9660, let size = found?.size, let end = table?.ranges.map(\.end).max(),
            end <= size + isoAppendix
        {
            return nil
        }
        return table
    }

    /// What tools append behind an ISO 9660 file system for booting.
    private static let isoAppendix: UInt64 = 64 << 20

    private static func hasFileSystem(_ store: any BlockStore, _ table: PartitionTable) throws(TocError)
        -> Bool
    {
        for range in table.ranges.prefix(8) {
            if try Probe.look(store, range) != nil { return true }
            let ext = try Probe.bytes(store, range, 1024 + 56, 2)
            if ext == [0x53, 0xEF] { return true }
            if try Probe.bytes(store, range, 0, 4) == Array("XFSB".utf8) { return true }
        }
        return false
    }
}
