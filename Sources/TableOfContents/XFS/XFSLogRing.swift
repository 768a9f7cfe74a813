import Blocks

/// A record's header.
struct XFSLogRecord {
    /// Sector of the ring.
    var position: UInt64
    var headerSectors: UInt64
    var dataBytes: UInt64
    /// Where the first record lies that recovery needs: round and sector.
    var tail: UInt64
    var operations: UInt32
    /// Of the record's header; what wraps to the ring's beginning has one more.
    var cycle: UInt32

    var sectors: UInt64 { headerSectors + (dataBytes + 511) / 512 }
    /// Log sequence number: by it recovery knows whether what is on disk is newer.
    var sequence: UInt64 { UInt64(cycle) << 32 | position }
    var tailPosition: UInt64 { tail & UInt64(UInt32.max) }
}

/// The sectors of the log: a ring of sectors of 512 bytes, each of which begins with the number of the round in which it
/// was written, so that the head is where that number falls.
struct XFSLogRing {
    static let sector: UInt64 = 512
    private static let magic: UInt32 = 0xFEED_BABE
    /// Records, and sectors, that may be in flight at once: eight buffers of 256 KiB.
    private static let inFlightRecords = 8
    private static let inFlight: UInt64 = 4096
    /// Sectors of the longest record: 256 KiB, its headers, and as much again to fill a stripe.
    private static let longestRecord: UInt64 = 1040
    private static let cycleBytes = 32 << 10
    /// Sectors that are looked at together.
    private static let piece: UInt64 = 128

    private let disk: XFSDisk
    private let range: ByteRange
    private let uuid: [UInt8]
    let count: UInt64

    /// - Parameter uuid: the superblock's, which each record has.
    init(_ disk: XFSDisk, _ range: ByteRange, uuid: [UInt8]) {
        self.disk = disk
        self.range = range
        self.uuid = uuid
        count = range.count / Self.sector
    }

    func advance(_ position: UInt64, by sectors: UInt64) -> UInt64 { (position + sectors) % count }

    func distance(from: UInt64, to: UInt64) -> UInt64 { (to % count + count - from) % count }

    /// `sectors` from `position` on, round the end.
    private func read(_ position: UInt64, _ sectors: UInt64) throws(TocError) -> XFSBuffer {
        let buffer = XFSBuffer(count: Int(sectors * Self.sector))
        let before = min(sectors, count - position)
        let cut = Int(before * Self.sector)
        let memory = buffer.memory
        try disk.readAll(
            range.offset + position * Self.sector, UnsafeMutableRawBufferPointer(rebasing: memory[..<cut]))
        if before < sectors {
            try disk.readAll(range.offset, UnsafeMutableRawBufferPointer(rebasing: memory[cut...]))
        }
        return buffer
    }

    // MARK: Head and tail

    private func cycle(_ position: UInt64) throws(TocError) -> UInt32 {
        let buffer = try read(position, 1)
        return Self.cycle(buffer.view, 0)
    }

    private static func cycle(_ view: XFSView, _ place: Int) -> UInt32 {
        let first = view.u32(place)
        return first == magic ? view.u32(place + 4) : first
    }

    /// The first of the sectors of `positions` that was written in round `cycle`.
    private func first(_ positions: Range<UInt64>, of cycle: UInt32) throws(TocError) -> UInt64? {
        var position = positions.lowerBound
        while position < positions.upperBound {
            let sectors = min(Self.piece, positions.upperBound - position)
            let buffer = try read(position, sectors)
            for index in 0..<sectors
            where Self.cycle(buffer.view, Int(index * Self.sector)) == cycle { return position + index }
            position += sectors
        }
        return nil
    }

