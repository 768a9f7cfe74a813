import Blocks
import FoundationEssentials
import OriginalImage

/// Bytes that pass by.
public enum PassingBytes {
    case bytes(UnsafeRawBufferPointer)
    /// So many zeros: a hole.
    case zeros(UInt64)

    public var count: UInt64 {
        switch self {
        case .bytes(let bytes): UInt64(bytes.count)
        case .zeros(let count): count
        }
    }

    func prefix(_ count: UInt64) -> PassingBytes {
        switch self {
        case .bytes(let bytes): .bytes(UnsafeRawBufferPointer(rebasing: bytes.prefix(Int(count))))
        case .zeros(let all): .zeros(min(all, count))
        }
    }

    func dropFirst(_ count: UInt64) -> PassingBytes {
        switch self {
        case .bytes(let bytes): .bytes(UnsafeRawBufferPointer(rebasing: bytes.dropFirst(Int(count))))
        case .zeros(let all): .zeros(all - min(all, count))
        }
    }
}

/// A copy's data, from the first byte of its data location to the last, as they pass by once: compares each slice of
/// each portion with its checksum and each original with its own, and tells what part of the volume passes: first all
/// of the data, then the original images that win over them. Memory: that of one chunk.
struct PassingData {
    /// What does not fit: a finding, and where in the stream the slice began.
    typealias Report = (Finding, _ mark: UInt64) throws(CopyError) -> Void
    /// What passes: where in the volume, and the bytes.
    typealias Take = (UInt64, PassingBytes) throws(CopyError) -> Void

    private let manifest: Manifest
    private let portions: [(portion: Portion, checksums: SliceChecksums, part: Finding.Part)]
    /// Bytes from the start of the data location to the end of its last portion.
    let length: UInt64
    /// From the start of the data location.
    private(set) var position: UInt64 = 0
    private var crc = CRC32C()
    private var mark: UInt64 = 0
    private var log: LogStream?
    /// Originals that have passed.
    private(set) var originals: UInt64 = 0

    /// - Parameters:
    ///   - manifest: a valid one, not of a copy that is being integrated.
    ///   - checksums: of its data portion.
    init(_ manifest: Manifest, _ checksums: SliceChecksums) throws(CopyError) {
        precondition(manifest.state != .integrating, "its checksums are not those of its data")
        self.manifest = manifest
        portions =
            [(manifest.data, checksums, .data)]
            + (manifest.originals.map { [($0, $0.slices, .originals)] } ?? [])
        length = manifest.originals?.range.end ?? manifest.data.range.end
        guard let portion = manifest.originals else { return }
        let geometry = ChunkGeometry(
            volumeSize: manifest.volume.size, chunkSize: manifest.volume.chunkSize)
        guard let geometry, let epoch = UUID(uuidString: manifest.epoch.uuid),
            manifest.epoch.logBytes <= portion.length
        else {
            throw CopyError(
                .damaged, "read the original images", "the manifest's numbers do not fit each other")
        }
        log = LogStream(
            geometry: geometry, epoch: epoch,
            end: LogPosition(
                position: manifest.epoch.logBytes, sequence: manifest.epoch.batches,
                entries: manifest.epoch.entries))
    }

