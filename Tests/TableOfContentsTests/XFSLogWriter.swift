import Blocks
import Foundation
import Glibc

@testable import TableOfContents

/// Writes logs by hand, for what no kernel can be made to leave on demand.
struct XFSLogWriter {
    struct Operation {
        var transaction: UInt32
        var flags: UInt8
        var data: [UInt8]

        static func start(_ transaction: UInt32) -> Operation {
            Operation(transaction: transaction, flags: 1, data: [])
        }
        static func commit(_ transaction: UInt32) -> Operation {
            Operation(transaction: transaction, flags: 2, data: [])
        }
    }

    let store: PatchedFile
    let log: ByteRange
    let uuid: [UInt8]
    /// Where the next record goes, and in which round.
    var position: UInt64
    var cycle: UInt32 = 1
    /// The tail that records name: at first, the first record.
    var tail: UInt64

    /// - Parameter position: where the first record goes; by default, behind the one that mkfs wrote.
    init(_ store: PatchedFile, _ geometry: XFSGeometry, at position: UInt64? = nil) throws {
        self.store = store
        log = geometry.logRange ?? ByteRange(offset: 0, count: 0)
        uuid = geometry.uuid
        let first = try store.bytes(at: log.offset + 12, count: 4).reduce(0) { $0 << 8 | UInt64($1) }
        self.position = position ?? 1 + (first + 511) / 512
        tail = 1 << 32 | self.position
    }

    static func big(_ value: UInt32) -> [UInt8] { withUnsafeBytes(of: value.bigEndian) { Array($0) } }
    static func big(_ value: UInt64) -> [UInt8] { withUnsafeBytes(of: value.bigEndian) { Array($0) } }
    static func little<T: FixedWidthInteger>(_ value: T) -> [UInt8] {
        withUnsafeBytes(of: value.littleEndian) { Array($0) }
    }

    /// - Parameter bufferBytes: of the machine's log buffers: more than 32 KiB have more header sectors.
    mutating func record(_ operations: [Operation], bufferBytes: UInt32 = 32 << 10) throws {
        var data: [UInt8] = []
        for operation in operations {
            data += Self.big(operation.transaction) + Self.big(UInt32(operation.data.count))
            data += [0x69, operation.flags, 0, 0] + operation.data
        }
        let length = data.count
        data += [UInt8](repeating: 0, count: (512 - length % 512) % 512)
        let headers = max(1, Int(bufferBytes) >> 15)
        var header = [UInt8](repeating: 0, count: headers * 512)
        func put(_ bytes: [UInt8], _ place: Int) {
            header.replaceSubrange(place..<place + bytes.count, with: bytes)
        }
        put(Self.big(0xFEED_BABE as UInt32) + Self.big(cycle) + Self.big(2 as UInt32), 0)
        put(Self.big(UInt32(length)), 12)
        put(Self.big(UInt64(cycle) << 32 | position) + Self.big(tail), 16)
        put(Self.big(UInt32(operations.count)), 40)
        put(Self.big(1 as UInt32) + uuid + Self.big(bufferBytes), 300)
        for index in 1..<max(headers, 2) where headers > 1 {
            let isWrapped = position + UInt64(index) >= log.count / 512
            put(Self.big(isWrapped ? cycle + 1 : cycle), index * 512)
        }
        let sectors = UInt64(headers + data.count / 512)
        for sector in 0..<data.count / 512 {
            let place = sector < 64 ? 44 + sector * 4 : sector / 64 * 512 + 4 + sector % 64 * 4
            put(Array(data[sector * 512..<sector * 512 + 4]), place)
            let isWrapped = position + UInt64(headers + sector) >= log.count / 512
            data.replaceSubrange(
                sector * 512..<sector * 512 + 4, with: Self.big(isWrapped ? cycle + 1 : cycle))
        }
        var summed = Array(header[..<328])
        for index in 1..<max(headers, 2) where headers > 1 {
            summed += header[index * 512..<index * 512 + 260]
        }
        put(Self.little(CRC32C.checksum(summed + data[..<length])), 32)
        let all = header + data
        for sector in 0..<Int(sectors) {
            try store.patch(
                log.offset + (position + UInt64(sector)) % (log.count / 512) * 512,
                Array(all[sector * 512..<sector * 512 + 512]))
        }
        position += sectors
        if position >= log.count / 512 {
            position -= log.count / 512
            cycle += 1
        }
    }

