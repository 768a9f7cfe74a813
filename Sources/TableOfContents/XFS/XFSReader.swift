import Blocks

/// Reads an XFS of version 4 or 5 by its on-disk format, without mounting it. What it reads and what it leaves out is
/// told in the article "XFS".
///
/// Inodes come in the order of their addresses, by way of the inode B+trees; each directory's names come with its
/// inode. So memory does not grow with the number of files, and the disk is read from front to back.
public final class XFSReader: FileSystemReader {
    public let description: FileSystemDescription

    private let disk: XFSDisk
    /// Nil: its superblock cannot be right, or it has features that are not known here.
    private let geometry: XFSGeometry?
    /// What was found wrong when it was opened.
    private let doubts: [String]
    /// Inodes whose last changes only a recovery finishes.
    private let unfinished: [UInt64]

    /// - Parameters:
    ///   - index: of the file system on its volume.
    ///   - advance: called now and then while its log is replayed.
    ///   - announce: told what the superblock says before that.
    /// - Returns: nil when there is no XFS at the beginning of `range`.
    /// - Throws: ``TocError`` `store` when the volume fails; what `announce` throws.
    public init?(
        _ store: any BlockStore, _ range: ByteRange, index: Int, advance: @escaping () -> Void = {},
        announce: (FileSystemDescription) throws(TocError) -> Void = { _ in }
    ) throws(TocError) {
        guard range.count >= UInt64(XFSGeometry.superblockBytes) else { return nil }
        let disk = XFSDisk(store, range)
        let sector = XFSBuffer(count: XFSGeometry.superblockBytes)
        try disk.read(0, sector.memory)
        let sb = sector.view
        guard sb.u32(0) == XFSGeometry.magic else { return nil }
        var description = FileSystemDescription(
            index: index, kind: .xfs, range: range, label: Self.label(sb), uuid: Self.uuid(sb), root: 0,
            isListed: false)
        try announce(description)
        let obstacle = XFSGeometry.obstacle(sb)
        guard obstacle == nil, let geometry = XFSGeometry(sb) else {
            description.remark = "its files cannot be listed: " + (obstacle ?? "its superblock is damaged")
            self.description = description
            self.geometry = nil
            self.disk = disk
            doubts = []
            unfinished = []
            return
        }
        description.blockSize = UInt64(geometry.blockSize)
        description.isListed = true
        let current = try Self.recovered(geometry, disk, advance)
        self.geometry = current.geometry
        self.disk = current.disk
        let hasRoot = current.geometry.offset(ofInode: current.geometry.rootInode) != nil
        description.root = hasRoot ? current.geometry.rootInode : 0
        let findings = try XFSUse.findings(current.geometry, current.disk, current.log)
        doubts = findings.doubts + (hasRoot ? [] : ["there cannot be a root directory where it says"])
        unfinished = findings.unfinished
        description.knowsUse = findings.whyUseIsUnknown == nil
        description.remark =
            findings.whyUseIsUnknown.map { "which blocks are in use is not known: " + $0 } ?? ""
        self.description = description
    }

    /// What the log's replay makes of the file system; as it lies there where that cannot be told.
    private static func recovered(
        _ geometry: XFSGeometry, _ disk: XFSDisk, _ advance: @escaping () -> Void
    ) throws(TocError) -> (geometry: XFSGeometry, disk: XFSDisk, log: XFSLog.State) {
        let log = try XFSLog(geometry, disk).state(advance: advance)
        guard case .replayed(let overlay, _) = log else { return (geometry, disk, log) }
        let replayed = XFSDisk(overlay, disk.range, unsealed: overlay.unsealed)
        let sector = XFSBuffer(count: XFSGeometry.superblockBytes)
        try replayed.read(0, sector.memory)
        guard sector.view.u32(0) == XFSGeometry.magic, XFSGeometry.obstacle(sector.view) == nil,
            let current = XFSGeometry(sector.view), current.hasLayout(of: geometry)
        else { return (geometry, disk, .pending("it changes the file system's size or features")) }
        return (current, replayed, log)
    }

    public func read(_ scope: ReadScope, into sink: any RecordSink) throws(TocError) {
        let output = XFSOutput(sink)
        try output.put(.fileSystem(description))
        if let geometry {
            for doubt in doubts { try output.problem(nil, doubt) }
            if scope.contains(.files) {
                for number in unfinished {
                    try output.problem(
                        geometry.offset(ofInode: number) == nil ? nil : number,
                        "a change of it was under way: the log says what was intended, and a mount finishes it"
                    )
                }
                try XFSWalk(geometry, disk, range: description.range, output).run()
            }
            if scope.contains(.use), description.knowsUse {
                try XFSUse(geometry, disk).tell(to: output, range: description.range)
            }
        }
        try output.put(.end)
    }

    private static func label(_ sb: XFSView) -> String {
        let bytes = (108..<120).map { sb.u8($0) }
        return String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
    }

    private static func uuid(_ sb: XFSView) -> String {
        UUIDText.text((32..<48).map { sb.u8($0) })
    }
}

enum UUIDText {
    /// 8-4-4-4-12 lower-case digits of 16 bytes; empty when all are zero.
    static func text(_ bytes: [UInt8]) -> String {
        guard bytes.count == 16, bytes.contains(where: { $0 != 0 }) else { return "" }
        var result = ""
        for (index, byte) in bytes.enumerated() {
            if [4, 6, 8, 10].contains(index) { result += "-" }
            result += (byte < 16 ? "0" : "") + String(byte, radix: 16)
        }
        return result
    }
}

/// The sink, with what it threw remembered, so that its errors are not taken for damage of the disk; and the bound of
/// problems.
final class XFSOutput {
    private let sink: any RecordSink
    private var failure: TocError?
    private var problems = 0

    init(_ sink: any RecordSink) { self.sink = sink }

    func put(_ record: VolumeRecord) throws(TocError) {
        do throws(TocError) { try sink.put(record) } catch {
            failure = error
            throw error
        }
    }

    func problem(_ node: UInt64?, _ reason: String) throws(TocError) {
        problems += 1
        guard problems <= XFSLimits.problems else { return }
        let isLast = problems == XFSLimits.problems
        try put(
            .problem(
                isLast
                    ? ReadProblem(reason: "there are more problems than \(problems); they are not told")
                    : ReadProblem(node: node, reason: reason)))
    }

    /// Tells damage; throws everything else on.
    func damage(_ error: TocError, _ node: UInt64?) throws(TocError) {
        guard failure == nil, error.kind == .damaged else { throw error }
        try problem(node, error.description)
    }
}
