/// Node addresses: a bit each, in pages that exist only where an address was put in. A file system's addresses lie
/// close together, whatever the highest one is said to be.
struct AddressSet {
    private static let pageBits: UInt64 = 1 << 15
    private var pages: [UInt64: [UInt64]] = [:]

    /// - Returns: false when it was in already.
    mutating func insert(_ address: UInt64) -> Bool {
        let (page, bit) = address.quotientAndRemainder(dividingBy: Self.pageBits)
        let mask: UInt64 = 1 << (bit % 64)
        return pages[page, default: Array(repeating: 0, count: Int(Self.pageBits / 64))]
            .withUnsafeMutableBufferPointer {
                words in
                defer { words[Int(bit / 64)] |= mask }
                return words[Int(bit / 64)] & mask == 0
            }
    }

    func contains(_ address: UInt64) -> Bool {
        let (page, bit) = address.quotientAndRemainder(dividingBy: Self.pageBits)
        guard let words = pages[page] else { return false }
        return words[Int(bit / 64)] & (1 << (bit % 64)) != 0
    }

    /// In ascending order.
    func visit<Failure: Error>(_ body: (UInt64) throws(Failure) -> Void) throws(Failure) {
        for page in pages.keys.sorted() {
            for (index, word) in pages[page]!.enumerated() {
                var word = word
                while word != 0 {
                    let bit = UInt64(word.trailingZeroBitCount)
                    try body(page * Self.pageBits + UInt64(index) * 64 + bit)
                    word &= word - 1
                }
            }
        }
    }
}
