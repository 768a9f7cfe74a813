/// `count` bytes without pattern, the same for the same seed.
public func seededBytes(_ count: Int, seed: UInt64) -> [UInt8] {
    var generator = SeededGenerator(seed: seed)
    return [UInt8](unsafeUninitializedCapacity: count) { buffer, initialized in
        let bytes = UnsafeMutableRawBufferPointer(buffer)
        for offset in stride(from: 0, to: count - count % 8, by: 8) {
            bytes.storeBytes(of: generator.next(), toByteOffset: offset, as: UInt64.self)
        }
        for offset in count - count % 8..<count {
            bytes[offset] = UInt8(truncatingIfNeeded: generator.next())
        }
        initialized = count
    }
}
