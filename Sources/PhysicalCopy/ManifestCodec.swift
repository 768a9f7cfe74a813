import Blocks
import Foundation

extension Manifest {
    static let blankChecksum = SelfChecksum.blank

    /// Why bytes are not a manifest.
    struct Malformed: Error {
        var reason: String
    }

    /// The file's bytes: JSON, keys sorted. The eight digits behind `"crc32c" : "` are the CRC-32C of all
    /// bytes of the file, taken with these eight digits as zeros, so that any changed byte is found.
    func encoded() -> [UInt8] {
        var blank = self
        blank.crc32c = Self.blankChecksum
        return SelfChecksum.encode(blank)
    }

    /// Reads and checks a copy's manifest.
    init(decoding bytes: [UInt8]) throws(Malformed) {
        switch try ManifestFile(decoding: bytes) {
        case .copy(let manifest): self = manifest
        case .abandoned(let copy):
            throw Malformed(reason: "the copy was abandoned: \(copy.postMortem.summary)")
        }
    }

    /// What the checksum cannot say: that the numbers fit together, so that nobody behind traps on them.
    fileprivate func validate() throws(Malformed) {
        guard volume.isPossible else {
            throw Malformed(
                reason: "volume size \(volume.size) or chunk size \(volume.chunkSize) is impossible")
        }
        guard data.offset == 0, data.length == volume.size else {
            throw Malformed(reason: "the data portion is not the volume's size")
        }
        try Self.validate(data, "data")
        switch (mode, state, originals) {
        case (.overlay, .complete, nil), (.append, .integrated, nil): break
        case (.append, .complete, let originals?), (.append, .integrating, let originals?):
            guard originals.offset >= data.length, originals.length <= CopyLimits.volumeBytes,
                originals.offset == data.length.roundedUp(to: CopyLimits.portionAlignment)
            else { throw Malformed(reason: "the original-image portion is not behind the data") }
            guard case .slices = originals.checksums else {
                throw Malformed(reason: "the original-image portion has no checksums")
            }
            try Self.validate(originals, "original-image")
            guard epoch.logBytes <= originals.length,
                epoch.entries <= (volume.size - 1) / volume.chunkSize + 1
            else {
                throw Malformed(reason: "there are more original images than can be")
            }
        default:
            throw Malformed(reason: "mode \(mode.rawValue), state \(state.rawValue) and portions disagree")
        }
        switch location {
        case .member(let name): try Self.validate(member: name)
        case .path(let path):
            guard path.hasPrefix("/"), !path.utf8.contains(0) else {
                throw Malformed(reason: "\"\(path)\" is no absolute path")
            }
        case .unit: break
        }
        if let toc {
            guard toc.name == TocDescription.fileName, location != .member(name: toc.name) else {
                throw Malformed(reason: "\"\(toc.name)\" is no name of a table of contents")
            }
        }
        switch (formatVersion, data.checksums) {
        case (1, .slices): break
        case (2, .file(let file)):
            let names = [ChecksumDescription.fileName, ChecksumDescription.integratedFileName]
            guard names.contains(file.name), location != .member(name: file.name) else {
                throw Malformed(reason: "\"\(file.name)\" is no name of a file of checksums")
            }
        default: throw Malformed(reason: "the data portion's checksums are not where its version has them")
        }
        if let restarts = epoch.restarts {
            guard restarts > 0, restarts < epoch.number, group == nil else {
                throw Malformed(reason: "\(restarts) restarts are not those of epoch \(epoch.number)")
            }
        }
        if let usedBytes, usedBytes > volume.size {
            throw Malformed(reason: "more bytes are said to be in use than the volume has")
        }
    }

    private static func validate(member name: String) throws(Malformed) {
        guard !name.isEmpty, !name.contains("/"), !name.utf8.contains(0), name != ".", name != "..",
            name != fileName
        else {
            throw Malformed(reason: "\"\(name)\" is no name of a member")
        }
    }

    private static func validate(_ portion: Portion, _ name: String) throws(Malformed) {
        let covers =
            switch portion.checksums {
            case .slices(let slices): slices.covers(length: portion.length)
            case .file(let file): file.covers(length: portion.length)
            }
        guard covers else { throw Malformed(reason: "the \(name) portion's checksums do not cover it") }
    }
}

/// What a `manifest.json` can be.
enum ManifestFile {
    case copy(Manifest)
    case abandoned(AbandonedCopy)

    /// Reads and checks the file's bytes.
    init(decoding bytes: [UInt8]) throws(Manifest.Malformed) {
        let state = try Self.checkedState(bytes)
        do {
            if state == AbandonedCopy.stateName {
                self = .abandoned(try JSONDecoder().decode(AbandonedCopy.self, from: Data(bytes)))
                return
            }
            let manifest = try JSONDecoder().decode(Manifest.self, from: Data(bytes))
            try manifest.validate()
            self = .copy(manifest)
        } catch let error as Manifest.Malformed {
            throw error
        } catch {
            throw Manifest.Malformed(reason: "a member is missing or of the wrong kind (\(error))")
        }
    }

    private struct Head: Decodable {
        var format: String
        var formatVersion: Int
        var state: String?
    }

    /// - Returns: the state, of a file whose bytes are as they were written and of a version that can be read.
    private static func checkedState(_ bytes: [UInt8]) throws(Manifest.Malformed) -> String? {
        guard bytes.count <= CopyLimits.manifestBytes else {
            throw Manifest.Malformed(reason: "it is longer than \(CopyLimits.manifestBytes) bytes")
        }
        guard let fits = SelfChecksum.fits(bytes) else {
            throw Manifest.Malformed(reason: "it has no checksum, so it is no manifest or a damaged one")
        }
        guard fits else { throw Manifest.Malformed(reason: "its checksum does not fit its bytes") }
        let head: Head
        do { head = try JSONDecoder().decode(Head.self, from: Data(bytes)) } catch {
            throw Manifest.Malformed(reason: "it is not a manifest")
        }
        guard head.format == Manifest.formatName else {
            throw Manifest.Malformed(
                reason: "its format is \"\(head.format)\", not \"\(Manifest.formatName)\"")
        }
        let latest =
            head.state == AbandonedCopy.stateName ? AbandonedCopy.version : Manifest.currentVersion
        guard (1...latest).contains(head.formatVersion) else {
            throw Manifest.Malformed(
                reason: "its format version is \(head.formatVersion); this program reads up to \(latest)")
        }
        return head.state
    }
}
