import Blocks
import Foundation

/// The first member of a backup: what it is, before anything else of it is believed. The format's article is
/// <doc:BackupMedia>.
public struct BackupHeader: Codable, Hashable, Sendable {
    static let formatName = "outboard-backup"
    /// The latest format version that this program writes and reads. It is the manifest's: of version 2 there is a
    /// member with the data's checksums.
    public static let currentVersion = 2

    public private(set) var format = BackupHeader.formatName
    public let formatVersion: Int
    private(set) var crc32c = SelfChecksum.blank
    /// The program and version that wrote it.
    public let tool: String
    /// The backup's own UUID.
    public let uuid: String
    /// Nanoseconds since 1970.
    public let startedAt: Int64
    /// The stream is a multiple of so many bytes.
    public let recordBytes: Int
    /// Bytes of a slice of the stream.
    let sliceSize: UInt64

    init(
        version: Int, tool: String, uuid: String, startedAt: Int64, recordBytes: Int, sliceSize: UInt64
    ) {
        formatVersion = version
        self.tool = tool
        self.uuid = uuid
        self.startedAt = startedAt
        self.recordBytes = recordBytes
        self.sliceSize = sliceSize
    }

    func encoded() -> [UInt8] { SelfChecksum.encode(self) }

    private struct Head: Decodable {
        var format: String
        var formatVersion: Int
    }

    /// Reads and checks a header's bytes.
    init(decoding bytes: [UInt8]) throws(Manifest.Malformed) {
        guard let fits = SelfChecksum.fits(bytes) else {
            throw Manifest.Malformed(reason: "it is not an outboard backup's")
        }
        guard fits else { throw Manifest.Malformed(reason: "its checksum does not fit its bytes") }
        let head: Head
        do { head = try JSONDecoder().decode(Head.self, from: Data(bytes)) } catch {
            throw Manifest.Malformed(reason: "it is not an outboard backup's")
        }
        guard head.format == Self.formatName else {
            throw Manifest.Malformed(reason: "its format is \"\(head.format)\", not \"\(Self.formatName)\"")
        }
        guard (1...Self.currentVersion).contains(head.formatVersion) else {
            throw Manifest.Malformed(
                reason: "its format version is \(head.formatVersion); this program reads up to "
                    + "\(Self.currentVersion)")
        }
        do { self = try JSONDecoder().decode(BackupHeader.self, from: Data(bytes)) } catch {
            throw Manifest.Malformed(reason: "a member is missing or of the wrong kind (\(error))")
        }
        guard MediaLimits.recordBytes.contains(recordBytes), recordBytes % MediaLimits.block == 0,
            MediaLimits.sliceSizes.contains(sliceSize), sliceSize & (sliceSize - 1) == 0
        else { throw Manifest.Malformed(reason: "its numbers are out of bounds") }
    }
}

/// The last member of a backup: what all of the stream before it sums to.
struct BackupEnd: Codable, Hashable {
    static let formatName = "outboard-backup-end"

    private(set) var format = BackupEnd.formatName
    private(set) var crc32c = SelfChecksum.blank
    /// The header's.
    let uuid: String
    /// Bytes of the stream before this member's first.
    let length: UInt64
    /// Of these.
    let checksums: SliceChecksums

    init(uuid: String, length: UInt64, checksums: SliceChecksums) {
        self.uuid = uuid
        self.length = length
        self.checksums = checksums
    }

    /// Bytes that this member takes with so many slices: known before what they sum to.
    static func reservedBytes(slices: Int) -> Int { 1_024 + 8 * slices }

    func encoded(paddedTo length: Int) -> [UInt8] {
        let bytes = SelfChecksum.encode(self, paddedTo: length)
        precondition(bytes.count == length, "the end is longer than was reserved")
        return bytes
    }

    init(decoding bytes: [UInt8]) throws(Manifest.Malformed) {
        guard SelfChecksum.fits(bytes) == true else {
            throw Manifest.Malformed(reason: "its checksum does not fit its bytes")
        }
        do { self = try JSONDecoder().decode(BackupEnd.self, from: Data(bytes)) } catch {
            throw Manifest.Malformed(reason: "a member is missing or of the wrong kind (\(error))")
        }
        guard format == Self.formatName, checksums.covers(length: length) else {
            throw Manifest.Malformed(reason: "it is not a backup's end")
        }
    }
}

