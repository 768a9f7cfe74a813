import Blocks

/// A file or directory of a FAT or exFAT directory.
struct FATEntry {
    var name: [UInt8]
    /// Of the entry that libtsk takes for the node, in the directory's bytes.
    var offset: Int
    var isDirectory: Bool
    var size: UInt64
    /// exFAT: bytes that were written; what lies behind reads as zeros.
    var validSize: UInt64
    var modified: FileTime?
    var accessed: FileTime?
    var changed: FileTime?
    var created: FileTime?
}

/// Entries of FAT directories. libtsk goes on behind the end of a directory, and takes what it finds there for files;
/// it makes times of the machine's own zone, and no `é` of a short name. All numbers are little-endian.
enum FATEntries {
    static let size = 32

    /// - Returns: the entries, and whether all that was there could be read.
    static func fat(_ bytes: UnsafeRawBufferPointer) -> (entries: [FATEntry], isWhole: Bool) {
        var entries: [FATEntry] = []
        var long = LongName()
        var isWhole = true
        var offset = 0
        while offset + size <= bytes.count {
            defer { offset += size }
            let entry = UnsafeRawBufferPointer(rebasing: bytes[offset..<offset + size])
            if entry[0] == 0 { break }
            if entry[0] == 0xE5 {
                long = LongName()
                continue
            }
            if entry[11] & 0x3F == 0x0F {
                long.add(entry)
                continue
            }
            let name = long.name(for: entry)
            long = LongName()
            // A volume's label.
            if entry[11] & 8 != 0 { continue }
            let isDirectory = entry[11] & 0x10 != 0
            if isDirectory, entry[0] == UInt8(ascii: ".") { continue }
            let text = name ?? short(entry)
            guard !text.isEmpty, text.count <= TocLimits.nameBytes, !text.contains(0) else {
                isWhole = false
                continue
            }
            entries.append(
                FATEntry(
                    name: text, offset: offset, isDirectory: isDirectory,
                    size: UInt64(entry.littleEndian(at: 28, as: UInt32.self)), validSize: .max,
                    modified: time(entry, date: 24, time: 22), accessed: time(entry, date: 18, time: nil),
                    created: time(entry, date: 16, time: 14, hundredths: 13)))
        }
        return (entries, isWhole)
    }

    /// Pieces of a long name, which come before its entry, the last first.
    private struct LongName {
        private var units: [UInt16] = []
        private var next = 0
        private var checksum: UInt8 = 0

        mutating func add(_ entry: UnsafeRawBufferPointer) {
            let order = Int(entry[0])
            if order & 0x40 != 0 {
                units = []
                next = order & 0x3F
                checksum = entry[13]
            }
            guard next > 0, order & 0x3F == next, entry[13] == checksum, next <= 20 else {
                self = LongName()
                return
            }
            next -= 1
            let places = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30]
            units = places.map { entry.littleEndian(at: $0, as: UInt16.self) } + units
        }

