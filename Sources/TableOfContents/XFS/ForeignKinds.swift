import Blocks

/// Knows by their superblocks what holds no files that are read here, so that it can be said plainly what it is:
/// btrfs, LVM2 physical volumes, LUKS, swap, members of Linux's software RAID.
public enum ForeignKinds {
    /// What lies on `range`. A RAID member whose superblock lies at its end may have a readable file system at its
    /// beginning: readers of file systems are to be asked first.
    /// - Returns: nil when it is none of these. `uuid` is as the kind's own tools print it.
    /// - Throws: ``TocError`` `store` when the volume fails.
    public static func recognize(
        _ store: any BlockStore, _ range: ByteRange
    ) throws(TocError) -> (kind: FileSystemKind, label: String, uuid: String)? {
        let probe = Probe(store, range)
        if let found = try luks(probe) { return (.luks, found.label, found.uuid) }
        if let found = try lvm(probe) { return (.lvm, found.label, found.uuid) }
        if let found = try btrfs(probe) { return (.btrfs, found.label, found.uuid) }
        if let found = try swap(probe) { return (.swap, found.label, found.uuid) }
        if let found = try raid(probe) { return (.raid, found.label, found.uuid) }
        return nil
    }

    private typealias Found = (label: String, uuid: String)

    /// Bytes at places of the range; nil where it ends before.
    private struct Probe {
        let store: any BlockStore
        let range: ByteRange

        init(_ store: any BlockStore, _ range: ByteRange) {
            self.store = store
            self.range = range
        }

        func bytes(_ offset: UInt64, _ count: Int) throws(TocError) -> [UInt8]? {
            guard ByteRange(checking: offset, UInt64(count), within: range.count) != nil else { return nil }
            do throws(StoreError) {
                return try store.bytes(at: range.offset + offset, count: count)
            } catch {
                throw TocError(
                    .store(error), "cannot read \(count) bytes at \(range.offset + offset): \(error.code)")
            }
        }
    }

    /// "LUKS On-Disk Format Specification" 1.2.3 and "LUKS2 On-Disk Format Specification" 1.1: a secondary header
    /// of version 2 lies behind the first, whose size is one of a few.
    private static func luks(_ probe: Probe) throws(TocError) -> Found? {
        let places: [(UInt64, [UInt8])] =
            [(0, Array("LUKS".utf8))] + (14...22).map { (1 << $0, Array("SKUL".utf8)) }
        for (offset, magic) in places {
            guard let header = try probe.bytes(offset, 512) else { continue }
            guard header.starts(with: magic + [0xBA, 0xBE]), header[6] == 0 else { continue }
            switch header[7] {
            case 1 where offset == 0: return ("", text(header[168..<208]))
            case 2: return (text(header[24..<72]), text(header[168..<208]))
            default: continue
            }
        }
        return nil
    }

    /// LVM2's label, in one of the first four sectors, and the physical volume's header that it points to.
    private static func lvm(_ probe: Probe) throws(TocError) -> Found? {
        for sector in 0..<4 {
            guard let bytes = try probe.bytes(UInt64(sector) * 512, 512) else { return nil }
            guard bytes.starts(with: Array("LABELONE".utf8)), little(bytes, 8, 8) == UInt64(sector),
                bytes[24..<32].elementsEqual(Array("LVM2 001".utf8))
            else { continue }
            let header = Int(little(bytes, 20, 4))
            guard header >= 32, header <= 512 - 32 else { return ("", "") }
            let letters = Array(text(bytes[header..<header + 32]))
            guard letters.count == 32 else { return ("", "") }
            var uuid = ""
            for (index, letter) in letters.enumerated() {
                if [6, 10, 14, 18, 22, 26].contains(index) { uuid += "-" }
                uuid.append(letter)
            }
            return ("", uuid)
        }
        return nil
    }

    private static func btrfs(_ probe: Probe) throws(TocError) -> Found? {
        guard let block = try probe.bytes(64 << 10, 4096),
            block[0x40..<0x48].elementsEqual(Array("_BHRfS_M".utf8))
        else { return nil }
        return (text(block[0x12B..<0x22B]), UUIDText.text(Array(block[0x20..<0x30])))
    }

    /// The last bytes of the first page, whose size is the machine's that made it.
    private static func swap(_ probe: Probe) throws(TocError) -> Found? {
        for page in [4096, 8192, 16384, 65536] as [UInt64] {
            guard let bytes = try probe.bytes(page - 10, 10) else { return nil }
            switch text(bytes[...]) {
            case "SWAPSPACE2", "S1SUSPEND", "S2SUSPEND", "ULSUSPEND", "LINHIB0001":
                guard let header = try probe.bytes(1024, 44) else { return ("", "") }
                return (text(header[28..<44]), UUIDText.text(Array(header[12..<28])))
            case "SWAP-SPACE": return ("", "")
            default: continue
            }
        }
        return nil
    }

    private static let raidMagic: UInt64 = 0xA92B_4EFC

    /// Linux's md: version 1.1 at the beginning, 1.2 behind 4 KiB, 1.0 and 0.90 at the end.
    private static func raid(_ probe: Probe) throws(TocError) -> Found? {
        let sectors = probe.range.count / 512
        var places: [UInt64] = [0, 8]
        if sectors >= 32 { places.append((sectors - 16) & ~7) }
        for place in places {
            guard let block = try probe.bytes(place * 512, 256), little(block, 0, 4) == raidMagic,
                little(block, 4, 4) == 1, little(block, 144, 8) == place
            else { continue }
            return (text(block[32..<64]), words(Array(block[16..<32])))
        }
        guard probe.range.count >= 128 << 10,
            let block = try probe.bytes(probe.range.count & ~0xFFFF - 0x10000, 256)
        else { return nil }
        // Version 0.90 is in the byte order of the machine that made it.
        let isLittle = little(block, 0, 4) == raidMagic
        let isBig = Array(block[0..<4]) == [0xA9, 0x2B, 0x4E, 0xFC]
        guard isLittle || isBig else { return nil }
        func word(_ index: Int) -> [UInt8] {
            let bytes = Array(block[index * 4..<index * 4 + 4])
            return isLittle ? bytes.reversed() : bytes
        }
        guard word(1) == [0, 0, 0, 0], word(2) == [0, 0, 0, 90] else { return nil }
        return ("", words(word(5) + word(13) + word(14) + word(15)))
    }

    /// As mdadm prints it: four words with colons.
    private static func words(_ bytes: [UInt8]) -> String {
        var result = ""
        for (index, byte) in bytes.enumerated() {
            if index % 4 == 0, index > 0 { result += ":" }
            result += (byte < 16 ? "0" : "") + String(byte, radix: 16)
        }
        return result
    }

    private static func little(_ bytes: [UInt8], _ offset: Int, _ count: Int) -> UInt64 {
        bytes[offset..<offset + count].reversed().reduce(0) { $0 << 8 | UInt64($1) }
    }

    /// Up to the first zero byte.
    private static func text(_ bytes: ArraySlice<UInt8>) -> String {
        String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
    }
}
