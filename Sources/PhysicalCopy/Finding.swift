import Blocks

/// What `verify` found wrong, and where.
public struct Finding: Codable, Hashable, Sendable {
    public enum Part: String, Codable, Hashable, Sendable {
        case manifest, data, originals
        /// Between the two portions, where there is nothing.
        case padding
        case checksums, toc

        /// The file of a copy that it usually is in.
        var usualFile: String {
            switch self {
            case .manifest: Manifest.fileName
            case .data, .originals, .padding: DataLocation.usualName
            case .checksums: ChecksumDescription.fileName
            case .toc: TocDescription.fileName
            }
        }
    }

    /// Whether anything lies in a damaged chunk.
    public enum Use: String, Codable, Hashable, Sendable { case yes, no, unknown }

    public var part: Part
    /// The file's name in the copy's directory; of data that lie elsewhere, where.
    public var file: String
    /// Bytes from the start of the file, or of the data location; with `length` the range in which the damage lies.
    public var offset: UInt64
    public var length: UInt64
    /// Of the data portion: the number of the checksum chunk, or slice, in which it lies.
    public var chunk: UInt64?
    /// Of data and of one original image: the bytes of the volume that are damaged with it, or some of them.
    public var volumeOffset: UInt64?
    public var volumeLength: UInt64?
    public var problem: String
    /// Whether anything lies in these bytes of the volume; nil: nobody has looked. Why that is not known, or by what if by
    /// no file, or why not.
    public var inUse: Use?
    public var useReason: String?
    /// Files that have some of it, by their paths in the table of contents, and how many more there are.
    public var usedBy: [String]?
    public var moreUsers: Int?

    public init(
        _ part: Part, _ range: ByteRange, _ problem: String, file: String? = nil, chunk: UInt64? = nil,
        volume: ByteRange? = nil
    ) {
        self.part = part
        self.file = file ?? part.usualFile
        offset = range.offset
        length = range.count
        self.chunk = chunk
        volumeOffset = volume?.offset
        volumeLength = volume?.count
        self.problem = problem
    }

    public var range: ByteRange { ByteRange(offset: offset, count: length) }

    /// The bytes of the volume that are damaged with it, or some of them; nil: not known, or none.
    public var volume: ByteRange? {
        guard let volumeOffset, let volumeLength else { return nil }
        return ByteRange(offset: volumeOffset, count: volumeLength)
    }
}

extension Finding: CustomStringConvertible {
    /// One line: where, what, and who suffers.
    public var description: String {
        var text = "\(part.rawValue) in \(file) at \(offset), \(length) bytes"
        if let chunk { text += " (chunk \(chunk))" }
        if part == .originals, let volume {
            text += " (of the volume \(volume.offset), \(volume.count) bytes)"
        }
        text += ": \(problem)"
        switch inUse {
        case nil: break
        case .no: text += "; not in use" + (useReason.map { ": \($0)" } ?? "")
        case .unknown: text += "; whether it is in use is unknown: \(useReason ?? "nothing here can tell")"
        case .yes:
            text += "; in use"
            if let usedBy, !usedBy.isEmpty {
                text += " by \(usedBy.joined(separator: ", "))"
                if let moreUsers, moreUsers > 0 { text += " and \(moreUsers) more" }
            } else if let useReason {
                text += " by \(useReason)"
            }
        }
        return text
    }
}

/// What `verify` did.
public struct VerifyReport: Codable, Hashable, Sendable {
    /// Bytes read and compared.
    public var bytes: UInt64 = 0
    /// Originals whose own CRC fits.
    public var originals: UInt64 = 0
    /// Nothing found: the copy is as it was made. At most ``CopyLimits/findings``.
    public var findings: [Finding] = []
    /// Findings that there was no more room for.
    public var moreFindings: UInt64 = 0
    public var isClean: Bool { findings.isEmpty }

    mutating func add(_ finding: Finding) {
        if findings.count < CopyLimits.findings { findings.append(finding) } else { moreFindings += 1 }
    }
}
