import Blocks
import Foundation
import OriginalImage

/// What of a backup does not fit, and where.
public struct BackupFinding: Codable, Hashable, Sendable {
    /// The member; empty: the stream as such.
    public var member: String
    /// Where in the stream, bytes from its start: where what was found to be damaged begins, or as far as it was read.
    public var streamOffset: UInt64
    /// In the data: what part; bytes from the start of the copy's data, which are the volume's where it is `data`.
    public var part: Finding.Part?
    public var offset: UInt64?
    public var length: UInt64?
    public var problem: String

    init(_ member: String, at streamOffset: UInt64, _ problem: String) {
        self.member = member
        self.streamOffset = streamOffset
        self.problem = problem
    }

    /// What ended the reading.
    /// - Parameter error: that the stream is damaged.
    public init(_ error: CopyError) { self = error.finding ?? BackupFinding("", at: 0, error.reason) }

    init(_ finding: Finding, _ member: String, at streamOffset: UInt64) {
        self.init(member, at: streamOffset, finding.problem)
        (part, offset, length) = (finding.part, finding.offset, finding.length)
    }
}

extension BackupFinding: CustomStringConvertible {
    public var description: String {
        var text = "at byte \(streamOffset) of the stream"
        if !member.isEmpty { text += ", in \(member)" }
        if let part, let offset, let length { text += ", \(part.rawValue) at \(offset), \(length) bytes" }
        return text + ": " + problem
    }
}

/// A backup (<doc:BackupMedia>), read once from front to back. Each step is called once, in this order: `init`,
/// ``readToc(to:)``, ``readData(progress:to:)``, ``finish()``. Only after the last one is it known that all was as
/// it was written.
public final class BackupReader {
    public let header: BackupHeader
    public let manifest: Manifest
    private let checksums: SliceChecksums
    private let input: BackupInput
    private let archive: ArchiveReader
    /// The member that is read.
    private var member: ArchiveReader.Member?
    /// While the data are read: how far they have passed, of what was written.
    private var dataPosition: UInt64?
    /// Original images that passed.
    public private(set) var originals: UInt64 = 0
    /// Bytes of the copy's data and original images, holes included.
    public let dataBytes: UInt64
    private let sink: ((BackupFinding) throws(CopyError) -> Void)?
    /// Parts of the stream in which something was found.
    private var damaged: [ByteRange] = []
    private var action: String { Self.action(input) }

    private static func action(_ input: BackupInput) -> String { "read the backup \(input.name)" }

    /// Reads what the backup is.
    /// - Parameter report: told what does not fit where reading can go on; nil: that is thrown.
    public init(
        _ input: BackupInput, report: ((BackupFinding) throws(CopyError) -> Void)? = nil
    ) throws(CopyError) {
        self.input = input
        sink = report
        archive = ArchiveReader(input)
        try Self.requireUncompressed(input, archive)
        let head = try Self.readSmall(
            archive, input, BackupMember.header, limit: MediaLimits.headerBytes)
        do throws(Manifest.Malformed) { header = try BackupHeader(decoding: head.bytes) } catch {
            throw Self.damaged(input, BackupFinding(BackupMember.header, at: head.start, error.reason))
        }
        guard input.position <= CopyLimits.smallestSlice else {
            throw Self.damaged(
                input,
                BackupFinding(BackupMember.header, at: head.start, "it does not stand at the beginning"))
        }
        input.sum(bySlicesOf: header.sliceSize)
        let body = try Self.readSmall(
            archive, input, BackupMember.manifest, limit: CopyLimits.manifestBytes)
        do throws(Manifest.Malformed) {
            manifest = try Manifest(decoding: body.bytes)
            guard manifest.location == .usual, manifest.state != .integrating,
                manifest.formatVersion == header.formatVersion
            else { throw Manifest.Malformed(reason: "it is not one that a backup has") }
        } catch {
            throw Self.damaged(input, BackupFinding(BackupMember.manifest, at: body.start, error.reason))
        }
        checksums = try Self.readChecksums(archive, input, manifest)
        dataBytes = manifest.originals?.range.end ?? manifest.data.range.end
    }

