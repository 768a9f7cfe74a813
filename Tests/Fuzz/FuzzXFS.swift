import Blocks
import Foundation

@testable import TableOfContents

/// Patches of a small real XFS (`images/xfs`, made by `record-xfs-image`), one after the other: two bytes that choose a
/// sector among those that are stored, two bytes of offset in it (bits 0 to 8), of which the upper seven bits less one
/// are how many bytes follow. The first byte of all says (bit 0) that checksums are left as they are; else each
/// structure that a patch touches gets a right one.
///
/// What must hold: the reader ends, within the work that its budget allows; no trap; every record within the bounds
/// that the contract sets; what is in use is in order and within the volume.
func fuzzXFS(_ input: [UInt8]) {
    var input = FuzzInput(input)
    let isRaw = input.byte() & 1 != 0
    let store = PatchedImage(FuzzedImage.xfs)
    while !input.isEmpty {
        let sector = FuzzedImage.xfs.sectors[input.half() % FuzzedImage.xfs.sectors.count]
        let place = input.half()
        let bytes = input.bytes(place >> 9 + 1)
        store.patch(sector, place & 0x1FF, bytes)
    }
    if !isRaw { store.fixChecksums() }
    let range = ByteRange(offset: 0, count: store.size)
    let sink = CheckingSink(range)
    do throws(TocError) {
        _ = try ForeignKinds.recognize(store, range)
        guard let reader = try XFSReader(store, range, index: 0) else { return }
        try reader.read([.files, .use], into: sink)
        precondition(sink.isEnded, "no end was told")
    } catch {
        // Only the second look at what is in use may find it otherwise than the first, and the store stays as it is.
        preconditionFailure("the reader threw: \(error)")
    }
}

/// The image: stored sectors by their numbers, and where structures with checksums lie.
final class FuzzedImage: Sendable {
    struct Structure: Sendable {
        let first: Int
        let count: Int
        let checksumAt: Int
    }

    static let xfs = FuzzedImage("xfs")

    let size: UInt64 = 300 << 20
    let contents: [Int: [UInt8]]
    /// In order.
    let sectors: [Int]
    /// By each sector of theirs.
    let structures: [Int: [Structure]]

    private init(_ name: String) {
        let url = URL(filePath: #filePath).deletingLastPathComponent().appending(path: "images/\(name)")
        guard let data = try? Data(contentsOf: url) else { preconditionFailure("no image at \(url.path)") }
        var contents: [Int: [UInt8]] = [:]
        var position = 0
        func number(_ count: Int) -> UInt64 {
            defer { position += count }
            return data[position..<position + count].reduce(0) { $0 << 8 | UInt64($1) }
        }
        while position < data.count {
            let first = Int(number(4))
            for index in 0..<Int(number(2)) {
                let mask = number(8)
                var sector = [UInt8](repeating: 0, count: 512)
                for word in 0..<64 where mask >> UInt64(word) & 1 != 0 {
                    sector.replaceSubrange(word * 8..<word * 8 + 8, with: data[position..<position + 8])
                    position += 8
                }
                contents[first + index] = sector
            }
        }
        self.contents = contents
        sectors = contents.keys.sorted()
        var structures: [Int: [Structure]] = [:]
        for sector in sectors {
            guard let bytes = contents[sector], let found = Self.structure(bytes, sector) else { continue }
            for index in 0..<found.count { structures[sector + index, default: []].append(found) }
        }
        self.structures = structures
    }

    /// By magic numbers: sizes are those of this image (sectors and inodes of 512 bytes, blocks of 1024, directory
    /// blocks of 4096).
    private static func structure(_ bytes: [UInt8], _ sector: Int) -> Structure? {
        let magic = bytes[..<4].reduce(UInt32(0)) { $0 << 8 | UInt32($1) }
        switch magic {
        case 0x5846_5342: return Structure(first: sector, count: 1, checksumAt: 224)
        case 0x5841_4746: return Structure(first: sector, count: 1, checksumAt: 216)
        case 0x5841_4749: return Structure(first: sector, count: 1, checksumAt: 312)
        case 0x4142_3342, 0x4142_3343, 0x4941_4233: return Structure(first: sector, count: 2, checksumAt: 52)
        case 0x424D_4133: return Structure(first: sector, count: 2, checksumAt: 64)
        case 0x5844_4233, 0x5844_4433: return Structure(first: sector, count: 8, checksumAt: 4)
        case 0x5841_524D, 0x5853_4C4D: return Structure(first: sector, count: 2, checksumAt: 12)
        default: break
        }
        if magic >> 16 == 0x494E { return Structure(first: sector, count: 1, checksumAt: 100) }
        let half = UInt16(bytes[8]) << 8 | UInt16(bytes[9])
        if half == 0x3BEE || half == 0x3EBE { return Structure(first: sector, count: 2, checksumAt: 12) }
        return nil
    }
}

/// An image with sectors of its own over it.
final class PatchedImage: BlockStore {
    private let image: FuzzedImage
    private let changed = Monitor<[Int: [UInt8]]>([:])

