import Blocks

/// Looks at the log to see whether what is on disk is all there is ("XFS Algorithms & Data Structures", chapter
/// "Journaling Log"). It recovers nothing.
///
/// The log is a ring of sectors of 512 bytes. Each begins with the number of the round in which it was written, so
/// the head is where that number falls.
final class XFSLog {
    enum State: Equatable {
        /// The last record says that the file system was unmounted.
        case clean
        /// Recovery would write the superblock alone: so is the log of a frozen file system, and of an idle one.
        case covered
        case external
        /// The reason, for people.
        case pending(String)
    }

    static let sector: UInt64 = 512

    private let geometry: XFSGeometry
    private let disk: XFSDisk

    init(_ geometry: XFSGeometry, _ disk: XFSDisk) {
        self.geometry = geometry
        self.disk = disk
    }

    /// Damage and whatever is not understood count as pending.
    func state() throws(TocError) -> State {
        if geometry.logStart == 0 { return .external }
        guard let range = geometry.logRange else { return .pending("it lies nowhere") }
        let ring = XFSLogRing(disk, range, isVersion5: geometry.isVersion5)
        do throws(TocError) {
            guard let head = try ring.findHead() else { return .pending("where it ends cannot be told") }
            let last = try ring.lastRecord(before: head)
            if try ring.isUnmount(last) { return .clean }
            return try changesSuperblockAlone(ring, from: last.tail, to: head)
                ? .covered : .pending("it was in use")
        } catch {
            guard error.kind == .damaged else { throw error }
            return .pending(error.description)
        }
    }

    private func changesSuperblockAlone(
        _ ring: XFSLogRing, from tail: UInt64, to head: UInt64
    ) throws(TocError) -> Bool {
        var transactions = XFSLogTransactions()
        var position = tail
        var left = ring.distance(from: tail, to: head)
        guard left > 0, left * Self.sector <= XFSLimits.logBytes else { return false }
        while left > 0 {
            let record = try ring.record(at: position)
            guard record.sectors <= left else { throw TocError(.damaged, "a record passes the log's head") }
            guard try transactions.add(try ring.data(record), operations: record.operations) else {
                return false
            }
            left -= record.sectors
            position = ring.advance(position, by: record.sectors)
        }
        return true
    }
}

/// A record's header.
struct XFSLogRecord {
    /// Sector of the ring.
    var position: UInt64
    var headerSectors: UInt64
    var dataBytes: UInt64
    /// Sector of the first record that recovery needs.
    var tail: UInt64
    var operations: UInt32
    /// Of the record's header; what wraps to the ring's beginning has one more.
    var cycle: UInt32

    var sectors: UInt64 { headerSectors + (dataBytes + 511) / 512 }
}

/// The sectors of the log.
struct XFSLogRing {
    private static let magic: UInt32 = 0xFEED_BABE
    /// Sectors that may be in flight at once: eight buffers of 256 KiB.
    private static let inFlight: UInt64 = 4096
    /// Sectors of the longest record: 256 KiB, its headers, and as much again to fill a stripe.
    private static let longestRecord: UInt64 = 1040
    private static let cycleBytes = 32 << 10

    private let disk: XFSDisk
    private let range: ByteRange
    private let isVersion5: Bool
    let count: UInt64

    init(_ disk: XFSDisk, _ range: ByteRange, isVersion5: Bool) {
        self.disk = disk
        self.range = range
        self.isVersion5 = isVersion5
        count = range.count / XFSLog.sector
    }

    func advance(_ position: UInt64, by sectors: UInt64) -> UInt64 { (position + sectors) % count }

    func distance(from: UInt64, to: UInt64) -> UInt64 { (to % count + count - from) % count }

    /// `sectors` from `position` on, round the end.
    private func read(_ position: UInt64, _ sectors: UInt64) throws(TocError) -> XFSBuffer {
        let buffer = XFSBuffer(count: Int(sectors * XFSLog.sector))
        try read(position, sectors, into: buffer)
        return buffer
    }

    private func read(_ position: UInt64, _ sectors: UInt64, into buffer: XFSBuffer) throws(TocError) {
        let before = min(sectors, count - position)
        let cut = Int(before * XFSLog.sector)
        try disk.readAll(
            range.offset + position * XFSLog.sector,
            UnsafeMutableRawBufferPointer(rebasing: buffer.memory[..<cut]))
        if before < sectors {
            try disk.readAll(range.offset, UnsafeMutableRawBufferPointer(rebasing: buffer.memory[cut...]))
        }
    }

