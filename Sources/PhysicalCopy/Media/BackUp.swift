import Blocks
import Foundation
import Glibc
import OriginalImage

/// What a backup was made of, and what became of it.
public struct BackupSummary: Codable, Hashable, Sendable {
    /// The backup's own UUID.
    public var uuid: String
    /// Bytes of the stream.
    public var streamBytes: UInt64
    /// Bytes of the copy's data and original images, holes included; and of these what is no hole.
    public var bytes: UInt64
    public var storedBytes: UInt64
    /// Original images in the stream; none when they are integrated.
    public var originals: UInt64
    /// The data's members.
    public var dataMembers: Int
}

/// What a backup is doing.
public enum BackupStep: Hashable, Sendable {
    /// Looking for holes.
    case scanning
    case writing
}

extension PhysicalCopy {
    /// Writes the copy as one sequential stream (<doc:BackupMedia>) and compares all of it with its checksums on the
    /// way: what does not fit is never completed.
    /// - Parameters:
    ///   - integrated: the original images over the data, as `integrate` would leave them. So it is always with a copy
    ///     whose integrate was interrupted.
    ///   - zeros: whether zeros that are stored become holes. They have to be found first, so that what is no hole
    ///     is read twice.
    ///   - tool: this program's name and version.
    ///   - progress: told the bytes done since it was told last, of ``backupBytes(integrated:)``, of each step; may
    ///     throw to stop.
    public func backUp(
        to output: BackupOutput, integrated: Bool, zeros: Bool = true, tool: String, _ opener: DataOpener,
        progress: (BackupStep, UInt64) throws(CopyError) -> Void = { _, _ in }
    ) throws(CopyError) -> BackupSummary {
        let (manifest, checksums, store) = try backupSource(integrated: integrated, opener)
        let portions = [manifest.data.range] + (manifest.originals.map { [$0.range] } ?? [])
        let writer = try BackupWriter(
            self, manifest, checksums, BackupImage(store, portions: portions), to: output, tool: tool,
            zeros: zeros)
        return try writer.run(progress)
    }

    /// What ``backUp(to:integrated:zeros:tool:_:progress:)`` tells the progress of.
    public func backupBytes(integrated: Bool) -> UInt64 {
        manifest.data.length + (isBackedUpIntegrated(integrated) ? 0 : manifest.originals?.length ?? 0)
    }

    private func isBackedUpIntegrated(_ asked: Bool) -> Bool {
        manifest.originals != nil && (asked || manifest.state == .integrating)
    }

    /// The manifest that the backup will have, its data's checksums, and what it describes.
    private func backupSource(
        integrated: Bool, _ opener: DataOpener
    ) throws(CopyError) -> (Manifest, SliceChecksums, any BlockStore) {
        var store = try openData(opener)
        var next = manifest
        next.location = .usual
        var checksums = try dataChecksums()
        if isBackedUpIntegrated(integrated) {
            if manifest.state == .complete { checksums = try derivedChecksums(in: store) }
            next.state = .integrated
            next.originals = nil
            let data = store
            store = try openVolume { _, _ in data }
        } else if manifest.originals != nil {
            _ = try logReader(in: store)
        }
        if case .file = manifest.data.checksums {
            let bytes = ChecksumFile.encode(checksums, length: manifest.data.length)
            next.data.checksums = .file(
                ChecksumFile.describe(bytes, checksums, name: ChecksumDescription.fileName))
        } else {
            next.data.checksums = .slices(checksums)
        }
        return (next, checksums, store)
    }
}

/// Makes one backup.
private final class BackupWriter {
    private let copy: PhysicalCopy
    private let manifest: Manifest
    private let checksums: SliceChecksums
    private let image: BackupImage
    private let output: BackupOutput
    private let archive: ArchiveWriter
    private let header: BackupHeader
    private let buffer = TransferBuffer()
    private var checks: PassingData
    private let zeros: Bool
    private var storedBytes: UInt64 = 0

    typealias Progress = (BackupStep, UInt64) throws(CopyError) -> Void

    init(
        _ copy: PhysicalCopy, _ manifest: Manifest, _ checksums: SliceChecksums, _ image: BackupImage,
        to output: BackupOutput, tool: String, zeros: Bool
    ) throws(CopyError) {
        self.copy = copy
        self.manifest = manifest
        self.checksums = checksums
        self.image = image
        self.output = output
        self.zeros = zeros
        checks = try PassingData(manifest, checksums)
        archive = try ArchiveWriter(output)
        // No stream is longer than twice what it holds, headers and maps and all.
        let held =
            image.size + 2 * UInt64(CopyLimits.manifestBytes) + 4 * UInt64(checksums.values.count)
            + (manifest.toc?.length ?? 0)
        let most = 2 * held + MediaLimits.memberHeadBytes
        header = BackupHeader(
            version: manifest.formatVersion, tool: tool, uuid: UUID().uuidString.lowercased(),
            startedAt: Self.now,
            recordBytes: output.recordBytes, sliceSize: SliceChecksums.sliceSize(forLength: most))
        output.sum(bySlicesOf: header.sliceSize)
    }

