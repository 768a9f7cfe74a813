import Blocks
import Foundation

/// A volume that a target patches (`images/`, made by `record-images` and `record-xfs-image`): stored sectors by their numbers, and where
/// structures with checksums lie.
final class FuzzedImage: Sendable {
    /// Sectors one behind the other that have a CRC-32C, little-endian, at a place of theirs, taken as 0 in it.
    struct Structure: Sendable {
        let first: Int
        let count: Int
        let checksumAt: Int
    }

    let size: UInt64
    let contents: [Int: [UInt8]]
    /// In order.
    let sectors: [Int]
    /// By each sector of theirs.
    let structures: [Int: [Structure]]

    /// - Parameter structure: what begins with a sector, by its bytes and number; nil: nothing that has a checksum.
    init(_ name: String, mebibytes: UInt64, _ structure: ([UInt8], Int) -> Structure? = { _, _ in nil }) {
        size = mebibytes << 20
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
            guard let bytes = contents[sector], let found = structure(bytes, sector) else { continue }
            for index in 0..<found.count { structures[sector + index, default: []].append(found) }
        }
        self.structures = structures
    }
}

/// An image with sectors of its own over it.
final class PatchedImage: BlockStore {
    private let image: FuzzedImage
    private let changed = Monitor<[Int: [UInt8]]>([:])

    init(_ image: FuzzedImage) { self.image = image }

    /// The image with patches, one after the other: two bytes that choose a sector among those that are stored, two
    /// bytes of offset in it (bits 0 to 8), of which the upper seven bits and one are how many bytes follow.
    convenience init(_ image: FuzzedImage, _ patches: inout FuzzInput) {
        self.init(image)
        while !patches.isEmpty {
            let sector = image.sectors[patches.half() % image.sectors.count]
            let place = patches.half()
            patch(sector, place & 0x1FF, patches.bytes(place >> 9 + 1))
        }
    }

    var size: UInt64 { image.size }
    var capabilities: StoreCapabilities { [] }

    private func patch(_ sector: Int, _ offset: Int, _ bytes: [UInt8]) {
        changed.withLock { changed in
            var contents = changed[sector] ?? image.contents[sector] ?? []
            for (index, byte) in bytes.enumerated() where offset + index < 512 {
                contents[offset + index] = byte
            }
            changed[sector] = contents
        }
    }

    func contents(of sector: Int) -> [UInt8] {
        changed.withLock { $0[sector] } ?? image.contents[sector] ?? [UInt8](repeating: 0, count: 512)
    }

    /// Of a sector that is stored; any other stays as it is.
    func replace(_ sector: Int, with bytes: [UInt8]) {
        changed.withLock { changed in
            if image.contents[sector] != nil { changed[sector] = bytes }
        }
    }

    /// Gives each structure that a patch touched a right checksum.
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
