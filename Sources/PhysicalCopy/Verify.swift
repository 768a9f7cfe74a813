import Blocks
import Glibc
import OriginalImage

extension PhysicalCopy {
    /// Reads all of the copy: every checksum; of the original images the superblocks, headers, and each
    /// original's own CRC; that there is nothing between the portions. The manifest's checksum was checked when the copy
    /// was opened. One whose integrate was interrupted is not as it shall be, and that is a finding.
    /// - Parameter progress: told the bytes done since it was told last; may throw to stop.
    public func verify(
        _ opener: DataOpener, progress: (UInt64) throws(CopyError) -> Void = { _ in }
    ) throws(CopyError) -> VerifyReport {
        var report = VerifyReport()
        let store: any BlockStore
        do throws(CopyError) { store = try openData(opener) } catch {
            guard error.kind == .damaged else { throw error }
            report.add(Finding(.data, manifest.data.range, error.reason, file: dataFile))
            return report
        }
        try verifyOriginals(in: store, &report, progress)
        try verifyData(in: store, &report, progress)
        try verifyPadding(in: store, &report)
        if let finding = try TableOfContentsFile.finding(manifest.toc, in: lock.descriptor, files, progress) {
            report.add(finding)
        }
        if manifest.state == .integrating {
            report.add(
                Finding(
                    .data, manifest.data.range, "integrate was interrupted; run integrate again",
                    file: dataFile))
        }
        return report
    }

    /// What is wrong with a copy that cannot be opened, as a finding.
    /// - Parameter error: what opening it threw.
    /// - Returns: nil: it is not its manifest.
    public static func manifestFinding(
        _ error: CopyError, in directory: String, files calls: FileSystemCalls = FileSystemCalls()
    ) -> Finding? {
        guard error.kind == .damaged else { return nil }
        let path = Files.absolute(directory) + "/" + Manifest.fileName
        guard
            case .success(let status) = calls.fstatat(FileSystemCalls.noDirectory, path, AT_SYMLINK_NOFOLLOW)
        else { return nil }
        return Finding(
            .manifest, ByteRange(offset: 0, count: UInt64(max(0, status.st_size))), error.reason)
    }

