import Blocks
import Glibc

/// Foreign bytes under a lifetime that its owner guarantees; every access is checked, in release builds too.
struct XFSView {
    let bytes: UnsafeRawBufferPointer

    init(_ bytes: UnsafeRawBufferPointer) { self.bytes = bytes }

    var count: Int { bytes.count }

    @inline(__always)
    private func load<T: FixedWidthInteger>(_ offset: Int, _: T.Type) -> T {
        precondition(offset >= 0 && offset <= bytes.count - MemoryLayout<T>.size, "beyond a structure's end")
        return T(bigEndian: bytes.loadUnaligned(fromByteOffset: offset, as: T.self))
    }

    func u8(_ offset: Int) -> UInt8 { load(offset, UInt8.self) }
    func u16(_ offset: Int) -> UInt16 { load(offset, UInt16.self) }
    func u32(_ offset: Int) -> UInt32 { load(offset, UInt32.self) }
    func u64(_ offset: Int) -> UInt64 { load(offset, UInt64.self) }
    func int16(_ offset: Int) -> Int { Int(u16(offset)) }

    /// Nil where it would pass the end.
    func slice(_ offset: Int, _ count: Int) -> XFSView? {
        guard offset >= 0, count >= 0, offset <= bytes.count, count <= bytes.count - offset else {
            return nil
        }
        return XFSView(UnsafeRawBufferPointer(rebasing: bytes[offset..<offset + count]))
    }

    func array(_ offset: Int, _ count: Int) -> [UInt8]? { slice(offset, count).map { Array($0.bytes) } }

    func equals(_ other: [UInt8], at offset: Int) -> Bool {
        guard let part = slice(offset, other.count) else { return false }
        return part.bytes.elementsEqual(other)
    }

    /// Whether the CRC-32C at `offset` (little-endian, its own bytes taken as zeros) is that of all the bytes.
    func hasChecksum(at offset: Int) -> Bool {
        precondition(offset >= 0 && offset <= bytes.count - 4)
        return UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: offset, as: UInt32.self))
            == checksum(at: offset)
    }

    func checksum(at offset: Int) -> UInt32 {
        var crc = CRC32C()
        crc.update(UnsafeRawBufferPointer(rebasing: bytes[..<offset]))
        withUnsafeBytes(of: UInt32(0)) { crc.update($0) }
        crc.update(UnsafeRawBufferPointer(rebasing: bytes[(offset + 4)...]))
        return crc.value
    }
}

/// Memory that structures are read into.
final class XFSBuffer {
    let memory: UnsafeMutableRawBufferPointer

    init(count: Int) {
        // What is large and hardly used, as windows may be, is not touched by this.
        guard let start = calloc(1, count) else { fatalError("no memory for \(count) bytes") }
        memory = UnsafeMutableRawBufferPointer(start: start, count: count)
    }

    deinit { free(memory.baseAddress) }

    /// Valid while somebody holds the buffer: of one that only an expression holds, ask ``u64(_:)``.
    var view: XFSView { XFSView(UnsafeRawBufferPointer(memory)) }

    func u64(_ offset: Int) -> UInt64 { withExtendedLifetime(self) { view.u64(offset) } }

    /// The first `count` bytes.
    func prefix(_ count: Int) -> XFSView {
        precondition(count <= memory.count)
        return XFSView(UnsafeRawBufferPointer(rebasing: memory[..<count]))
    }
}

/// The range that a file system lies on, read through a few windows that are kept. Offsets are the file system's.
final class XFSDisk {
    let store: any BlockStore
    let range: ByteRange
    /// Where parts of directory blocks begin whose checksums were not made when the log was replayed.
    let unsealed: Set<UInt64>
    private var windows: [UInt64]
    private let memory: XFSBuffer

    init(_ store: any BlockStore, _ range: ByteRange, unsealed: Set<UInt64> = []) {
        self.store = store
        self.unsealed = unsealed
        self.range = range
        windows = [UInt64](repeating: .max, count: XFSLimits.windows)
        memory = XFSBuffer(count: XFSLimits.windows * XFSLimits.windowBytes)
    }

    /// Fills `target` from `offset`, past the windows. Throws `damaged` where that lies beyond the range.
    func readAll(_ offset: UInt64, _ target: UnsafeMutableRawBufferPointer) throws(TocError) {
        guard ByteRange(checking: offset, UInt64(target.count), within: range.count) != nil else {
            throw TocError(.damaged, "an address beyond the volume's end")
        }
        do throws(StoreError) {
            try store.read(at: range.offset + offset, into: target)
        } catch {
            throw TocError(
                .store(error), "cannot read \(target.count) bytes at \(range.offset + offset): \(error.code)")
        }
    }

    /// The same through the windows: for what is smaller than one, and lies near other things of its kind.
    func read(_ offset: UInt64, _ target: UnsafeMutableRawBufferPointer) throws(TocError) {
        guard target.count <= XFSLimits.windowBytes else { return try readAll(offset, target) }
        guard ByteRange(checking: offset, UInt64(target.count), within: range.count) != nil else {
            throw TocError(.damaged, "an address beyond the volume's end")
        }
        var done = 0
        while done < target.count {
            let at = offset + UInt64(done)
            let (index, inside) = at.quotientAndRemainder(dividingBy: UInt64(XFSLimits.windowBytes))
            let window = try self.window(index)
            let count = min(target.count - done, window.count - Int(inside))
            UnsafeMutableRawBufferPointer(rebasing: target[done..<done + count])
                .copyMemory(from: UnsafeRawBufferPointer(rebasing: window[Int(inside)..<Int(inside) + count]))
            done += count
        }
    }

    private func window(_ index: UInt64) throws(TocError) -> UnsafeRawBufferPointer {
        let size = UInt64(XFSLimits.windowBytes)
        let slot = Int(index % UInt64(XFSLimits.windows))
        let count = Int(min(size, range.count - index * size))
        let start = slot * XFSLimits.windowBytes
        let place = UnsafeMutableRawBufferPointer(rebasing: memory.memory[start..<start + count])
        if windows[slot] != index {
            windows[slot] = .max
            try readAll(index * size, place)
            windows[slot] = index
        }
        return UnsafeRawBufferPointer(place)
    }
}
