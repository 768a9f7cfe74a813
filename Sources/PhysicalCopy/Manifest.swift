import Blocks
import Foundation

/// What `manifest.json` says of a copy: what, when, of which volume, in which mode, where its portions lie,
/// their checksums, and its state. The format's article is <doc:PhysicalCopyFormat>.
public struct Manifest: Codable, Hashable, Sendable {
    /// The value of ``format``.
    public static let formatName = "outboard-copy"
    /// The latest format version that this program reads and writes. Version 1 has the data portion's checksums in the
    /// manifest, version 2 in a file beside it.
    public static let currentVersion = 2
    /// The file's name in the copy's directory.
    public static let fileName = "manifest.json"

    /// How the original images were applied.
    public enum Mode: String, Codable, Hashable, Sendable {
        /// Onto the data: the data are consistent as they stand.
        case overlay
        /// Behind the data, as the log they came in: readers merge.
        case append
    }

    /// What state the copy is in.
    public enum State: String, Codable, Hashable, Sendable {
        /// All portions are there, flushed, and as their checksums say.
        case complete
        /// An append copy whose original images are being written onto the data. Readers still merge; the data
        /// portion's checksums are those of the merged data; `integrate` finishes it.
        case integrating
        /// Was an append copy; now consistent as it stands. Its file may still be longer than the data
        /// portion if `integrate` was killed at its very end.
        case integrated
    }

    public var format = Manifest.formatName
    public private(set) var formatVersion: Int
    /// The checksum of the file's own bytes; see ``encoded()``. Set by encoding only.
    public internal(set) var crc32c = Manifest.blankChecksum
    /// The program and version that wrote it.
    public var tool: String
    /// The copy's own UUID.
    public var uuid: String
    /// When the copy was complete, nanoseconds since 1970.
    public var completedAt: Int64
    public var volume: VolumeDescription
    public var mode: Mode
    public var state: State
    public var epoch: EpochDescription
    /// What several volumes copied at one instant have in common; nil for a single volume.
    public var group: GroupDescription?
    /// Mount points that were frozen at the instant.
    public var frozen: [String]
    public var location: DataLocation
    /// The volume's bytes.
    public var data: Portion
    /// The original image log, verbatim up to the marker; append mode until integrated.
    public var originals: Portion?
    /// What of the volume was copied when not all was: bytes. The rest was free in its file systems at the instant;
    /// it reads as zeros, or as it was where it shares a chunk with what was copied. Nil: all of it.
    public var usedBytes: UInt64?
    /// The table of contents; nil: there is none.
    public var toc: TocDescription?

    public init(
        tool: String, uuid: String, completedAt: Int64, volume: VolumeDescription, mode: Mode,
        epoch: EpochDescription, group: GroupDescription?, frozen: [String], location: DataLocation,
        data: Portion, originals: Portion?
    ) {
        self.tool = tool
        self.uuid = uuid
        self.completedAt = completedAt
        self.volume = volume
        self.mode = mode
        self.state = .complete
        self.epoch = epoch
        self.group = group
        self.frozen = frozen
        self.location = location
        if case .slices = data.checksums { formatVersion = 1 } else { formatVersion = 2 }
        self.data = data
        self.originals = originals
    }

    /// Whether the data portion alone is the volume as of the instant.
    public var isConsistentAsItStands: Bool { originals == nil }
}

/// The volume that was copied.
public struct VolumeDescription: Codable, Hashable, Sendable {
    public var uuid: String
    /// Bytes.
    public var size: UInt64
    /// The host's unit of copy-on-write, bytes.
    public var chunkSize: UInt64
    /// Where the host had it; for people.
    public var source: String

    public init(uuid: String, size: UInt64, chunkSize: UInt64, source: String) {
        self.uuid = uuid
        self.size = size
        self.chunkSize = chunkSize
        self.source = source
    }
}

/// The copy-on-write relation under which the copy was made.
public struct EpochDescription: Codable, Hashable, Sendable {
    /// How the relation stood when its cache was copied.
    public enum Ending: String, Codable, Hashable, Sendable {
        /// It had ended; the cache was copied whole.
        case endedBeforeCacheCopy
        /// It went on; the cache was copied up to a marker.
        case endedAfterCacheCopy
    }

