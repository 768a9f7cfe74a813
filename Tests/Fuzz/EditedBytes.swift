/// A base with edits that an input lists, one after the other until the input ends: a byte (bits 0 to 2 what is done),
/// three bytes that choose the place (modulo the length), and what the kind says.
///
/// - 0 to 3: a byte (how many, less one) and as many bytes that are written over what is there;
/// - 4: two bytes: so many are taken away;
/// - 5: a byte (how many, less one) and as many bytes that are put in between;
/// - 6: two bytes and three: so many are put in once more at that place;
/// - 7: a byte that chooses one of ``numbers`` (bits 0 to 3), and whether it is written big-endian (bit 4) in 1, 2, 4 or
///   8 bytes (bits 5 and 6).
struct EditedBytes {
    /// At the edges of what bytes can say.
    private static let numbers: [UInt64] = [
        0, 1, 2, 0x7F, 0xFF, 0x100, 0xFFF, 0x1000, 0xFFFF, 0x10_0000, 0x7FFF_FFFF, 0xFFFF_FFFF, 1 << 40,
        1 << 62,
        UInt64(Int64.max), UInt64.max,
    ]
    /// So long it may become, bytes.
    private static let longest = 1 << 20

    private(set) var bytes: [UInt8]

    /// - Parameter isFixed: the length stays as it is: what would change it is left out.
    init(_ base: [UInt8], _ input: inout FuzzInput, isFixed: Bool = false) {
        bytes = base
        while !input.isEmpty {
            let kind = input.byte() & 7
            let place = place(&input)
            switch kind {
            case 0...3: write(input.bytes(Int(input.byte()) + 1), place)
            case 4:
                let count = min(input.half(), bytes.count - place)
                if !isFixed { bytes.removeSubrange(place..<place + count) }
            case 5:
                let more = input.bytes(Int(input.byte()) + 1)
                if !isFixed, bytes.count < Self.longest { bytes.insert(contentsOf: more, at: place) }
            case 6:
                let part = Array(bytes[place...].prefix(input.half()))
                let target = self.place(&input)
                if isFixed {
                    write(part, target)
                } else if bytes.count < Self.longest {
                    bytes.insert(contentsOf: part, at: target)
                }
            default:
                let how = input.byte()
                let value = Self.numbers[Int(how & 15)]
                let little = (0..<1 << Int(how >> 5 & 3)).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) }
                write(how & 16 == 0 ? little : little.reversed(), place)
            }
        }
    }

    private func place(_ input: inout FuzzInput) -> Int {
        let chosen = input.half() << 8 | Int(input.byte())
        return bytes.isEmpty ? 0 : chosen % bytes.count
    }

    private mutating func write(_ new: [UInt8], _ place: Int) {
        let count = min(new.count, bytes.count - place)
        bytes.replaceSubrange(place..<place + count, with: new.prefix(count))
    }
}