    /// The sector behind the last record that is whole. Behind it there may be some that were written sooner than
    /// others before them, as after a crash with several buffers in flight; and those before it may still have
    /// checksums that do not fit.
    ///
    /// Nil: this cannot be a log.
    private func findHead() throws(TocError) -> UInt64? {
        guard count > 2 * Self.longestRecord, count <= UInt64(UInt32.max) else { return nil }
        let first = try cycle(0)
        let last = try cycle(count - 1)
        guard first > 0 else { return nil }
        var head = count
        if first != last {
            var low: UInt64 = 0
            head = count - 1
            while head - low > 1 {
                let middle = low + (head - low) / 2
                if try cycle(middle) == last { head = middle } else { low = middle }
            }
        }
        // What was not written before it is a hole, and the first one is the head.
        let hole = first == last ? last &- 1 : last
        let window = min(Self.inFlight, count)
        if head >= window {
            head = try self.first(head - window..<head, of: hole) ?? head
        } else if last > 0, let found = try self.first(count - (window - head)..<count, of: hole - 1) {
            head = found
        } else {
            head = try self.first(0..<head, of: hole) ?? head
        }
        head %= count
        let before = try headers(before: head, atMost: 1)
        guard let header = before.first else { return nil }
        // A record that is not whole does not count.
        let record = try intactRecord(at: header)
        return record.map { advance(header, by: $0.sectors) } == head ? head : header
    }

    /// Where the records begin that lie before `head`, the last one first.
    private func headers(before head: UInt64, atMost limit: Int) throws(TocError) -> [UInt64] {
        var found: [UInt64] = []
        var walked: UInt64 = 0
        var missed: UInt64 = 0
        while walked < count, missed < Self.longestRecord {
            let sectors = min(Self.piece, count - walked)
            let start = (head + 2 * count - walked - sectors) % count
            let buffer = try read(start, sectors)
            for index in (0..<sectors).reversed() {
                missed += 1
                guard buffer.view.u32(Int(index * Self.sector)) == Self.magic else { continue }
                found.append((start + index) % count)
                if found.count == limit { return found }
                missed = 0
            }
            walked += sectors
        }
        return found
    }

    /// What lies between tail and head.
    enum Contents {
        /// The last record says that the file system was unmounted.
        case unmounted
        case records(tail: XFSLogRecord, head: UInt64)
    }

    /// Looks for the head as recovery does: the last eight records may have been torn, and what lies from the first that
    /// does not verify on was not written.
    func contents() throws(TocError) -> Contents {
        guard var head = try findHead() else {
            throw TocError(.damaged, "where it ends cannot be told")
        }
        var headers = try headers(before: head, atMost: Self.inFlightRecords + 1)
        guard let newest = headers.first else { throw TocError(.damaged, "it has no last record") }
        if try intactRecord(at: newest).map({ (record) throws(TocError) in
            try isUnmount(record, before: head)
        }) ?? false {
            return .unmounted
        }
        // What lies before the tail may be overwritten already.
        let oldest = try read(newest, 1).u64(24) & UInt64(UInt32.max)
        guard oldest < count else { throw Self.badTail }
        headers.removeAll { distance(from: oldest, to: $0) > distance(from: oldest, to: newest) }
        var last = newest
        for (index, header) in headers.prefix(Self.inFlightRecords).enumerated().reversed() {
            let next = index == 0 ? head : headers[index - 1]
            guard try !isWhole(header, before: next) else { continue }
            guard index + 1 < headers.count else {
                throw TocError(.damaged, "its last records do not verify")
            }
            head = header
            last = headers[index + 1]
            break
        }
        let record = try record(at: last)
        if try isUnmount(record, before: head) { return .unmounted }
        guard record.tailPosition < count, record.tail <= record.sequence else { throw Self.badTail }
        let tail = try self.record(at: record.tailPosition)
        guard tail.sequence == record.tail else { throw TocError(.damaged, "its tail was overwritten") }
        return .records(tail: tail, head: head)
    }

    private static let badTail = TocError(.damaged, "its last record names a tail that cannot be right")

    /// Whether a record verifies and ends where the next begins.
    private func isWhole(_ position: UInt64, before next: UInt64) throws(TocError) -> Bool {
        do throws(TocError) {
            let record = try record(at: position)
            _ = try data(record)
            return advance(position, by: record.sectors) == next
        } catch {
            guard error.kind == .damaged else { throw error }
            return false
        }
    }

    // MARK: Records