    /// What findings call the data location.
    var dataFile: String {
        if case .member(let name) = manifest.location { return name }
        return dataName
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
            manifest.data, try dataChecksums(), .data, in: data, &report,
            only: { plan.wants($0) && !isKnown($0) }, progress)
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
        let checksums: SliceChecksums
        do throws(ChecksumFile.Malformed) { checksums = try loadChecksums() } catch {
            var name = ChecksumDescription.fileName
            if case .file(let description) = manifest.data.checksums { name = description.name }
            return report.add(
                Finding(
                    .checksums, error.range, error.reason + "; so nothing is known of the data", file: name))
        }
        guard manifest.state == .integrating else {
            let isMerged = manifest.originals != nil && report.isClean
            try verify(manifest.data, checksums, .data, in: store, &report, progress)
            if isMerged, !report.isClean { try excuse(&report, in: store) }
            return
        }
        // Merged with damaged originals they say nothing.
        guard report.isClean else { return }
        let merged = try openVolume { _, _ in store }
        try verify(manifest.data, checksums, .data, in: merged, &report, progress)
    }

    /// Of damaged data over all of which whole original images lie, the volume has nothing.
    private func excuse(_ report: inout VerifyReport, in store: any BlockStore) throws(CopyError) {
        let map = try map(logReader(in: store))
        for index in report.findings.indices {
            guard let volume = report.findings[index].volume else { continue }
            let isTaken = map.parts(of: volume).contains { part in
                if case .data = part.place { true } else { false }
            }
            guard !isTaken else { continue }
            report.findings[index].inUse = .no
            report.findings[index].useReason = "original images lie over all of it"
        }
    }

    private func verifyOriginals(
        in store: any BlockStore, _ report: inout VerifyReport, _ progress: (UInt64) throws(CopyError) -> Void
    ) throws(CopyError) {
        guard let originals = manifest.originals else { return }
        try verify(originals, originals.slices, .originals, in: store, &report, progress)
        try verifyLog(originals, in: store, &report)
    }

    private func verify(
        _ portion: Portion, _ checksums: SliceChecksums, _ part: Finding.Part, in store: any BlockStore,
        _ report: inout VerifyReport, only isWanted: (ByteRange) -> Bool = { _ in true },
        _ progress: (UInt64) throws(CopyError) -> Void
    ) throws(CopyError) {
        let reader = SliceReader(store, portion.range, sliceSize: checksums.sliceSize)
        // Asked once for each: what is wanted may depend on having been asked.
        var asked: (slice: Int, isWanted: Bool)?
        func compare(_ index: Int, _ found: UInt32) {
            let expected = checksums.values[index]
            let slice = checksums.range(ofSlice: index, length: portion.length)
            report.bytes += slice.count
            guard found != expected else { return }
            report.add(
                Finding(
                    part, ByteRange(offset: portion.offset + slice.offset, count: slice.count),
                    "CRC-32C is \(hexadecimal(found)), and was \(hexadecimal(expected)) when it was copied",
                    file: dataFile, chunk: part == .data ? UInt64(index) : nil,
                    volume: part == .data ? slice : nil))
        }
        try reader.read(
            only: { index in
                if let asked, asked.slice == index { return asked.isWanted }
                let answer = isWanted(checksums.range(ofSlice: index, length: portion.length))
                asked = (index, answer)
                return answer
            }, progress: progress, to: { index, found throws(CopyError) in compare(index, found) })
    }

    /// In a file of the copy there is nothing between its portions; a device or unit may have had something there.
    private func verifyPadding(
        in store: any BlockStore, _ report: inout VerifyReport
    ) throws(CopyError) {
        guard case .member = manifest.location, let originals = manifest.originals else { return }
        let padding = ByteRange(
            offset: manifest.data.range.end, count: originals.offset - manifest.data.range.end)
        guard !padding.isEmpty else { return }
        let buffer = TransferBuffer()
        defer { withExtendedLifetime(buffer) {} }
        let bytes = buffer.prefix(padding.count)
        do throws(StoreError) { try store.read(at: padding.offset, into: bytes) } catch {
            throw .store(error, "read the copy's data at \(padding.offset)")
        }
        guard !UnsafeRawBufferPointer(bytes).isAllZeros, let first = bytes.firstIndex(where: { $0 != 0 })
        else {
            return
        }
        let place = ByteRange(offset: padding.offset + UInt64(first), count: 1)
        report.add(Finding(.padding, place, "it is not zero, as all is between the portions", file: dataFile))
    }

    private func verifyLog(
        _ portion: Portion, in store: any BlockStore, _ report: inout VerifyReport
    ) throws(CopyError) {
        /// Up to here, from its start, its headers were whole.
        var whole: UInt64 = 0
        var damaged: UInt64 = 0
        do throws(CopyError) {
            let reader = try logReader(in: store)
            func tell(_ entry: LogEntry, _ error: LogError) {
                damaged += 1
                let length = UInt64(reader.geometry.paddedLength(of: entry.chunk))
                report.add(
                    Finding(
                        .originals, ByteRange(offset: portion.offset + entry.position, count: length),
                        "\(error)", file: dataFile, volume: reader.geometry.range(of: entry.chunk)))
            }
            do throws(LogError) {
                let end = try reader.survey(
                    progress: { place throws(LogError) in whole = place },
                    damaged: { entry, error throws(LogError) in tell(entry, error) })
                report.originals = end.entries - damaged
            } catch { throw .log(error, "verify the original images") }
        } catch {
            guard error.kind == .damaged else { throw error }
            let rest = ByteRange(offset: portion.offset + whole, count: portion.length - whole)
            report.add(Finding(.originals, rest, error.reason, file: dataFile))
        }
    }
}
