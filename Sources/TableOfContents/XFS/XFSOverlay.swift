import Blocks

/// Bytes of a file system that differ from the volume's, in pages; made while the log is replayed.
struct XFSPatches {
    static let pageBytes: UInt64 = 4096

    private let disk: XFSDisk
    fileprivate private(set) var pages: [UInt64: [UInt8]] = [:]

    init(_ disk: XFSDisk) { self.disk = disk }

    var isEmpty: Bool { pages.isEmpty }

    /// Calls `body` for each page that a range touches: the page, where in it, where in the range.
    private static func forEachPage(
        _ offset: UInt64, _ count: Int, _ body: (UInt64, Range<Int>, Int) throws(TocError) -> Void
    ) throws(TocError) {
        var done = 0
        while done < count {
            let (page, inside) = (offset + UInt64(done)).quotientAndRemainder(dividingBy: pageBytes)
            let part = min(count - done, Int(pageBytes - inside))
            try body(page, Int(inside)..<Int(inside) + part, done)
            done += part
        }
    }

    /// Throws `damaged` beyond the file system's range.
    func read(_ offset: UInt64, _ target: UnsafeMutableRawBufferPointer) throws(TocError) {
        try disk.read(offset, target)
        try Self.forEachPage(offset, target.count) { (page, inside, place) throws(TocError) in
            pages[page]?.withUnsafeBytes {
                UnsafeMutableRawBufferPointer(rebasing: target[place..<place + inside.count])
                    .copyMemory(from: UnsafeRawBufferPointer(rebasing: $0[inside]))
            }
        }
    }

    mutating func write(_ bytes: UnsafeRawBufferPointer, at offset: UInt64) throws(TocError) {
        guard ByteRange(checking: offset, UInt64(bytes.count), within: disk.range.count) != nil else {
            throw TocError(.damaged, "an address beyond the volume's end")
        }
        var touched: [(UInt64, Range<Int>, Int)] = []
        try Self.forEachPage(offset, bytes.count) { (page, inside, place) throws(TocError) in
            touched.append((page, inside, place))
        }
        for (page, inside, place) in touched {
            if pages[page] == nil { try load(page) }
            pages[page]?.withUnsafeMutableBytes {
                UnsafeMutableRawBufferPointer(rebasing: $0[inside])
                    .copyMemory(from: UnsafeRawBufferPointer(rebasing: bytes[place..<place + inside.count]))
            }
        }
    }

    private mutating func load(_ page: UInt64) throws(TocError) {
        guard (pages.count + 1) * Int(Self.pageBytes) <= XFSLimits.overlayBytes else {
            throw TocError(.damaged, "it changes more than is taken here")
        }
        let start = page * Self.pageBytes
        var bytes = [UInt8](repeating: 0, count: Int(min(Self.pageBytes, disk.range.count - start)))
        let failure = bytes.withUnsafeMutableBytes { memory in
            do throws(TocError) { try disk.read(start, memory) } catch { return error as TocError? }
            return nil
        }
        if let failure { throw failure }
        pages[page] = bytes
    }
}

/// A volume as it will be when an XFS's log has been replayed; nothing is written.
final class XFSOverlay: ReadOnlyStore {
    private let store: any BlockStore
    private let base: UInt64
    private let pages: [UInt64: [UInt8]]
    /// Where parts of directory blocks begin whose checksums were not made.
    let unsealed: Set<UInt64>

    init(_ store: any BlockStore, _ range: ByteRange, _ patches: XFSPatches, unsealed: Set<UInt64> = []) {
        self.store = store
        self.unsealed = unsealed
        base = range.offset
        pages = patches.pages
    }

    var size: UInt64 { store.size }
    var capabilities: StoreCapabilities { [] }
    var isPrompt: Bool { store.isPrompt }

    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
        requireWithin(ByteRange(offset: offset, count: UInt64(buffer.count)))
        try store.read(at: offset, into: buffer)
        let end = offset + UInt64(buffer.count)
        guard end > base, !pages.isEmpty else { return }
        let size = XFSPatches.pageBytes
        var page = (max(offset, base) - base) / size
        while base + page * size < end {
            if let bytes = pages[page] {
                let start = base + page * size
                let from = max(start, offset)
                let to = min(start + UInt64(bytes.count), end)
                if from < to {
                    bytes.withUnsafeBytes {
                        UnsafeMutableRawBufferPointer(
                            rebasing: buffer[Int(from - offset)..<Int(to - offset)]
                        ).copyMemory(
                            from: UnsafeRawBufferPointer(
                                rebasing: $0[Int(from - start)..<Int(to - start)]))
                    }
                }
            }
            page += 1
        }
    }
}
