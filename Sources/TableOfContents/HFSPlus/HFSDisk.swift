import Blocks

/// An HFS+ file system's structures on a store (Apple's Technical Note TN1150). All numbers are big-endian.
struct HFSDisk {
    /// Where the first runs of a file's data are, and how many bytes it has.
    struct Fork {
        static let bytes = 80

        var size: UInt64
        /// The first eight of its runs, in blocks.
        var runs: [Run]

        init(_ bytes: UnsafeRawBufferPointer) {
            size = bytes.bigEndian(at: 0, as: UInt64.self)
            runs = Run.eight(bytes, 16)
        }
    }

    struct Run {
        var start: UInt32
        var count: UInt32

        static func eight(_ bytes: UnsafeRawBufferPointer, _ offset: Int) -> [Run] {
            (0..<8).map { index in
                Run(
                    start: bytes.bigEndian(at: offset + 8 * index, as: UInt32.self),
                    count: bytes.bigEndian(at: offset + 8 * index + 4, as: UInt32.self))
            }
        }
    }

    /// Nodes' addresses of the file system's own files.
    enum Special {
        static let extents: UInt32 = 3
        static let catalog: UInt32 = 4
        static let attributes: UInt32 = 8
    }

    let store: any BlockStore
    let range: ByteRange
    let blockSize: UInt64
    let extents: Fork
    let catalog: Fork
    let attributes: Fork
    /// It has a journal and was not unmounted.
    let hasJournaledChanges: Bool

    init(_ store: any BlockStore, _ range: ByteRange) throws(TocError) {
        self.store = store
        self.range = range
        let header = try Probe.bytes(store, range, 1024, 512)
        (blockSize, extents, catalog, attributes) = header.withUnsafeBytes { header in
            func fork(_ offset: Int) -> Fork {
                Fork(UnsafeRawBufferPointer(rebasing: header[offset..<offset + Fork.bytes]))
            }
            return (UInt64(header.bigEndian(at: 40, as: UInt32.self)), fork(192), fork(272), fork(352))
        }
        let flags = header.withUnsafeBytes { $0.bigEndian(at: 4, as: UInt32.self) }
        hasJournaledChanges = flags & 0x2000 != 0 && flags & 0x100 == 0
        guard blockSize >= 512, blockSize & (blockSize - 1) == 0 else {
            throw TocError(.damaged, "its block size is \(blockSize)")
        }
    }

    /// Runs of blocks as extents, as far as they are of `size` bytes.
    /// - Parameter runs: in the order of the file; the first that is empty ends them.
    func placed(_ runs: some Sequence<Run>, size: UInt64) throws(TocError) -> [FileExtent] {
        var found: [FileExtent] = []
        var offset: UInt64 = 0
        let (rounded, overflow) = size.addingReportingOverflow(blockSize - 1)
        let end = overflow ? size : rounded / blockSize * blockSize
        for run in runs {
            if run.count == 0 || offset >= end { break }
            let count = min(UInt64(run.count) * blockSize, end - offset)
            guard let place = ByteRange(checking: UInt64(run.start) * blockSize, count, within: range.count)
            else { throw TocError(.damaged, "a run lies beyond the file system's end") }
            if let last = found.last, last.volumeOffset + last.count == range.offset + place.offset {
                found[found.count - 1].count += count
            } else {
                found.append(
                    FileExtent(fileOffset: offset, volumeOffset: range.offset + place.offset, count: count))
            }
            offset += count
            guard found.count <= TocLimits.extentsPerStream else {
                throw TocError(.damaged, "it has too many extents")
            }
        }
        // There are no holes.
        guard offset >= size else { throw TocError(.damaged, "its runs end before its size") }
        return found
    }

    /// `count` bytes from `offset` of what the extents hold.
    func read(_ extents: [FileExtent], _ offset: UInt64, _ count: Int) throws(TocError) -> [UInt8] {
        var bytes: [UInt8] = []
        bytes.reserveCapacity(count)
        var low = 0
        var high = extents.count
        while low < high {
            let middle = (low + high) / 2
            let extent = extents[middle]
            if extent.fileOffset + extent.count <= offset { low = middle + 1 } else { high = middle }
        }
        while bytes.count < count, low < extents.count {
            let extent = extents[low]
            let skip = offset + UInt64(bytes.count) - extent.fileOffset
            let part = Int(min(UInt64(count - bytes.count), extent.count - skip))
            do throws(StoreError) {
                bytes += try store.bytes(at: extent.volumeOffset + skip, count: part)
            } catch { throw TocError(.store(error), "the volume cannot be read: \(error.code)") }
            low += 1
        }
        guard bytes.count == count else { throw TocError(.damaged, "it ends too early") }
        return bytes
    }
}
