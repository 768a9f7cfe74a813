import Blocks

/// Reads ISO 9660 (ECMA-119) with its extensions Rock Ridge (IEEE P1282 over SUSP, P1281) and Joliet.
///
/// libtsk 4.11.1 reads ISO 9660, too, but of Rock Ridge neither symbolic links, devices, times nor relocated
/// directories, nothing that a continuation area holds, no file in several extents, and what lies behind 4 GiB not
/// at all; where there is a Joliet tree it prefers that to Rock Ridge's. So this is ours.
///
/// A volume is shown as Linux shows it: by Rock Ridge where it is, else by Joliet where that is, else by the plain
/// names, in small letters and without versions. A node is a file's directory record: its address is the record's
/// offset on the volume in units of 2 bytes, since records begin at even offsets.
struct ISO9660Reader: FileSystemReader {
    let description: FileSystemDescription
    private let disk: ISODisk

    /// - Parameter found: what ``Probe`` made of the primary volume descriptor.
    /// - Throws: ``TocError`` `damaged` when there is no directory to begin with.
    init(_ store: any BlockStore, _ range: ByteRange, _ found: Probe.Found) throws(TocError) {
        disk = try ISODisk(store, range)
        var label = found.label
        if disk.names == .joliet, !disk.jolietLabel.isEmpty { label = disk.jolietLabel }
        description = FileSystemDescription(
            index: 0, kind: .iso9660, range: range, blockSize: disk.blockSize, label: label,
            root: disk.root.address, isListed: true, knowsUse: false,
            remark: "ISO 9660 does not tell which blocks are in use")
    }

    func read(_ scope: ReadScope, into sink: any RecordSink) throws(TocError) {
        try sink.put(.fileSystem(description))
        let telling = Telling(sink, range: description.range, blockSize: disk.blockSize)
        if scope.contains(.files) {
            var walk = ISOWalk(disk, telling)
            try walk.run()
        }
        try telling.end()
    }
}

/// The volume descriptors, and bytes behind them.
struct ISODisk {
    enum Names {
        case plain, joliet, rockRidge
    }

    let range: ByteRange
    let blockSize: UInt64
    private(set) var names = Names.plain
    private(set) var root: ISORecord
    private(set) var jolietLabel = ""
    /// Bytes before the system use entries of each record (SUSP's SP).
    private(set) var systemUseSkip = 0
    private let store: any BlockStore

    private static let firstDescriptor: UInt64 = 16
    private static let mostDescriptors: UInt64 = 64

    init(_ store: any BlockStore, _ range: ByteRange) throws(TocError) {
        self.store = store
        self.range = range
        var primary: [UInt8]?
        var joliet: [UInt8]?
        for sector in Self.firstDescriptor..<Self.firstDescriptor + Self.mostDescriptors {
            let bytes = try Probe.bytes(store, range, sector * 2048, 2048)
            guard bytes[1..<6].elementsEqual(Array("CD001".utf8)), bytes[0] != 255 else { break }
            if bytes[0] == 1, primary == nil { primary = bytes }
            // The escape sequences of UCS-2, levels 1 to 3.
            let escape = Array(bytes[88..<91])
            if bytes[0] == 2, joliet == nil, escape[..<2] == [0x25, 0x2F],
                [0x40, 0x43, 0x45].contains(escape[2])
            {
                joliet = bytes
            }
        }
        guard let primary else { throw TocError(.damaged, "there is no primary volume descriptor") }
        blockSize = primary.withUnsafeBytes { UInt64($0.littleEndian(at: 128, as: UInt16.self)) }
        guard [512, 1024, 2048].contains(blockSize),
            let root = ISORecord(Array(primary[156..<190]), at: Self.firstDescriptor * 2048 + 156)
        else { throw TocError(.damaged, "the primary volume descriptor is damaged") }
        self.root = root
        if let skip = try rockRidgeSkip(root) {
            systemUseSkip = skip
            names = .rockRidge
        } else if let joliet,
            let root = ISORecord(Array(joliet[156..<190]), at: Self.firstDescriptor * 2048 + 158)
        {
            self.root = root
            names = .joliet
            let units = (0..<16).map { UInt16(joliet[40 + 2 * $0]) << 8 | UInt16(joliet[41 + 2 * $0]) }
            var text = String(decoding: units, as: UTF16.self)
            while let last = text.last, last == " " || last == "\0" { text.removeLast() }
            jolietLabel = text
        }
    }

    /// Whether the root's own record has SUSP's SP and a sign of Rock Ridge: bytes to skip; nil: no.
    private func rockRidgeSkip(_ root: ISORecord) throws(TocError) -> Int? {
        let bytes = try self.bytes(root.block * blockSize, 2048)
        guard let own = ISORecord(bytes, at: 0) else { return nil }
        let area = own.systemUse
        guard area.count >= 7, area[..<2].elementsEqual(Array("SP".utf8)), area[4] == 0xBE, area[5] == 0xEF
        else {
            return nil
        }
        let extensions = try entries(of: own, skip: 0)
        let known = ["RR", "PX", "ER"].map { Array($0.utf8) }
        return extensions.contains(where: { known.contains($0.signature) }) ? Int(area[6]) : nil
    }

    /// As many as there are, then zeros.
    func bytes(_ offset: UInt64, _ count: Int) throws(TocError) -> [UInt8] {
        try Probe.bytes(store, range, offset, count)
    }

    struct Entry {
        var signature: [UInt8]
        /// Behind the four bytes of signature, length and version.
        var data: [UInt8]
    }