    public var number: UInt64
    public var uuid: String
    /// The instant of the copy, nanoseconds since 1970 by the host's clock.
    public var institutedAt: Int64
    public var ending: Ending
    /// Bytes of the log up to the end or the marker.
    public var logBytes: UInt64
    /// Batches in it.
    public var batches: UInt64
    /// Originals in it.
    public var entries: UInt64
    /// How often the cache had been full by then and the host had begun anew: the instant is that of the last time, and epochs as
    /// many came before this one. Nil: never.
    public var restarts: UInt64?

    public init(
        number: UInt64, uuid: String, institutedAt: Int64, ending: Ending, logBytes: UInt64,
        batches: UInt64, entries: UInt64
    ) {
        self.number = number
        self.uuid = uuid
        self.institutedAt = institutedAt
        self.ending = ending
        self.logBytes = logBytes
        self.batches = batches
        self.entries = entries
    }
}

/// Copies of several volumes with one instant.
public struct GroupDescription: Codable, Hashable, Sendable {
    public var uuid: String
    /// Number of volumes.
    public var members: Int

    public init(uuid: String, members: Int) {
        self.uuid = uuid
        self.members = members
    }
}

/// Where the bytes of the portions lie.
public enum DataLocation: Codable, Hashable, Sendable {
    /// A file in the copy's own directory (a plain name, no slash).
    case member(name: String)
    /// A file or block device elsewhere (absolute).
    case path(String)
    /// A logical unit of a standing bridge: `iscsi://…/iqn` without secrets, and the unit's number.
    case unit(target: String, number: Int)

    /// The usual member's name.
    public static let usualName = "data.img"
    /// The usual member.
    public static let usual = DataLocation.member(name: usualName)
}

/// The table of contents, a file of the copy's directory.
public struct TocDescription: Codable, Hashable, Sendable {
    /// The file's name.
    public static let fileName = "toc.sqlite"

    public var name = TocDescription.fileName
    /// Bytes of the file.
    public var length: UInt64
    /// The file's CRC-32C, eight lower-case hexadecimal digits.
    public var checksum: String

    public init(length: UInt64, checksum: UInt32) {
        self.length = length
        self.checksum = hexadecimal(checksum)
    }
}

/// A part of the copy's data: where it is and what it must sum to.
public struct Portion: Hashable, Sendable {
    /// What a portion must sum to.
    public enum Checksums: Hashable, Sendable {
        case slices(SliceChecksums)
        /// A file of the copy's directory has them.
        case file(ChecksumDescription)
    }

    /// Bytes from the start of the data location.
    public var offset: UInt64
    /// Bytes.
    public var length: UInt64
    public var checksums: Checksums

    public init(offset: UInt64, length: UInt64, checksums: Checksums) {
        self.offset = offset
        self.length = length
        self.checksums = checksums
    }

    public init(offset: UInt64, length: UInt64, checksums: SliceChecksums) {
        self.init(offset: offset, length: length, checksums: .slices(checksums))
    }

    public var range: ByteRange { ByteRange(offset: offset, count: length) }

    /// Where they stand in the manifest, as the original-image portion's always do.
    var slices: SliceChecksums {
        guard case .slices(let slices) = checksums else { preconditionFailure("a file has the checksums") }
        return slices
    }
}

extension Portion: Codable {
    private enum CodingKeys: String, CodingKey { case offset, length, checksums, checksumFile }

    public init(from decoder: any Decoder) throws {
        let container = try decoder.container(keyedBy: CodingKeys.self)
        offset = try container.decode(UInt64.self, forKey: .offset)
        length = try container.decode(UInt64.self, forKey: .length)
        if let file = try container.decodeIfPresent(ChecksumDescription.self, forKey: .checksumFile) {
            checksums = .file(file)
        } else {
            checksums = .slices(try container.decode(SliceChecksums.self, forKey: .checksums))
        }
    }

    public func encode(to encoder: any Encoder) throws {
        var container = encoder.container(keyedBy: CodingKeys.self)
        try container.encode(offset, forKey: .offset)
        try container.encode(length, forKey: .length)
        switch checksums {
        case .slices(let slices): try container.encode(slices, forKey: .checksums)
        case .file(let file): try container.encode(file, forKey: .checksumFile)
        }
    }
}
