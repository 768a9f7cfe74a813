import Blocks
import Foundation

/// What `resume.json` in the directory of a copy in the making says: of what the copy is, and what of it is on stable storage, so
/// that it can go on when its maker or his bridge has died. The format's article is <doc:PhysicalCopyFormat>.
public struct ResumeRecord: Codable, Hashable, Sendable {
    /// The value of ``format``.
    public static let formatName = "outboard-resume"
    public static let currentVersion = 1
    public static let fileName = "resume.json"
    /// The file that lists what of the volume is copied.
    public static let usedFileName = "resume.used"

    /// The copy-on-write relation that the copy is made under.
    public struct Epoch: Codable, Hashable, Sendable {
        /// The UUID of the epoch that the copy began with.
        public var begun: String
        /// Of the epoch as of which the rest of the record is.
        public var uuid: String
        public var number: UInt64
        /// The instant, nanoseconds since 1970; in a group that of all.
        public var institutedAt: Int64
        /// How often the host had begun anew by then.
        public var restarts: UInt64
        /// Nanoseconds for which the host's gate was closed.
        public var gateNanoseconds: UInt64

        public init(
            begun: String, uuid: String, number: UInt64, institutedAt: Int64, restarts: UInt64,
            gateNanoseconds: UInt64
        ) {
            self.begun = begun
            self.uuid = uuid
            self.number = number
            self.institutedAt = institutedAt
            self.restarts = restarts
            self.gateNanoseconds = gateNanoseconds
        }
    }

    /// What became of the table of contents.
    public enum Contents: Codable, Hashable, Sendable {
        /// It is wanted and not built: the logical snapshot is whole.
        case pending
        /// None is wanted, or it could not be built. The logical snapshot may have gaps.
        case none
        /// It is there. What its builder told of it is his.
        case built(TocDescription, summary: String)
    }

    /// A file of the directory.
    public struct File: Codable, Hashable, Sendable {
        public var length: UInt64
        /// CRC-32C, eight lower-case hexadecimal digits.
        public var checksum: String

        init(_ bytes: [UInt8]) {
            length = UInt64(bytes.count)
            checksum = hexadecimal(CRC32C.checksum(bytes))
        }
    }

    public var format = ResumeRecord.formatName
    public var formatVersion = ResumeRecord.currentVersion
    /// The file's own checksum, as a manifest's. Set by encoding only.
    public internal(set) var crc32c = SelfChecksum.blank
    /// The program and version that wrote it.
    public var tool: String
    public var volume: VolumeDescription
    public var mode: Manifest.Mode
    public var ending: EpochDescription.Ending
    public var location: DataLocation
    /// What a standing bridge called the unit that is copied to.
    public var unit: String?
    /// Volumes that are copied at one instant.
    public var members: Int
    /// Mount points that were frozen at the instant.
    public var frozen: [String]
    public var epoch: Epoch
    public var contents: Contents
    /// Where only what is in use is copied: the file ``usedFileName``. Nil: all is copied.
    public var used: File?
    /// Bytes of the volume that need no copying any more: they are on the copy, on stable storage, as of the epoch; or they are
    /// not to be copied.
    public var durable: Extents

    public init(
        tool: String, volume: VolumeDescription, mode: Manifest.Mode, ending: EpochDescription.Ending,
        location: DataLocation, unit: String?, members: Int, frozen: [String], epoch: Epoch,
        contents: Contents, used: File?, durable: RangeList
    ) {
        self.tool = tool
        self.volume = volume
        self.mode = mode
        self.ending = ending
        self.location = location
        self.unit = unit
        self.members = members
        self.frozen = frozen
        self.epoch = epoch
        self.contents = contents
        self.used = used
        self.durable = Extents(durable)
    }

    /// Extents as one string, `OFFSET+LENGTH` in bytes, with spaces between.
    public struct Extents: Codable, Hashable, Sendable {
        public var list: RangeList