    private static func cycle(_ view: XFSView, _ place: Int) -> UInt32 {
        let first = view.u32(place)
        return first == magic ? view.u32(place + 4) : first
    }

    private func cycle(_ position: UInt64) throws(TocError) -> UInt32 {
        let buffer = try read(position, 1)
        return Self.cycle(buffer.view, 0)
    }

    /// The sector that is written next; nil when the rounds do not tell it without doubt, as after a crash with
    /// several buffers in flight.
    func findHead() throws(TocError) -> UInt64? {
        guard count > 2 * Self.longestRecord else { return nil }
        let first = try cycle(0)
        let last = try cycle(count - 1)
        guard first > 0 else { return nil }
        var head = count
        if first != last {
            guard last == first - 1 else { return nil }
            var low: UInt64 = 0
            head = count - 1
            while head - low > 1 {
                let middle = low + (head - low) / 2
                switch try cycle(middle) {
                case first: low = middle
                case last: head = middle
                default: return nil
                }
            }
        }
        return try isEven(around: head, first, last) ? head % count : nil
    }

    /// Whether nothing before the head is older, and nothing behind it newer, than it should be.
    private func isEven(around head: UInt64, _ first: UInt32, _ last: UInt32) throws(TocError) -> Bool {
        let piece: UInt64 = 128
        let buffer = XFSBuffer(count: Int(piece * XFSLog.sector))
        let window = min(Self.inFlight, count / 2) / piece * piece
        for begin in [head + count - window, head] {
            for start in stride(from: begin, to: begin + window, by: Int(piece)) {
                try read(start % count, piece, into: buffer)
                for index in 0..<piece {
                    let expected = (start + index) % count < head ? first : last
                    let found = Self.cycle(buffer.view, Int(index * XFSLog.sector))
                    guard found == expected else { return false }
                }
            }
        }
        return true
    }

    /// The record that ends at the head.
    func lastRecord(before head: UInt64) throws(TocError) -> XFSLogRecord {
        let start = (head + count - Self.longestRecord) % count
        let buffer = try read(start, Self.longestRecord)
        for index in (0..<Self.longestRecord).reversed()
        where buffer.view.u32(Int(index * XFSLog.sector)) == Self.magic {
            let position = (start + index) % count
            let record = try self.record(at: position)
            guard distance(from: position, to: head) == record.sectors else {
                throw TocError(.damaged, "its last record is not whole")
            }
            return record
        }
        throw TocError(.damaged, "it has no last record")
    }

    func record(at position: UInt64) throws(TocError) -> XFSLogRecord {
        let buffer = try read(position, 1)
        let view = buffer.view
        let cycle = view.u32(4)
        let size = UInt64(view.u32(12))
        guard view.u32(0) == Self.magic, view.u64(16) == UInt64(cycle) << 32 | position,
            size > 0, size <= (Self.longestRecord - 16) * XFSLog.sector
        else { throw TocError(.damaged, "it has a record that cannot be right") }
        var headers: UInt64 = 1
        let bufferSize = UInt64(view.u32(320))
        if view.u32(8) & 2 != 0, bufferSize > UInt64(Self.cycleBytes) {
            headers = (bufferSize + UInt64(Self.cycleBytes) - 1) / UInt64(Self.cycleBytes)
        }
        let tail = view.u64(24) & UInt64(UInt32.max)
        guard headers <= 16, tail < count, view.u32(300) == 1 else {
            throw TocError(.damaged, "it has a record that cannot be right, or of another kind of machine")
        }
        return XFSLogRecord(
            position: position, headerSectors: headers, dataBytes: size, tail: tail,
            operations: view.u32(40), cycle: cycle)
    }

    /// A record's data as they were before each sector's first bytes gave way to the round's number.
    func data(_ record: XFSLogRecord) throws(TocError) -> [UInt8] {
        let buffer = try read(record.position, record.sectors)
        let memory = buffer.memory
        let headers = Int(record.headerSectors) * 512
        let size = Int(record.dataBytes)
        if isVersion5 { try checkSum(buffer, record) }
        for index in 0..<(size + 511) / 512 {
            // 64 in the header, 64 in each that follows it.
            let place = index < 64 ? 44 + index * 4 : (index / 64) * 512 + 4 + (index % 64) * 4
            guard place + 4 <= headers else { throw TocError(.damaged, "a record is longer than it may be") }
            memory.copyBytes(
                from: UnsafeRawBufferPointer(rebasing: memory[place..<place + 4]), at: headers + index * 512)
        }
        return Array(memory[headers..<min(headers + size, memory.count)])
    }

