import Glibc

/// Memory whose address suits direct I/O. Whoever made it owns it alone.
struct AlignedBuffer: ~Copyable {
    let bytes: UnsafeMutableRawBufferPointer

    /// - Parameter alignment: a power of two.
    init(count: Int, alignment: Int) {
        let pointer = UnsafeMutableRawPointer.allocate(
            byteCount: count, alignment: max(alignment, Int(AsyncIOLimits.page)))
        bytes = UnsafeMutableRawBufferPointer(start: pointer, count: count)
    }

    deinit { bytes.baseAddress!.deallocate() }
}