        public init(_ list: RangeList) { self.list = list }

        public init(from decoder: any Decoder) throws {
            let container = try decoder.singleValueContainer()
            var ranges: [ByteRange] = []
            var end: UInt64 = 0
            for extent in try container.decode(String.self).split(separator: " ") {
                let numbers = extent.split(separator: "+", maxSplits: 1).map { UInt64($0) }
                guard numbers.count == 2, let offset = numbers[0], let count = numbers[1],
                    count > 0, offset >= end, ranges.count < CopyLimits.resumeExtents,
                    let range = ByteRange(checking: offset, count, within: CopyLimits.volumeBytes)
                else {
                    throw DecodingError.dataCorruptedError(
                        in: container, debugDescription: "\(extent) is no extent behind the one before")
                }
                ranges.append(range)
                end = range.end
            }
            list = RangeList(ranges)
        }

        public func encode(to encoder: any Encoder) throws {
            var container = encoder.singleValueContainer()
            try container.encode(list.ranges.map { "\($0.offset)+\($0.count)" }.joined(separator: " "))
        }
    }
}

extension ResumeRecord {
    /// Why bytes are no record.
    struct Malformed: Error {
        var reason: String
    }

    func encoded() -> [UInt8] {
        var blank = self
        blank.crc32c = SelfChecksum.blank
        return SelfChecksum.encode(blank)
    }

    init(decoding bytes: [UInt8]) throws(Malformed) {
        guard bytes.count <= CopyLimits.resumeBytes else {
            throw Malformed(reason: "it is longer than \(CopyLimits.resumeBytes) bytes")
        }
        guard SelfChecksum.fits(bytes) == true else {
            throw Malformed(reason: "its checksum does not fit its bytes")
        }
        let head: Head
        do { head = try JSONDecoder().decode(Head.self, from: Data(bytes)) } catch {
            throw Malformed(reason: "it is no record")
        }
        guard head.format == Self.formatName, (1...Self.currentVersion).contains(head.formatVersion) else {
            throw Malformed(
                reason: "its format is \"\(head.format)\", version \(head.formatVersion); this program reads "
                    + "\"\(Self.formatName)\" up to version \(Self.currentVersion)")
        }
        do { self = try JSONDecoder().decode(ResumeRecord.self, from: Data(bytes)) } catch {
            throw Malformed(reason: "a member is missing or of the wrong kind (\(error))")
        }
        try validate()
    }

    private struct Head: Decodable {
        var format: String
        var formatVersion: Int
    }

    private func validate() throws(Malformed) {
        guard volume.isPossible else {
            throw Malformed(reason: "the volume's size or chunk size is impossible")
        }
        guard durable.list.ranges.last.map({ $0.end <= volume.size }) ?? true else {
            throw Malformed(reason: "it lists extents behind the volume's end")
        }
        for uuid in [epoch.begun, epoch.uuid] where UUID(uuidString: uuid) == nil {
            throw Malformed(reason: "\"\(uuid)\" is no UUID of an epoch")
        }
        guard epoch.number > epoch.restarts, (epoch.restarts == 0) == (epoch.begun == epoch.uuid) else {
            throw Malformed(reason: "its epoch's number, UUIDs and restarts disagree")
        }
        switch (location, unit) {
        case (.usual, nil), (.unit, .some): break
        default: throw Malformed(reason: "the copy's data cannot be there")
        }
        guard used.map({ $0.length % 16 == 0 && $0.length <= UInt64(CopyLimits.usedBytes) }) ?? true else {
            throw Malformed(reason: "the list of what is copied cannot have that length")
        }
    }
}

extension VolumeDescription {
    /// Whether size and chunk size are within bounds.
    var isPossible: Bool {
        CopyLimits.chunkSizes.contains(chunkSize) && chunkSize & (chunkSize - 1) == 0
            && (1...CopyLimits.volumeBytes).contains(size)
    }
}
