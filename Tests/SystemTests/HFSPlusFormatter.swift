import Blocks
import Foundation
import TestSupport

/// Makes an empty HFS+ volume, as TN1150 describes it: Debian has the file system's driver and no program that makes
/// one.
struct HFSPlusFormatter {
    private static let blockBytes = 4096
    private static let nodeBytes = 4096
    /// 2026-01-01 in seconds since 1904.
    private static let made: UInt32 = 3_850_070_400
    private static let label = Array("outboard".utf16)

    private let blocks: Int
    private let bitmapBlocks: Int
    private let extentsBlocks = 64
    private let catalogBlocks = 1024

    private init(size: UInt64) {
        blocks = Int(size) / Self.blockBytes
        bitmapBlocks = (blocks / 8 + Self.blockBytes) / Self.blockBytes
    }

    static func format(_ path: String, size: UInt64) throws {
        let formatter = HFSPlusFormatter(size: size)
        try makeSparseFile(path, size: size)
        guard let file = FileHandle(forUpdatingAtPath: path) else { throw TestFailure("cannot open \(path)") }
        defer { file.closeFile() }
        for (place, bytes) in formatter.parts {
            try file.seek(toOffset: UInt64(place))
            try file.write(contentsOf: Data(bytes))
        }
    }

    private var extentsStart: Int { 1 + bitmapBlocks }
    private var catalogStart: Int { extentsStart + extentsBlocks }
    private var used: Int { catalogStart + catalogBlocks }

    private var parts: [(place: Int, bytes: [UInt8])] {
        var bitmap = [UInt8](repeating: 0, count: bitmapBlocks * Self.blockBytes)
        // The last block holds the second header; bits behind it stand for nothing.
        for block in Array(0..<used) + Array(blocks - 1..<bitmap.count * 8) {
            bitmap[block / 8] |= 0x80 >> (block % 8)
        }
        let catalog = catalogStart * Self.blockBytes
        return [
            (1024, header), (blocks * Self.blockBytes - 1024, header), (Self.blockBytes, bitmap),
            (
                extentsStart * Self.blockBytes,
                treeHeader(blocks: extentsBlocks, key: 10, attributes: 2, leaf: nil)
            ),
            (catalog, treeHeader(blocks: catalogBlocks, key: 516, attributes: 6, leaf: 2)),
            (catalog + Self.nodeBytes, rootLeaf),
        ]
    }

    private var header: [UInt8] {
        var bytes: [UInt8] = []
        // "H+", version 4; unmounted.
        bytes.put16(0x482B, 4)
        bytes.put32(0x100, 0x3130_2E30, 0, Self.made, Self.made, 0, Self.made, 0, 0)
        bytes.put32(UInt32(Self.blockBytes), UInt32(blocks), UInt32(blocks - used - 1), UInt32(used))
        bytes.put32(65_536, 65_536, 16, 1, 0, 1)
        bytes += [UInt8](repeating: 0, count: 32)
        for (start, count) in [
            (1, bitmapBlocks), (extentsStart, extentsBlocks), (catalogStart, catalogBlocks),
        ] {
            bytes.put32(
                0, UInt32(count * Self.blockBytes), 65_536, UInt32(count), UInt32(start), UInt32(count))
            bytes += [UInt8](repeating: 0, count: 56)
        }
        return bytes + [UInt8](repeating: 0, count: 512 - bytes.count)
    }

    /// The first node of a B-tree, with the map of its nodes.
    private func treeHeader(blocks: Int, key: UInt16, attributes: UInt32, leaf records: UInt32?) -> [UInt8] {
        let nodes = UInt32(blocks * Self.blockBytes / Self.nodeBytes)
        let root: UInt32 = records == nil ? 0 : 1
        var bytes: [UInt8] = []
        bytes.put32(0, 0)
        bytes += [1, 0]
        bytes.put16(3, 0)
        bytes.put16(UInt16(root))
        bytes.put32(root, records ?? 0, root, root)
        bytes.put16(UInt16(Self.nodeBytes), key)
        bytes.put32(nodes, nodes - 1 - root)
        bytes.put16(0)
        bytes.put32(65_536)
        // Names are compared without case.
        bytes += [0, 0xCF]
        bytes.put32(attributes)
        bytes += [UInt8](repeating: 0, count: 64 + 128)
        bytes += [records == nil ? 0x80 : 0xC0]
        return node(bytes, offsets: [14, 120, 248, Self.nodeBytes - 8])
    }

    /// The root directory and its thread.
    private var rootLeaf: [UInt8] {
        var bytes: [UInt8] = []
        bytes.put32(0, 0)
        bytes += [0xFF, 1]
        bytes.put16(2, 0)
        let folder = bytes.count
        bytes.put16(UInt16(6 + 2 * Self.label.count))
        bytes.put32(1)
        bytes.put16(UInt16(Self.label.count))
        for unit in Self.label { bytes.put16(unit) }
        bytes.put16(1, 0)
        bytes.put32(0, 2, Self.made, Self.made, Self.made, Self.made, 0, 0, 0)
        bytes += [0, 0]
        bytes.put16(0o40755)
        bytes += [UInt8](repeating: 0, count: 4 + 32 + 8)
        let thread = bytes.count
        bytes.put16(6)
        bytes.put32(2)
        bytes.put16(0, 3, 0)
        bytes.put32(1)
        bytes.put16(UInt16(Self.label.count))
        for unit in Self.label { bytes.put16(unit) }
        return node(bytes, offsets: [folder, thread, bytes.count])
    }

    private func node(_ bytes: [UInt8], offsets: [Int]) -> [UInt8] {
        var tail: [UInt8] = []
        for offset in offsets.reversed() { tail.put16(UInt16(offset)) }
        return bytes + [UInt8](repeating: 0, count: Self.nodeBytes - bytes.count - tail.count) + tail
    }
}

extension [UInt8] {
    /// Big-endian.
    fileprivate mutating func put32(_ values: UInt32...) {
        for value in values {
            for shift in [24, 16, 8, 0] { append(UInt8(truncatingIfNeeded: value >> shift)) }
        }
    }

    fileprivate mutating func put16(_ values: UInt16...) {
        for value in values { self += [UInt8(value >> 8), UInt8(truncatingIfNeeded: value)] }
    }
}