    private func checkSum(_ buffer: XFSBuffer, _ record: XFSLogRecord) throws(TocError) {
        let view = buffer.view
        let stored = view.u32(32).byteSwapped
        guard stored != 0 else { return }
        let headers = Int(record.headerSectors)
        let data = view.slice(headers * 512, min(Int(record.dataBytes), view.count - headers * 512))
        // The header's structure ends with padding on machines that align 64 bits, and without on others.
        let fits = [328, 324].contains { headerBytes in
            var crc = CRC32C()
            crc.update(UnsafeRawBufferPointer(rebasing: view.bytes[..<32]))
            withUnsafeBytes(of: UInt32(0)) { crc.update($0) }
            crc.update(UnsafeRawBufferPointer(rebasing: view.bytes[36..<headerBytes]))
            for index in 1..<max(headers, 1) + 0 where headers > 1 {
                crc.update(UnsafeRawBufferPointer(rebasing: view.bytes[index * 512..<index * 512 + 260]))
            }
            if let data { crc.update(data.bytes) }
            return crc.value == stored
        }
        guard fits else { throw TocError(.damaged, "a record's checksum does not fit") }
    }

    /// Whether a record is the one that an unmount writes last.
    func isUnmount(_ record: XFSLogRecord) throws(TocError) -> Bool {
        guard record.operations == 1 else { return false }
        let bytes = try data(record)
        return bytes.count >= 12 && bytes[9] & XFSLogTransactions.Flags.unmount != 0
    }
}

extension UnsafeMutableRawBufferPointer {
    fileprivate func copyBytes(from source: UnsafeRawBufferPointer, at offset: Int) {
        UnsafeMutableRawBufferPointer(rebasing: self[offset..<offset + source.count]).copyMemory(from: source)
    }
}

/// Puts transactions together from the operations of records, and says whether all they change is the superblock.
struct XFSLogTransactions {
    enum Flags {
        static let start: UInt8 = 0x01
        static let commit: UInt8 = 0x02
        static let continues: UInt8 = 0x04
        static let wasContinued: UInt8 = 0x08
        static let unmount: UInt8 = 0x20
    }

    /// The kind of a logged buffer, and of its address; in the byte order of the machine that wrote the log.
    private static let buffer: UInt16 = 0x123C

    private struct Open {
        /// Regions of the current item that are still to come.
        var regionsLeft = 0
        var isHeaderSeen = false
    }

    private var open: [UInt32: Open] = [:]

    /// - Returns: false when something else than the superblock is changed, or may be.
    mutating func add(_ data: [UInt8], operations: UInt32) throws(TocError) -> Bool {
        var position = 0
        for _ in 0..<operations {
            guard position + 12 <= data.count else { throw Self.short }
            let identifier = Self.bigEndian(data, position)
            let length = Int(Self.bigEndian(data, position + 4))
            let flags = data[position + 9]
            position += 12
            guard length <= data.count - position else { throw Self.short }
            let region = data[position..<position + length]
            position += length
            if flags & Flags.start != 0 {
                open[identifier] = Open()
                guard open.count <= 1024 else { return false }
            }
            // What was written before the tail belongs to a transaction that needs no recovery.
            guard var transaction = open[identifier] else { return false }
            if flags & (Flags.continues | Flags.wasContinued | Flags.unmount) != 0 { return false }
            if flags & Flags.commit != 0 {
                open[identifier] = nil
                continue
            }
            guard !region.isEmpty else { continue }
            guard Self.isHarmless(region, &transaction) else { return false }
            open[identifier] = transaction
        }
        return true
    }

    private static func isHarmless(_ region: ArraySlice<UInt8>, _ transaction: inout Open) -> Bool {
        if !transaction.isHeaderSeen {
            transaction.isHeaderSeen = true
            return region.count == 16
        }
        if transaction.regionsLeft > 0 {
            transaction.regionsLeft -= 1
            return true
        }
        // type, size in regions, flags, length; then the address in sectors.
        guard region.count >= 20 else { return false }
        let start = region.startIndex
        func half(_ offset: Int) -> UInt16 {
            UInt16(region[start + offset]) | UInt16(region[start + offset + 1]) << 8
        }
        let address = region[(start + 8)..<(start + 16)]
        guard half(0) == buffer, half(2) > 0, address.allSatisfy({ $0 == 0 }) else { return false }
        transaction.regionsLeft = Int(half(2)) - 1
        return true
    }

    private static func bigEndian(_ bytes: [UInt8], _ offset: Int) -> UInt32 {
        bytes[offset..<offset + 4].reduce(0) { $0 << 8 | UInt32($1) }
    }

    private static let short = TocError(.damaged, "an operation passes its record's end")
}
