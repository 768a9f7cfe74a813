/// UTF-16 from a disk as UTF-8. A surrogate without its other half becomes three bytes of its own, as ntfs-3g has it,
/// so that different names stay different.
func utf8(_ units: some Sequence<UInt16>) -> [UInt8] {
    var bytes: [UInt8] = []
    var high: UInt16?
    func put(_ unit: UInt16) {
        let value = UInt32(unit)
        if value < 0x80 {
            bytes.append(UInt8(value))
        } else if value < 0x800 {
            bytes += [UInt8(0xC0 | value >> 6), UInt8(0x80 | value & 0x3F)]
        } else {
            bytes += [UInt8(0xE0 | value >> 12), UInt8(0x80 | value >> 6 & 0x3F), UInt8(0x80 | value & 0x3F)]
        }
    }
    for unit in units {
        if let first = high {
            high = nil
            if unit & 0xFC00 == 0xDC00 {
                let value = 0x10000 + (UInt32(first & 0x3FF) << 10 | UInt32(unit & 0x3FF))
                bytes += [
                    UInt8(0xF0 | value >> 18), UInt8(0x80 | value >> 12 & 0x3F),
                    UInt8(0x80 | value >> 6 & 0x3F),
                    UInt8(0x80 | value & 0x3F),
                ]
                continue
            }
            put(first)
        }
        if unit & 0xFC00 == 0xD800 { high = unit } else { put(unit) }
    }
    if let high { put(high) }
    return bytes
}
