/// Little-endian fields of a structure whose bounds the caller has checked: beyond the end it traps.
extension [UInt8] {
    @inline(__always)
    func little<T: FixedWidthInteger>(_ offset: Int, as: T.Type = T.self) -> T {
        precondition(offset >= 0 && offset + MemoryLayout<T>.size <= count)
        return withUnsafeBytes { T(littleEndian: $0.loadUnaligned(fromByteOffset: offset, as: T.self)) }
    }

    @inline(__always) func little16(_ offset: Int) -> UInt16 { little(offset) }
    @inline(__always) func little32(_ offset: Int) -> UInt32 { little(offset) }

    /// Big-endian, as the journal has it.
    @inline(__always)
    func big<T: FixedWidthInteger>(_ offset: Int, as: T.Type = T.self) -> T {
        precondition(offset >= 0 && offset + MemoryLayout<T>.size <= count)
        return withUnsafeBytes { T(bigEndian: $0.loadUnaligned(fromByteOffset: offset, as: T.self)) }
    }

    @inline(__always) func big32(_ offset: Int) -> UInt32 { big(offset) }
}