        /// Nil where there is none that belongs to the entry.
        func name(for entry: UnsafeRawBufferPointer) -> [UInt8]? {
            guard next == 0, !units.isEmpty else { return nil }
            let sum = entry[..<11].reduce(UInt8(0)) { ($0 >> 1 | $0 << 7) &+ $1 }
            return sum == checksum ? utf8(units.prefix { $0 != 0 && $0 != 0xFFFF }) : nil
        }
    }

    /// A name of eight and three, in small letters where the entry says so.
    private static func short(_ entry: UnsafeRawBufferPointer) -> [UInt8] {
        func part(_ range: Range<Int>, isSmall: Bool) -> [UInt8] {
            var part = [UInt8](entry[range])
            while part.last == 0x20 { part.removeLast() }
            if range.lowerBound == 0, part.first == 5 { part[0] = 0xE5 }
            return part.flatMap { byte -> [UInt8] in
                if byte >= 0x80 { return utf8([codePage437[Int(byte) - 0x80]]) }
                return [isSmall && (0x41...0x5A).contains(byte) ? byte + 0x20 : byte]
            }
        }
        let base = part(0..<8, isSmall: entry[12] & 8 != 0)
        let extension3 = part(8..<11, isSmall: entry[12] & 0x10 != 0)
        return extension3.isEmpty ? base : base + [UInt8(ascii: ".")] + extension3
    }

    /// The upper half of what most short names are written in, and what Linux takes them for.
    private static let codePage437: [UInt16] = Array(
        ("ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐"
            + "└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{A0}").utf16)

    private static func time(
        _ entry: UnsafeRawBufferPointer, date: Int, time: Int?, hundredths: Int? = nil
    ) -> FileTime? {
        let day = entry.littleEndian(at: date, as: UInt16.self)
        if day == 0 { return nil }
        let part = time.map { entry.littleEndian(at: $0, as: UInt16.self) } ?? 0
        return calendar(UInt32(day) << 16 | UInt32(part), hundredths: hundredths.map { entry[$0] } ?? 0)
    }

    /// - Parameter stamp: from the top, 7 bits of years since 1980, 4 months, 5 days, 5 hours, 6 minutes, 5 double
    ///   seconds.
    private static func calendar(_ stamp: UInt32, hundredths: UInt8) -> FileTime {
        let days = ISORecord.days(
            Int64(stamp >> 25) + 1980, Int64(stamp >> 21 & 15), max(Int64(stamp >> 16 & 31), 1))
        let seconds = Int64(stamp >> 11 & 31) * 3600 + Int64(stamp >> 5 & 63) * 60 + Int64(stamp & 31) * 2
        let more = min(Int64(hundredths), 199)
        return FileTime(
            seconds: days * 86_400 + seconds + more / 100, nanoseconds: UInt32(more % 100) * 10_000_000)
    }

    /// The same of exFAT: sets of a file's entry, its stream's, and its name's.
    static func exfat(_ bytes: UnsafeRawBufferPointer) -> (entries: [FATEntry], isWhole: Bool) {
        var entries: [FATEntry] = []
        var isWhole = true
        var offset = 0
        while offset + size <= bytes.count, bytes[offset] != 0 {
            guard bytes[offset] == 0x85 else {
                offset += size
                continue
            }
            let count = Int(bytes[offset + 1]) + 1
            guard (3...19).contains(count), offset + count * size <= bytes.count,
                let entry = exfatSet(
                    UnsafeRawBufferPointer(rebasing: bytes[offset..<offset + count * size]), offset)
            else {
                isWhole = false
                offset += size
                continue
            }
            entries.append(entry)
            offset += count * size
        }
        return (entries, isWhole)
    }

    private static func exfatSet(_ set: UnsafeRawBufferPointer, _ offset: Int) -> FATEntry? {
        guard set[size] == 0xC0 else { return nil }
        let length = Int(set[size + 3])
        var units: [UInt16] = []
        for at in stride(from: 2 * size, to: set.count, by: size) where set[at] == 0xC1 {
            units += (0..<15).map { set.littleEndian(at: at + 2 + 2 * $0, as: UInt16.self) }
        }
        guard length > 0, units.count >= length else { return nil }
        let name = utf8(units.prefix(length))
        guard name.count <= TocLimits.nameBytes, !name.contains(0) else { return nil }
        func time(_ at: Int, hundredths: Int?, zone: Int) -> FileTime? {
            let stamp = set.littleEndian(at: at, as: UInt32.self)
            if stamp >> 16 == 0 { return nil }
            var time = calendar(stamp, hundredths: hundredths.map { set[$0] } ?? 0)
            // Quarters of an hour east of UTC, if it is said.
            if set[zone] & 0x80 != 0 { time.seconds -= Int64(Int8(bitPattern: set[zone] << 1) / 2) * 900 }
            return time
        }
        return FATEntry(
            name: name, offset: offset, isDirectory: set.littleEndian(at: 4, as: UInt16.self) & 0x10 != 0,
            size: set.littleEndian(at: size + 24, as: UInt64.self),
            validSize: set.littleEndian(at: size + 8, as: UInt64.self),
            modified: time(12, hundredths: 21, zone: 23), accessed: time(16, hundredths: nil, zone: 24),
            created: time(8, hundredths: 20, zone: 22))
    }
}
