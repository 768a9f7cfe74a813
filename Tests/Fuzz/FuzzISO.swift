import Blocks

@testable import TableOfContents

/// Patches (see ``PatchedImage``) of a small ISO 9660 with Rock Ridge and Joliet, and one partition table of each
/// scheme.
///
/// What must hold: reading ends; no trap; every record within the bounds that the contract sets.
func fuzzISO(_ input: [UInt8]) {
    var input = FuzzInput(input)
    let store = PatchedImage(.iso, &input)
    let range = ByteRange(offset: 0, count: store.size)
    let sink = CheckingSink(range, [.iso9660], mostProblems: TocLimits.toldProblems + 1)
    do throws(TocError) {
        guard let found = try Probe.look(store, range), found.kind == .iso9660 else { return }
        let reader: ISO9660Reader
        do throws(TocError) { reader = try ISO9660Reader(store, range, found) } catch {
            guard error.isDamage else { throw error }
            return
        }
        try reader.read([.files, .use], into: sink)
        precondition(sink.isEnded, "no end was told")
    } catch { preconditionFailure("the reader threw: \(error)") }
}

/// Patches of partition tables: the first byte says whether of an MBR or a GPT (bit 0), and that checksums are left as
/// they are (bit 1).
///
/// What must hold: looking ends; no trap; ranges are in order and within the volume.
func fuzzLayout(_ input: [UInt8]) {
    var input = FuzzInput(input)
    let how = input.byte()
    let store = PatchedImage(how & 1 == 0 ? .mbr : .gpt, &input)
    if how & 3 == 1 { store.fixTable() }
    do throws(TocError) {
        let places = try VolumeReader.places(store)
        precondition((1...TocLimits.fileSystems).contains(places.count))
        var last: UInt64 = 0
        for (index, place) in places.enumerated() {
            precondition(place.index == index && place.range.end <= store.size)
            precondition(place.range.offset >= last, "out of order")
            last = place.range.offset
        }
        for (first, second) in zip(places, places.dropFirst()) where first.range.end > second.range.offset {
            precondition(!first.knowsUse && !second.knowsUse, "they overlap, and that is not told")
        }
    } catch { preconditionFailure("the reader threw: \(error)") }
}

extension FuzzedImage {
    fileprivate static let iso = FuzzedImage("iso", mebibytes: 1)
    fileprivate static let mbr = FuzzedImage("mbr", mebibytes: 8)
    fileprivate static let gpt = FuzzedImage("gpt", mebibytes: 8)
}

extension PatchedImage {
    /// Right checksums for a GPT of 128 entries in the usual places, both copies.
    fileprivate func fixTable() {
        let last = Int(size) / 512 - 1
        for (header, table) in [(1, 2), (last, last - 32)] {
            var sector = contents(of: header)
            let entries = (0..<32).flatMap { contents(of: table + $0) }
            Self.put(Self.crc32(entries), into: &sector, at: 88)
            Self.put(0, into: &sector, at: 16)
            let count = min(max(Int(sector[12]) | Int(sector[13]) << 8, 20), 512)
            Self.put(Self.crc32(Array(sector[..<count])), into: &sector, at: 16)
            replace(header, with: sector)
        }
    }

    private static func put(_ value: UInt32, into bytes: inout [UInt8], at place: Int) {
        withUnsafeBytes(of: value.littleEndian) { bytes.replaceSubrange(place..<place + 4, with: $0) }
    }

    private static let table: [UInt32] = (0..<256).map { index in
        (0..<8).reduce(UInt32(index)) { value, _ in value >> 1 ^ (value & 1 == 0 ? 0 : 0xEDB8_8320) }
    }

    private static func crc32(_ bytes: [UInt8]) -> UInt32 {
        ~bytes.reduce(UInt32.max) { $0 >> 8 ^ table[Int(UInt8(truncatingIfNeeded: $0) ^ $1)] }
    }
}