/// The members' names, in their order.
enum BackupMember {
    static let header = "backup.json"
    static let manifest = Manifest.fileName
    static let checksums = ChecksumDescription.fileName
    static let toc = "toc.sqlite"
    static let data = "data.img"
    static let end = "backup.end"

    /// The data in several members are named by where they begin.
    static func data(at offset: UInt64) -> String {
        let digits = String(offset, radix: 16)
        return data + "." + String(repeating: "0", count: 16 - digits.count) + digits
    }
}

/// The bounds of backups.
public enum MediaLimits {
    /// What tar rounds everything up to, bytes.
    static let block = 512
    /// Bytes of a record, multiples of ``block``.
    public static let recordBytes = 512...(4 << 20)
    /// Bytes of a record where nothing else is asked for.
    public static let usualRecordBytes = 512 << 10
    /// Extents of one member: so many its map has at most, in the memory of whoever writes or reads it.
    public static let extentsPerMember = 131_072
    /// What extents begin and end at, bytes.
    static let extentAlignment: UInt64 = 4_096
    /// Zeros that are stored become a hole in blocks of so many bytes.
    static let zeroBlock: UInt64 = 64 << 10
    /// Extents that a store is asked for at once.
    static let extentsAtOnce = 1_024
    /// Bytes of a `backup.json`.
    static let headerBytes = 64 << 10
    /// Bytes of a `backup.end`.
    static let endBytes = 1 << 20
    /// Bytes of everything that stands before a member's content: its headers, and the map of its extents.
    static let memberHeadBytes: UInt64 = 8 << 20
    /// Bytes of a slice of the stream.
    static let sliceSizes = CopyLimits.smallestSlice...(1 << 60)
    /// Bytes read at once from what is no tape.
    static let inputBytes = 1 << 20
    /// Bytes of holes told to the archive at once.
    static let holeBytes: UInt64 = 1 << 30
}

/// CRC-32C of a stream, slice after slice, as it passes by.
struct StreamChecksums {
    /// May be set while less than the smallest slice has passed.
    var sliceSize = CopyLimits.smallestSlice
    private(set) var values: [UInt32] = []
    private(set) var length: UInt64 = 0
    private var crc = CRC32C()
    private var zeroSlice: UInt32?

    init(sliceSize: UInt64 = CopyLimits.smallestSlice) { self.sliceSize = sliceSize }

    mutating func update(_ bytes: UnsafeRawBufferPointer) {
        var rest = bytes
        while !rest.isEmpty {
            let part = UnsafeRawBufferPointer(
                rebasing: rest.prefix(Int(clamping: sliceSize - length % sliceSize)))
            crc.update(part)
            length += UInt64(part.count)
            rest = UnsafeRawBufferPointer(rebasing: rest.dropFirst(part.count))
            if length % sliceSize == 0 { closeSlice() }
        }
    }

    /// As if so many zero bytes had passed; whole slices of them cost the same as one.
    mutating func update(zeros count: UInt64) {
        var rest = count
        while rest > 0 {
            let part = min(rest, sliceSize - length % sliceSize)
            if part == sliceSize {
                if zeroSlice == nil {
                    var zeros = CRC32C()
                    zeros.update(zeros: part)
                    zeroSlice = zeros.value
                }
                crc = CRC32C(continuing: zeroSlice!)
            } else {
                crc.update(zeros: part)
            }
            length += part
            rest -= part
            if length % sliceSize == 0 { closeSlice() }
        }
    }

    private mutating func closeSlice() {
        values.append(crc.value)
        crc = CRC32C()
    }

    /// Nothing comes any more: what has passed of a last slice is one.
    mutating func close() { if length % sliceSize != 0 { closeSlice() } }

    /// Those of the slices that have passed since this was asked last.
    mutating func take() -> [UInt32] {
        defer { values.removeAll(keepingCapacity: true) }
        return values
    }

    /// Nothing comes any more.
    mutating func finish() -> SliceChecksums {
        close()
        return SliceChecksums(sliceSize: sliceSize, values: values)
    }
}