    init(_ image: FuzzedImage) { self.image = image }

    var size: UInt64 { image.size }
    var capabilities: StoreCapabilities { [] }

    func patch(_ sector: Int, _ offset: Int, _ bytes: [UInt8]) {
        changed.withLock { changed in
            var contents = changed[sector] ?? image.contents[sector] ?? []
            for (index, byte) in bytes.enumerated() where offset + index < 512 {
                contents[offset + index] = byte
            }
            changed[sector] = contents
        }
    }

    func fixChecksums() {
        changed.withLock { changed in
            for structure in changed.keys.flatMap({ image.structures[$0] ?? [] }) {
                var bytes: [UInt8] = []
                for index in 0..<structure.count {
                    let sector = structure.first + index
                    bytes += changed[sector] ?? image.contents[sector] ?? [UInt8](repeating: 0, count: 512)
                }
                let place = structure.checksumAt
                bytes.replaceSubrange(place..<place + 4, with: [0, 0, 0, 0])
                withUnsafeBytes(of: CRC32C.checksum(bytes).littleEndian) {
                    bytes.replaceSubrange(place..<place + 4, with: $0)
                }
                let sector = structure.first + place / 512
                changed[sector] = Array(bytes[place / 512 * 512..<place / 512 * 512 + 512])
            }
        }
    }

    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
        requireWithin(ByteRange(offset: offset, count: UInt64(buffer.count)))
        buffer.initializeMemory(as: UInt8.self, repeating: 0)
        let end = Int(offset) + buffer.count
        changed.withLock { changed in
            var low = 0
            var high = image.sectors.count
            while low < high {
                let middle = (low + high) / 2
                if (image.sectors[middle] + 1) * 512 <= Int(offset) {
                    low = middle + 1
                } else {
                    high = middle
                }
            }
            while low < image.sectors.count, image.sectors[low] * 512 < end {
                let sector = image.sectors[low]
                guard let bytes = changed[sector] ?? image.contents[sector] else { break }
                let start = max(sector * 512, Int(offset))
                let stop = min(sector * 512 + 512, end)
                bytes.withUnsafeBytes { source in
                    UnsafeMutableRawBufferPointer(
                        rebasing: buffer[start - Int(offset)..<stop - Int(offset)]
                    ).copyMemory(
                        from: UnsafeRawBufferPointer(
                            rebasing: source[start - sector * 512..<stop - sector * 512]))
                }
                low += 1
            }
        }
    }

    func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64, durable: Bool) throws(StoreError) {
        throw StoreError(.readOnly)
    }
    func writeZeroes(_ range: ByteRange, options: ZeroOptions) throws(StoreError) {
        throw StoreError(.readOnly)
    }
    func flush() throws(StoreError) { throw StoreError(.readOnly) }
}

/// Holds every record against the contract.
private final class CheckingSink: RecordSink {
    private let range: ByteRange
    private var cursor: UInt64 = 0
    private var fileEnds: [StreamIdentifier: UInt64] = [:]
    private var problems = 0
    private(set) var isEnded = false
    private(set) var nodes = 0

    init(_ range: ByteRange) { self.range = range }

    func put(_ record: VolumeRecord) throws(TocError) {
        precondition(!isEnded)
        switch record {
        case .fileSystem(let description):
            precondition(description.range == range && description.kind == .xfs)
        case .node(let node):
            nodes += 1
            precondition(node.address < TocLimits.address)
            precondition(node.target.map { (1...TocLimits.targetBytes).contains($0.count) } ?? true)
            for time in [node.modified, node.accessed, node.changed, node.created] {
                precondition(time.map { $0.nanoseconds < 1_000_000_000 } ?? true)
            }
        case .name(let name):
            precondition((1...TocLimits.nameBytes).contains(name.name.count) && !name.name.contains(0))
            precondition(name.node < TocLimits.address)
        case .stream(let stream):
            if case .inline(let bytes) = stream.storage { precondition(bytes.count <= TocLimits.inlineBytes) }
            precondition(fileEnds.updateValue(0, forKey: stream.identifier) == nil, "a stream told twice")
        case .extents(let stream, let extents):
            guard var end = fileEnds[stream] else { preconditionFailure("extents before their stream") }
            precondition((1...TocLimits.extentsPerRecord).contains(extents.count))
            for extent in extents {
                precondition(extent.count > 0 && extent.fileOffset >= end)
                precondition(ByteRange(checking: extent.volumeOffset, extent.count, within: range.end) != nil)
                end = extent.fileOffset + extent.count
            }
            fileEnds[stream] = end
        case .attribute(let attribute):
            precondition(attribute.value.count <= TocLimits.attributeBytes && !attribute.name.contains(0))
        case .used(let ranges):
            for range in ranges {
                precondition(range.offset >= cursor && range.count > 0 && range.end <= self.range.end)
                cursor = range.end
            }
        case .problem:
            problems += 1
            precondition(problems <= XFSLimits.problems + 10, "more problems than are told")
        case .end: isEnded = true
        }
    }
}