    /// A damage, as an error that says where.
    private static func damaged(_ input: BackupInput, _ finding: BackupFinding) -> CopyError {
        var error = CopyError(
            .damaged, action(input), finding.description,
            advice: "see all that is damaged with `outboard verify --backup`, and use another backup")
        error.finding = finding
        return error
    }

    private func damaged(_ problem: String) -> CopyError {
        var finding = BackupFinding(member?.name ?? "", at: archive.position, problem)
        if let place = dataPosition, place < dataBytes {
            let isData = place < manifest.data.range.end
            finding.part = isData ? .data : .originals
            finding.offset = place
            finding.length = (isData ? manifest.data.range.end : dataBytes) - place
        }
        return Self.damaged(input, finding)
    }

    /// The data portion's checksums, from their member where they are not in the manifest.
    private static func readChecksums(
        _ archive: ArchiveReader, _ input: BackupInput, _ manifest: Manifest
    ) throws(CopyError) -> SliceChecksums {
        guard case .file(let description) = manifest.data.checksums else { return manifest.data.slices }
        let body = try readSmall(archive, input, BackupMember.checksums, limit: Int(description.length))
        do throws(ChecksumFile.Malformed) {
            return try ChecksumFile.decode(body.bytes, as: description, length: manifest.data.length)
        } catch {
            throw damaged(input, BackupFinding(BackupMember.checksums, at: body.start, error.reason))
        }
    }

    private static func requireUncompressed(
        _ input: BackupInput, _ archive: ArchiveReader
    ) throws(CopyError) {
        let problem: ArchiveReader.Problem?
        do throws(ArchiveReader.Problem) {
            try archive.open()
            problem = nil
        } catch { problem = error }
        if let failure = input.failure { throw failure }
        let magics: [(String, [UInt8])] = [
            ("zstd", [0x28, 0xB5, 0x2F, 0xFD]), ("gzip", [0x1F, 0x8B]), ("xz", [0xFD, 0x37, 0x7A, 0x58]),
            ("lz4", [0x04, 0x22, 0x4D, 0x18]), ("bzip2", [0x42, 0x5A, 0x68]),
        ]
        for (program, magic) in magics where input.block.starts(with: magic) {
            throw CopyError(
                .damaged, action(input), "it is compressed",
                advice: "decompress it on the way: \(program) -dc … | outboard …, with - for its name")
        }
        if let problem { throw failure(problem, input, archive, nil) }
    }

    private static func failure(
        _ problem: ArchiveReader.Problem, _ input: BackupInput, _ archive: ArchiveReader,
        _ member: ArchiveReader.Member?
    ) -> CopyError {
        switch problem {
        case .input:
            return input.failure ?? CopyError(.io, action(input), "input/output error")
        case .malformed(let reason):
            let finding = BackupFinding(member?.name ?? "", at: archive.position, reason)
            return damaged(input, finding)
        }
    }

    private func onArchive<Result>(
        _ body: () throws(ArchiveReader.Problem) -> Result
    ) throws(CopyError) -> Result {
        do throws(ArchiveReader.Problem) { return try body() } catch {
            if case .malformed(let reason) = error { throw damaged(reason) }
            throw Self.failure(error, input, archive, member)
        }
    }

    /// Reads the next member, which has to be that one.
    private static func readSmall(
        _ archive: ArchiveReader, _ input: BackupInput, _ name: String, limit: Int
    ) throws(CopyError) -> (bytes: [UInt8], start: UInt64) {
        var member: ArchiveReader.Member?
        do throws(ArchiveReader.Problem) {
            let found = try archive.next()
            member = found
            guard let found, found.name == name, found.size <= UInt64(limit) else {
                let what = found.map { "there is \"\($0.name)\" of \($0.size) bytes" } ?? "it ends"
                throw ArchiveReader.Problem.malformed("\(what) where \(name) should be")
            }
            return (try content(of: found, archive), found.start)
        } catch { throw failure(error, input, archive, member) }
    }

