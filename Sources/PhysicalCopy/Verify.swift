import Blocks
import OriginalImage

/// What `verify` found wrong, and where.
public struct Finding: Codable, Hashable, Sendable {
    public enum Part: String, Codable, Hashable, Sendable { case data, originals, toc }
    public var part: Part
    /// Bytes from the start of the data location, or of the table of contents; with `length` the range in which the damage lies.
    public var offset: UInt64
    public var length: UInt64
    public var problem: String

    public init(_ part: Part, _ range: ByteRange, _ problem: String) {
        self.part = part
        offset = range.offset
        length = range.count
        self.problem = problem
    }
}

/// What `verify` did.
public struct VerifyReport: Codable, Hashable, Sendable {
    /// Bytes read and compared.
    public var bytes: UInt64 = 0
    /// Originals whose own CRC fits.
    public var originals: UInt64 = 0
    /// Nothing found: the copy is as it was made.
    public var findings: [Finding] = []
    public var isClean: Bool { findings.isEmpty }
}

extension PhysicalCopy {
    /// Reads all of the copy: every slice's checksum; of the original images the superblocks, headers, and each
    /// original's own CRC. The manifest's checksum was checked when the copy was opened. One whose integrate was
    /// interrupted is not as it shall be, and that is a finding.
    /// - Parameter progress: told the bytes done since it was told last; may throw to stop.
    public func verify(
        _ opener: DataOpener, progress: (UInt64) throws(CopyError) -> Void = { _ in }
    ) throws(CopyError) -> VerifyReport {
        let store = try openData(opener)
        var report = VerifyReport()
        try verifyOriginals(in: store, &report, progress)
        try verifyData(in: store, &report, progress)
        if let finding = try TableOfContentsFile.finding(manifest.toc, in: lock.descriptor, files, progress) {
            report.findings.append(finding)
        }
        if manifest.state == .integrating {
            report.findings.append(
                Finding(.data, manifest.data.range, "integrate was interrupted; run integrate again"))
        }
        return report
    }

    /// The same for a copy that is to be read as a volume. One whose integrate was interrupted is as good as
    /// any other then: readers merge.
    /// - Parameters:
    ///   - store: the copy's data, from ``openData(writable:_:)``.
    ///   - progress: told the bytes done since it was told last; may throw to stop.
    /// - Throws: `damaged` when anything does not fit, and then says where first.
    public func requireWhole(
        in store: any BlockStore, progress: (UInt64) throws(CopyError) -> Void = { _ in }
    ) throws(CopyError) {
        var report = VerifyReport()
        try verifyOriginals(in: store, &report, progress)
        if report.isClean { try verifyData(in: store, &report, progress) }
        try requireClean(report)
    }

    /// The same for the parts of the copy that a plan takes something of: each original image that it touches, by its
    /// own CRC; and, where asked for, each slice of the data portion that it touches, whole.
    /// - Parameters:
    ///   - entries: of the originals that are touched; empty where there are none.
    ///   - slices: whether the data portion is looked at, too; but not where `isKnown` says that it was, of a slice's
    ///     range in the portion.
    public func requireWhole(
        in store: any BlockStore, touching plan: RestorePlan, _ entries: [LogEntry], slices: Bool,
        isKnown: (ByteRange) -> Bool = { _ in false },
        progress: (UInt64) throws(CopyError) -> Void = { _ in }
    ) throws(CopyError) {
        if !entries.isEmpty {
            let reader = try logReader(in: store)
            let memory = ZeroedMemory(count: Int(reader.geometry.chunkSize))
            for entry in entries where !entry.isZero {
                let length = reader.geometry.length(of: entry.chunk)
                do throws(LogError) {
                    try reader.read(
                        entry, into: UnsafeMutableRawBufferPointer(rebasing: memory.buffer[..<length]))
                } catch { throw .log(error, "use the copy \(directory)") }
                try progress(UInt64(length))
            }
        }
        guard slices else { return }
        let data = manifest.state == .integrating ? try openVolume { _, _ in store } : store
        var report = VerifyReport()
        try verify(
            manifest.data, .data, in: data, &report, only: { plan.wants($0) && !isKnown($0) }, progress)
        try requireClean(report)
    }

    private func requireClean(_ report: VerifyReport) throws(CopyError) {
        guard let first = report.findings.first else { return }
        throw CopyError(
            .damaged, "use the copy \(directory)",
            "\(first.part.rawValue) at \(first.offset), \(first.length) bytes: \(first.problem)",
            advice: "see all that is damaged with `outboard verify`, and use another copy")
    }

    /// While `integrate` is under way the checksums are those of the data with the originals over them, however many
    /// of these have been written already.
    private func verifyData(
        in store: any BlockStore, _ report: inout VerifyReport, _ progress: (UInt64) throws(CopyError) -> Void
    ) throws(CopyError) {
        guard manifest.state == .integrating else {
            return try verify(manifest.data, .data, in: store, &report, progress)
        }
        // Merged with damaged originals they say nothing.
        guard report.isClean else { return }
        let merged = try openVolume { _, _ in store }
        try verify(manifest.data, .data, in: merged, &report, progress)
    }

    private func verifyOriginals(
        in store: any BlockStore, _ report: inout VerifyReport, _ progress: (UInt64) throws(CopyError) -> Void
    ) throws(CopyError) {
        guard let originals = manifest.originals else { return }
        try verify(originals, .originals, in: store, &report, progress)
        try verifyLog(originals, in: store, &report)
    }

    private func verify(
        _ portion: Portion, _ part: Finding.Part, in store: any BlockStore,
        _ report: inout VerifyReport, only isWanted: (ByteRange) -> Bool = { _ in true },
        _ progress: (UInt64) throws(CopyError) -> Void
    ) throws(CopyError) {
        let buffer = TransferBuffer()
        for (index, expected) in portion.checksums.values.enumerated() {
            let slice = portion.checksums.range(ofSlice: index, length: portion.length)
            guard isWanted(slice) else { continue }
            let place = ByteRange(offset: portion.offset + slice.offset, count: slice.count)
            let found = try SliceChecksums.checksum(of: place, in: store, buffer, progress: progress)
            report.bytes += place.count
            if found != expected, report.findings.count < CopyLimits.findings {
                report.findings.append(
                    Finding(
                        part, place,
                        "CRC-32C is \(hexadecimal(found)), the manifest says \(hexadecimal(expected))"))
            }
        }
    }

    private func verifyLog(
        _ portion: Portion, in store: any BlockStore, _ report: inout VerifyReport
    ) throws(CopyError) {
        do throws(CopyError) {
            let reader = try logReader(in: store)
            do throws(LogError) { report.originals = try reader.verify().entries } catch {
                throw .log(error, "verify the original images")
            }
        } catch {
            guard error.kind == .damaged else { throw error }
            report.findings.append(Finding(.originals, portion.range, error.reason))
        }
    }
}
