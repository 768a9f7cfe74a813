import Foundation

/// What is left where a copy was to be that failed after its instant: a directory with nothing in it but a
/// `manifest.json` of the state `abandoned`, which says why. It holds no data; whoever opens it as a copy is told the
/// reason. The format's article is <doc:PhysicalCopyFormat>.
public struct AbandonedCopy: Codable, Hashable, Sendable {
    /// The value of ``state``.
    static let stateName = "abandoned"
    /// The first format version that has it.
    static let version = 2

    public private(set) var format = Manifest.formatName
    public private(set) var formatVersion = AbandonedCopy.version
    /// The checksum of the file's own bytes, as a manifest's. Set by encoding only.
    public private(set) var crc32c = Manifest.blankChecksum
    /// The program and version that wrote it.
    public var tool: String
    public var volume: VolumeDescription
    public var mode: Manifest.Mode
    public private(set) var state = AbandonedCopy.stateName
    public var postMortem: PostMortem

    public init(tool: String, volume: VolumeDescription, mode: Manifest.Mode, postMortem: PostMortem) {
        self.tool = tool
        self.volume = volume
        self.mode = mode
        self.postMortem = postMortem
    }

    /// As a manifest's bytes are.
    func encoded() -> [UInt8] {
        var blank = self
        blank.crc32c = Manifest.blankChecksum
        blank.postMortem = postMortem.shortened
        return SelfChecksum.encode(blank)
    }

    /// What those are told who take it for a copy.
    func refusal(_ action: String, at directory: String) -> CopyError {
        CopyError(
            .abandoned, action, "it was abandoned: \(postMortem.summary)",
            advice: "nothing of it can be used; `outboard copy --to \(directory)` replaces it, "
                + "`outboard show` says more")
    }

    /// What is at `path` when that is an abandoned copy; nil when it is anything else, or nothing.
    public static func find(_ path: String) throws(CopyError) -> AbandonedCopy? {
        let directory = Files.absolute(path)
        return try find(in: directory, Files(), "open the copy \(directory)")
    }

    static func find(in directory: String, _ files: Files, _ action: String) throws(CopyError)
        -> AbandonedCopy?
    {
        let bytes: [UInt8]
        do throws(CopyError) {
            bytes = try files.read(
                directory + "/" + Manifest.fileName, limit: CopyLimits.manifestBytes, action)
        } catch {
            guard error.kind == .missing || error.kind == .damaged else { throw error }
            return nil
        }
        do throws(Manifest.Malformed) {
            guard case .abandoned(let copy) = try ManifestFile(decoding: bytes) else { return nil }
            return copy
        } catch { return nil }
    }
}

/// Why a copy was abandoned, and how far it had come.
public struct PostMortem: Codable, Hashable, Sendable {
    /// When, nanoseconds since 1970.
    public var abandonedAt: Int64
    /// What was being done, in the words of the progress line: `copying`.
    public var phase: String
    /// Why it failed and what to do next, as it was told on standard error; at most ``CopyLimits/reasonBytes``.
    public var reason: String
    /// The exit status of the program that made the copy.
    public var exitStatus: Int32
    /// The number and UUID of the epoch under which it was made.
    public var epoch: UInt64
    public var epochUUID: String
    /// The instant that the copy would have had, nanoseconds since 1970.
    public var institutedAt: Int64
    /// Seconds from the institution to the end.
    public var secondsSinceInstitution: Double
    /// Bytes of the original image cache that were taken when it was last looked at, and that there are.
    public var cacheUsed: UInt64
    public var cacheCapacity: UInt64
    /// Bytes that the bridge had copied.
    public var bytesCopied: UInt64

    public init(
        abandonedAt: Int64, phase: String, reason: String, exitStatus: Int32, epoch: UInt64,
        epochUUID: String, institutedAt: Int64, secondsSinceInstitution: Double, cacheUsed: UInt64,
        cacheCapacity: UInt64, bytesCopied: UInt64
    ) {
        self.abandonedAt = abandonedAt
        self.phase = phase
        self.reason = reason
        self.exitStatus = exitStatus
        self.epoch = epoch
        self.epochUUID = epochUUID
        self.institutedAt = institutedAt
        self.secondsSinceInstitution = secondsSinceInstitution
        self.cacheUsed = cacheUsed
        self.cacheCapacity = cacheCapacity
        self.bytesCopied = bytesCopied
    }

    /// `2026-01-01T00:00:00.000Z, copying: the reason`.
    public var summary: String {
        let time = Date(timeIntervalSince1970: Double(abandonedAt) / 1e9)
            .formatted(Date.ISO8601FormatStyle(includingFractionalSeconds: true))
        return "\(time), \(phase): \(reason)"
    }

    fileprivate var shortened: PostMortem {
        var short = self
        if reason.utf8.count > CopyLimits.reasonBytes {
            short.reason = String(decoding: reason.utf8.prefix(CopyLimits.reasonBytes - 3), as: UTF8.self)
        }
        return short
    }
}