    /// The system use entries of a record, with those of its continuation areas.
    func entries(of record: ISORecord, skip: Int? = nil) throws(TocError) -> [Entry] {
        var found: [Entry] = []
        var area = Array(record.systemUse.dropFirst(skip ?? systemUseSkip))
        var areas = 0
        while true {
            var next: (offset: UInt64, count: Int)?
            var offset = 0
            while offset + 4 <= area.count {
                let length = Int(area[offset + 2])
                guard length >= 4, offset + length <= area.count else { break }
                let entry = Entry(
                    signature: Array(area[offset..<offset + 2]),
                    data: Array(area[offset + 4..<offset + length]))
                offset += length
                if entry.signature == Array("ST".utf8) { break }
                if entry.signature == Array("CE".utf8), entry.data.count >= 24 {
                    next = entry.data.withUnsafeBytes {
                        (
                            UInt64($0.littleEndian(at: 0, as: UInt32.self)) * blockSize
                                + UInt64($0.littleEndian(at: 8, as: UInt32.self)),
                            Int($0.littleEndian(at: 16, as: UInt32.self))
                        )
                    }
                } else {
                    found.append(entry)
                }
            }
            areas += 1
            guard let (start, count) = next, areas < TocLimits.isoContinuations,
                count <= TocLimits.isoContinuation
            else { return found }
            area = try bytes(start, count)
        }
    }
}

/// A directory record (ECMA-119 §9.1).
struct ISORecord {
    /// Bytes, 34 to 255.
    let length: Int
    /// Its own place on the volume in units of 2 bytes; unique.
    let address: UInt64
    let block: UInt64
    let size: UInt64
    let flags: UInt8
    let identifier: [UInt8]
    let systemUse: [UInt8]
    let recorded: FileTime?
    /// Blocks of extended attributes before the content.
    let attributeBlocks: UInt64
    let isInterleaved: Bool

    var isDirectory: Bool { flags & 2 != 0 }
    /// More of the file follows in the next record.
    var isContinued: Bool { flags & 0x80 != 0 }
    /// A file that belongs to another of the same name (Apple's).
    var isAssociated: Bool { flags & 4 != 0 }
    /// `.` and `..`.
    var isSelfOrParent: Bool { identifier == [0] || identifier == [1] }

    /// - Parameters:
    ///   - bytes: begin with the record.
    ///   - place: of the record on the volume.
    init?(_ bytes: some Collection<UInt8>, at place: UInt64) {
        let head = Array(bytes.prefix(255))
        guard let first = head.first, first >= 34, head.count >= Int(first) else { return nil }
        length = Int(first)
        address = place / 2
        let identifierCount = Int(head[32])
        guard identifierCount > 0, 33 + identifierCount <= length else { return nil }
        (block, size) = head.withUnsafeBytes {
            (
                UInt64($0.littleEndian(at: 2, as: UInt32.self)),
                UInt64($0.littleEndian(at: 10, as: UInt32.self))
            )
        }
        flags = head[25]
        attributeBlocks = UInt64(head[1])
        isInterleaved = head[26] != 0 || head[27] != 0
        identifier = Array(head[33..<33 + identifierCount])
        let behind = 33 + identifierCount + (identifierCount & 1 == 0 ? 1 : 0)
        systemUse = behind < length ? Array(head[behind..<length]) : []
        recorded = ISORecord.time(head[18..<25])
    }

    /// Seven bytes: years since 1900, month, day, hour, minute, second, quarters of an hour east of UTC.
    static func time(_ bytes: some Collection<UInt8>) -> FileTime? {
        let field = Array(bytes)
        guard field.count >= 7, field[1] > 0, field[2] > 0 else { return nil }
        let days = ISORecord.days(Int64(field[0]) + 1900, Int64(field[1]), Int64(field[2]))
        let seconds = Int64(field[3]) * 3600 + Int64(field[4]) * 60 + Int64(field[5])
        return FileTime(seconds: days * 86_400 + seconds - Int64(Int8(bitPattern: field[6])) * 900)
    }

    /// Seventeen bytes: digits of year, month, day, hour, minute, second and hundredths, then as above.
    static func longTime(_ bytes: some Collection<UInt8>) -> FileTime? {
        let field = Array(bytes)
        guard field.count >= 17, field[..<16].allSatisfy({ (0x30...0x39).contains($0) }) else { return nil }
        func number(_ range: Range<Int>) -> Int64 { field[range].reduce(0) { $0 * 10 + Int64($1 - 0x30) } }
        guard number(0..<4) > 0, number(4..<6) > 0, number(6..<8) > 0 else { return nil }
        let days = ISORecord.days(number(0..<4), number(4..<6), number(6..<8))
        let seconds = number(8..<10) * 3600 + number(10..<12) * 60 + number(12..<14)
        return FileTime(
            seconds: days * 86_400 + seconds - Int64(Int8(bitPattern: field[16])) * 900,
            nanoseconds: UInt32(number(14..<16)) * 10_000_000)
    }

    /// Days since 1970-01-01.
    static func days(_ year: Int64, _ month: Int64, _ day: Int64) -> Int64 {
        let month = min(max(month, 1), 12)
        // Years that begin in March: the leap day is the last.
        let shifted = month <= 2 ? year - 1 : year
        let era = shifted / 400
        let ofEra = shifted - era * 400
        let ofYear = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1
        return era * 146_097 + ofEra * 365 + ofEra / 4 - ofEra / 100 + ofYear - 719_468
    }
}