    /// A whole transaction in a record of its own.
    mutating func commit(_ items: [[UInt8]]...) throws { try record(Self.transaction(7, items)) }

    static func transaction(_ identifier: UInt32, _ items: [[[UInt8]]]) -> [Operation] {
        let regions = [header] + items.flatMap { $0 }
        return [.start(identifier)]
            + regions.map { Operation(transaction: identifier, flags: 0, data: $0) } + [.commit(identifier)]
    }

    static let header = little(0x5452_414E as UInt32) + [UInt8](repeating: 0, count: 12)

    /// Pieces of 128 bytes of a buffer, by their numbers, each run a region.
    static func buffer(
        _ sector: UInt64, sectors: UInt16 = 8, flags: UInt16 = 0, _ runs: [(piece: Int, bytes: [UInt8])] = []
    ) -> [[UInt8]] {
        var map = [UInt32](repeating: 0, count: 2)
        for run in runs {
            for bit in run.piece..<run.piece + run.bytes.count / 128 {
                map[bit / 32] |= 1 << UInt32(bit % 32)
            }
        }
        return [
            little(0x123C as UInt16) + little(UInt16(1 + runs.count)) + little(flags) + little(sectors)
                + little(sector) + little(UInt32(map.count)) + map.flatMap { little($0) }
        ] + runs.map { $0.bytes }
    }

    static func cancellation(_ sector: UInt64, sectors: UInt16 = 8) -> [[UInt8]] {
        buffer(sector, sectors: sectors, flags: 2)
    }

    /// An intent, or the completion of one, whatever it is.
    static func intent(_ kind: UInt16, _ identifier: UInt64, _ more: [UInt64] = []) -> [[UInt8]] {
        [
            little(kind) + little(1 as UInt16) + little(0 as UInt32) + little(identifier)
                + more.flatMap { little($0) }
        ]
    }

    /// A core in the machine's byte order, of what is on disk.
    static func core(_ inode: [UInt8]) -> [UInt8] {
        var core = Array(inode[..<176])
        let fields = [
            (0, 2), (2, 2), (8, 4), (12, 4), (16, 4), (20, 2), (22, 2), (24, 8), (56, 8), (64, 8), (72, 4),
            (76, 4),
            (80, 2), (84, 4), (88, 2), (90, 2), (92, 4), (96, 4), (104, 8), (112, 8), (120, 8), (128, 4),
            (152, 8),
            (32, 8), (40, 8), (48, 8), (144, 8),
        ]
        for (place, count) in fields { core[place..<place + count].reverse() }
        return core
    }
}

/// An image that is changed in place.
final class PatchedFile: BlockStore {
    private let image: ImageStore
    private let descriptor: Int32

    init(_ path: String) throws {
        image = try ImageStore(path)
        descriptor = open(path, O_WRONLY | O_CLOEXEC)
        guard descriptor >= 0 else { throw ImageFailure("open \(path): errno \(errno)") }
    }

    deinit { close(descriptor) }

    var size: UInt64 { image.size }
    var capabilities: StoreCapabilities { [] }

    func patch(_ offset: UInt64, _ bytes: [UInt8]) throws {
        guard pwrite(descriptor, bytes, bytes.count, off_t(offset)) == bytes.count else {
            throw ImageFailure("write: errno \(errno)")
        }
    }

    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
        try image.read(at: offset, into: buffer)
    }
    func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64, durable: Bool) throws(StoreError) {
        throw StoreError(.readOnly)
    }
    func writeZeroes(_ range: ByteRange, options: ZeroOptions) throws(StoreError) {
        throw StoreError(.readOnly)
    }
    func flush() throws(StoreError) { throw StoreError(.readOnly) }
}
