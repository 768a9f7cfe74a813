import Blocks

/// One transaction as the log has it: items, each of one or more regions.
struct XFSLogTransaction {
    /// "TRAN", in the byte order of the machine that wrote the log.
    private static let magic: UInt32 = 0x5452_414E
    private static let headerBytes = 16
    /// Regions of an item, as many as a buffer of 64 KiB can have dirty, and one.
    private static let regionsPerItem = 257

    /// Of the record that has its beginning.
    let sequence: UInt64
    private var bytes: [UInt8] = []
    private var regions: [Range<Int>] = []
    /// Indexes of regions.
    private(set) var items: [Range<Int>] = []
    private var headerSeen = 0
    /// Regions of the last item that are still to come.
    private var missing = 0

    init(sequence: UInt64) { self.sequence = sequence }

    /// Of memory.
    var byteCount: Int { bytes.count + regions.count * MemoryLayout<Range<Int>>.stride }

    mutating func add(_ region: ArraySlice<UInt8>) throws(TocError) {
        guard !region.isEmpty else { return }
        if headerSeen < Self.headerBytes {
            guard headerSeen == 0, region.count >= 4, region.count <= Self.headerBytes,
                XFSLogRegion.little(region, 0, UInt32.self) == Self.magic
            else { throw TocError(.damaged, "a transaction has no header") }
            headerSeen = region.count
            return
        }
        if missing == 0 {
            guard region.count >= 4 else { throw TocError(.damaged, "an item is too short") }
            let count = Int(XFSLogRegion.little(region, 2, UInt16.self))
            guard (1...Self.regionsPerItem).contains(count) else {
                throw TocError(.damaged, "an item has \(count) regions")
            }
            items.append(regions.count..<regions.count + count)
            missing = count
        }
        missing -= 1
        regions.append(bytes.count..<bytes.count + region.count)
        bytes += region
    }

    /// More of the region that came last.
    mutating func addRest(_ region: ArraySlice<UInt8>) throws(TocError) {
        if headerSeen < Self.headerBytes || regions.isEmpty {
            headerSeen += region.count
            guard headerSeen <= Self.headerBytes else {
                throw TocError(.damaged, "a transaction's header is too long")
            }
            return
        }
        let last = regions[regions.count - 1]
        regions[regions.count - 1] = last.lowerBound..<last.upperBound + region.count
        bytes += region
    }

    /// Hands on the items in the order in which they were logged.
    func forEachItem(
        _ visit: (XFSLogItem) throws(TocError) -> Void
    ) throws(TocError) {
        guard missing == 0 else { throw TocError(.damaged, "a transaction lacks regions") }
        // Bytes are handed out as views, which must not outlive this.
        let failure = bytes.withUnsafeBytes { bytes in
            do throws(TocError) {
                for item in items {
                    let regions = regions[item].map {
                        XFSLogRegion(XFSView(UnsafeRawBufferPointer(rebasing: bytes[$0])))
                    }
                    try visit(XFSLogItem(regions: regions))
                }
            } catch { return error as TocError? }
            return nil
        }
        if let failure { throw failure }
    }
}

/// A region of an item; numbers are in the byte order of the machine that wrote the log, which is little-endian.
struct XFSLogRegion {
    let view: XFSView

    init(_ view: XFSView) { self.view = view }

    var count: Int { view.count }

    func u16(_ offset: Int) -> UInt16 { view.u16(offset).byteSwapped }
    func u32(_ offset: Int) -> UInt32 { view.u32(offset).byteSwapped }
    func u64(_ offset: Int) -> UInt64 { view.u64(offset).byteSwapped }

    static func little<T: FixedWidthInteger>(_ bytes: ArraySlice<UInt8>, _ offset: Int, _: T.Type) -> T {
        precondition(offset >= 0 && offset + MemoryLayout<T>.size <= bytes.count)
        return bytes.withUnsafeBytes {
            T(littleEndian: $0.loadUnaligned(fromByteOffset: offset, as: T.self))
        }
    }
}

/// An item: the first region says what it is. Valid within the call that hands it on.
struct XFSLogItem {
    let regions: [XFSLogRegion]

    var format: XFSLogRegion { regions[0] }
    /// At least four bytes were there when the item was begun.
    var kind: UInt16 { format.u16(0) }
}

/// Puts transactions together from the operations of records.
struct XFSLogTransactions {
    enum Flags {
        static let start: UInt8 = 0x01
        static let commit: UInt8 = 0x02
        static let continues: UInt8 = 0x04
        static let wasContinued: UInt8 = 0x08
        static let end: UInt8 = 0x10
        static let unmount: UInt8 = 0x20
    }

    /// Who may have written an operation: a transaction, or the log itself.
    private static let writers: [UInt8] = [0x69, 0xAA]

    private var open: [UInt32: XFSLogTransaction] = [:]
    private var openBytes = 0

    /// Takes a record's operations, and hands on each transaction that is committed.
    mutating func add(
        _ record: XFSLogRecord, _ data: [UInt8],
        committed: (XFSLogTransaction) throws(TocError) -> Void
    ) throws(TocError) {
        var position = 0
        var left = record.operations
        while position < data.count, left > 0 {
            guard position + 12 <= data.count else { throw Self.short }
            let identifier = Self.bigEndian(data, position)
            let length = Int(Self.bigEndian(data, position + 4))
            let flags = data[position + 9]
            guard Self.writers.contains(data[position + 8]) else {
                throw TocError(.damaged, "an operation has an unknown writer")
            }
            position += 12
            guard length <= data.count - position else { throw Self.short }
            let region = data[position..<position + length]
            position += length
            left -= 1
            // What has no beginning was begun before the tail: it needs no recovery.
            guard open[identifier] != nil else {
                if flags & Flags.start != 0 {
                    guard open.count < XFSLimits.openTransactions else {
                        throw TocError(.damaged, "more transactions are open than is taken here")
                    }
                    open[identifier] = XFSLogTransaction(sequence: record.sequence)
                }
                continue
            }
            try add(region, flags, to: identifier, committed)
        }
    }

    private mutating func add(
        _ region: ArraySlice<UInt8>, _ flags: UInt8, to identifier: UInt32,
        _ committed: (XFSLogTransaction) throws(TocError) -> Void
    ) throws(TocError) {
        let before = open[identifier]?.byteCount ?? 0
        var flags = flags & ~Flags.end
        if flags & Flags.wasContinued != 0 { flags &= ~Flags.continues }
        switch flags {
        case 0, Flags.continues: try open[identifier]?.add(region)
        case Flags.wasContinued: try open[identifier]?.addRest(region)
        case Flags.commit, Flags.unmount:
            guard let transaction = open.removeValue(forKey: identifier) else { return }
            openBytes -= transaction.byteCount
            if flags == Flags.commit { try committed(transaction) }
            return
        default: throw TocError(.damaged, "an operation has flags that cannot be right")
        }
        openBytes += (open[identifier]?.byteCount ?? 0) - before
        guard openBytes <= XFSLimits.transactionBytes else {
            throw TocError(.damaged, "transactions are larger than is taken here")
        }
    }

    private static func bigEndian(_ bytes: [UInt8], _ offset: Int) -> UInt32 {
        bytes[offset..<offset + 4].reduce(0) { $0 << 8 | UInt32($1) }
    }

    private static let short = TocError(.damaged, "an operation passes its record's end")
}
