import Blocks
import Foundation
import Glibc

@testable import PhysicalCopy

/// A backup stream: a byte that says of which of the recorded ones it is made (`images/backup-*`, modulo their number), a
/// byte that says what is left as it is (bit 0: the headers' checksums; bit 1: those of the JSON objects) and that the
/// first finding ends it (bit 2), and edits (``EditedBytes``).
///
/// What must hold: reading ends, without a trap; what passes lies within the volume, and the data pass once and in order
/// before the originals; a stream in which nothing was found is one that was written so.
func fuzzStream(_ input: [UInt8]) {
    var input = FuzzInput(input)
    let base = FuzzedStream.bases[Int(input.byte()) % FuzzedStream.bases.count]
    let how = input.byte()
    var bytes = EditedBytes(base, &input).bytes
    if how & 2 == 0 { FuzzedStream.sealObjects(&bytes) }
    if how & 1 == 0 { FuzzedStream.sealHeaders(&bytes) }
    let path = FuzzedDirectory.put(bytes, "stream")
    let descriptor = open(path, O_RDONLY | O_CLOEXEC)
    defer { close(descriptor) }
    var findings = 0
    var size: UInt64 = 0
    var (next, passed): (UInt64, UInt64) = (0, 0)
    do throws(CopyError) {
        let source = BackupInput(descriptor: descriptor, name: "fuzzed", check: {})
        let reader = try BackupReader(
            source, report: how & 4 != 0 ? nil : { _ throws(CopyError) in findings += 1 })
        size = reader.manifest.volume.size
        // Holes cost nothing to make: those of a stream of many terabytes take as long as they are read.
        guard reader.dataBytes <= 64 << 20 else { return }
        _ = try reader.readToc()
        try reader.readData { offset, bytes throws(CopyError) in
            precondition(
                ByteRange(checking: offset, bytes.count, within: size) != nil,
                "bytes that are not the volume's")
            if next < size {
                precondition(offset == next, "data out of order")
                next += bytes.count
            }
            passed += bytes.count
            precondition(passed <= 2 * size + FuzzedStream.largestChunk, "more originals than chunks")
        }
        precondition(next == size, "the data did not pass whole")
        try reader.finish()
    } catch {
        precondition(findings == 0 || error.kind != .damaged || error.finding != nil || next <= size)
        return
    }
    guard findings == 0 else { return }
    // Each byte is summed up by something: what passes for whole is.
    precondition(how & 3 != 3 || bytes.starts(with: base), "damage that was not found")
}

enum FuzzedStream {
    static let largestChunk: UInt64 = 1 << 20

    static let bases: [[UInt8]] = {
        let folder = URL(filePath: #filePath).deletingLastPathComponent().appending(path: "images")
        let names = (try? FileManager.default.contentsOfDirectory(atPath: folder.path)) ?? []
        let bases = names.filter { $0.hasPrefix("backup-") }.sorted().compactMap {
            (try? Data(contentsOf: folder.appending(path: $0))).map(Array.init)
        }
        precondition(!bases.isEmpty, "no backups in \(folder.path)")
        return bases
    }()

    /// Right checksums for every block that looks like a header of tar.
    static func sealHeaders(_ bytes: inout [UInt8]) {
        let magic = Array("ustar".utf8)
        for start in stride(from: 0, to: bytes.count - 511, by: 512)
        where bytes[start + 257..<start + 262].elementsEqual(magic) {
            bytes.replaceSubrange(start + 148..<start + 156, with: repeatElement(UInt8(ascii: " "), count: 8))
            let sum = bytes[start..<start + 512].reduce(0) { $0 + Int($1) }
            let digits = String(sum, radix: 8)
            let text = String(repeating: "0", count: 6 - digits.count) + digits
            bytes.replaceSubrange(start + 148..<start + 156, with: Array(text.utf8) + [0, UInt8(ascii: " ")])
        }
    }

    /// Right checksums for the members that are JSON, as far as their headers' sizes reach.
    static func sealObjects(_ bytes: inout [UInt8]) {
        for start in stride(from: 0, to: bytes.count - 511, by: 512)
        where bytes[start + 257..<start + 262].elementsEqual("ustar".utf8) {
            let name = bytes[start..<start + 100].prefix { $0 != 0 }
            guard
                name.elementsEqual(Manifest.fileName.utf8) || name.elementsEqual(BackupMember.header.utf8)
                    || name.elementsEqual(BackupMember.end.utf8)
            else { continue }
            let digits = String(decoding: bytes[start + 124..<start + 135], as: UTF8.self)
            guard let size = Int(digits, radix: 8), size > 0, size <= bytes.count - start - 512 else {
                continue
            }
            let place = start + 512..<start + 512 + size
            bytes.replaceSubrange(place, with: FuzzedJSON.sealed(Array(bytes[place])))
        }
    }
}