    /// Reads a small member: as many bytes as it has, and no look at what comes then.
    private static func content(
        of member: ArchiveReader.Member, _ archive: ArchiveReader
    ) throws(ArchiveReader.Problem) -> [UInt8] {
        var bytes: [UInt8] = []
        while bytes.count < Int(member.size) {
            guard let part = try archive.read(), !part.bytes.isEmpty, Int(part.offset) == bytes.count,
                part.bytes.count <= Int(member.size) - bytes.count
            else { throw .malformed("\(member.name) is not whole") }
            bytes += part.bytes
        }
        return bytes
    }

    private func next() throws(CopyError) -> ArchiveReader.Member {
        member = nil
        guard let found = try onArchive({ () throws(ArchiveReader.Problem) in try archive.next() }) else {
            throw damaged("it ends before its last member: it was cut off, or never completed")
        }
        member = found
        return found
    }

    /// Reads the table of contents.
    /// - Parameter take: takes its bytes, one after another.
    /// - Returns: whether there is one.
    public func readToc(
        to take: (UnsafeRawBufferPointer) throws(CopyError) -> Void = { _ in }
    ) throws(CopyError) -> Bool {
        guard let toc = manifest.toc else { return false }
        let found = try next()
        guard found.name == BackupMember.toc, found.size == toc.length else {
            throw damaged("it stands where \(BackupMember.toc) of \(toc.length) bytes should be")
        }
        var passing = PassingToc(toc)
        var position: UInt64 = 0
        while let part = try onArchive({ () throws(ArchiveReader.Problem) in try archive.read() }) {
            guard part.offset == position else { throw damaged("it has a hole") }
            if let finding = passing.take(part.bytes) { try report(finding, at: found.start) }
            try take(part.bytes)
            position += UInt64(part.bytes.count)
        }
        if let finding = passing.finish() { try report(finding, at: found.start) }
        return true
    }

    private func report(_ finding: Finding, at place: UInt64) throws(CopyError) {
        try report(BackupFinding(finding, member?.name ?? "", at: place), upTo: archive.position)
    }

    private func report(_ finding: BackupFinding, upTo end: UInt64) throws(CopyError) {
        guard damaged.count < CopyLimits.findings else { return }
        let start = finding.streamOffset
        damaged.append(ByteRange(offset: start, count: max(end, start + 1) - start))
        guard let sink else { throw Self.damaged(input, finding) }
        try sink(finding)
    }

    /// Reads the data, and the original images behind them.
    /// - Parameters:
    ///   - progress: told the bytes since it was told last, of ``dataBytes``; may throw to stop.
    ///   - take: takes what passes of the volume, by its place there: first everything once, from the start to the end,
    ///     then the original images, each of which wins over what was there. None of it is verified before
    ///     ``finish()``.
    public func readData(
        progress: (UInt64) throws(CopyError) -> Void = { _ in },
        to take: (UInt64, PassingBytes) throws(CopyError) -> Void
    ) throws(CopyError) {
        var passing = try PassingData(manifest, checksums)
        defer { dataPosition = nil }
        while passing.position < dataBytes {
            let start = passing.position
            dataPosition = start
            let found = try next()
            let isAll = start == 0 && found.name == BackupMember.data
            guard isAll || found.name == BackupMember.data(at: start), found.size > 0,
                found.size <= dataBytes - start, !isAll || found.size == dataBytes
            else { throw damaged("it stands where the data from \(start) on should be") }
            func pass(_ bytes: PassingBytes) throws(CopyError) {
                guard bytes.count <= found.size - (passing.position - start) else {
                    throw damaged("its map does not fit its size")
                }
                try passing.take(
                    bytes, mark: archive.position,
                    report: { finding, mark throws(CopyError) in try report(finding, at: mark) }, to: take)
                dataPosition = passing.position
                try progress(bytes.count)
            }
            while let part = try onArchive({ () throws(ArchiveReader.Problem) in try archive.read() }) {
                let position = passing.position - start
                guard part.offset >= position, part.offset <= found.size else {
                    throw damaged("its map goes backwards, or beyond its end")
                }
                if part.offset > position { try pass(.zeros(part.offset - position)) }
                if !part.bytes.isEmpty { try pass(.bytes(part.bytes)) }
            }
            let rest = found.size - (passing.position - start)
            if rest > 0 { try pass(.zeros(rest)) }
        }
        originals = passing.originals
    }