    private static var now: Int64 {
        var time = timespec()
        clock_gettime(CLOCK_REALTIME, &time)
        return Int64(time.tv_sec) * 1_000_000_000 + Int64(time.tv_nsec)
    }

    func run(_ progress: BackupWriter.Progress) throws(CopyError) -> BackupSummary {
        let time = header.startedAt
        try archive.add(BackupMember.header, header.encoded(), startedAt: time)
        try archive.add(BackupMember.manifest, manifest.encoded(), startedAt: time)
        if case .file = manifest.data.checksums {
            let bytes = ChecksumFile.encode(checksums, length: manifest.data.length)
            try archive.add(BackupMember.checksums, bytes, startedAt: time)
        }
        if let toc = manifest.toc { try addToc(toc) }
        let members = try addData(progress)
        try addEnd()
        try archive.close()
        try output.finish()
        return BackupSummary(
            uuid: header.uuid, streamBytes: output.position, bytes: image.size, storedBytes: storedBytes,
            originals: checks.originals, dataMembers: members)
    }

    private func addToc(_ toc: TocDescription) throws(CopyError) {
        try archive.begin(BackupMember.toc, size: toc.length, startedAt: header.startedAt)
        var passing = PassingToc(toc)
        func require(_ finding: Finding?) throws(CopyError) {
            if let finding { throw Self.damaged(copy.directory, finding) }
        }
        try copy.files.forEachPart(
            of: toc.name, in: copy.lock.descriptor, buffer.prefix(UInt64(CopyLimits.transferBytes))
        ) { bytes throws(CopyError) in
            try require(passing.take(bytes))
            try archive.write(bytes)
        }
        try require(passing.finish())
    }

    /// - Returns: the number of members.
    private func addData(_ progress: BackupWriter.Progress) throws(CopyError) -> Int {
        var members = 0
        while checks.position < image.size {
            let stretch = try image.stretch(from: checks.position, zeros: zeros) {
                count throws(CopyError) in try progress(.scanning, count)
            }
            let start = stretch.range.offset
            let isAll = start == 0 && stretch.range.end == image.size
            let extents = stretch.extents.map { ByteRange(offset: $0.offset - start, count: $0.count) }
            try archive.begin(
                isAll ? BackupMember.data : BackupMember.data(at: start), size: stretch.range.count,
                startedAt: header.startedAt, extents: extents)
            members += 1
            for extent in stretch.extents {
                try addHole(upTo: extent.offset, progress)
                try add(extent, progress)
            }
            try addHole(upTo: stretch.range.end, progress)
        }
        return members
    }

    private func addHole(
        upTo end: UInt64, _ progress: BackupWriter.Progress
    ) throws(CopyError) {
        guard end > checks.position else { return }
        let count = end - checks.position
        try check(.zeros(count))
        try archive.skip(count)
        try progress(.writing, count)
    }

    private func add(
        _ extent: ByteRange, _ progress: BackupWriter.Progress
    ) throws(CopyError) {
        while checks.position < extent.end {
            let count = min(extent.end - checks.position, UInt64(CopyLimits.transferBytes))
            let part = buffer.prefix(count)
            try image.read(ByteRange(offset: checks.position, count: count), into: part)
            let bytes = UnsafeRawBufferPointer(part)
            try check(.bytes(bytes))
            try archive.write(bytes)
            storedBytes += count
            try progress(.writing, count)
        }
    }

    private func check(_ passing: PassingBytes) throws(CopyError) {
        let directory = copy.directory
        try checks.take(
            passing,
            report: { finding, _ throws(CopyError) in
                throw Self.damaged(directory, finding)
            }, to: { _, _ throws(CopyError) in })
    }

    private static func damaged(_ directory: String, _ finding: Finding) -> CopyError {
        CopyError(
            .damaged, "back up \(directory)",
            "\(finding.part.rawValue) at \(finding.offset), \(finding.length) bytes: \(finding.problem)",
            advice: "see all that is damaged with `outboard verify`, and use another copy")
    }

    private func addEnd() throws(CopyError) {
        // Its own header belongs to what it sums up, but has its length in it.
        let slices = Int((output.position + MediaLimits.memberHeadBytes) / header.sliceSize) + 1
        let length = BackupEnd.reservedBytes(slices: slices)
        try archive.begin(BackupMember.end, size: UInt64(length), startedAt: header.startedAt)
        let end = BackupEnd(uuid: header.uuid, length: output.position, checksums: output.endSum())
        let bytes = end.encoded(paddedTo: length)
        var failure: CopyError?
        bytes.withUnsafeBytes { buffer in
            do throws(CopyError) { try archive.write(buffer) } catch { failure = error }
        }
        if let failure { throw failure }
    }
}