    /// - Parameters:
    ///   - passing: the next bytes, not beyond the end.
    ///   - mark: where they stand in the stream they are read from.
    mutating func take(
        _ passing: PassingBytes, mark: UInt64 = 0, report: Report, to take: Take
    ) throws(CopyError) {
        precondition(passing.count <= length - position, "bytes beyond the copy's data")
        var rest = passing
        while rest.count > 0 {
            let (portion, checksums, kind) = portions.first { position < $0.portion.range.end }!
            guard position >= portion.offset else {
                // Between two portions: nothing.
                let gap = min(rest.count, portion.offset - position)
                (position, rest) = (position + gap, rest.dropFirst(gap))
                continue
            }
            let (slice, index) = slice(of: portion, checksums)
            let part = rest.prefix(slice.end - position)
            if position == slice.offset { (crc, self.mark) = (CRC32C(), mark + passing.count - rest.count) }
            switch part {
            case .bytes(let bytes): crc.update(bytes)
            case .zeros(let count): crc.update(zeros: count)
            }
            switch kind {
            case .originals: try takeLog(part, report, take)
            default: try take(position, part)
            }
            (position, rest) = (position + part.count, rest.dropFirst(part.count))
            let expected = checksums.values[index]
            if position == slice.end, crc.value != expected {
                let problem =
                    "CRC-32C is \(hexadecimal(crc.value)), and was \(hexadecimal(expected)) when it was copied"
                try report(
                    Finding(kind, slice, problem, chunk: kind == .data ? UInt64(index) : nil), self.mark)
            }
        }
        if position == length, let log, !log.isOver {
            try reportLog(.corrupt("the log does not end at its marker"), report)
        }
    }

    /// The slice that the position is in, from the start of the data location.
    private func slice(of portion: Portion, _ checksums: SliceChecksums) -> (ByteRange, index: Int) {
        let index = Int((position - portion.offset) / checksums.sliceSize)
        let slice = checksums.range(ofSlice: index, length: portion.length)
        return (ByteRange(offset: portion.offset + slice.offset, count: slice.count), index)
    }

    private mutating func takeLog(
        _ passing: PassingBytes, _ report: Report, _ take: Take
    ) throws(CopyError) {
        var rest = passing
        while rest.count > 0, log != nil {
            var input: UnsafeRawBufferPointer
            switch rest {
            case .bytes(let bytes): input = bytes
            case .zeros(let count): input = Self.zeros(count)
            }
            let before = input.count
            while let original = try nextOriginal(in: &input, report) {
                originals += 1
                try take(
                    original.range.offset,
                    original.bytes.map { .bytes($0) } ?? .zeros(original.range.count))
            }
            rest = rest.dropFirst(UInt64(before - input.count))
        }
    }

    private mutating func nextOriginal(
        in input: inout UnsafeRawBufferPointer, _ report: Report
    ) throws(CopyError) -> LogStream.Original? {
        do throws(LogError) { return try log?.next(&input) } catch {
            // One is enough: where the next would begin is not known.
            log = nil
            try reportLog(error, report)
            return nil
        }
    }

    private func reportLog(_ error: LogError, _ report: Report) throws(CopyError) {
        guard let portion = manifest.originals else { return }
        try report(Finding(.originals, portion.range, error.description), mark)
    }

    private static let zeroMemory = ZeroedMemory(count: MediaLimits.inputBytes)

    private static func zeros(_ count: UInt64) -> UnsafeRawBufferPointer {
        UnsafeRawBufferPointer(rebasing: zeroMemory.buffer.prefix(Int(min(count, UInt64(zeroMemory.count)))))
    }
}

/// A table of contents that passes by.
struct PassingToc {
    private let expected: TocDescription
    private var crc = CRC32C()
    private var length: UInt64 = 0

    init(_ expected: TocDescription) { self.expected = expected }

    /// - Returns: what does not fit.
    mutating func take(_ bytes: UnsafeRawBufferPointer) -> Finding? {
        crc.update(bytes)
        length += UInt64(bytes.count)
        guard length > expected.length else { return nil }
        return finding("it is longer than the \(expected.length) bytes that the manifest says")
    }

    func finish() -> Finding? {
        let found = TocDescription(length: length, checksum: crc.value)
        guard found != expected else { return nil }
        return finding(
            "it has \(found.length) bytes and CRC-32C \(found.checksum), the manifest says "
                + "\(expected.length) and \(expected.checksum)")
    }

    private func finding(_ problem: String) -> Finding {
        Finding(.toc, ByteRange(offset: 0, count: length), problem)
    }
}