    /// Reads the end, and compares all of the stream with what it says.
    /// - Returns: bytes of the stream.
    @discardableResult
    public func finish() throws(CopyError) -> UInt64 {
        member = nil
        // Its header is summed up, too, its content is not.
        let found = try next()
        let (place, start) = (archive.position, found.start)
        guard let sums = input.endSum(at: place) else { throw damaged("its headers are not whole") }
        let bytes = try readEnd(found)
        let end: BackupEnd
        do throws(Manifest.Malformed) {
            end = try BackupEnd(decoding: bytes)
            guard end.uuid == header.uuid else {
                throw Manifest.Malformed(reason: "it is another backup's, which was overwritten in part")
            }
        } catch {
            throw Self.damaged(input, BackupFinding(BackupMember.end, at: start, error.reason))
        }
        try compare(end, place, sums)
        let contentEnd = place + UInt64(bytes.count)
        let whole =
            (contentEnd.roundedUp(to: UInt64(MediaLimits.block)) + 2 * UInt64(MediaLimits.block))
        let records = (whole + UInt64(header.recordBytes) - 1) / UInt64(header.recordBytes)
        let length = records * UInt64(header.recordBytes)
        guard let tail = try input.drain(from: contentEnd, to: length) else {
            throw damaged("it is longer in the stream than it says")
        }
        if let unwanted = tail.firstUnwanted {
            try report(
                BackupFinding("", at: unwanted, "there is something behind the end, or in its padding"),
                upTo: unwanted)
        } else if tail.end < length {
            try report(
                BackupFinding("", at: tail.end, "it is cut off: it had \(length) bytes when it was written"),
                upTo: length)
        }
        return length
    }

    private func readEnd(_ found: ArchiveReader.Member) throws(CopyError) -> [UInt8] {
        guard found.name == BackupMember.end, found.size <= UInt64(MediaLimits.endBytes) else {
            throw damaged("it stands where \(BackupMember.end) should be")
        }
        return try onArchive { () throws(ArchiveReader.Problem) in
            try Self.content(of: found, archive)
        }
    }

    /// - Parameters:
    ///   - place: where the end's content begins.
    ///   - found: what everything before it sums to.
    private func compare(
        _ end: BackupEnd, _ place: UInt64, _ found: SliceChecksums
    ) throws(CopyError) {
        guard end.length == place, end.checksums.sliceSize == found.sliceSize,
            end.checksums.values.count == found.values.count
        else {
            throw damaged(
                "the stream has \(place) bytes up to here, and had \(end.length) when it was written")
        }
        for (index, expected) in end.checksums.values.enumerated() where found.values[index] != expected {
            let slice = found.range(ofSlice: index, length: place)
            if damaged.contains(where: { $0.overlaps(slice) }) { continue }
            let problem =
                "CRC-32C of \(slice.count) bytes is \(hexadecimal(found.values[index])), and was "
                + "\(hexadecimal(expected)) when it was written; it is not in the data or their map"
            try report(BackupFinding("", at: slice.offset, problem), upTo: slice.end)
        }
    }
}
