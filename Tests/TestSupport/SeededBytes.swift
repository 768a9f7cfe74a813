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

/// The same as `==`, which the tests' own unoptimized code does byte by byte.
public func haveSameBytes(_ first: [UInt8], _ second: [UInt8]) -> Bool { first == second }

/// Whether a part of `bytes` is `byte` all over.
public func isFilled(_ bytes: [UInt8], in place: Range<Int>, with byte: UInt8) -> Bool {
    bytes[place].allSatisfy { $0 == byte }
}
