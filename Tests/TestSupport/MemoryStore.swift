import Blocks

/// A store in memory, for tests.
public final class MemoryStore: BlockStore {
    private let contents: Monitor<[UInt8]>
    public let size: UInt64
    public let capabilities: StoreCapabilities

    public init(
        _ bytes: [UInt8], capabilities: StoreCapabilities = [.writable, .trims, .zeroesFast, .unmaps]
    ) {
        contents = Monitor(bytes)
        size = UInt64(bytes.count)
        self.capabilities = capabilities
    }

    public convenience init(size: Int) { self.init([UInt8](repeating: 0, count: size)) }

    public func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
        requireWithin(ByteRange(offset: offset, count: UInt64(buffer.count)))
        contents.withLock { bytes in
            bytes.withUnsafeBytes { source in
                buffer.copyMemory(
                    from: UnsafeRawBufferPointer(rebasing: source[Int(offset)...].prefix(buffer.count)))
            }
        }
    }

    public func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64, durable: Bool) throws(StoreError) {
        requireWithin(ByteRange(offset: offset, count: UInt64(buffer.count)))
        guard capabilities.contains(.writable) else { throw StoreError(.readOnly) }
        contents.withLock { bytes in
            bytes.withUnsafeMutableBytes { target in
                UnsafeMutableRawBufferPointer(rebasing: target[Int(offset)...]).copyMemory(from: buffer)
            }
        }
    }

    public func writeZeroes(_ range: ByteRange, options: ZeroOptions) throws(StoreError) {
        try write([UInt8](repeating: 0, count: Int(range.count)), at: range.offset)
    }

    public func trim(_ range: ByteRange, durable: Bool) throws(StoreError) {
        try writeZeroes(range, options: [])
    }

    public func flush() throws(StoreError) {
        guard capabilities.contains(.writable) else { throw StoreError(.readOnly) }
    }
}
