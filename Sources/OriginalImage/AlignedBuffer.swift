/// Page-aligned memory of one owner, fit for direct I/O.
final class AlignedBuffer: @unchecked Sendable {  // whoever holds it sees to it that uses do not collide
    let bytes: UnsafeMutableRawBufferPointer

    init(count: Int) {
        bytes = .allocate(byteCount: count, alignment: 4096)
        bytes.initializeMemory(as: UInt8.self, repeating: 0)
    }

    deinit { bytes.deallocate() }
}