    func record(at position: UInt64) throws(TocError) -> XFSLogRecord {
        let buffer = try read(position, 1)
        let view = buffer.view
        let cycle = view.u32(4)
        let version = view.u32(8)
        let size = UInt64(view.u32(12))
        guard view.u32(0) == Self.magic, view.u64(16) == UInt64(cycle) << 32 | position,
            version > 0, version <= 3, size > 0, size <= (Self.longestRecord - 16) * Self.sector
        else { throw TocError(.damaged, "it has a record that cannot be right") }
        var headers: UInt64 = 1
        let bufferSize = UInt64(view.u32(320))
        if version & 2 != 0, bufferSize > UInt64(Self.cycleBytes) {
            headers = (bufferSize + UInt64(Self.cycleBytes) - 1) / UInt64(Self.cycleBytes)
        }
        guard headers <= 16, view.u32(300) == 1 else {
            throw TocError(.damaged, "it has a record that cannot be right, or of another kind of machine")
        }
        guard view.equals(uuid, at: 304) else {
            throw TocError(.damaged, "it has a record of another file system")
        }
        return XFSLogRecord(
            position: position, headerSectors: headers, dataBytes: size, tail: view.u64(24),
            operations: view.u32(40), cycle: cycle)
    }

    /// Nil: what is there is none.
    private func intactRecord(at position: UInt64) throws(TocError) -> XFSLogRecord? {
        do throws(TocError) { return try record(at: position) } catch {
            guard error.kind == .damaged else { throw error }
            return nil
        }
    }

    /// A record's data as they were before each sector's first bytes gave way to the round's number.
    func data(_ record: XFSLogRecord) throws(TocError) -> [UInt8] {
        let buffer = try read(record.position, record.sectors)
        let memory = buffer.memory
        let headers = Int(record.headerSectors) * 512
        let size = Int(record.dataBytes)
        try checkSum(buffer, record)
        for index in 0..<(size + 511) / 512 {
            // 64 in the header, 64 in each that follows it.
            let place = index < 64 ? 44 + index * 4 : (index / 64) * 512 + 4 + (index % 64) * 4
            guard place + 4 <= headers else { throw TocError(.damaged, "a record is longer than it may be") }
            let target = headers + index * 512
            UnsafeMutableRawBufferPointer(rebasing: memory[target..<target + 4])
                .copyMemory(from: UnsafeRawBufferPointer(rebasing: memory[place..<place + 4]))
        }
        return Array(memory[headers..<min(headers + size, memory.count)])
    }

    private func checkSum(_ buffer: XFSBuffer, _ record: XFSLogRecord) throws(TocError) {
        let view = buffer.view
        let stored = view.u32(32).byteSwapped
        // As mkfs leaves it, and as old kernels did.
        guard stored != 0 else { return }
        let headers = Int(record.headerSectors)
        let data = view.slice(headers * 512, min(Int(record.dataBytes), view.count - headers * 512))
        // The header's structure ends with padding on machines that align 64 bits, and without on others.
        let fits = [328, 324].contains { headerBytes in
            var crc = CRC32C()
            crc.update(UnsafeRawBufferPointer(rebasing: view.bytes[..<32]))
            withUnsafeBytes(of: UInt32(0)) { crc.update($0) }
            crc.update(UnsafeRawBufferPointer(rebasing: view.bytes[36..<headerBytes]))
            for index in stride(from: 1, to: headers, by: 1) {
                crc.update(UnsafeRawBufferPointer(rebasing: view.bytes[index * 512..<index * 512 + 260]))
            }
            if let data { crc.update(data.bytes) }
            return crc.value == stored
        }
        guard fits else { throw TocError(.damaged, "a record's checksum does not fit") }
    }

    /// Whether a record is the one that an unmount writes last.
    private func isUnmount(_ record: XFSLogRecord, before head: UInt64) throws(TocError) -> Bool {
        guard record.operations == 1, advance(record.position, by: record.sectors) == head else {
            return false
        }
        do throws(TocError) {
            let bytes = try data(record)
            return bytes.count >= 12 && bytes[9] & XFSLogTransactions.Flags.unmount != 0
        } catch {
            guard error.kind == .damaged else { throw error }
            return false
        }
    }
}
