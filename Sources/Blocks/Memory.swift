import Glibc
import Synchronization

/// Anonymous memory straight from the system: zeroed, page-aligned, and not there until touched.
public final class ZeroedMemory: @unchecked Sendable {
    private let base: UnsafeMutableRawPointer
    /// Bytes.
    public let count: Int

    /// - Parameter count: bytes, more than 0. Traps when the system has no address space left.
    public init(count: Int) {
        precondition(count > 0)
        let pointer = mmap(
            nil, count, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        guard let pointer, pointer != MAP_FAILED else { fatalError("no memory for \(count) bytes") }
        base = pointer
        self.count = count
    }

    deinit { munmap(base, count) }

    /// All of it. Valid as long as this object lives; callers see to it that threads do not collide.
    public var buffer: UnsafeMutableRawBufferPointer {
        UnsafeMutableRawBufferPointer(start: base, count: count)
    }

    /// Word `index` as an atomic.
    func word<Result>(_ index: Int, _ body: (borrowing Atomic<UInt64>) -> Result) -> Result {
        precondition(index >= 0 && (index + 1) * 8 <= count)
        let pointer = (base + index * 8).assumingMemoryBound(to: Atomic<UInt64>.self)
        return body(pointer.pointee)
    }
}
